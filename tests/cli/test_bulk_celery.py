"""`ihuyi-voice bulk --celery`: what it asks, and what it says when enqueueing ends early."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from ihuyi_voice import StoreError
from ihuyi_voice.cli.app import app
from ihuyi_voice.cli.bulk.consent import question_for_workers
from ihuyi_voice.store.jobs import JobState

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ihuyi_voice.testing import VoiceGateway


class Desk:
    """A `BulkJobs` that enqueues one row, and then fails."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.rows: list[Any] = []

    def submit(self, rows: Iterable[Any], **_: object) -> None:
        self.rows.append(next(iter(rows)))
        raise self.error


class CanceledDesk:
    """A `BulkJobs` whose job another person cancels while rows are enqueued."""

    def submit(self, rows: Iterable[Any], **_: object) -> SimpleNamespace:
        return SimpleNamespace(total=len(list(rows)), is_enqueued=False, state=JobState.CANCELED)


def test_a_job_that_was_canceled_meanwhile(
    voice_gateway: VoiceGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("mobile,content\n13912345678,1125\n", encoding="ascii")
    monkeypatch.setattr("ihuyi_voice.cli.job_actions.load_jobs", lambda _: CanceledDesk())
    options = ["--celery", "shop:app", "--job", "spring", "--yes"]
    result = CliRunner().invoke(app, ["bulk", str(file), *options])
    assert 0 == result.exit_code, result.stderr
    assert "job 'spring': 1 row enqueued" in result.stderr
    assert "the job was canceled meanwhile: resume it" in result.stderr
    assert not voice_gateway.calls


@pytest.mark.parametrize(
    ("error", "words"),
    [(KeyboardInterrupt(), "KeyboardInterrupt"), (StoreError("it is down"), "it is down")],
    ids=repr,
)
def test_enqueueing_that_ends_early_says_that_rows_are_sent(
    error: BaseException,
    words: str,
    voice_gateway: VoiceGateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("mobile,content\n13912345678,1125\n13812345678,1126\n", encoding="ascii")
    desk = Desk(error)
    monkeypatch.setattr("ihuyi_voice.cli.job_actions.load_jobs", lambda _: desk)
    options = ["--celery", "shop:app", "--job", "spring", "--yes"]
    result = CliRunner().invoke(app, ["bulk", str(file), *options])
    assert 4 == result.exit_code, result.stderr
    assert "nothing was sent" not in result.stderr
    assert words in result.stderr
    assert "The rows that were enqueued are sent; resume job 'spring'" in result.stderr
    assert [("13912345678", "1125")] == desk.rows
    assert not voice_gateway.calls


def test_the_question_names_the_workers_and_not_the_gateway_of_the_command() -> None:
    asked = question_for_workers(2, "shop:app")
    assert asked.startswith("Enqueue 2 calls for the workers of shop:app? They use the account")
    assert asked.endswith("real phones may ring.")
