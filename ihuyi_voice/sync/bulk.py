"""The blocking bulk run: an asyncio `BulkRun` whose outcomes another thread reads.

The run itself lives in the loop thread of one `VoiceClient`. This module does
not decide which rows are sent.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from enum import Enum
from typing import TYPE_CHECKING

from .._threads import Event
from ..bulk.outcomes import OutcomeQueue
from ..bulk.run import BulkOptions, BulkRun, Rows
from .calls import Call

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from .._pipeline import Pipeline
    from ..client import AsyncVoiceClient
    from ..models import BulkReport, Outcome
    from .client import VoiceClient
    from .loop_thread import LoopThread

# A waiting consumer is woken when this many outcomes are there, or after this many
# seconds with fewer.
_BATCH = 16
_LINGER = 0.002


class _State(Enum):
    """Where a blocking run is, seen from the process that uses it."""

    NEW = "not entered"
    ENTERED = "entered in this process; its loop thread may have ended since"
    INHERITED = "entered in the process that this one was forked from"


class BlockingBulkRun:
    """One bulk run: iterate it to get the outcomes as they finish.

    `VoiceClient.submit_many` creates it. Use it with `with`. A waiting consumer
    gets several outcomes at a time, because a switch between threads costs
    more than a row. So an outcome may arrive some milliseconds late.

    An exception of a signal handler (Ctrl-C, a soft time limit) may interrupt
    the iteration: a `for` loop that continues afterwards gets every outcome
    once. Only a call of `next(run)` may lose one: the exception can replace
    what the call returned, as with any function.

    `VoiceClient.close` in another thread ends the run as `stop` does.
    """

    def __init__(self, client: VoiceClient, requests: Rows, options: BulkOptions) -> None:
        self._client = client
        self._outcomes = _ThreadOutcomes()
        # Created here, so that the caller learns of wrong arguments at once. It
        # belongs to no loop and no process before it is entered.
        self._run = BulkRun(self._opened, requests, options, self._outcomes)
        self._async_client: AsyncVoiceClient
        self._thread: LoopThread | None = None
        # The run's block in the loop thread: the call ends when the block is left, which
        # `_leave_block` asks for.
        self._block: Call[None]
        self._leave_block = asyncio.Event()

    # --- the block --------------------------------------------------------------

    def __enter__(self) -> Self:
        self._client._check_usable("submit_many")
        if self._state is not _State.NEW:
            msg = "a bulk run is used once: call submit_many again"
            raise RuntimeError(msg)
        try:
            self._enter_in(self._client._running_thread())
        except BaseException:
            # Ctrl-C, for example. There will be no `__exit__` to end the run.
            self.abort()
            self._in_loop(self._leave_block.set)
            raise
        return self

    def _enter_in(self, thread: LoopThread) -> None:
        """Enter the run's block in the loop thread, and wait until it is entered.

        Raises:
            BaseException: why it could not be entered.
        """
        self._thread = thread
        self._outcomes.loop = thread.calls.loop
        entered = Event()
        block = self._block = Call(lambda client: self._live(client, thread, entered))
        thread.calls.begin(block)
        block.add_done_callback(lambda _: entered.set())
        entered.wait()
        if block.done():
            block.result()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if not isinstance(exc, Exception | None):
                self.abort()
            self._leave()
        except BaseException:
            # Ctrl-C while the requests in flight finished.
            self.abort()
            self._leave()
            raise
        finally:
            self._client._log.write()

    def _leave(self) -> None:
        """Leave the run's block, and wait until it is left."""
        self._in_loop(self._leave_block.set)
        if self._state is _State.ENTERED:
            # The interpreter's exit in a daemon thread cancels it.
            with contextlib.suppress(concurrent.futures.CancelledError):
                self._block.result()

    # --- for the consumer -------------------------------------------------------

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Outcome:
        self._check_entered()
        while True:
            self._outcomes.run_callback_if_due()
            # Before an outcome is taken: an exception of a log handler would lose it.
            self._client._log.write_if_any()
            try:
                for outcome in self._outcomes.taking:  # pragma: no branch - it never ends
                    return outcome
            except IndexError:
                pass
            if self._outcomes.is_over():
                self._run.raise_what_ended_it()
                raise StopIteration
            self._client._log.write()
            self._outcomes.wait_in_thread()

    def finish(self) -> BulkReport:
        """Run to the end without looking at each outcome.

        Raises:
            BulkStoppedError: as iterating does.
        """
        for _ in self:
            pass
        return self.report

    def stop(self) -> None:
        """Start no more rows. What is in flight finishes and is reported; then iteration ends."""
        self._in_loop(self._run.stop)

    def abort(self) -> None:
        """Stop at once: cancel what is in flight, and report it as unknown or not sent."""
        self._in_loop(self._run.abort)

    @property
    def report(self) -> BulkReport:
        """What happened to the rows taken so far. Can be read at any time, also after the block."""
        return self._run.report

    # --- its state --------------------------------------------------------------

    @property
    def _state(self) -> _State:
        if self._thread is None:
            return _State.NEW
        return _State.ENTERED if self._thread.pid == os.getpid() else _State.INHERITED

    def _check_entered(self) -> None:
        state = self._state
        if state is _State.NEW:
            msg = "a bulk run must be entered first: `with client.submit_many(...) as run:`"
            raise RuntimeError(msg)
        if state is _State.INHERITED:
            msg = "this bulk run belongs to the process that this one was forked from"
            raise RuntimeError(msg)

    def _in_loop(self, act: Callable[[], object]) -> None:
        """Call `act` in the loop thread soon. A forked child does not touch its parent's run."""
        thread = self._thread
        if thread is None:
            act()
        elif self._state is _State.ENTERED:
            # A loop that is closed has no run to stop.
            with contextlib.suppress(RuntimeError):
                thread.calls.loop.call_soon_threadsafe(act)

    # --- in the loop thread -----------------------------------------------------

    async def _live(self, client: AsyncVoiceClient, thread: LoopThread, entered: Event) -> None:
        """Hold the run's block open until `__exit__`, or until the client is closed."""
        self._async_client = client
        async with self._run:
            entered.set()
            await _wait_for_either(self._leave_block, thread.calls.stopping)

    def _opened(self) -> Pipeline:
        return self._async_client._opened()


async def _wait_for_either(one: asyncio.Event, other: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in (one, other)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


class _ThreadOutcomes(OutcomeQueue):
    """A queue of outcomes that is read in other threads than the loop's.

    Attributes:
        loop: the loop that puts outcomes in.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        super().__init__()
        # One for each waiting thread. An interrupted thread leaves its bell behind.
        self._bells: dict[int, Event] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._flush_is_due = False

    def wait_in_thread(self) -> None:
        """Wait until there may be an outcome, or no more will come."""
        bell = self._bells[threading.get_ident()] = Event()
        # The loop looks for bells after it has put an outcome in.
        if not self._outcomes and not self.ended:
            bell.wait()

    def flush(self) -> None:
        self._flush_is_due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._bells:
            self._bells.popitem()[1].set()

    def _notify(self) -> None:
        if not self._bells or self._flush_is_due:
            return
        if len(self._outcomes) >= _BATCH:
            # After the loop has done what is due now: a thread that is woken earlier
            # takes the interpreter's lock at each system call of the loop.
            self._flush_is_due = True
            self._flush_in(0.0)
        elif self._timer is None:
            self._flush_in(_LINGER)

    def _flush_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self.flush)

    def _call_in_loop(self, call: Callable[[], None]) -> None:
        # A closed loop starts no more rows.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(call)
