"""`ihuyi-voice job` where only the store is known, and where the broker fails."""

from __future__ import annotations

import asyncio
import json
import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from kombu.exceptions import OperationalError
from rich.console import Console
from typer.testing import CliRunner

from ihuyi_voice import OutcomeStatus
from ihuyi_voice.cli.app import app
from ihuyi_voice.store.jobs import JobOutcome, JobState
from tests.store.support import open_store

if TYPE_CHECKING:
    from pathlib import Path

    from ihuyi_voice.store.sql.store import SqlStore

PROGRAM = """
from celery import Celery
from ihuyi_voice.celery import BulkJobs
app = Celery("calls", broker="memory://")
jobs = BulkJobs(app, store={place!r})
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store with the job `spring`: of three rows one is accepted and one limited."""
    monkeypatch.delenv("IHUYI_VOICE_STORE", raising=False)
    place = str(tmp_path / "calls.db")
    with open_store(place) as store:
        generation = store.jobs.create("spring", 5.0)
        store.jobs.note_enqueued("spring", generation, 3, all_rows=False)
        asyncio.run(record(store, generation, {0: "accepted", 1: "limited"}))
    return place


async def record(store: SqlStore, generation: int, statuses: dict[int, str]) -> None:
    outcomes = [
        JobOutcome(index, OutcomeStatus(status), "139****5678")
        for index, status in statuses.items()
    ]
    await store.jobs.record("spring", generation, outcomes, math.inf)


def run(*arguments: str, store: str | None = None) -> Any:
    return CliRunner(env={"IHUYI_VOICE_STORE": store}).invoke(app, ["job", *arguments])


def test_status_and_cancel_need_the_store_alone(place: str) -> None:
    done = run("spring", "--store", place)
    assert (0, "") == (done.exit_code, done.stderr)
    assert "spring: scheduled" in done.stdout
    assert "not all rows are enqueued" in done.stdout
    done = run("spring", "cancel", "--json", store=place)
    report = json.loads(done.stdout)
    assert (0, "canceled", 1, 3) == (
        done.exit_code,
        report["state"],
        report["pending"],
        report["total"],
    )
    # It has ended already.
    done = run("spring", "status", "--follow", store=place)
    assert 3 == done.exit_code
    assert "canceled  accepted 1  refused 0  unknown 0  limited 1" in done.stderr


def test_unknown_rows_have_their_exit_status(place: str) -> None:
    with open_store(place) as store:
        generation = store.jobs.reopen("spring").generation
        asyncio.run(record(store, generation, {1: "unknown", 2: "accepted"}))
        store.jobs.note_enqueued("spring", generation, 3, all_rows=True)
    done = run("spring", store=place)
    assert 6 == done.exit_code
    assert "spring: completed" in done.stdout
    assert f"Unknown rows: 1, listed by: ihuyi-voice store {place}.\n" in done.stdout
    assert "then resume the job" in done.stdout


def test_follow_shows_each_change(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal: a line at first, one after some seconds, and one for the change."""
    pauses: list[float] = []

    def cancel_later(seconds: float) -> None:
        pauses.append(seconds)
        if sum(pauses) > 6:
            with open_store(place) as store:
                store.jobs.cancel("spring")

    monkeypatch.setattr("ihuyi_voice.cli.job_progress.time", SimpleNamespace(sleep=cancel_later))
    done = run("spring", "--follow", store=place)
    assert (3, True) == (done.exit_code, "spring: canceled" in done.stdout)
    counts = "accepted 1  refused 0  unknown 0  limited 1"
    assert [
        f"2/3  scheduled  {counts}",
        f"2/3  scheduled  {counts}",
        f"2/3  canceled  {counts}",
    ] == done.stderr.splitlines()


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ihuyi_voice.cli.job_progress.Console",
        lambda **_: Console(stderr=True, force_terminal=True, width=100),
    )


def test_follow_shows_a_bar_on_a_terminal(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_terminal(monkeypatch)
    with open_store(place) as store:
        store.jobs.cancel("spring")
    done = run("spring", "--follow", store=place)
    assert 3 == done.exit_code
    assert "\x1b" in done.stderr
    assert " 67%" in done.stderr
    assert "canceled  accepted 1" in done.stderr


def test_the_bar_of_a_job_without_rows_shows_no_percentage(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_terminal(monkeypatch)
    with open_store(place) as store:
        store.jobs.create("summer", None)
        store.jobs.cancel("summer")
    done = run("summer", "--follow", store=place)
    assert "canceled  accepted 0" in done.stderr
    assert "%" not in done.stderr


@pytest.mark.parametrize(("status", "state"), [(3, "stopped"), (0, "completed")])
def test_follow_ends_with_the_job(
    place: str, monkeypatch: pytest.MonkeyPatch, status: int, state: str
) -> None:
    with open_store(place) as store:
        generation = store.jobs.create("summer", None)
        if state == "stopped":
            store.jobs.stop_blocking("summer", generation, "the account is empty")
        else:
            store.jobs.note_enqueued("summer", generation, 0, all_rows=True)
    # A pause would raise.
    monkeypatch.setattr("ihuyi_voice.cli.job_progress.time", SimpleNamespace())
    done = run("summer", "--follow", store=place)
    assert (status, f"0/0  {state}  accepted 0  refused 0  unknown 0\n") == (
        done.exit_code,
        done.stderr,
    )


def test_ctrl_c_ends_the_look_and_not_the_job(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ihuyi_voice.cli.job_progress.time", SimpleNamespace(sleep=interrupt))
    done = run("spring", "--follow", store=place)
    assert (0, True) == (done.exit_code, "job 'spring' goes on" in done.stderr)
    assert "spring: scheduled" in done.stdout
    with open_store(place) as store:
        assert JobState.SCHEDULED is store.jobs.status("spring").state


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("name the job's store by --store or IHUYI_VOICE_STORE", ["spring"]),
        ("resume needs --celery", ["spring", "resume", "rows.csv"]),
        ("nothing.db", ["spring", "--store", "nothing.db"]),
        ("the store has no job 'other'", ["other", "--store", "{place}"]),
        ("no password on the command line", ["x", "--store", "mysql://a:password@h/d"]),
    ],
)
def test_what_is_wrong(place: str, words: str, arguments: list[str]) -> None:
    done = run(*(argument.format(place=place) for argument in arguments))
    assert 2 == done.exit_code
    assert words in done.stderr.replace("\n", " ")


def test_a_store_that_fails_has_its_exit_status(tmp_path: Path) -> None:
    path = tmp_path / "calls.db"
    path.write_text("no database" * 100)
    assert 4 == run("spring", "--store", str(path)).exit_code


def test_a_broker_that_fails_has_its_exit_status(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "calls_of_the_shop.py").write_text(PROGRAM.format(place=place))
    (tmp_path / "rows.csv").write_text("tel;pin\n13912345678;1125\n")
    monkeypatch.chdir(tmp_path)

    def away(*_: object, **__: object) -> None:
        msg = "connection refused"
        raise OperationalError(msg)

    monkeypatch.setattr("celery.app.task.Task.apply_async", away)
    columns = ["--mobile-column", "tel", "--content-column", "pin"]
    app_option = ["--celery", "calls_of_the_shop:jobs"]
    done = run("spring", "resume", "rows.csv", *columns, *app_option)
    assert 4 == done.exit_code
    assert "the broker failed: connection refused" in done.stderr
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    done = run("spring", "status", *app_option)
    assert "spring: scheduled" in done.stdout
