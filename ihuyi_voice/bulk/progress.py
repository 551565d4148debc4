"""How far a bulk run has come, and why it stopped."""

from __future__ import annotations

import time
from enum import Enum
from typing import TYPE_CHECKING

from ..errors import BulkStoppedError
from ..models import BulkReport, OutcomeStatus, Unrecorded

if TYPE_CHECKING:
    from ..models import Outcome


class RunState(Enum):
    """The life cycle of a bulk run."""

    NEW = "not entered"
    CANCELED = "stopped before it was entered"
    RUNNING = "starts rows"
    STOPPING = "starts no more rows; requests in flight finish"
    ENDED = "every row that was taken has its outcome"


_NOT_ENTERED = (RunState.NEW, RunState.CANCELED)
_STATE_AFTER_ENTER = {
    RunState.NEW: RunState.RUNNING,
    RunState.CANCELED: RunState.STOPPING,
}
_STATE_AFTER_STOP = {
    RunState.NEW: RunState.CANCELED,
    RunState.RUNNING: RunState.STOPPING,
}


class Progress:
    """The state of a run, what it counted, and what stopped it.

    Attributes:
        state: where in its life cycle the run is.
        counts: how many outcomes have each status.
        unrecorded: outcomes that the store has not recorded yet.
        stopped_by: the outcome after which the stop rule stopped the run.
    """

    def __init__(self) -> None:
        self.state: RunState = RunState.NEW
        self.counts: dict[OutcomeStatus, int] = dict.fromkeys(OutcomeStatus, 0)
        self.unrecorded: Unrecorded = Unrecorded()
        self.stopped_by: Outcome | None = None
        self._entered_at = 0.0
        self._ended_at = 0.0
        self._error: BaseException | None = None
        self._has_raised = False

    # --- the life cycle ---------------------------------------------------------

    @property
    def was_entered(self) -> bool:
        """Whether the block of the run was entered."""
        return self.state not in _NOT_ENTERED

    def check_not_entered(self) -> None:
        """Refuse a second use.

        Raises:
            RuntimeError: the run was entered before.
        """
        if self.was_entered:
            msg = "a bulk run is used once: call submit_many again"
            raise RuntimeError(msg)

    def check_entered(self) -> None:
        """Refuse a use before the block.

        Raises:
            RuntimeError: the run was not entered.
        """
        if not self.was_entered:
            msg = "a bulk run must be entered first: `async with client.submit_many(...) as run:`"
            raise RuntimeError(msg)

    def enter(self) -> None:
        """The block was entered."""
        self._entered_at = time.monotonic()
        self.state = _STATE_AFTER_ENTER[self.state]

    def stop(self) -> None:
        """No more rows are started."""
        self.state = _STATE_AFTER_STOP.get(self.state, self.state)

    def end(self) -> None:
        """Every row that was taken has its outcome."""
        self._ended_at = time.monotonic()
        self.state = RunState.ENDED

    # --- why it stopped, and its report ------------------------------------------

    def set_error(self, error: BaseException) -> None:
        """An exception of the caller's code stopped the run; the first reason counts."""
        if self._error is None and self.stopped_by is None:
            self._error = error

    def raise_reason(self) -> None:
        """Raise why the run stopped: the exception of the caller's code, or BulkStoppedError; once.

        Any thread may call this, after the last outcome.
        """
        error = self._error
        if error is None and self.stopped_by is not None:
            error = BulkStoppedError(self.stopped_by.error, self.report())
        if error is None or self._has_raised:
            return
        # No call in between: an exception of a signal handler there would lose the error.
        self._has_raised = True
        raise error

    def report(self) -> BulkReport:
        """What happened to the rows that were taken so far; at any time, in any thread."""
        stopped_by = self.stopped_by
        return BulkReport(
            counts=dict(self.counts),
            elapsed=self._elapsed(),
            stopped_by=None if stopped_by is None else stopped_by.error,
            stopped_at=None if stopped_by is None else stopped_by.index,
            unrecorded=self.unrecorded.count,
        )

    def _elapsed(self) -> float:
        if not self.was_entered:
            return 0.0
        if self.state is RunState.ENDED:
            return self._ended_at - self._entered_at
        return time.monotonic() - self._entered_at
