"""Many submits: as fast as the limits allow, each row with an outcome of its own.

A run has workers, and among them one turn: the worker that holds it takes a
row from the source, checks it, waits for the quota and the rate, and passes
the turn on before it sends. So rows are taken no faster than they can be
sent, and a failure of one row touches no other.

At most `concurrency + READ_AHEAD` rows are taken beyond what the consumer has
read: in flight, read ahead, or with an outcome that waits for the consumer.

How one request is sent is `requester.py`'s business, where the rows come from
is `source.py`'s, when to start and to stop `bulk_pacing.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import time
from collections.abc import AsyncIterable, Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias

import anyio

from .._cancellation import is_cancelled
from .._pipeline import Admitted, status_of
from ..errors import (
    BulkStoppedError,
    IhuyiVoiceError,
    InvalidRequestError,
    NotSentError,
    OutcomeUnknownError,
    QuotaExceededError,
)
from ..models import BulkReport, Outcome, OutcomeStatus, SubmitRequest, Unrecorded
from .outcomes import OutcomeQueue
from .pacing import BulkOptions, Pace, StopOn, StopRule, Turn, is_account_level
from .rows import READ_AHEAD, REFILL, Nothing, Taken, open_source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from typing_extensions import Self

    from .._pipeline import Requester
    from ..models import SubmitResult
    from ..transport.aiohttp import Exchange

__all__ = ["BulkOptions", "BulkRun", "Row", "Rows", "StopOn", "is_account_level"]

Row: TypeAlias = SubmitRequest | tuple[str, str]
Rows: TypeAlias = Iterable[Row] | AsyncIterable[Row]

# Rows that may wait for their number's quota, with `wait_for_quota`.
_MOST_LATE = 1000
# How often a worker without room lets the loop go round before it waits: the
# consumer, if it runs in this loop, has read what there is by then.
_ROUNDS = 2


class BulkRun:
    """One bulk run: iterate it for the outcomes, as they finish.

    Made by `AsyncVoiceClient.submit_many`, and used with `async with`.
    """

    def __init__(
        self,
        open_requester: Callable[[], Requester],
        requests: Rows,
        options: BulkOptions,
        outcomes: OutcomeQueue | None = None,
    ) -> None:
        self._source = open_source(requests)
        self._open_requester = open_requester
        self._options = options
        self._outcomes = OutcomeQueue() if outcomes is None else outcomes

        # How far the run has come.
        self._began: float | None = None
        self._ended: float | None = None
        self._stopping = False
        self._stopped_by: Outcome | None = None
        self._broken: BaseException | None = None
        self._told = False
        self._counts = dict.fromkeys(OutcomeStatus, 0)
        self._unrecorded = Unrecorded()
        # Rows: how many were taken, and those that wait for their number's quota.
        self._taken = 0
        self._late: list[tuple[float, int, SubmitRequest, QuotaExceededError]] = []
        # When to start the next row, and whether to.
        self._rule = StopRule(options.stop_on, options.max_failures_in_row)
        self._pace = Pace(options.rate)
        self._turn = Turn()
        self._workers = 0
        self._most_workers = options.in_flight
        # What the holder of the turn waits for: a row, its time, or room for it.
        self._pause: anyio.CancelScope | None = None
        self._awaiting_row = False
        self._room: anyio.Event | None = None

    async def __aenter__(self) -> Self:
        if self._began is not None:
            msg = "a bulk run is used once: call submit_many again"
            raise RuntimeError(msg)
        self._requester = self._open_requester()
        self._began = time.monotonic()
        self._pumping = anyio.create_task_group()
        self._hired = anyio.create_task_group()
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        self._group.start_soon(self._supervise)
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
        # The group would wrap what was raised inside the block; a cancellation it must see.
        if isinstance(exc, anyio.get_cancelled_exc_class()) and self._ended is None:
            await self._group.__aexit__(exc_type, exc, traceback)
        else:
            await self._group.__aexit__(None, None, None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        if self._began is None:
            msg = "a bulk run must be entered first: `async with client.submit_many(...) as run:`"
            raise RuntimeError(msg)
        while True:
            self._outcomes.announce()
            try:
                for outcome in self._outcomes.taking:  # pragma: no branch - it never ends
                    return outcome
            except IndexError:
                pass
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
        self._stopping = True
        self._source.stop()
        if self._pause is not None:
            self._pause.cancel()
        if self._room is not None:
            self._room.set()

    def abort(self) -> None:
        """Stop at once: what is in flight is cancelled and reported, as unknown or not sent."""
        self.stop()
        if self._began is not None:
            self._hired.cancel_scope.cancel()
            self._pumping.cancel_scope.cancel()

    @property
    def report(self) -> BulkReport:
        """What has become of the rows taken so far; at any time, and after the block."""
        began = self._began
        until = time.monotonic() if self._ended is None else self._ended
        stopped = self._stopped_by
        return BulkReport(
            counts=dict(self._counts),
            elapsed=0.0 if began is None else until - began,
            stopped_by=None if stopped is None else stopped.error,
            stopped_at=None if stopped is None else stopped.index,
            unrecorded=self._unrecorded.count,
        )

    def raise_what_ended_it(self) -> None:
        """Raise the exception of the caller's own code, or BulkStoppedError; once.

        For the consumer, in whatever thread, when it has read every outcome.
        """
        error = self._broken
        if error is None and self._stopped_by is not None:
            error = BulkStoppedError(self._stopped_by.error, self.report)
        if error is None or self._told:
            return
        # No call in between: a signal handler's exception there would lose the error.
        self._told = True
        raise error

    # --- outcomes ---------------------------------------------------------------

    def _report_outcome(
        self,
        index: int,
        request: SubmitRequest | None,
        end: SubmitResult | IhuyiVoiceError,
    ) -> None:
        if isinstance(end, IhuyiVoiceError):
            outcome = Outcome(index, request, status_of(end), None, end)
        else:
            status = OutcomeStatus.REPLAYED if end.replayed else OutcomeStatus.ACCEPTED
            outcome = Outcome(index, request, status, end, None)
        self._counts[outcome.status] += 1
        self._outcomes.put(outcome)
        if self._stopping:
            return
        try:
            stops = self._rule.stops_after(outcome)
        except BaseException as error:  # noqa: BLE001 - the predicate's own, for the consumer
            self._break_off(error)
        else:
            if stops:
                self._stopped_by = outcome
                self.stop()

    def _break_off(self, error: BaseException) -> None:
        """Stop because of an exception of the caller's own code; the consumer gets it."""
        if isinstance(error, StopIteration | StopAsyncIteration):
            # To the consumer's loop it would look like the end of the run.
            wrapped = RuntimeError(f"a function of the caller's raised {type(error).__name__}")
            wrapped.__cause__ = error
            error = wrapped
        if self._broken is None and self._stopped_by is None:
            self._broken = error
        self.stop()

    # --- room -------------------------------------------------------------------

    def _free(self) -> int:
        """How many more rows may be taken or read ahead."""
        unread = self._taken - len(self._late) - self._outcomes.read
        return self._most_workers + READ_AHEAD - unread - self._source.ahead

    def _refill(self) -> None:
        """Let the source read ahead as far as there is room."""
        wanted, free = self._source.wants(), self._free()
        if free >= REFILL:
            self._source.grant(min(wanted, free))
        else:
            self._outcomes.call_after(REFILL - free, self._room_came)

    def _room_came(self) -> None:
        if self._source.wants():
            self._refill()
        if self._room is not None:
            self._room.set()

    async def _wait_for_room(self) -> None:
        """Wait until there is room, or the run is stopped."""
        for _ in range(_ROUNDS):
            await asyncio.sleep(0)
            if self._free() > 0 or self._stopping:
                return
        self._outcomes.hurry()
        while not (self._free() > 0 or self._stopping):
            self._room = anyio.Event()
            # Some at a time, not for each row.
            self._outcomes.call_after(REFILL - self._free(), self._room_came)
            await self._room.wait()

    # --- workers ----------------------------------------------------------------

    async def _supervise(self) -> None:
        """Everything that runs, from the first row to the last outcome."""
        try:
            async with self._pumping:
                self._pumping.start_soon(self._source.pump)
                async with self._hired:
                    self._hire()
                self._source.stop()
        finally:
            self._settle()

    def _settle(self) -> None:
        """Rows that were taken and not started end here, so that none is lost."""
        self.stop()
        for _, index, late, error in self._late:
            self._report_outcome(index, late, error)
        self._late.clear()
        for row in self._source.leftovers():
            request = row if isinstance(row, SubmitRequest) else None
            self._report_outcome(self._taken, request, _stopped_before())
            self._taken += 1
        if self._source.error is not None:
            self._break_off(self._source.error)
        self._ended = time.monotonic()
        self._outcomes.end()

    def _hire(self) -> None:
        self._workers += 1
        self._hired.start_soon(self._work)

    async def _work(self) -> None:
        try:
            while True:
                while not self._turn.take():
                    await self._turn.wait()
                try:
                    taken = await self._take()
                finally:
                    self._pass_the_turn_on()
                if taken is None:
                    return
                if not self._turn.waiting and self._workers < self._most_workers:
                    self._hire()
                await self._send(*taken)
        except BaseException as error:
            if _is_cancellation(error):
                raise
            # A clock's or a store's own. Its row has an outcome.
            self._break_off(error)

    async def _send(self, index: int, request: SubmitRequest, admitted: Admitted) -> None:
        exchange = self._requester.exchange()
        exchange.unrecorded = self._unrecorded
        try:
            end: SubmitResult | IhuyiVoiceError = await self._requester.place(admitted, exchange)
        except InvalidRequestError as error:
            # Its key was used for another mobile or content.
            end = _of_row(index, error)
        except QuotaExceededError as limited:
            self._limit(index, request, limited)
            return
        except IhuyiVoiceError as error:
            end = error
        except BaseException as error:
            # The row is not lost, whatever is known of it is said, and no
            # predicate is asked about it.
            self.stop()
            self._report_outcome(index, request, _cut_off(error, exchange))
            raise
        self._report_outcome(index, request, end)

    # --- the turn ---------------------------------------------------------------

    def _pass_the_turn_on(self) -> None:
        """To as many workers as there are rows to take at once, where they need not wait."""
        rows = 1
        if self._turn.waiting and not self._pace.is_limited:
            rows = self._source.ready or self._free()
        self._turn.pass_on(rows)

    async def _take(self) -> tuple[int, SubmitRequest, Admitted] | None:
        """The next row that may be sent now; None when there is none, or none is wanted."""
        while not self._stopping:
            taken = await self._next_row()
            if taken is None:
                break
            index, row = taken
            if isinstance(row, InvalidRequestError):
                self._refuse(index, None, _of_row(index, row))
                continue
            admitted = await self._admit(index, row)
            if admitted is None:
                continue
            if not (self._pace.is_limited or self._stopping) or await self._may_start(
                index, row, admitted
            ):
                return index, row, admitted
        return None

    async def _admit(self, index: int, request: SubmitRequest) -> Admitted | None:
        """The request with its place in the quota; None, and it is settled or waits."""
        try:
            admitted = self._requester.check(request)
            if admitted.keyed is not None:
                # Its place in the quota is reserved once it is claimed. What the
                # ledger knows already is not to use up the rate.
                if self._pace.is_limited and await self._is_known(index, request, admitted):
                    return None
            elif self._requester.quota is not None:
                admitted = await self._requester.reserve(admitted)
        except InvalidRequestError as error:
            self._refuse(index, request, _of_row(index, error))
        except QuotaExceededError as limited:
            self._limit(index, request, limited)
        except IhuyiVoiceError as error:
            self._refuse(index, request, error)
        except BaseException as error:
            # In the quota's store, which alone knows what it reserved.
            self.stop()
            self._report_outcome(index, request, _cut_off(error))
            raise
        else:
            return admitted
        return None

    async def _is_known(self, index: int, request: SubmitRequest, checked: Admitted) -> bool:
        """Whether the ledger knows the row already; then it is settled."""
        result = await self._requester.known(checked)
        if result is not None:
            self._report_outcome(index, request, result)
        return result is not None

    def _limit(self, index: int, request: SubmitRequest, limited: QuotaExceededError) -> None:
        """A row over its number's limit: it waits, or ends so."""
        if self._options.wait_for_quota:
            due = time.monotonic() + limited.retry_after
            heapq.heappush(self._late, (due, index, request, limited))
            if self._awaiting_row and self._pause is not None:
                # It may be due before the row that is waited for.
                self._pause.cancel()
        else:
            self._refuse(index, request, limited)

    async def _next_row(self) -> tuple[int, Taken] | None:
        """A row whose quota should be free by now, or the next of the source."""
        while not self._stopping:
            if self._source.wants():
                self._refill()
            until_due = self._late[0][0] - time.monotonic() if self._late else math.inf
            # A row that was read ahead has its room already.
            if not ((self._source.ahead and until_due > 0.0) or self._free() > 0):
                await self._wait_for_room()
                continue
            if until_due <= 0.0:
                _, index, request, _ = heapq.heappop(self._late)
                return index, request
            row = self._source.take() if len(self._late) < _MOST_LATE else None
            if row is Nothing.LEFT and (self._source.error is not None or not self._late):
                # After an error of the source, rows that wait for their quota are not started.
                break
            if row is not None and not isinstance(row, Nothing):
                self._taken += 1
                return self._taken - 1, row
            self._awaiting_row = True
            with self._pausing(until_due):
                await (self._source.wait() if row is Nothing.YET else anyio.sleep_forever())
            self._awaiting_row = False
        return None

    async def _may_start(self, index: int, request: SubmitRequest, admitted: Admitted) -> bool:
        """Wait for the rate; False, and the row is settled, when the run was stopped meanwhile."""
        may_start = False
        try:
            if not self._stopping:
                with self._pausing(self._pace.seconds_until_next()):
                    await anyio.sleep_forever()
            may_start = not self._stopping
            return may_start
        finally:
            if not may_start:
                self.stop()
                try:
                    await self._requester.give_back(admitted)
                finally:
                    self._report_outcome(index, request, _stopped_before())

    def _refuse(self, index: int, request: SubmitRequest | None, error: IhuyiVoiceError) -> None:
        """A row that is not sent at all: logged like any other."""
        self._requester.log.submit(request, error, status_of(error), time.monotonic())
        self._report_outcome(index, request, error)

    @contextlib.contextmanager
    def _pausing(self, seconds: float) -> Iterator[None]:
        """A wait of at most so long, which `stop` ends."""
        with anyio.move_on_after(seconds) as self._pause:
            yield
        self._pause = None


def _is_cancellation(error: BaseException) -> bool:
    return isinstance(error, anyio.get_cancelled_exc_class()) and is_cancelled()


def _of_row(index: int, error: InvalidRequestError) -> InvalidRequestError:
    return InvalidRequestError(f"row {index}: {error}")


def _stopped_before() -> NotSentError:
    return NotSentError("the run was stopped before it was this row's turn")


def _cut_off(error: BaseException, exchange: Exchange | None = None) -> IhuyiVoiceError:
    """What is known of a row whose sending was ended by a cancellation or its like."""
    written = exchange is not None and exchange.may_have_been_written
    if not _is_cancellation(error):
        reason = f"an unexpected exception ({type(error).__name__})"
        return OutcomeUnknownError(reason) if written else NotSentError(reason)
    if written:
        return OutcomeUnknownError("the run was stopped while this was on its way")
    return _stopped_before()
