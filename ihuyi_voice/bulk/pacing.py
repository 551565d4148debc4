"""When the next row of a bulk run may start.

Workers take turns (`Turn`) to take a row (`Intake`) and to wait for the rate
(`Pace`). Nothing here checks or sends a row: that is `run.py`'s part.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import anyio

from ..models import SubmitRequest
from .rows import READ_AHEAD, Nothing, Source, Taken, read_ahead

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from .._limits import Limits
    from .._pipeline import Admitted
    from ..errors import QuotaExceededError
    from .outcomes import OutcomeQueue

# How often a worker without room yields to the loop before it waits: a consumer
# in the same loop has read the available outcomes by then.
_YIELDS = 2


class Pause:
    """A wait of one task that another task can end."""

    def __init__(self) -> None:
        self._scope: anyio.CancelScope | None = None

    async def wait(
        self, seconds: float, event: Callable[[], Awaitable[None]] = anyio.sleep_forever
    ) -> None:
        """Wait for the event, at most so many seconds, or until `end`."""
        with anyio.move_on_after(seconds) as self._scope:
            await event()
        self._scope = None

    def end(self) -> None:
        """End the wait, if there is one."""
        if self._scope is not None:
            self._scope.cancel()


class Pace:
    """Starts at most `rate` rows per second.

    Attributes:
        is_limited: whether there is a rate.
        looks_up: whether a row with a key is looked up before it takes a start, so
            that a row that the store knows does not use up the rate. One row
            after another is looked up.
        pause: the wait for the next start.
    """

    def __init__(self, rate: float | None, limits: Limits) -> None:
        self.is_limited: bool = rate is not None
        self.looks_up: bool = self.is_limited
        self.pause: Pause = Pause()
        self._interval = 0.0 if rate is None else 1.0 / rate
        self._catch_up = limits.catch_up
        self._next_start: float | None = None

    def take_start(self) -> bool:
        """Take a start that needs no wait; False where `wait_for_start` decides."""
        return not self.is_limited

    async def wait_for_start(self, index: int) -> bool:  # noqa: ARG002 - a subclass's
        """Take the next start and wait for it, or until `stop`.

        Args:
            index: the number of the row that starts, in its run.

        Returns:
            False where no more rows may start, and the run stops.
        """
        now = time.monotonic()
        start = now if self._next_start is None else max(self._next_start, now - self._catch_up)
        self._next_start = start + self._interval
        await self.pause.wait(start - now)
        return True

    def stop(self) -> None:
        """End the wait for a start: the run starts no more rows."""
        self.pause.end()


class Turn:
    """A lock that is cheap while no task waits for it.

    A cancellation always reaches all workers, so no wake-up is lost.

    Attributes:
        waiting: one future for each task that waits.
    """

    def __init__(self) -> None:
        self._is_taken = False
        # Bare futures: an event costs five times as much.
        self.waiting: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Take the turn if it is free. Returns whether it was free."""
        if self._is_taken:
            return False
        self._is_taken = True
        return True

    async def wait(self) -> None:
        """Wait until the turn may be free."""
        free: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(free)
        await free

    def pass_on(self, rows: int) -> None:
        """Release the turn and wake the tasks that have waited longest.

        Args:
            rows: how many rows can be taken without waiting. As many tasks
                are woken together, because each holds the turn only briefly.
        """
        self._is_taken = False
        while self.waiting:
            free = self.waiting.popleft()
            if not free.done():
                free.set_result(None)
            rows -= 1
            if rows <= 0:
                return


class BulkRow:
    """One row between the source and its outcome.

    Attributes:
        index: its number in the run, from 0.
        taken: the request, or why the row is not a request.
        admitted: set once the row is checked and has its place in the quota.
    """

    __slots__ = ("admitted", "index", "taken")

    admitted: Admitted

    def __init__(self, index: int, taken: Taken) -> None:
        self.index: int = index
        self.taken: Taken = taken

    @property
    def request(self) -> SubmitRequest | None:
        """The request, None where the row is not one."""
        return self.taken if isinstance(self.taken, SubmitRequest) else None


class _WaitingRow(NamedTuple):
    """A row over its number's limit, ordered by the time at which it may be tried again."""

    due: float
    number: int
    row: BulkRow
    error: QuotaExceededError


class Intake:
    """Decides which row is next: a new row of the source, or one that waited for its quota.

    A row is taken only where there is room: at most `in_flight + read_ahead(taken)`
    rows are in flight, read ahead, or have an outcome that was not read. Rows
    that wait for their quota are not counted.

    Attributes:
        taken: how many rows were taken from the source.
    """

    def __init__(
        self, source: Source, outcomes: OutcomeQueue, in_flight: int, limits: Limits
    ) -> None:
        self.taken: int = 0
        self._source = source
        self._outcomes = outcomes
        self._in_flight = in_flight
        self._read_ahead = READ_AHEAD
        self._waiting: list[_WaitingRow] = []
        self._most_waiting = limits.most_waiting
        self._stopped = False
        self._pause = Pause()
        self._room: anyio.Event | None = None

    # --- the life cycle ---------------------------------------------------------

    async def pump(self) -> None:
        """Read rows ahead until there are no more, or until `stop`."""
        await self._source.pump()

    def stop(self) -> None:
        """Take no more rows, and end the waits for one."""
        self._stopped = True
        self._source.stop()
        self._pause.end()
        if self._room is not None:
            self._room.set()

    @property
    def error(self) -> BaseException | None:
        """What the iterable raised, once the intake has no more rows."""
        return self._source.error

    def drain_waiting(self) -> Iterator[tuple[BulkRow, QuotaExceededError]]:
        """Remove the rows that wait for their quota."""
        for waiting in self._waiting:
            yield waiting.row, waiting.error
        self._waiting.clear()

    def drain_read_ahead(self) -> Iterator[BulkRow]:
        """Remove the rows that were read ahead, once the pump has ended."""
        for taken in self._source.leftovers():
            yield self._number(taken)

    # --- rows -------------------------------------------------------------------

    async def next(self) -> BulkRow | None:
        """Wait for the next row. None: there are no more, or the intake was stopped."""
        while not self._stopped:
            if self._source.wants(self._read_ahead):
                self._refill()
            until_due = self._waiting[0].due - time.monotonic() if self._waiting else math.inf
            # A row that was read ahead has its room already.
            if not ((self._source.ahead and until_due > 0.0) or self._free() > 0):
                await self._wait_for_room()
                continue
            if until_due <= 0.0:
                return heapq.heappop(self._waiting).row
            if len(self._waiting) >= self._most_waiting:
                await self._pause.wait(until_due)
                continue
            taken = self._source.take()
            if taken is Nothing.YET:
                await self._pause.wait(until_due, self._source.wait)
            elif taken is not Nothing.LEFT:
                return self._number(taken)
            elif self._waiting and self._source.error is None:
                await self._pause.wait(until_due)
            else:
                # After an error of the source, rows that wait for their quota are not started.
                return None
        return None

    def defer(self, row: BulkRow, error: QuotaExceededError) -> None:
        """Let a row wait for its number's quota; `next` returns it again."""
        due = time.monotonic() + error.retry_after
        heapq.heappush(self._waiting, _WaitingRow(due, row.index, row, error))
        # It may be due before the row that `next` waits for.
        self._pause.end()

    @property
    def ready(self) -> int:
        """How many rows can be taken without waiting, as far as is known."""
        return self._source.ready or self._free()

    def _number(self, taken: Taken) -> BulkRow:
        row = BulkRow(self.taken, taken)
        self.taken += 1
        return row

    # --- room -------------------------------------------------------------------

    def _free(self) -> int:
        """How many more rows may be taken or read ahead."""
        unread = self.taken - len(self._waiting) - self._outcomes.read
        return self._in_flight + self._read_ahead - unread - self._source.ahead

    def _refill(self) -> None:
        """Let the source read ahead as far as there is room."""
        self._read_ahead = read_ahead(self.taken)
        wanted, free = self._source.wants(self._read_ahead), self._free()
        if free >= self._chunk:
            self._source.grant(min(wanted, free))
        else:
            self._outcomes.call_after(self._chunk - free, self._make_use_of_room)

    @property
    def _chunk(self) -> int:
        """How many rows are granted to the source at once, at least: each grant wakes it up."""
        return self._read_ahead // 2

    def _make_use_of_room(self) -> None:
        if self._source.wants(self._read_ahead):
            self._refill()
        if self._room is not None:
            self._room.set()

    async def _wait_for_room(self) -> None:
        """Wait until there is room, or the intake is stopped."""
        for _ in range(_YIELDS):
            await asyncio.sleep(0)
            if self._free() > 0 or self._stopped:
                return
        self._outcomes.flush()
        while not (self._free() > 0 or self._stopped):
            self._room = anyio.Event()
            # For some rows together, not for each row.
            self._outcomes.call_after(self._chunk - self._free(), self._make_use_of_room)
            await self._room.wait()
