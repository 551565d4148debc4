"""Submits per second that a store can record: reserve, claim and settle, nothing is sent.

`python -m benchmarks.stores [URL ...]` measures an SQLite file and each URL, such as
`postgresql+psycopg://user@host/database`, with one process and with four, and prints
one line of JSON. The tables of the store stay in the database. Redis keeps no keys:
there each submit is one reservation.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ihuyi_voice import Store
from ihuyi_voice.store.answer import StoredAnswer
from ihuyi_voice.store.entry import EntryState, Fingerprints
from ihuyi_voice.store.limits import Limited

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ihuyi_voice.store.base import ClaimStore, SharedLimits

_AT_ONCE = 64
_SUBMITS = 5000
_WINDOWS = ((2, 60.0), (10, 86_400.0))
# Far away: the machine's noise is to be measured, and no deadline.
_SECONDS = 600.0
_ANSWER = StoredAnswer(code=2, voice_id="1")


def measure(place: str, processes: int, submits: int) -> float:
    """Submits per second of all processes together, each with as many submits."""
    options = ["--one", place, "--submits", str(submits)]
    command = [sys.executable, "-m", "benchmarks.stores", *options]
    workers = [
        subprocess.Popen(  # noqa: S603 - our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(processes)
    ]
    # All are ready before the first begins.
    for worker in workers:
        _line(worker)
    began = time.perf_counter()
    for worker in workers:
        worker.communicate("\n")
    return processes * submits / (time.perf_counter() - began)


def _line(worker: subprocess.Popen[str]) -> None:
    if worker.stdout is not None:  # pragma: no branch - for type checkers
        worker.stdout.readline()


def run_one(place: str, submits: int) -> None:
    """What one process does, once a line arrives on its standard input."""
    with Store.open(place) as store:
        claims = store.claims
        record = _reserving(store.limits) if claims is None else _claiming(claims)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        asyncio.run(_run(record, submits))


async def _run(record: Callable[[], Awaitable[None]], submits: int) -> None:
    left = iter(range(submits))

    async def work() -> None:
        for _ in left:
            await record()

    await asyncio.gather(*(work() for _ in range(_AT_ONCE)))


def _claiming(claims: ClaimStore) -> Callable[[], Awaitable[None]]:
    fingerprints = Fingerprints("key")

    async def record() -> None:
        key = secrets.token_hex(8)
        limited = Limited(fingerprints.of_number(key), _WINDOWS)
        deadline = time.monotonic() + _SECONDS
        fingerprint = fingerprints.of(key, "1125")
        claim = await claims.claim(key, fingerprint, "139****5678", deadline, 15.0, limited)
        await claims.settle(key, claim.token, EntryState.ACCEPTED, _ANSWER)

    return record


def _reserving(limits: SharedLimits) -> Callable[[], Awaitable[None]]:
    async def record() -> None:
        token = secrets.token_hex(8)
        await limits.reserve(token, token, _WINDOWS, deadline=time.monotonic() + _SECONDS)

    return record


def main(urls: list[str], submits: int) -> None:
    """Measure each store, with one process and with four."""
    with tempfile.TemporaryDirectory() as folder:
        places = {"sqlite": str(Path(folder, "voice.db"))}
        places |= {url.partition(":")[0].partition("+")[0]: url for url in urls}
        rates = {
            name: {str(n): round(measure(place, n, submits)) for n in (1, 4)}
            for name, place in places.items()
        }
    sys.stdout.write(f"{json.dumps(rates)}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("urls", nargs="*")
    parser.add_argument("--submits", type=int, default=_SUBMITS)
    # For the processes that this starts.
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run_one(arguments.one, arguments.submits)
    else:
        main(arguments.urls, arguments.submits)
