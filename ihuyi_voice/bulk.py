"""Many submits: as fast as the limits allow, each row with an outcome of its own.

A run has workers, and among them one turn: whoever holds it takes a row from
the source, checks it, waits for the quota and the rate, and passes the turn
on before it sends. So rows are taken no faster than they can be sent, and a
failure of one row touches no other.

How one request is sent is `requester.py`'s business; where the rows come from
is `source.py`'s.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import time
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias

import anyio

from .errors import (
    BulkStoppedError,
    GatewayError,
    IhuyiVoiceError,
    InvalidRequestError,
    NotSentError,
    OutcomeUnknownError,
    QuotaExceededError,
)
from .models import BulkReport, Outcome, OutcomeStatus, SubmitRequest, check_count
from .requester import Admitted, status_of
from .source import Nothing, open_source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from typing_extensions import Self

    from .models import SubmitResult
    from .requester import Requester

Row: TypeAlias = SubmitRequest | tuple[str, str]
Rows: TypeAlias = Iterable[Row] | AsyncIterable[Row]
StopOn: TypeAlias = Callable[[Outcome], bool]

# Outcomes that may lie waiting for a slow consumer before no more are started.
_UNREAD = 256
# Rows that may wait for their number's quota, with `wait_for_quota`.
_MOST_LATE = 1000
# How far, in seconds, starts may catch up with the rate after a hold-up.
_CATCH_UP = 0.1

_FAILURES = (OutcomeStatus.UNKNOWN, OutcomeStatus.NOT_SENT)
_CONTACTS = (OutcomeStatus.ACCEPTED, OutcomeStatus.REFUSED)


def is_account_level(outcome: Outcome) -> bool:
    """Whether every further request would be refused the same way."""
    return isinstance(outcome.error, GatewayError) and outcome.error.account_level


class BulkRun:
    """One bulk run: iterate it for the outcomes, as they finish.

    Made by `AsyncVoiceClient.submit_many`, and used with `async with`.
    """

    def __init__(  # noqa: PLR0913 - the options of `submit_many`
        self,
        open_requester: Callable[[], Requester],
        requests: Rows,
        *,
        concurrency: int,
        rate: float | None,
        stop_on: StopOn | None,
        max_failures_in_row: int | None,
        wait_for_quota: bool,
    ) -> None:
        check_count("concurrency", concurrency)
        if rate is not None and (
            isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf
        ):
            msg = f"rate is in starts per second, a number above 0 or None, not {rate!r}"
            raise ValueError(msg)
        if max_failures_in_row is not None:
            check_count("max_failures_in_row", max_failures_in_row)
        self._source = open_source(requests)
        self._open_requester = open_requester
        self._concurrency = concurrency
        self._interval = 0.0 if rate is None else 1.0 / rate
        self._stop_on = stop_on
        self._most_failures = math.inf if stop_on is None else max_failures_in_row or math.inf
        self._wait_for_quota = wait_for_quota

        # How far the run has come.
        self._began: float | None = None
        self._ended: float | None = None
        self._stopping = False
        self._stopped_by: Outcome | None = None
        self._told = False
        self._broken: Exception | None = None
        self._counts = dict.fromkeys(OutcomeStatus, 0)
        self._failures_in_row = 0
        # Outcomes nobody has read yet, and who waits for one or for room.
        self._outcomes: deque[Outcome] = deque()
        self._news: anyio.Event | None = None
        self._room: anyio.Event | None = None
        # Rows: how many were taken, and those that wait for their number's quota.
        self._taken = 0
        self._late: list[tuple[float, int, SubmitRequest, QuotaExceededError]] = []
        self._next_start = 0.0
        # Workers, and the wait that the holder of the turn is in.
        self._workers = 0
        self._turn_taken = False
        self._waiting_for_turn: deque[anyio.Event] = deque()
        self._pause: anyio.CancelScope | None = None
        self._awaiting_row = False

    async def __aenter__(self) -> Self:
        if self._began is not None:
            msg = "a bulk run is used once: call submit_many again"
            raise RuntimeError(msg)
        self._requester = self._open_requester()
        self._began = self._next_start = time.monotonic()
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
        if isinstance(exc, anyio.get_cancelled_exc_class()):
            await self._group.__aexit__(exc_type, exc, traceback)
        else:
            await self._group.__aexit__(None, None, None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        if not self._outcomes and not await self._wait_for_outcome():
            raise StopAsyncIteration
        return self._read()

    async def next_batch(self, linger: float = 0.0) -> list[Outcome]:
        """All outcomes there are, at least one; none when the run is over.

        Args:
            linger: seconds to wait for more once there is one.

        Raises:
            BulkStoppedError: as iterating does.
        """
        batch: list[Outcome] = []
        # Another reader may take them all while this one lingers.
        while not batch and await self._wait_for_outcome():
            if linger and self._ended is None and len(self._outcomes) < _UNREAD // 2:
                await anyio.sleep(linger)
            batch = [self._read() for _ in range(len(self._outcomes))]
        return batch

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
        if self._pause is not None:
            self._pause.cancel()
        if self._room is not None:
            self._room.set()

    def abort(self) -> None:
        """Stop at once: what is in flight is cancelled and reported, as unknown or not sent."""
        self.stop()
        if self._began is not None:
            self._hired.cancel_scope.cancel()

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
            unrecorded=0,
        )

    # --- outcomes ---------------------------------------------------------------

    async def _wait_for_outcome(self) -> bool:
        """Whether there is an outcome to read; False when the run is over."""
        if self._began is None:
            msg = "a bulk run must be entered first: `async with client.submit_many(...) as run:`"
            raise RuntimeError(msg)
        while not self._outcomes:
            if self._ended is not None:
                self._raise_what_ended_it()
                return False
            if self._news is None or self._news.is_set():
                self._news = anyio.Event()
            await self._news.wait()
        return True

    def _read(self) -> Outcome:
        outcome = self._outcomes.popleft()
        if self._room is not None and len(self._outcomes) <= _UNREAD // 2:
            self._room.set()
        return outcome

    def _raise_what_ended_it(self) -> None:
        """Once: the source's own exception, or the refusal that stopped the run."""
        broken, self._broken = self._broken, None
        if broken is not None:
            raise broken
        stopped = self._stopped_by
        if stopped is not None and not self._told:
            self._told = True
            raise BulkStoppedError(stopped.error, self.report)

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
        self._outcomes.append(outcome)
        if self._news is not None:
            self._news.set()
        if outcome.status in _FAILURES and not getattr(end, "earlier", False):
            self._failures_in_row += 1
        elif outcome.status in _CONTACTS:
            self._failures_in_row = 0
        if self._stop_on is None or self._stopping:
            return
        if self._failures_in_row >= self._most_failures or self._stop_on(outcome):
            self._stopped_by = outcome
            self.stop()

    # --- workers ----------------------------------------------------------------

    async def _supervise(self) -> None:
        """Everything that runs, from the first row to the last outcome."""
        try:
            async with anyio.create_task_group() as pumping:
                pumping.start_soon(self._source.pump)
                async with self._hired:
                    self._hire()
                pumping.cancel_scope.cancel()
        finally:
            self._settle()

    def _settle(self) -> None:
        """Rows that were taken and not started end here, so that none is lost."""
        self.stop()
        for _, index, late, error in self._late:
            self._report_outcome(index, late, error)
        for row in self._source.leftovers():
            request: SubmitRequest | None = None
            with contextlib.suppress(InvalidRequestError):
                request = _request(row)
            self._report_outcome(self._taken, request, _stopped_before())
            self._taken += 1
        self._ended = time.monotonic()
        if self._news is not None:
            self._news.set()

    def _hire(self) -> None:
        self._workers += 1
        self._hired.start_soon(self._work)

    async def _work(self) -> None:
        try:
            while True:
                # A lock that costs next to nothing while nobody waits for it. A
                # cancellation is one of all workers, so no wake-up is ever lost.
                while self._turn_taken:
                    self._waiting_for_turn.append(anyio.Event())
                    await self._waiting_for_turn[-1].wait()
                self._turn_taken = True
                try:
                    taken = await self._take()
                finally:
                    self._turn_taken = False
                    if self._waiting_for_turn:
                        self._waiting_for_turn.popleft().set()
                if taken is None:
                    return
                if not self._waiting_for_turn and self._workers < self._concurrency:
                    self._hire()
                await self._send(*taken)
        except Exception as exception:  # noqa: BLE001 - the source's or the predicate's own
            self._broken = exception
            self.stop()

    async def _send(self, index: int, request: SubmitRequest, admitted: Admitted) -> None:
        exchange = self._requester.exchange()
        try:
            end: SubmitResult | IhuyiVoiceError = await self._requester.place(admitted, exchange)
        except InvalidRequestError as error:
            # Its key stands for another number or content.
            end = _of_row(index, error)
        except QuotaExceededError as limited:
            self._limit(index, request, limited)
            return
        except IhuyiVoiceError as error:
            end = error
        except BaseException:
            # Cancelled, perhaps from outside the run: the row is not lost,
            # whatever is known of it is said, and it is no reason to stop.
            self.stop()
            end = _stopped_before()
            if exchange.may_have_been_written:
                end = OutcomeUnknownError("the run was stopped while this was on its way")
            self._report_outcome(index, request, end)
            raise
        self._report_outcome(index, request, end)

    # --- the turn ---------------------------------------------------------------

    async def _take(self) -> tuple[int, SubmitRequest, Admitted] | None:
        """The next row that may be sent now; None when there is none, or none is wanted."""
        while not self._stopping:
            if len(self._outcomes) >= _UNREAD:
                self._room = anyio.Event()
                await self._room.wait()
                continue
            taken = await self._next_row()
            if taken is None:
                break
            index, row = taken
            admitted = await self._admit(index, row)
            if admitted is None:
                continue
            if not (self._interval or self._stopping) or await self._may_start(index, *admitted):
                return index, *admitted
        return None

    async def _admit(self, index: int, row: object) -> tuple[SubmitRequest, Admitted] | None:
        """The row as a request with its place in the quota; None, and it is settled or waits."""
        request: SubmitRequest | None = None
        try:
            request = _request(row)
            admitted = self._requester.check(request)
            if admitted.keyed is not None:
                # Its place in the quota is reserved once it is claimed. What the
                # ledger knows already is not to use up the rate.
                if self._interval and await self._is_known(index, request, admitted):
                    return None
            elif self._requester.quota is not None:
                admitted = await self._requester.reserve(admitted)
        except InvalidRequestError as error:
            self._refuse(index, request, _of_row(index, error))
        except QuotaExceededError as limited:
            self._limit(index, request, limited)
        except IhuyiVoiceError as error:
            self._refuse(index, request, error)
        except BaseException:
            # Cancelled in the quota's store, which alone knows what it reserved.
            self.stop()
            self._report_outcome(index, request, _stopped_before())
            raise
        else:
            return request, admitted
        return None

    async def _is_known(self, index: int, request: SubmitRequest, checked: Admitted) -> bool:
        """Whether the ledger knows the row already; then it is settled."""
        result = await self._requester.known(checked)
        if result is not None:
            self._report_outcome(index, request, result)
        return result is not None

    def _limit(
        self, index: int, request: SubmitRequest | None, limited: QuotaExceededError
    ) -> None:
        """A row over its number's limit: it waits, or ends so."""
        if self._wait_for_quota and request is not None:
            due = time.monotonic() + limited.retry_after
            heapq.heappush(self._late, (due, index, request, limited))
            if self._awaiting_row and self._pause is not None:
                # It may be due before the row that is waited for.
                self._pause.cancel()
        else:
            self._refuse(index, request, limited)

    async def _next_row(self) -> tuple[int, object] | None:
        """A row whose quota should be free by now, or the next of the source."""
        while not self._stopping:
            until_due = self._late[0][0] - time.monotonic() if self._late else math.inf
            if until_due <= 0.0:
                _, index, request, _ = heapq.heappop(self._late)
                return index, request
            row: object = Nothing.LEFT
            if len(self._late) < _MOST_LATE:
                row = self._source.take()
            if not isinstance(row, Nothing):
                self._taken += 1
                return self._taken - 1, row
            if row is Nothing.LEFT and not self._late:
                break
            self._awaiting_row = True
            with self._pausing(until_due):
                await (self._source.wait() if row is Nothing.YET else anyio.sleep_forever())
            self._awaiting_row = False
        return None

    async def _may_start(self, index: int, request: SubmitRequest, admitted: Admitted) -> bool:
        """Wait for the rate; False, and the row is settled, when the run was stopped meanwhile."""
        may_start = False
        try:
            if self._interval and not self._stopping:
                now = time.monotonic()
                start = max(self._next_start, now - _CATCH_UP)
                self._next_start = start + self._interval
                with self._pausing(start - now):
                    await anyio.sleep_forever()
            may_start = not self._stopping
            return may_start
        finally:
            if not may_start:
                self.stop()
                await self._requester.give_back(admitted)
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


def _request(row: object) -> SubmitRequest:
    if isinstance(row, SubmitRequest):
        return row
    if isinstance(row, tuple | list) and len(row) == 2:
        return SubmitRequest(row[0], row[1])
    what = (
        f"{type(row).__name__} of {len(row)}"
        if isinstance(row, tuple | list)
        else type(row).__name__
    )
    msg = f"a row must be a SubmitRequest or a (mobile, content) pair, not a {what}"
    raise InvalidRequestError(msg)


def _of_row(index: int, error: InvalidRequestError) -> InvalidRequestError:
    return InvalidRequestError(f"row {index}: {error}")


def _stopped_before() -> NotSentError:
    return NotSentError("the run was stopped before it was this row's turn")
