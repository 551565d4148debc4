"""The blocking bulk run: the outcomes of an asyncio `BulkRun`, read from another thread.

The run itself lives in the loop thread of one `VoiceClient`. Nothing here decides
which rows are sent.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from typing import TYPE_CHECKING

from .._threads import Event
from ..bulk.outcomes import OutcomeQueue
from ..bulk.run import BulkOptions, BulkRun, Rows
from .loop_thread import Handover

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from .._pipeline import Pipeline
    from ..client import AsyncVoiceClient
    from ..models import BulkReport, Outcome
    from .client import VoiceClient
    from .loop_thread import LoopThread

# Outcomes that are enough to wake a waiting consumer, and the seconds after
# which it gets what there is.
_BATCH = 16
_LINGER = 0.002


class BlockingBulkRun:
    """One bulk run: iterate it for the outcomes, as they finish.

    Made by `VoiceClient.submit_many`, and used with `with`. A waiting consumer
    gets outcomes some at a time, because a switch between threads costs more
    than a row; so an outcome may be some milliseconds old.

    An exception of a signal handler (Ctrl-C, a soft time limit) may interrupt
    the iteration: a `for` loop that goes on afterwards gets every outcome
    once. Only a call of `next(run)` may lose one: the exception can take the
    place of what the call returned, as with any function.

    `VoiceClient.close` in another thread ends the run as `stop` does.
    """

    def __init__(self, client: VoiceClient, requests: Rows, options: BulkOptions) -> None:
        self._client = client
        self._outcomes = _ThreadOutcomes()
        # Checked here, so that the caller learns of wrong arguments at once. It
        # belongs to no loop and no process before it is entered.
        self._run = BulkRun(self._opened, requests, options, self._outcomes)
        self._async_client: AsyncVoiceClient
        self._thread: LoopThread | None = None
        self._left = asyncio.Event()
        self._over: Handover[None] = Handover()

    def __enter__(self) -> Self:
        self._client._check_usable("submit_many")
        if self._thread is not None:
            msg = "a bulk run is used once: call submit_many again"
            raise RuntimeError(msg)
        entered = Event()
        try:
            self._thread = thread = self._client._running_thread()
            self._outcomes.loop = thread.loop
            thread.begin(lambda client: self._live(client, thread, entered), self._over)
            self._over.add_done_callback(lambda _: entered.set())
            entered.wait()
            if self._over.done():
                # It could not be entered, and says why.
                self._over.result()
        except BaseException:
            # Ctrl-C just now: there will be no `__exit__` to end it.
            self._soon(self._run.abort)
            self._soon(self._left.set)
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._leave(at_once=not isinstance(exc, Exception | None))
        except BaseException:
            # Ctrl-C while what was in flight finished.
            self._leave(at_once=True)
            raise
        finally:
            self._client._write_logs()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Outcome:
        self._check_entered_here()
        while True:
            self._outcomes.announce()
            # Before an outcome is taken: one that a log handler's exception replaces is lost.
            self._client._log.write_if_any()
            try:
                for outcome in self._outcomes.taking:  # pragma: no branch - it never ends
                    return outcome
            except IndexError:
                pass
            if self._outcomes.is_over():
                self._run.raise_what_ended_it()
                raise StopIteration
            self._client._write_logs()
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
        """Start no more; what is in flight finishes and is reported, then iteration ends."""
        self._soon(self._run.stop)

    def abort(self) -> None:
        """Stop at once: what is in flight is cancelled and reported, as unknown or not sent."""
        self._soon(self._run.abort)

    @property
    def report(self) -> BulkReport:
        """What has become of the rows taken so far; at any time, and after the block."""
        return self._run.report

    def _check_entered_here(self) -> None:
        if self._thread is None:
            msg = "a bulk run must be entered first: `with client.submit_many(...) as run:`"
            raise RuntimeError(msg)
        if self._thread.pid != os.getpid():
            msg = "this bulk run belongs to the process that this one was forked from"
            raise RuntimeError(msg)

    def _leave(self, *, at_once: bool) -> None:
        if at_once:
            self._soon(self._run.abort)
        self._soon(self._left.set)
        if self._thread is not None and self._thread.pid == os.getpid():
            # Cancelled at the interpreter's exit, in a daemon thread.
            with contextlib.suppress(concurrent.futures.CancelledError):
                self._over.result()

    def _soon(self, act: Callable[[], object]) -> None:
        """Do it in the loop's thread, from whichever thread; a forked child leaves it alone."""
        if self._thread is None:
            act()
        elif self._thread.pid == os.getpid():
            # A loop that is closed has no run to stop.
            with contextlib.suppress(RuntimeError):
                self._thread.loop.call_soon_threadsafe(act)

    # --- in the loop's thread -------------------------------------------------------

    async def _live(self, client: AsyncVoiceClient, thread: LoopThread, entered: Event) -> None:
        """The run's block: until `__exit__` or the client's `close`."""
        self._async_client = client
        async with self._run:
            entered.set()
            leave = [asyncio.ensure_future(event.wait()) for event in (self._left, thread.stopping)]
            try:
                await asyncio.wait(leave, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for waiting in leave:
                    waiting.cancel()

    def _opened(self) -> Pipeline:
        return self._async_client._opened()


class _ThreadOutcomes(OutcomeQueue):
    """Outcomes that other threads read than the loop's.

    Attributes:
        loop: the loop that puts them in.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        super().__init__()
        # Of the threads that wait; one that was interrupted leaves its own behind.
        self._bells: dict[int, Event] = {}
        self._lingering: asyncio.TimerHandle | None = None
        self._hurries = False

    def wait_in_thread(self) -> None:
        """Wait until there may be an outcome, or no more will come."""
        bell = self._bells[threading.get_ident()] = Event()
        # The loop looks for bells after it has put an outcome in.
        if not self._outcomes and not self.ended:
            bell.wait()

    def hurry(self) -> None:
        self._hurries = False
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        while self._bells:
            self._bells.popitem()[1].set()

    def _tell(self) -> None:
        if not self._bells or self._hurries:
            return
        if len(self._outcomes) >= _BATCH:
            # Once the loop has done what is due now: a thread that is woken in the
            # midst of it takes the interpreter's lock at every call to the system.
            self._hurries = True
            self._ring_in(0.0)
        elif self._lingering is None:
            self._ring_in(_LINGER)

    def _ring_in(self, seconds: float) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
        self._lingering = self.loop.call_later(seconds, self.hurry)

    def _make(self, call: Callable[[], None]) -> None:
        # A loop that is closed has nothing left to start.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(call)
