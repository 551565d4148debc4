"""`ihuyi-voice job NAME resume FILE` asks before it enqueues, as `bulk --celery` does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from ihuyi_voice import OutcomeStatus, Store
from ihuyi_voice.cli.app import app
from ihuyi_voice.store.jobs import JobState, JobStatus
from tests.cli.test_bulk_command import Screen

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from typer.testing import Result

    from ihuyi_voice.testing import VoiceGateway

WORKERS = """
from celery import Celery
from ihuyi_voice.celery import BulkJobs
app = Celery("calls", broker="memory://")
jobs = BulkJobs(app, store="jobs.db")
"""


class Desk:
    """A `BulkJobs` whose job has these outcomes; it keeps the rows that are enqueued.

    Attributes:
        unresolved: the keys of the unknown calls in its store.
    """

    def __init__(self, **counts: int) -> None:
        self.counts = {one: counts.get(one.value, 0) for one in OutcomeStatus}
        self.rows: list[tuple[str, str]] = []
        self.unresolved = [f"job:spring:{index}" for index in range(counts.get("unknown", 0))]

    def status(self, job: str) -> JobStatus:
        return JobStatus(job, JobState.SCHEDULED, self.counts, 5, True, None, None, None, None)

    def _opened_store(self) -> SimpleNamespace:
        claims = [SimpleNamespace(key=key) for key in self.unresolved]
        return SimpleNamespace(place="jobs.db", unknown=lambda: claims)

    def resume(self, job: str, rows: Iterable[tuple[str, str]], **_: object) -> JobStatus:
        self.rows += rows
        return self.status(job)


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Five good rows, with codes of two lengths, and a bad one."""
    path = tmp_path / "rows.csv"
    rows = "".join(f"1391234567{n},{'1125' if n else '112500'}\n" for n in range(5))
    path.write_text(f"mobile,content\n{rows}139,12\n", encoding="ascii")
    return str(path)


def resume(monkeypatch: pytest.MonkeyPatch, desk: Desk, file: str, *options: str) -> Result:
    monkeypatch.setattr("ihuyi_voice.cli.job_actions.load_jobs", lambda _: desk)
    return CliRunner().invoke(app, ["job", "spring", "resume", file, "--celery", "a:b", *options])


def test_it_says_what_it_will_send_and_refuses_without_a_terminal(
    voice_gateway: VoiceGateway, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(accepted=2, unknown=1, refused=1)
    result = resume(monkeypatch, desk, file)
    assert (2, []) == (result.exit_code, desk.rows)
    assert (
        "rows 5, accepted or unknown earlier 3\n"
        f"to send 2, balance {voice_gateway.balance}\n"
        "ihuyi-voice: nothing was sent: there is no terminal to ask on; give --yes to send\n"
    ) == result.stderr
    result = resume(monkeypatch, desk, file, "--yes")
    assert (0, 5) == (result.exit_code, len(desk.rows))


def test_a_balance_that_is_too_small_needs_its_own_option(
    voice_gateway: VoiceGateway, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice_gateway.balance = 1
    desk = Desk()
    result = resume(monkeypatch, desk, file, "--yes")
    assert (2, []) == (result.exit_code, desk.rows)
    assert "the balance of 1 is too small for 5 calls" in result.stderr
    result = resume(monkeypatch, desk, file, "--yes", "--partial")
    assert (0, 5) == (result.exit_code, len(desk.rows))


def test_a_balance_that_is_not_known_does_not_stop_it(
    voice_gateway: VoiceGateway, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk()
    voice_gateway.frozen = True
    result = resume(monkeypatch, desk, file, "--yes")
    assert "to send 5, balance not known: the gateway refused with code 4050" in result.stderr
    assert (0, 5) == (result.exit_code, len(desk.rows))
    monkeypatch.delenv("IHUYI_VOICE_API_KEY")
    monkeypatch.delenv("IHUYI_VOICE_BASE_URL")
    result = resume(monkeypatch, desk, file, "--yes")
    assert (0, 10) == (result.exit_code, len(desk.rows))
    assert (
        "to send 5, balance not known: IHUYI_VOICE_API_ID and IHUYI_VOICE_API_KEY are not both set"
    ) in result.stderr


def test_it_does_not_ask_where_nothing_is_to_be_sent(
    voice_gateway: VoiceGateway, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(accepted=4, unknown=1)
    result = resume(monkeypatch, desk, file)
    assert (0, 5) == (result.exit_code, len(desk.rows))
    assert "to send 0\n" in result.stderr
    assert not voice_gateway.attempts


def test_it_asks_for_rows_that_a_person_resolved_since(
    voice_gateway: VoiceGateway, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the resume, the job counts them as unknown."""
    desk = Desk(accepted=3, unknown=2)
    # The other keys are not of this job.
    desk.unresolved = ["job:spring:4", "job:spring:x:4", "job:other:3", "login-7"]
    result = resume(monkeypatch, desk, file)
    assert (2, []) == (result.exit_code, desk.rows)
    assert f"to send 1, balance {voice_gateway.balance}\n" in result.stderr


@pytest.mark.measures_processes
@pytest.mark.parametrize("answer", ["n", "Ctrl-C"])
def test_it_asks_on_a_terminal(
    voice_gateway: VoiceGateway,
    file: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
) -> None:
    (tmp_path / "workers.py").write_text(WORKERS)
    monkeypatch.chdir(tmp_path)
    with Store.open("jobs.db") as store:
        store.jobs.create("spring", None)
    screen = Screen("job", "spring", "resume", file, "--celery", "workers:app")
    screen.wait_for("Enqueue 5 calls for the workers of workers:app?")
    screen.wait_for("[y/N")
    if answer == "n":
        screen.type("n\n")
        assert "ihuyi-voice: nothing was sent" in screen.read_to_end()
        assert 0 == screen.status
    else:
        assert "ihuyi-voice: interrupted: nothing was sent" in screen.interrupt_to_end()
        assert 130 == screen.status
    with Store.open("jobs.db") as store:
        assert 0 == store.jobs.status("spring").total
    assert not voice_gateway.attempts
