"""Milliseconds of `submit`, `start` and `check` with a store in an SQLite file, one at a time.

`python -m benchmarks.verification` prints one line of JSON. The three take turns,
so that a slow moment of the machine affects all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ihuyi_voice import AsyncVerifier, AsyncVoiceClient, Store

from . import ACCOUNT, API_KEY
from .rounds import stub_gateway

if TYPE_CHECKING:
    from collections.abc import Awaitable

_WARM_UP = 10


async def measure(url: str, rounds: int) -> dict[str, dict[str, float]]:
    """The least and the median milliseconds of each; `submit` has a key, as `start`'s call has."""
    took: dict[str, list[float]] = {"submit": [], "start": [], "check": []}

    async def timed(name: str, call: Awaitable[object]) -> object:
        began = time.perf_counter()
        result = await call
        took[name].append((time.perf_counter() - began) * 1000)
        return result

    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder, "store.db")) as store:
        async with AsyncVoiceClient(ACCOUNT, API_KEY, base_url=url, store=store) as client:
            verifier = AsyncVerifier(client, key=b"0123456789abcdef" * 2)
            for serial in range(_WARM_UP + rounds):
                other, mobile = f"138{serial:08d}", f"139{serial:08d}"
                await timed("submit", client.submit(other, "112512", idempotency_key=other))
                id_ = verifier.new_id()
                await timed("start", verifier.start(mobile, purpose="login", id=id_))
                guess = verifier.check(id_, "000000", mobile=mobile, purpose="login")
                await timed("check", guess)
    return {
        name: {"min_ms": min(some[_WARM_UP:]), "median_ms": statistics.median(some[_WARM_UP:])}
        for name, some in took.items()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="benchmarks.verification", description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    with stub_gateway() as stub_url:
        print(json.dumps(asyncio.run(measure(stub_url, options.rounds))))
