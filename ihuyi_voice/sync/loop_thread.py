"""The thread that owns the event loop of a blocking client.

The thread opens an asyncio client, runs coroutines for other threads and hands
their results over. `sync/client.py` decides which coroutines, and what an
interrupted wait means. The thread is a daemon, because a client that is never
closed must not keep the interpreter from exiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from .._loops import fast_loop_factory
from .._threads import start_thread
from ..errors import NotSentError
from .calls import Calls
from .life_cycle import FirstValue, LifeCycle, State, Stop

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Coroutine

    from ..client import AsyncVoiceClient

# Seconds that `stop` waits for an idle loop to close.
_LOOP_CLOSING_SECONDS = 2.0


class LoopThread:
    """A thread with an event loop, and one open client in it.

    Attributes:
        pid: the process that created it; a forked child has no such thread.
        life: its life cycle.
        calls: the calls in flight, with their loop and client.
    """

    def __init__(self, make_client: Callable[[], AsyncVoiceClient]) -> None:
        self.pid: int = os.getpid()
        self.life: LifeCycle = LifeCycle()
        self.calls: Calls = Calls(self.life)
        self._make_client = make_client
        self._thread: threading.Thread | None = None
        self._successor: FirstValue[LoopThread] = FirstValue()

    def is_usable(self) -> bool:
        """Whether it runs, or can be started, in this process."""
        return self.life.state is not State.CLOSED and self.pid == os.getpid()

    def successor(self) -> LoopThread:
        """The loop thread to use instead, the same for all callers."""
        return self._successor.offer(LoopThread(self._make_client))

    # --- starting ---------------------------------------------------------------

    def start(self, seconds: float) -> bool:
        """Start it, unless another thread does, and wait until its client is open.

        If the wait is interrupted, the thread ends and a successor takes over.

        Returns:
            Whether calls can begin. False: it was stopped meanwhile.

        Raises:
            NotSentError: it did not start within `seconds`.
        """
        if not self.life.started.is_set():
            self._start(seconds)
        return self.life.state is State.OPEN

    def _start(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        try:
            if self.life.may_launch():
                self._launch()
            started = self.life.started.wait(deadline - time.monotonic())
        except BaseException:
            self.abandon()
            raise
        if not started:
            self.abandon()
            msg = f"the client's thread did not start within {seconds:g} s"
            raise NotSentError(msg)
        failure = self.life.failure
        if failure is not None:
            error = _why_not_started(failure)
            raise error from (None if error is failure else failure)

    def _launch(self) -> None:
        try:
            run = partial(self._run, fast_loop_factory())
            self._thread = start_thread(run, "ihuyi-voice", self._fail)
        except (OSError, RuntimeError, MemoryError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.life.failure = error
        self._end()

    # --- stopping ---------------------------------------------------------------

    def abandon(self) -> None:
        """Ask it to end as soon as it can, and do not wait."""
        self.life.close()
        self._ask_to_stop(Stop.CANCEL)

    def stop(self, stop: Stop, seconds: float) -> bool:
        """End the loop and wait for it, in any other thread.

        Calls in flight end by themselves, each within its own deadline, unless
        they are canceled. Does nothing in a forked child, which does not have
        the thread. An interrupted stop can be repeated.

        Returns:
            Whether it has ended within `seconds`.
        """
        if os.getpid() != self.pid:
            return True
        self._ask_to_stop(stop)
        # The garbage collector may run a finalizer in any thread, the loop thread included.
        if self.calls.runs_here():
            return True
        # A finalizer cancels, which may interrupt any code, and a caller that has waited already.
        ended = self.life.ended.wait(seconds, greenlets_run=stop is not Stop.CANCEL)
        if ended and self._thread is not None and self._thread.ident is not None:
            # Every request has its outcome and every connection is closed. Closing
            # the loop was seen to hang (uvloop 0.21), so this wait is short.
            self._thread.join(timeout=_LOOP_CLOSING_SECONDS)
        return ended

    def _ask_to_stop(self, stop: Stop) -> None:
        life = self.life
        life.stop = stop
        if life.decides_first():
            self._end()
        # Before it has started, the thread reads `life.stop` itself.
        elif life.started.is_set() and not life.ended.is_set():
            # A loop that is closed has ended.
            with contextlib.suppress(RuntimeError):
                self.calls.loop.call_soon_threadsafe(self._stop)

    def _end(self) -> None:
        """End every wait for this thread: no call runs any more."""
        self.life.close()
        self.calls.give_up()
        self.life.end()

    # --- in the thread ----------------------------------------------------------

    def _run(self, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        if not self.life.decides_first():  # pragma: no cover - only after an interrupted start
            return
        try:
            loop = loop_factory()
            try:
                _drive(loop, self._main())
                _drive(loop, _cancel_what_is_left())
            finally:
                loop.close()
        except BaseException as failure:
            if self.life.started.is_set():  # pragma: no cover - only if the loop fails
                raise
            self.life.failure = failure
        finally:
            self._end()

    async def _main(self) -> None:
        # The caller's context may say that another library runs, such as trio.
        if (sniffio := sys.modules.get("sniffio")) is not None:  # pragma: no branch - if installed
            sniffio.thread_local.name = "asyncio"
        async with self._make_client() as client:
            self.calls.open(client)
            self.life.started.set()
            if self.life.stop is not Stop.NOT_ASKED:
                self._stop()
            await self.calls.stopping.wait()
            await self.calls.wait()
        self._end()

    def _stop(self) -> None:
        self.calls.stopping.set()
        if self.life.stop is Stop.CANCEL:
            self.calls.cancel()


def _drive(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[None, None, None]) -> None:
    """Run a coroutine to its end, even if other tasks raise."""
    task = loop.create_task(coroutine)
    while not task.done():
        # SystemExit and KeyboardInterrupt in any task stop the loop. The caller of that
        # task gets the exception anyway, and the other tasks must continue.
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            loop.run_until_complete(task)
    task.result()


async def _cancel_what_is_left() -> None:
    """Cancel the tasks that the user's code has left behind, as `asyncio.run` does."""
    loop = asyncio.get_running_loop()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    await loop.shutdown_asyncgens()


def _why_not_started(failure: BaseException) -> BaseException:
    """The error for the caller: NotSentError for a limit of the system, not for a wrong setting."""
    if isinstance(failure, ValueError | TypeError):
        return failure
    words = failure.strerror if isinstance(failure, OSError) else str(failure)
    if not isinstance(failure, OSError | RuntimeError | MemoryError):
        # Text of another library, which may contain a secret.
        words = None
    what = type(failure).__name__ if not words else f"{type(failure).__name__}: {words}"
    return NotSentError(f"the client's thread could not start ({what})")
