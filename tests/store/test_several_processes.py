"""Several processes share one store: together they keep the limit of each number.

Every process has a client of its own, and all of them submit at once. The
gateway is the test's, so that its record says what reached it.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice.sandbox import SandboxGateway

from .redis_server import running_redis

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .mariadb import MariaDbServer
    from .postgres import PostgresServer
    from .redis_server import RedisServer

NUMBERS = ("13912345678", "13812345678")
# Not the default, so that no minute passes on a slow machine: 3 in one day.
ALLOWED = 3
PROCESSES = 4
SUBMITS = 200
NOWHERE = "http://127.0.0.1:1"

KINDS = ["sqlite", "postgresql", "mariadb", "redis"]
WITH_KEYS = [
    (kind, keyed) for kind in KINDS for keyed in (False, True) if (kind, keyed) != ("redis", True)
]


def place_of(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The place of a store of this kind that does not exist yet."""
    if kind == "sqlite":
        return str(tmp_path / "calls.db")
    name = {"postgresql": "postgres", "redis": "redis_server"}.get(kind, kind)
    server: PostgresServer | MariaDbServer | RedisServer = request.getfixturevalue(name)
    return server.empty()


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def gateway() -> Iterator[tuple[SandboxGateway, str]]:
    """A gateway with no limit of its own, and its URL."""
    gateway = SandboxGateway()
    with gateway.serve_in_thread() as url:
        yield gateway, url


def reached(gateway: SandboxGateway) -> dict[str, int]:
    """How many calls of each number reached the gateway."""
    return dict(Counter(attempt.mobile for attempt in gateway.attempts))


SUBMITTER = textwrap.dedent("""
    import asyncio, os, sys
    from collections import Counter
    from ihuyi_voice import AsyncVoiceClient, OutcomeStatus, RecipientQuota, Store
    from ihuyi_voice.errors import IhuyiVoiceError
    from ihuyi_voice._pipeline import status_of
    place, url, mobile, submits, allowed, keyed = sys.argv[1:]

    async def one(client, n):
        key = f"{os.getpid()}-{n}" if keyed == "True" else None
        try:
            await client.submit(mobile, "1125", idempotency_key=key)
        except IhuyiVoiceError as error:
            return status_of(error).value
        return "accepted"

    async def main():
        quota = RecipientQuota(per_minute=None, per_day=int(allowed))
        with Store.open(place) as store:
            async with AsyncVoiceClient(
                "sandbox", "sandbox-key", base_url=url, store=store, quota=quota,
                connect_attempts=1, timeout=60.0,
            ) as client:
                print("ready", flush=True)
                sys.stdin.readline()
                ends = await asyncio.gather(*(one(client, n) for n in range(int(submits))))
        print(*(f"{end}={count}" for end, count in sorted(Counter(ends).items())))
    asyncio.run(main())
""")


def run_at_once(place: str, url: str, *, keyed: bool) -> dict[str, Counter[str]]:
    """Let all processes submit at once; returns how the submits of each number ended."""
    with contextlib.ExitStack() as stack:
        processes = []
        for n in range(PROCESSES):
            mobile = NUMBERS[n % len(NUMBERS)]
            arguments = [place, url, mobile, SUBMITS // PROCESSES, ALLOWED, keyed]
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-W", "error", "-c", SUBMITTER, *map(str, arguments)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            processes.append((mobile, process))
        for _, process in processes:
            assert process.stdout is not None
            assert "ready\n" == process.stdout.readline()
        for _, process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        ends: dict[str, Counter[str]] = {mobile: Counter() for mobile in NUMBERS}
        for mobile, process in processes:
            out, _ = process.communicate(timeout=120)
            assert 0 == process.returncode
            for word in out.split():
                status, _, count = word.partition("=")
                ends[mobile][status] += int(count)
    return ends


@pytest.mark.parametrize(("kind", "keyed"), WITH_KEYS)
def test_four_processes_keep_the_limit_of_each_number(
    kind: str,
    keyed: bool,
    gateway: tuple[SandboxGateway, str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    record, url = gateway
    place = place_of(kind, request, tmp_path)
    each = SUBMITS // len(NUMBERS)
    # Nothing is sent, so each place is free again.
    for mobile, ends in run_at_once(place, NOWHERE, keyed=keyed).items():
        assert {"not_sent", "limited"} >= ends.keys(), mobile
        assert ends["not_sent"] >= ALLOWED, mobile
        assert each == ends.total(), mobile
    assert {} == reached(record)
    first = {"accepted": ALLOWED, "limited": each - ALLOWED}
    assert dict.fromkeys(NUMBERS, first) == run_at_once(place, url, keyed=keyed)
    assert dict.fromkeys(NUMBERS, ALLOWED) == reached(record)
    # Other processes know it later.
    later = {"limited": each}
    assert dict.fromkeys(NUMBERS, later) == run_at_once(place, url, keyed=keyed)
    assert dict.fromkeys(NUMBERS, ALLOWED) == reached(record)
