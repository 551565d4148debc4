"""The blocking bulk run: the outcomes of an asyncio `BulkRun`, read from another thread.

The run itself lives in the loop thread of one `VoiceClient`. Nothing here decides
which rows are sent.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
from collections import deque
from typing import TYPE_CHECKING

import anyio

from ._loop_thread import Handover
from ._threads import Event

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from ._loop_thread import LoopThread
    from .bulk import BulkRun
    from .client import AsyncVoiceClient
    from .models import BulkReport, Outcome
    from .sync import VoiceClient

# Seconds by which a batch of outcomes waits for more of them.
_LINGER = 0.005


class BlockingBulkRun:
    """One bulk run: iterate it for the outcomes, as they finish.

    Made by `VoiceClient.submit_many`, and used with `with`. Outcomes cross
    from the loop's thread in batches, because a hop between threads costs
    more than a row; so an outcome may be some milliseconds old.
    """

    def __init__(self, client: VoiceClient, start: Callable[[AsyncVoiceClient], BulkRun]) -> None:
        self._client = client
        # Made here, so that wrong arguments raise at once.
        self._run = start(client._client)
        self._batch: deque[Outcome] = deque()
        self._left = asyncio.Event()
        self._thread: LoopThread | None = None
        self._over: Handover[None] = Handover()

    def __enter__(self) -> Self:
        self._client._check_usable("submit_many")
        if self._thread is not None:
            msg = "a bulk run is used once: call submit_many again"
            raise RuntimeError(msg)
        entered = Event()
        try:
            self._thread = thread = self._client._running_thread()
            # It sends with the requester of that thread.
            self._run._open_requester = thread.client._opened
            thread.begin(lambda _: self._live(thread, entered), self._over)
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

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Outcome:
        # Several threads may read: whoever finds the batch empty fetches another.
        while True:
            with contextlib.suppress(IndexError):
                return self._batch.popleft()
            batch = self._next_batch()
            if not batch:
                raise StopIteration
            self._batch.extend(batch)

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

    def _next_batch(self) -> list[Outcome]:
        if self._thread is None:
            msg = "a bulk run must be entered first: `with client.submit_many(...) as run:`"
            raise RuntimeError(msg)
        if self._thread.pid != os.getpid():
            msg = "this bulk run belongs to the process that this one was forked from"
            raise RuntimeError(msg)
        return self._client._call("submit_many", lambda _: self._run.next_batch(_LINGER))

    async def _live(self, thread: LoopThread, entered: Event) -> None:
        """The run's block, in the loop's thread: until `__exit__` or the client's `close`."""
        async with self._run, anyio.create_task_group() as watching:
            watching.start_soon(self._leave_when_closed, thread)
            entered.set()
            await self._left.wait()
            watching.cancel_scope.cancel()

    async def _leave_when_closed(self, thread: LoopThread) -> None:
        await thread.stopping.wait()
        self._left.set()

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
            # A loop that is closed has no run to tell.
            with contextlib.suppress(RuntimeError):
                self._thread.loop.call_soon_threadsafe(act)
