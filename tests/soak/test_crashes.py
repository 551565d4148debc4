"""`ihuyi-voice bulk --store`, killed at any moment and run again: no phone rings twice.

Sender and gateway are processes of their own, so the gateway's record is what
the rows are accounted against, one by one. With IHUYI_VOICE_SOAK=1 in the
environment each store outlives 10 kills, and it takes minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import pytest

from ihuyi_voice.cli.bulk.keys import RowKeys
from ihuyi_voice.store.entry import UNSETTLED, Entry, EntryState, Fingerprints
from ihuyi_voice.store.writer.operations import Work
from tests.inside import database_of
from tests.soak.gateway import Sandbox, sandbox
from tests.store.support import open_store

if TYPE_CHECKING:
    from pathlib import Path

FULL = os.environ.get("IHUYI_VOICE_SOAK") == "1"
KILLS = 10 if FULL else 2
ROWS = 1000 if FULL else 300
CONCURRENCY = 16
API_KEY = "sandbox-key"
SEED = int(os.environ.get("IHUYI_VOICE_SOAK_SEED", "0")) or random.randrange(1, 1 << 32)

SLOW = {"latency": 0.01, "latency_jitter": 0.02, "seed": SEED}
FAULTS = SLOW | {
    "close_before_reading": 0.02,
    "code": 4053,
    "code_probability": 0.03,
    "no_answer": 0.001,
    "close_after_placing": 0.02,
    "truncate": 0.02,
}


class Row(NamedTuple):
    mobile: str
    content: str


ALL = [Row(f"139{n:08d}", f"{n:06d}") for n in range(ROWS)]


@dataclass
class Job:
    """One file and one store, sent in as many runs as it takes."""

    folder: Path
    gateway: Sandbox
    runs: int = 0

    def __post_init__(self) -> None:
        lines = ["mobile,content", *(",".join(row) for row in ALL)]
        (self.folder / "rows.csv").write_text("\n".join(lines), encoding="ascii")

    def start(self) -> subprocess.Popen[str]:
        self.runs += 1
        command = [sys.executable, "-W", "error", "-m", "ihuyi_voice", "bulk", "rows.csv"]
        options = ["--store", "calls.db", "--out", f"{self.runs}.jsonl", "--yes", "--json"]
        with (self.folder / "said").open("w", encoding="utf-8") as said:
            return subprocess.Popen(
                # A short timeout, after which no run waits for a claim of a killed one.
                [*command, *options, "--concurrency", str(CONCURRENCY), "--timeout", "1"],
                cwd=self.folder,
                env=os.environ
                | {
                    "IHUYI_VOICE_API_ID": "sandbox",
                    "IHUYI_VOICE_API_KEY": API_KEY,
                    "IHUYI_VOICE_BASE_URL": self.gateway.url,
                },
                stdout=subprocess.PIPE,
                stderr=said,
                encoding="utf-8",
            )

    def run_and_kill(self, dice: random.Random, kills_left: int) -> str:
        """Kill a run at a random submit of its share of the rows; return which."""
        claimed = self.claimed()
        share = (ROWS - self.gateway.taken) // kills_left - CONCURRENCY
        # Some early, so that they also strike before the first submit.
        seconds = dice.uniform(0, 2) if dice.random() < 0.3 else 60.0
        count = self.gateway.taken + dice.randint(1, max(1, share))
        pause = dice.uniform(0, 0.01)
        status = None
        while status is None:
            with self.start() as process:
                self.gateway.wait_until_taken(count, seconds, process)
                self.gateway.wait_until_taken(sys.maxsize, pause, process)
                process.kill()
            status = self.status(process)
        assert -signal.SIGKILL == status, self.said
        # Rows that were claimed and whose outcome the killed process did not record.
        assert self.claimed() - claimed <= CONCURRENCY
        return f"{self.gateway.taken}"

    def run_to_the_end(self) -> dict[str, object]:
        out, status = "", None
        while status is None:
            with self.start() as process:
                try:
                    out, _ = process.communicate(timeout=120)
                finally:
                    process.kill()
            status = self.status(process)
        assert status in (0, 3, 6), self.said
        report: dict[str, object] = json.loads(out)
        return report

    def status(self, ended: subprocess.Popen[str]) -> int | None:
        """The exit status; None where a fault hid the balance, so that it must start again."""
        return None if "the balance is not known" in self.said else ended.returncode

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text(encoding="utf-8")

    def claimed(self) -> int:
        """How many rows are claimed and not settled; counted in a copy, because opening repairs."""
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for file in self.folder.glob("calls.db*"):
            shutil.copy(file, copy)
        with (
            contextlib.suppress(LookupError),
            open_store(copy / "calls.db", create=False) as store,
            database_of(store).connect(writing=False) as connection,
        ):
            return connection.counts().get(EntryState.CLAIMED, 0)
        return 0

    def entries(self) -> dict[Row, Entry]:
        """What the store holds of the rows."""
        with open_store(self.folder / "calls.db") as store:
            keys = RowKeys(Fingerprints(API_KEY), store.id, "rows.csv")
            by_key = {keys.key(*row): row for row in ALL}
            with database_of(store).connect(writing=False) as connection:
                found = connection.apply(Work([], [], list(by_key), [], [])).found
            assert sum(store.summary().values()) == len(found), "some keys are of no row"
        return {by_key[key]: entry for key, entry in found.items()}

    def reported(self) -> list[tuple[Row, str, str | None]]:
        """Status and voice id of each outcome that any of the runs got to write down."""
        lines = [
            line
            for run in range(1, self.runs + 1)
            if (out := self.folder / f"{run}.jsonl").exists()
            # A line may have been cut off by the kill.
            for line in out.read_text(encoding="utf-8").splitlines(keepends=True)
            if line.endswith("\n")
        ]
        outcomes = [json.loads(line) for line in lines]
        # The first line is the header.
        return [(ALL[o["line"] - 2], o["status"], o["voice_id"]) for o in outcomes]


def wrong(job: Job, entries: dict[Row, Entry]) -> list[str]:
    """Every row on which store, gateway and outcomes disagree."""
    attempts = job.gateway.control("GET", "attempts")
    assert isinstance(attempts, list)
    seen: dict[Row, list[str | None]] = {row: [] for row in ALL}
    for attempt in attempts:
        seen[Row(attempt["mobile"], attempt["content"])].append(attempt["voice_id"])
    found: list[str] = []
    for row in ALL:
        *before, last = seen[row] or [None]
        state, voice_id = entries[row].state, entries[row].answer.voice_id
        faults = {
            "was sent again after it had been placed": any(before),
            f"is accepted as {voice_id}, and the gateway placed {last}": (
                state is EntryState.ACCEPTED and (last is None or voice_id != last)
            ),
            f"was placed, and is {state.value}": (
                last is not None and state not in (EntryState.ACCEPTED, *UNSETTLED)
            ),
            f"never reached the gateway, and is {state.value}": (
                not seen[row] and state not in UNSETTLED
            ),
        }
        found += [f"{row.mobile} {fault}" for fault, found_it in faults.items() if found_it]
    return found + [
        f"{row.mobile} was reported as {status}, and is {entries[row].state.value}"
        for row, status, voice_id in job.reported()
        if (status in ("accepted", "replayed") and voice_id != entries[row].answer.voice_id)
        or (status == "unknown" and entries[row].state not in UNSETTLED)
    ]


@pytest.mark.parametrize("chaos", [SLOW, FAULTS], ids=["a good gateway", "a bad gateway"])
def test_after_any_number_of_kills_each_row_is_placed_once(
    tmp_path: Path, chaos: dict[str, float]
) -> None:
    dice = random.Random(SEED)
    with sandbox(ROWS) as gateway:
        gateway.control("PUT", "chaos", chaos)
        job = Job(tmp_path, gateway)
        moments = [job.run_and_kill(dice, KILLS - n) for n in range(KILLS)]
        report = job.run_to_the_end()
        entries = job.entries()
        context = f"IHUYI_VOICE_SOAK_SEED={SEED}, killed at the submits {', '.join(moments)}"
        assert ROWS == len(entries), context
        assert [] == wrong(job, entries), context
        sent = gateway.taken
    assert (ROWS, "", False) == (report["rows"], report["stopped"], report["interrupted"]), context

    states = Counter(entry.state for entry in entries.values())
    # The store also keeps the limit of each number: a refused row that is tried too often
    # within a minute is not sent.
    ends = (*UNSETTLED, EntryState.ACCEPTED, EntryState.REFUSED, EntryState.NOT_SENT)
    assert {*ends} >= states.keys(), context
    if chaos is SLOW:
        # Only the kills interfered, so nothing was even sent twice.
        assert {EntryState.ACCEPTED, EntryState.CLAIMED} >= states.keys(), context
        assert sent <= ROWS, context
    else:
        assert states[EntryState.UNKNOWN] > 0, context
    counts = ", ".join(f"{count} {state.value}" for state, count in states.items())
    # For a run with `pytest -s`.
    print(f"{KILLS} kills, {sent} submits of {ROWS} rows: {counts}; {context}")  # noqa: T201
