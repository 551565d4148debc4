"""Many submits in one run: as fast as the limits allow, with one outcome for each row.

A run has workers, and one turn that they share. The worker that has the turn
takes a row, checks it, waits for the quota and the rate, and passes the turn
on before it sends. So rows are taken no faster than they can be sent, and the
failure of one row affects no other row.

At most `concurrency + read_ahead(taken)` rows are taken beyond what the consumer has
read: in flight, read ahead, or with an outcome that waits for the consumer.

This module does not decide how one request is sent (`_pipeline.py`), where
the rows come from (`rows.py`), when the next row may start (`pacing.py`), or
after which outcome the run stops (`options.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, TypeAlias

import anyio

from .._advice import ROW_NOT_SENT, ROW_UNKNOWN, advised
from .._cancellation import is_cancelled
from .._pipeline import status_of
from ..errors import (
    IhuyiVoiceError,
    InvalidRequestError,
    NotSentError,
    OutcomeUnknownError,
    QuotaExceededError,
)
from ..models import BulkReport, Outcome, OutcomeStatus, SubmitRequest
from ..request_log import SUBMIT_MANY
from .options import BulkOptions, StopOn, StopRule, is_account_level
from .outcomes import OutcomeQueue
from .pacing import BulkRow, Intake, Pace, Turn
from .progress import Progress, RunState
from .rows import open_source

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from .._pipeline import Pipeline
    from ..models import SubmitResult
    from ..transport.base import Exchange

__all__ = ["BulkOptions", "BulkRun", "Row", "Rows", "StopOn", "is_account_level"]

Row: TypeAlias = SubmitRequest | tuple[str, str]
Rows: TypeAlias = Iterable[Row] | AsyncIterable[Row]

NOT_STARTED = "the run was stopped before it was this row's turn"
"""The reason of a row that was taken and never tried."""

_RUNNING = RunState.RUNNING


class BulkRun:
    """One bulk run: iterate it to get the outcomes as they finish.

    `AsyncVoiceClient.submit_many` creates it. Use it with `async with`.
    """

    def __init__(
        self,
        open_pipeline: Callable[[], Pipeline],
        requests: Rows,
        options: BulkOptions,
        outcomes: OutcomeQueue | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._open_pipeline = open_pipeline
        self._options = options
        self._progress = Progress()
        self._outcomes = OutcomeQueue() if outcomes is None else outcomes
        self._intake = Intake(
            open_source(requests), self._outcomes, options.in_flight, options.limits
        )
        self._pace = Pace(options.rate, options.limits) if pace is None else pace
        self._stop_rule = StopRule(options.stop_on, options.max_failures_in_row)
        self._workers = _Workers(options.in_flight)

    # --- the block --------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._progress.check_not_entered()
        self._pipeline = self._open_pipeline()
        # `abort` cancels the inner group, which the user's block is not part of.
        self._tasks = anyio.create_task_group()
        self._block = anyio.create_task_group()
        self._progress.enter()
        await self._block.__aenter__()
        self._block.start_soon(self._supervise)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is None or isinstance(exc, Exception):
            self.stop()
        else:
            self.abort()
        # A group must see a cancellation. Any other exception it would wrap.
        is_cancellation = isinstance(exc, anyio.get_cancelled_exc_class())
        if is_cancellation and self._progress.state is not RunState.ENDED:
            await self._block.__aexit__(exc_type, exc, traceback)
        else:
            await self._block.__aexit__(None, None, None)

    async def _supervise(self) -> None:
        """Everything that runs, from the first row to the last outcome."""
        try:
            async with self._tasks:
                self._tasks.start_soon(self._intake.pump)
                await self._workers.run(self._work)
                self._intake.stop()
        finally:
            self._report_rows_not_started()
            self._progress.end()
            self._outcomes.end()

    # --- for the consumer -------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        while True:
            self._outcomes.run_callback_if_due()
            try:
                for outcome in self._outcomes.taking:  # pragma: no branch - it never ends
                    return outcome
            except IndexError:
                pass
            self._progress.check_entered()
            if self._outcomes.is_over():
                self.raise_what_ended_it()
                raise StopAsyncIteration
            await self._outcomes.wait()

    async def finish(self) -> BulkReport:
        """Run to the end without looking at each outcome.

        Raises:
            BulkStoppedError: as iterating does.
        """
        async for _ in self:
            pass
        return self.report

    def stop(self) -> None:
        """Start no more; what is in flight finishes and is reported, then iteration ends."""
        self._progress.stop()
        self._intake.stop()
        self._pace.stop()

    def abort(self) -> None:
        """Stop at once: what is in flight is cancelled and reported, as unknown or not sent."""
        self.stop()
        if self._progress.state is RunState.STOPPING:
            self._tasks.cancel_scope.cancel()

    @property
    def report(self) -> BulkReport:
        """What happened to the rows taken so far; at any time, and after the block."""
        return self._progress.report()

    def raise_what_ended_it(self) -> None:
        """Raise the exception of the caller's own code, or BulkStoppedError; once.

        For the consumer, in any thread, when it has read every outcome.
        """
        self._progress.raise_reason()

    # --- workers ----------------------------------------------------------------

    async def _work(self) -> None:
        """Take one row after the other, and send it."""
        turn = self._workers.turn
        try:
            while True:
                while not turn.take():
                    await turn.wait()
                try:
                    row = await self._take()
                finally:
                    turn.pass_on(self._rows_that_need_no_wait())
                if row is None:
                    return
                self._workers.hire_if_needed()
                await self._send(row)
        except BaseException as error:
            if _is_cancellation(error):
                raise
            # Raised by the caller's clock or store. Its row has an outcome.
            self._break_off(error)

    def _rows_that_need_no_wait(self) -> int:
        """How many rows other workers can take at once."""
        if self._workers.turn.waiting and not self._pace.is_limited:
            return self._intake.ready
        return 1

    async def _take(self) -> BulkRow | None:
        """Wait for a row that may be sent now. None: there is none, or the run stops."""
        while (row := await self._intake.next()) is not None:
            if not await self._admit(row):
                continue
            if self._progress.state is _RUNNING and self._pace.take_start():
                return row
            if await self._may_start(row):
                return row
        return None

    async def _admit(self, row: BulkRow) -> bool:
        """Check a row and reserve its quota. False: it has its outcome, or waits for its quota."""
        request = row.taken
        if isinstance(request, InvalidRequestError):
            self._report_end(row, _name_row(row, request))
            return False
        try:
            row.admitted = admitted = self._pipeline.check(request)
            if admitted.guarded is not None:
                # Its key is claimed and its quota reserved together, outside of the
                # turn.
                return not (self._pace.looks_up and await self._is_known(row))
            if self._pipeline.reservations is not None:
                await self._pipeline.reservations.reserve(admitted)
        except InvalidRequestError as error:
            self._report_end(row, _name_row(row, error))
        except QuotaExceededError as error:
            self._limit(row, error)
        except IhuyiVoiceError as error:
            self._report_end(row, error)
        except BaseException as error:
            # In the quota's store: only the store knows what it reserved.
            self.stop()
            self._report_end(row, _cut_off(error))
            raise
        else:
            return True
        return False

    async def _is_known(self, row: BulkRow) -> bool:
        """Whether the store knows the row; then this reports its outcome."""
        exchange = self._pipeline.exchange()
        result = await self._pipeline.known(row.admitted, exchange)
        if result is not None:
            self._report_end(row, result, exchange)
        return result is not None

    async def _may_start(self, row: BulkRow) -> bool:
        """Wait for the rate. False: the run was stopped meanwhile, and the row is not sent."""
        try:
            if self._progress.state is _RUNNING and not await self._pace.wait_for_start(row.index):
                self.stop()
        except BaseException:
            self.stop()
            await self._withdraw(row)
            raise
        if self._progress.state is _RUNNING:
            return True
        await self._withdraw(row)
        return False

    async def _withdraw(self, row: BulkRow) -> None:
        """Give the row's quota back, and report it as not sent."""
        try:
            if self._pipeline.reservations is not None:
                await self._pipeline.reservations.give_back(row.admitted)
        finally:
            self._report_end(row, _not_started())

    async def _send(self, row: BulkRow) -> None:
        """Send a row and report its outcome."""
        exchange = self._pipeline.exchange()
        exchange.unrecorded = self._progress.unrecorded
        try:
            end: SubmitResult | IhuyiVoiceError = await self._pipeline.send(row.admitted, exchange)
        except InvalidRequestError as error:
            # The store knows its key with another number or content.
            end = _name_row(row, error)
        except QuotaExceededError as error:
            self._limit(row, error, exchange)
            return
        except IhuyiVoiceError as error:
            end = advised(error, not_sent=ROW_NOT_SENT, unknown=ROW_UNKNOWN)
        except BaseException as error:
            # Report what is known of the row. The stop rule is not asked.
            self.stop()
            self._report_end(row, exchange.end or _cut_off(error, exchange), exchange)
            raise
        self._report_end(row, end, exchange)

    # --- outcomes ---------------------------------------------------------------

    def _limit(
        self, row: BulkRow, error: QuotaExceededError, exchange: Exchange | None = None
    ) -> None:
        """A row over its number's limit waits for its quota, or ends as limited."""
        if self._options.wait_for_quota:
            self._intake.defer(row, error)
        else:
            self._report_end(row, error, exchange)

    def _report_rows_not_started(self) -> None:
        """Report the rows that were taken and not started."""
        self.stop()
        for row, error in self._intake.drain_waiting():
            self._report_end(row, error)
        for row in self._intake.drain_read_ahead():
            self._report_end(row, _not_started())
        if self._intake.error is not None:
            self._break_off(self._intake.error)

    def _report_end(
        self,
        row: BulkRow,
        end: SubmitResult | IhuyiVoiceError,
        exchange: Exchange | None = None,
    ) -> None:
        """End a row: log it, give the consumer its outcome, and stop where the rule says so."""
        if isinstance(end, IhuyiVoiceError):
            outcome = Outcome(row.index, row.request, status_of(end), None, end)
        else:
            status = OutcomeStatus.REPLAYED if end.replayed else OutcomeStatus.ACCEPTED
            outcome = Outcome(row.index, row.request, status, end, None)
        status = outcome.status
        self._progress.counts[status] += 1
        try:
            if self._pipeline.log.wants(status):
                self._pipeline.log.end(SUBMIT_MANY, row.request, end, status, exchange)
        except BaseException as error:  # noqa: BLE001 - a function of `on_event` ends the program
            self._break_off(error)
        self._outcomes.put(outcome)
        if self._progress.state is not _RUNNING:
            return
        try:
            stops = self._stop_rule.stops_after(outcome)
        except BaseException as error:  # noqa: BLE001 - raised by the caller's stop_on; the consumer gets it
            self._break_off(error)
            return
        if stops:
            self._progress.stopped_by = outcome
            self.stop()

    def _break_off(self, error: BaseException) -> None:
        """Stop because the caller's own code raised; the consumer gets the exception."""
        if isinstance(error, StopIteration | StopAsyncIteration):
            # The consumer's loop would take it for the end of the run.
            wrapped = RuntimeError(f"a function of the caller's raised {type(error).__name__}")
            wrapped.__cause__ = error
            error = wrapped
        self._progress.set_error(error)
        self.stop()


class _Workers:
    """The tasks that send rows, started one by one as they are needed.

    Attributes:
        turn: the worker that has it takes the next row.
    """

    def __init__(self, limit: int) -> None:
        self.turn: Turn = Turn()
        self._limit = limit
        self._count = 0

    async def run(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        """Start the first worker, and wait until all have ended."""
        self._work = work
        async with anyio.create_task_group() as self._group:
            self._hire()

    def hire_if_needed(self) -> None:
        """Start one more worker if no worker waits for the turn, up to the limit."""
        if not self.turn.waiting and self._count < self._limit:
            self._hire()

    def _hire(self) -> None:
        self._count += 1
        self._group.start_soon(self._work)


def _is_cancellation(error: BaseException) -> bool:
    return isinstance(error, anyio.get_cancelled_exc_class()) and is_cancelled()


def _name_row(row: BulkRow, error: InvalidRequestError) -> InvalidRequestError:
    return InvalidRequestError(f"row {row.index}: {error}")


def _not_started() -> NotSentError:
    return NotSentError(NOT_STARTED, ROW_NOT_SENT)


def _cut_off(error: BaseException, exchange: Exchange | None = None) -> IhuyiVoiceError:
    """What is known of a row after a cancellation, or a foreign exception, ended its sending."""
    written = exchange is not None and exchange.may_have_been_written
    if not _is_cancellation(error):
        reason = f"an unexpected exception ({type(error).__name__})"
    elif written:
        reason = "the run was stopped while the request was in flight"
    else:
        return _not_started()
    end: IhuyiVoiceError = OutcomeUnknownError(reason) if written else NotSentError(reason)
    return advised(end, not_sent=ROW_NOT_SENT, unknown=ROW_UNKNOWN)
