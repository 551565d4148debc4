"""Several simultaneous senders with the same rows and one store."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from ihuyi_voice.sandbox import Chaos, SandboxGateway

from .support import open_store, start

if TYPE_CHECKING:
    from pathlib import Path

    from .postgres import PostgresServer

ROWS, RUNS = 200, 2
MOBILES = [f"139{n:08d}" for n in range(ROWS)]


def bulk(file: Path, place: str, url: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-m", "ihuyi_voice", "bulk", str(file)]
    return subprocess.Popen(
        [*command, "--store", place, "--yes", "--json", "--concurrency", "10"],
        env=os.environ
        | {
            "IHUYI_VOICE_API_ID": "sandbox",
            "IHUYI_VOICE_API_KEY": "sandbox-key",
            "IHUYI_VOICE_BASE_URL": url,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def test_two_runs_of_the_same_file_place_each_row_once(place: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    lines = ["mobile,content", *(f"{mobile},{n:06d}" for n, mobile in enumerate(MOBILES))]
    file.write_text("\n".join(lines), encoding="ascii")
    # Slow enough that the runs overlap.
    # More than the rows, because each run checks the balance while the other uses it.
    gateway = SandboxGateway(balance=RUNS * ROWS, chaos=Chaos(latency=0.1, latency_jitter=0.1))
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(gateway.serve_in_thread())
        runs = [stack.enter_context(bulk(file, place, url)) for _ in range(RUNS)]
        for run in runs:
            stack.callback(run.kill)
        ends = [run.communicate(timeout=120) for run in runs]
    errors = "\n".join(err for _, err in ends)
    assert [0] * RUNS == [run.returncode for run in runs], (ends, errors)
    reports = [json.loads(out) for out, _ in ends]
    accepted = [report["accepted"] for report in reports]
    assert [ROWS - count for count in accepted] == [report["replayed"] for report in reports]
    assert ROWS == sum(accepted)
    # Each run started before the other ended.
    assert all("to send 0," not in err for _, err in ends), errors
    assert MOBILES == sorted(attempt.mobile for attempt in gateway.attempts)
    assert MOBILES == sorted(call.mobile for call in gateway.calls)
    with open_store(place) as store:
        assert {"accepted": ROWS, "refused": 0, "not_sent": 0, "unknown": 0} == store.summary()


# Two machines may claim and settle the same keys in any order. All outcomes are refusals,
# so that in every round claims write rows that other transactions lock.
CLAIM_IN_ANY_ORDER = """
    import random
    async def one(store, key):
        answer = await claim(store, key, timeout=30)
        if answer.entry is None:
            await store.settle(key, answer.token, EntryState.REFUSED)
            return 1
        return 0
    async def main():
        won = 0
        with open_store(place, patience=0) as store:
            await find(store)
            print("ready")
            sys.stdin.readline()
            for _ in range(4):
                keys = [str(i) for i in range(200)]
                random.shuffle(keys)
                won += sum(await asyncio.gather(*(one(store, key) for key in keys)))
        print(won)
    asyncio.run(main())
"""


def test_senders_on_several_machines_never_deadlock(postgres: PostgresServer) -> None:
    place = postgres.empty()
    before = deadlocks(postgres)
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(start(place, CLAIM_IN_ANY_ORDER)) for _ in range(4)]
        for process in processes:
            stack.callback(process.kill)
            assert process.stdout is not None
            assert "ready\n" == process.stdout.readline()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        ends = [process.communicate(timeout=60) for process in processes]
    assert [""] * 4 == [err for _, err in ends]
    assert all(int(out) > 0 for out, _ in ends)
    assert before == deadlocks(postgres)


def deadlocks(postgres: PostgresServer) -> object:
    """How many there were; PostgreSQL counts them when the connections are closed."""
    with contextlib.closing(postgres.connect()) as connection:
        counted = "SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'"
        return connection.execute(counted).fetchone()
