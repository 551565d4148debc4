"""A bulk run of very many rows: each has one outcome, and the memory does not grow.

Gateway and sender run in separate processes, so that the sender's memory can be
measured and the gateway's record is independent. With
IHUYI_VOICE_SOAK=1 in the environment the runs have their full size, and take
minutes.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import anyio
import pytest

from ihuyi_voice import AsyncVoiceClient, OutcomeStatus, RecipientQuota
from ihuyi_voice._loops import fast_loop_factory
from tests.soak.gateway import control, sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

FULL = os.environ.get("IHUYI_VOICE_SOAK") == "1"
BLACKLISTED = "13800000000"
MB = 1_000_000
# What MemoryQuotaStore says of a number that was called once, and what an
# allocator may take for it.
BYTES_PER_NUMBER = 400
# Of resident memory, which comes in pages and goes back late.
MOST_GROWTH = 1.5 * MB if FULL else 0.8 * MB

CHAOS = {
    "latency": 0.001,
    "latency_jitter": 0.002,
    "close_before_reading": 0.03,
    "code": 4053,
    "code_probability": 0.03,
    "no_answer": 0.002,
    "close_after_placing": 0.03,
    "truncate": 0.03,
    "html_502": 0.03,
    "garbage": 0.03,
    "seed": 11,
}


@dataclass(frozen=True)
class Job:
    """The sender's arguments."""

    url: str
    rows: int
    mark: int
    quota: bool
    timeout: float
    max_failures_in_row: int | None
    outcomes: str


@dataclass(frozen=True)
class Memory:
    """The sender's resident memory in bytes, after `mark` rows and after all of them."""

    at_mark: int
    at_end: int


def generated(count: int) -> Iterator[tuple[str, str]]:
    """Unique rows; some are invalid, some to a blacklisted number."""
    for n in range(count):
        mobile, content = f"139{n:08d}", f"{n:06d}"
        if n % 50 == 1:
            content = "12ab"
        elif n % 50 == 2:
            mobile = BLACKLISTED
        yield mobile, content


# --- the sender --------------------------------------------------------------


async def send(job: Job, file: TextIO) -> Memory:
    """Send the rows; write each outcome to the file: index, status and voice id."""
    quota = RecipientQuota() if job.quota else None
    at_mark, count = 0, 0
    async with AsyncVoiceClient(
        "sandbox", "sandbox-key", base_url=job.url, timeout=job.timeout, quota=quota
    ) as client:
        async with client.submit_many(
            generated(job.rows), concurrency=64, max_failures_in_row=job.max_failures_in_row
        ) as run:
            async for outcome in run:
                voice_id = outcome.result.voice_id if outcome.result else None
                file.write(f"{outcome.index} {outcome.status.value} {voice_id}\n")
                count += 1
                if count == job.mark:
                    at_mark = resident()
        return Memory(at_mark, resident())


def resident() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def run_sender(job: Job) -> Memory:
    """Run `send` in a separate process."""
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__, json.dumps(asdict(job))],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=300,
        check=True,
    )
    return Memory(**json.loads(done.stdout))


# --- the record -------------------------------------------------------------


def check_against_the_record(job: Job) -> Counter[OutcomeStatus]:
    """Assert one outcome for each row, consistent with the gateway's record; count them."""
    attempts = control(job.url, "GET", "attempts")
    assert isinstance(attempts, list)
    seen = {(a["mobile"], a["content"]): a["voice_id"] for a in attempts}
    # No row was sent twice.
    assert len(attempts) == len(seen)

    lines = Path(job.outcomes).read_text(encoding="utf-8").splitlines()
    outcomes: dict[int, tuple[OutcomeStatus, str]] = {}
    for line in lines:
        number, value, voice_id = line.split(" ")
        outcomes[int(number)] = OutcomeStatus(value), voice_id
    assert job.rows == len(lines) == len(outcomes)

    rows = list(generated(job.rows))
    assert seen.keys() <= set(rows)
    wrong = [n for n, row in enumerate(rows) if not _agree(*outcomes[n], row, seen)]
    assert [] == wrong[:20]
    return Counter(status for status, _ in outcomes.values())


def _agree(
    status: OutcomeStatus,
    voice_id: str,
    row: tuple[str, str],
    seen: dict[tuple[str, str], str | None],
) -> bool:
    if status is OutcomeStatus.ACCEPTED:
        return voice_id == seen.get(row)
    if status is OutcomeStatus.REFUSED:
        return row in seen and seen[row] is None
    return status is OutcomeStatus.UNKNOWN or row not in seen


def report(measured: str) -> None:
    """Print it for a run with `pytest -s`."""
    print(measured)  # noqa: T201 - see above


# --- the runs ----------------------------------------------------------------

SIZES = (15_000, 3_000) if FULL else (3_000, 1_000)
# The outcomes are compared with its record, so it must keep every attempt.
REMEMBERS = ("--keep", str(SIZES[0]))
linux = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc"
)


@linux
def test_a_long_run_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    count, mark = SIZES
    with sandbox(count, *REMEMBERS, "--blacklist", BLACKLISTED) as gateway:
        job = Job(gateway.url, count, mark, False, 15.0, 20, str(tmp_path / "outcomes"))
        memory = run_sender(job)
        counted = check_against_the_record(job)
    fiftieth = count // 50
    assert counted == {
        OutcomeStatus.ACCEPTED: count - 2 * fiftieth,
        OutcomeStatus.REFUSED: fiftieth,
        OutcomeStatus.INVALID: fiftieth,
    }
    growth = memory.at_end - memory.at_mark
    report(f"{count} rows: {memory.at_mark / MB:.1f} MB and {growth / MB:+.1f} MB")
    assert growth < MOST_GROWTH


@linux
def test_the_quota_takes_its_documented_memory_for_each_number(tmp_path: Path) -> None:
    count, mark = SIZES
    with sandbox(count, *REMEMBERS, "--blacklist", BLACKLISTED) as gateway:
        job = Job(gateway.url, count, mark, True, 15.0, 20, str(tmp_path / "outcomes"))
        memory = run_sender(job)
        counted = check_against_the_record(job)
    fiftieth = count // 50
    assert counted == {
        OutcomeStatus.ACCEPTED: count - 2 * fiftieth,
        OutcomeStatus.INVALID: fiftieth,
    } | _blacklisted(counted, fiftieth)
    growth = memory.at_end - memory.at_mark
    report(f"{count} numbers: {growth / (count - mark):.0f} bytes for each")
    assert growth < (count - mark) * BYTES_PER_NUMBER + 0.8 * MB


def _blacklisted(counted: Counter[OutcomeStatus], rows: int) -> dict[OutcomeStatus, int]:
    """The quota lets two calls a minute through; the gateway refuses these."""
    refused = counted[OutcomeStatus.REFUSED]
    assert refused in (2, 4, 6, 8, 10)
    return {OutcomeStatus.REFUSED: refused, OutcomeStatus.LIMITED: rows - refused}


@pytest.mark.measures_processes
def test_every_chaos_at_once(tmp_path: Path) -> None:
    count = 5_000 if FULL else 2_000
    with sandbox(count, *REMEMBERS, "--blacklist", BLACKLISTED) as gateway:
        gateway.control("PUT", "chaos", CHAOS)
        job = Job(gateway.url, count, count, False, 2.0, None, str(tmp_path / "outcomes"))
        run_sender(job)
        counted = check_against_the_record(job)
    report(f"{count} rows: " + ", ".join(f"{n} {status.value}" for status, n in counted.items()))
    assert counted[OutcomeStatus.ACCEPTED] > count * 0.6
    assert counted[OutcomeStatus.UNKNOWN] > count * 0.1
    assert counted[OutcomeStatus.REFUSED] > count * 0.03
    assert counted[OutcomeStatus.INVALID] == count // 50


if __name__ == "__main__":
    job = Job(**json.loads(sys.argv[1]))
    with Path(job.outcomes).open("w", encoding="utf-8") as file:
        memory = anyio.run(send, job, file, backend_options={"loop_factory": fast_loop_factory()})
    sys.stdout.write(json.dumps(asdict(memory)))
