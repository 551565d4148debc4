"""The life cycle of a bulk run, and what it raises at its end."""

from __future__ import annotations

import pytest

from ihuyi_voice import BulkStoppedError, NotSentError, Outcome, OutcomeStatus
from ihuyi_voice.bulk.progress import Progress, RunState


@pytest.mark.parametrize(
    ("state", "steps"),
    [
        (RunState.NEW, []),
        (RunState.CANCELED, ["stop"]),
        (RunState.CANCELED, ["stop", "stop"]),
        (RunState.RUNNING, ["enter"]),
        (RunState.STOPPING, ["stop", "enter"]),
        (RunState.STOPPING, ["enter", "stop", "stop"]),
        (RunState.ENDED, ["enter", "end"]),
        (RunState.ENDED, ["enter", "stop", "end", "stop"]),
    ],
)
def test_each_step_leads_to_the_next_state(state: RunState, steps: list[str]) -> None:
    progress = Progress()
    for step in steps:
        getattr(progress, step)()
    assert state is progress.state
    assert ("enter" in steps) is progress.was_entered


def test_the_first_error_is_raised_once() -> None:
    progress, error = Progress(), KeyError()
    progress.set_error(error)
    progress.set_error(ValueError())
    with pytest.raises(KeyError) as caught:
        progress.raise_reason()
    assert error is caught.value
    progress.raise_reason()


def test_the_outcome_that_stopped_a_run_wins_over_a_later_error() -> None:
    progress = Progress()
    progress.stopped_by = Outcome(3, None, OutcomeStatus.NOT_SENT, None, NotSentError("no route"))
    progress.set_error(ValueError())
    with pytest.raises(BulkStoppedError) as caught:
        progress.raise_reason()
    assert 3 == caught.value.report.stopped_at
