"""Workers of one store are killed while they send: no key twice, no number over its limit.

With IHUYI_VOICE_SOAK=1 in the environment each store outlives 8 kills.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice.sandbox import Chaos, SandboxGateway

from .support import open_store, until
from .test_several_processes import place_of

if TYPE_CHECKING:
    from pathlib import Path

KILLS = 8 if os.environ.get("IHUYI_VOICE_SOAK") == "1" else 1
CONCURRENCY = 8
NUMBERS, ROWS_OF_EACH, ALLOWED = 30, 5, 3
ALL = NUMBERS * ROWS_OF_EACH

WORKER = textwrap.dedent(f"""
    import asyncio, sys
    from ihuyi_voice import AsyncVoiceClient, RecipientQuota, Store, SubmitRequest
    place, url = sys.argv[1:]

    # The code names the key, so that the gateway's record does too.
    rows = [
        SubmitRequest(f"139{{n % {NUMBERS}:08d}}", f"{{n:06d}}", f"key {{n}}") for n in range({ALL})
    ]

    async def main():
        quota = RecipientQuota(per_minute=None, per_day={ALLOWED})
        with Store.open(place, patience=0.0) as store:
            async with AsyncVoiceClient(
                "sandbox", "sandbox-key", base_url=url, store=store, quota=quota
            ) as voice:
                run = voice.submit_many(rows, concurrency={CONCURRENCY}, stop_on=None)
                async with run:
                    await run.finish()
    asyncio.run(main())
""")


def has_taken(gateway: SandboxGateway, count: int) -> bool:
    return len(gateway.attempts) >= count


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mariadb"])
def test_after_each_kill_no_key_is_sent_twice(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    place = place_of(kind, request, tmp_path)
    gateway = SandboxGateway(chaos=Chaos(latency=0.02, latency_jitter=0.02))
    command = [sys.executable, "-W", "error", "-c", WORKER, place]
    with gateway.serve_in_thread() as url:
        for kill in range(KILLS):
            # The last call that this worker places, of those that the limits allow.
            last = (kill + 1) * NUMBERS * ALLOWED // (KILLS + 1) - CONCURRENCY
            with subprocess.Popen([*command, url]) as worker:
                try:
                    asyncio.run(until(partial(has_taken, gateway, last)))
                    assert worker.poll() is None
                finally:
                    worker.kill()
            with open_store(place) as store:
                assert store.summary()["unknown"] <= CONCURRENCY * (kill + 1)
        subprocess.run([*command, url], check=True, timeout=120)
    calls = Counter(attempt.content for attempt in gateway.attempts)
    numbers = Counter(attempt.mobile for attempt in gateway.attempts)
    assert {1} == {*calls.values()}
    with open_store(place) as store:
        summary = store.summary()
    # A claim that was lost may have been sent or not, and takes its place either way.
    assert max(numbers.values()) == ALLOWED
    assert NUMBERS * ALLOWED == summary["accepted"] + summary["unknown"]
    assert summary["accepted"] <= len(calls) <= summary["accepted"] + summary["unknown"]
