"""The thread that owns the event loop of a blocking client.

It builds an asyncio client of its own, runs coroutines for other threads and
hands their results over; which coroutines, and what an interrupted wait means,
is `sync.py`'s business. The thread is a daemon, because a client that is never
closed must not keep the interpreter from exiting.

Threads meet here without locks: a signal handler may use a client while the
thread it interrupts is between any two lines of this module.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import importlib
import os
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from .._loops import fast_loop_factory
from .._threads import Event, new_selector_loop, start_thread, threads_are_greenlets
from ..errors import NotSentError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from ..client import AsyncVoiceClient

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

# Seconds that closing a client waits for its loop to close, once it is idle.
_LOOP_CLOSING_SECONDS = 2.0

CLOSED = "this client is closed: make a new one"

# What the thread and the libraries in it import at their first use. A fork
# while a thread imports leaves the import lock held in the child for ever, and
# gevent's import locks are not safe between threads. So all of it is imported
# where the client is made, long before most programs fork or start a thread.
_IMPORTED_AHEAD = (
    "anyio._backends._asyncio",
    "concurrent.futures.thread",
    "email.utils",
    "encodings.idna",
    "linecache",
    "sniffio",
    "tracemalloc",
    "uvloop",
    "xml.parsers.expat",
    "xmltodict",
)


def import_ahead() -> None:
    """Import what the loop thread needs; called where a client is made."""
    for name in _IMPORTED_AHEAD:
        # Some are extras, and some only other releases know.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if "ihuyi_voice.store.ledger" in sys.modules:
        importlib.import_module("ihuyi_voice.store.guard")
    # Codecs are imported at their first use as well.
    "localhost".encode("idna")


class Receiver(Protocol[T_contra]):
    """Where the end of a call goes: a `Handover`, or a future of `concurrent.futures`."""

    def cancel(self) -> bool:
        """Ask for its end."""

    def cancelled(self) -> bool:
        """Whether its end was asked for."""

    def add_done_callback(self, fn: Callable[[Receiver[T_contra]], object]) -> None:
        """Call `fn` once there is a result, an exception or a cancellation."""

    def set_running_or_notify_cancel(self) -> bool:
        """Whether a result is still wanted."""

    def set_result(self, result: T_contra) -> None:
        """It has ended well."""

    def set_exception(self, exception: BaseException | None) -> None:
        """It has raised."""


class Handover(Generic[T]):
    """The end of one call, handed from the loop thread to the thread that waits.

    As a future of `concurrent.futures`, which has a lock that a main thread
    under a signal handler may hold while the loop thread wants it, and which
    greenlets cannot wait for.
    """

    __slots__ = ("_callbacks", "_cancelled", "_ended", "_exception", "_open", "_result")

    def __init__(self) -> None:
        self._ended = Event()
        # Emptied by the one thread that ends it, with its result or by giving up.
        self._open = [True]
        self._cancelled = False
        self._callbacks: list[Callable[[Receiver[T]], object]] = []
        self._result: list[T] = []
        self._exception: BaseException | None = None

    def cancel(self) -> bool:
        """Give up; False when its end has come already."""
        if not self.set_running_or_notify_cancel():
            return self._cancelled
        self._cancelled = True
        self._end()
        return True

    def cancelled(self) -> bool:
        """Whether it was given up."""
        return self._cancelled

    def add_done_callback(self, fn: Callable[[Receiver[T]], object]) -> None:
        """Call `fn`, from some thread, once it has ended."""
        self._callbacks.append(fn)
        if self._ended.is_set():
            self._call_back()

    def set_running_or_notify_cancel(self) -> bool:
        """Claim the right to end it, once."""
        try:
            self._open.pop()
        except IndexError:
            return False
        return True

    def set_result(self, result: T) -> None:
        """Hand over what the call returned."""
        self._result.append(result)
        self._end()

    def set_exception(self, exception: BaseException | None) -> None:
        """Hand over what the call raised."""
        self._exception = exception
        self._end()

    def wait(self, timeout: float) -> bool:
        """Wait for its end, for so many seconds at most; whether it has come."""
        return self._ended.wait(timeout)

    def done(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    def result(self) -> T:
        """What the call returned, once it has ended.

        Raises:
            BaseException: what the call raised.
            concurrent.futures.CancelledError: it was given up.
        """
        self._ended.wait()
        if self._cancelled:
            raise concurrent.futures.CancelledError
        if self._exception is not None:
            raise self._exception
        return self._result[0]

    def _end(self) -> None:
        self._ended.set()
        self._call_back()

    def _call_back(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._callbacks.pop()(self)


class LoopThread:
    """A thread with an event loop, and one open client in it.

    Attributes:
        pid: the process it was made in; a forked child has no such thread.
        client: the client in the thread, once `start` has returned.
        loop: its event loop, as of then.
        stopping: set in the loop once it is to end.
    """

    client: AsyncVoiceClient
    loop: asyncio.AbstractEventLoop
    stopping: asyncio.Event

    def __init__(self, make_client: Callable[[], AsyncVoiceClient]) -> None:
        self.pid: int = os.getpid()
        self._make_client = make_client
        self._thread: threading.Thread | None = None
        self._calls: set[asyncio.Task[None]] = set()
        # What was begun and has not ended, for the case that the loop ends first.
        self._receivers: dict[Receiver[Any], None] = {}
        # Emptied by the thread when it begins, or by `stop`, and then none begins.
        self._may_run = [True]
        # The thread that starts it; others wait.
        self._starters: dict[str, int] = {}
        self._stop_asked = False
        self._cancel_remaining = False
        self._over = False
        self._failure: BaseException | None = None
        self._started = Event()
        self._ended = Event()
        self._successor: dict[str, LoopThread] = {}

    def is_usable(self) -> bool:
        """Whether it runs, or can be started, in this process."""
        return not self._over and self.pid == os.getpid()

    def was_started(self) -> bool:
        """Whether a thread was asked for."""
        return bool(self._starters)

    def successor(self) -> LoopThread:
        """The one to use instead, the same for all who ask."""
        return self._successor.setdefault("it", LoopThread(self._make_client))

    # --- for other threads ------------------------------------------------------

    def start(self, seconds: float) -> bool:
        """Start it, unless another thread does, and wait until its client is open.

        May be interrupted: the thread then ends, and a successor takes over.

        Returns:
            Whether it runs; False when it was stopped meanwhile.

        Raises:
            NotSentError: it could not be started, within so many seconds.
        """
        if self._started.is_set():
            return not self._over
        deadline = time.monotonic() + seconds
        me = threading.get_ident()
        try:
            # Also when a signal handler has interrupted this very line.
            if self._starters.setdefault("it", me) == me:
                self._launch()
            started = self._started.wait(deadline - time.monotonic())
        except BaseException:
            self.abandon()
            raise
        if not started:
            self.abandon()
            msg = f"the client's thread did not start within {seconds:g} s"
            raise NotSentError(msg)
        failure = self._failure
        if failure is not None:
            error = _why_not_started(failure)
            raise error from (None if error is failure else failure)
        return not self._over

    def _launch(self) -> None:
        try:
            factory = fast_loop_factory()
            if factory is asyncio.new_event_loop and threads_are_greenlets():
                factory = new_selector_loop
            run = partial(self._run, factory)
            self._thread = start_thread(run, "ihuyi-voice", self._fail)
        except (OSError, RuntimeError, MemoryError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._finish()

    def abandon(self) -> None:
        """Let it end by itself, as soon as it can; it is not waited for."""
        self._cancel_remaining = self._stop_asked = self._over = True
        if self._claim():
            self._finish()
        else:
            self._wake_to_stop()

    def begin(self, start: Callable[[AsyncVoiceClient], Awaitable[T]], end: Receiver[T]) -> None:
        """Run a coroutine in the thread, in the caller's context, and hand its end over.

        Cancelling the receiver cancels the coroutine.

        Not by anyio's BlockingPortal, which waits for the loop once more, until
        the task is there, nor by asyncio's run_coroutine_threadsafe, which
        takes one more round of it to notice the end: a third of a call's time.

        Raises:
            RuntimeError: the thread has ended.
        """
        self._receivers[end] = None
        # The thread ends what it finds here, or has said before this look that it is over.
        if not self._over:
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._start, start, end)
                return
        self._receivers.pop(end, None)
        raise RuntimeError(CLOSED)

    def stop(self, seconds: float, *, cancel_remaining: bool) -> bool:
        """End the loop and wait for it, from any thread but its own.

        Calls on the way end by themselves, each within its own deadline,
        unless they are to be cancelled. Does nothing in a forked child: the
        thread is not there. A stop that was interrupted can be repeated.

        Returns:
            Whether it has ended within so many seconds.
        """
        if os.getpid() != self.pid:
            return True
        self._cancel_remaining = cancel_remaining
        self._stop_asked = True
        if self._claim():
            # It was never started, and never will be.
            self._finish()
            return True
        self._wake_to_stop()
        # The garbage collector may run a finaliser in any thread, this one included.
        if self._runs_here():
            return True
        # Only a finalizer cancels, or a caller who has waited already.
        ended = self._ended.wait(seconds, greenlets_run=not cancel_remaining)
        if ended and self._thread is not None and self._thread.ident is not None:
            # Every request has its outcome and every connection is closed. The
            # loop's own closing was seen to hang (uvloop 0.21): not worth a wait.
            self._thread.join(timeout=_LOOP_CLOSING_SECONDS)
        return ended

    def _runs_here(self) -> bool:
        with contextlib.suppress(RuntimeError, AttributeError):
            return asyncio.get_running_loop() is self.loop
        return False

    def _wake_to_stop(self) -> None:
        # A thread that has not come so far will see that it was asked to stop,
        # and a loop that is closed has ended.
        if self._started.is_set() and not self._ended.is_set():
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._stop)

    def _claim(self) -> bool:
        """Decide, once, whether the thread runs."""
        try:
            self._may_run.pop()
        except IndexError:
            return False
        return True

    def _finish(self) -> None:
        """Let all who wait go on: nothing more happens here."""
        self._over = True
        for end in list(self._receivers):
            end.cancel()  # pragma: no cover - only a race gets here
        self._ended.set()
        self._started.set()

    # --- in the thread ----------------------------------------------------------

    def _run(self, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        if not self._claim():  # pragma: no cover - only a start that was given up
            return
        try:
            if self._stop_asked:  # pragma: no cover - only a race gets here
                return
            loop = loop_factory()
            try:
                _drive(loop, self._main())
                _drive(loop, _cancel_what_is_left())
            finally:
                loop.close()
        except BaseException as failure:
            if self._started.is_set():  # pragma: no cover - a fault of the loop itself
                raise
            self._failure = failure
        finally:
            self._finish()

    async def _main(self) -> None:
        # A caller's context may say that another library runs there, as trio's does.
        if (sniffio := sys.modules.get("sniffio")) is not None:  # pragma: no branch - if installed
            sniffio.thread_local.name = "asyncio"
        self.loop = asyncio.get_running_loop()
        self.stopping = asyncio.Event()
        async with self._make_client() as self.client:
            self._started.set()
            if self._stop_asked:
                self._stop()
            await self.stopping.wait()
            while self._calls:
                await asyncio.wait(self._calls)
        self._finish()

    def _stop(self) -> None:
        self.stopping.set()
        if self._cancel_remaining:
            for call in self._calls:
                call.cancel()

    def _start(self, start: Callable[[AsyncVoiceClient], Awaitable[T]], end: Receiver[T]) -> None:
        if end.cancelled():
            # Ctrl-C has returned already: its request must not be written any more.
            self._receivers.pop(end, None)
            return
        call = self.loop.create_task(self._call(start, end))
        self._calls.add(call)

        def ended(call: asyncio.Task[None]) -> None:
            self._calls.discard(call)
            self._receivers.pop(end, None)
            # One that was cancelled before its first step has not said so.
            end.cancel()

        def cancel(end: Receiver[T]) -> None:
            if end.cancelled():
                # A loop that is closed has nothing left to cancel.
                with contextlib.suppress(RuntimeError):
                    self.loop.call_soon_threadsafe(call.cancel)

        call.add_done_callback(ended)
        end.add_done_callback(cancel)
        if self._cancel_remaining:  # pragma: no cover - only a race gets here
            call.cancel()

    async def _call(
        self, start: Callable[[AsyncVoiceClient], Awaitable[T]], end: Receiver[T]
    ) -> None:
        """Nothing is raised here: SystemExit would end the loop, and with it other calls."""
        try:
            result = await start(self.client)
        except asyncio.CancelledError:
            end.cancel()
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            if end.set_running_or_notify_cancel():
                end.set_exception(error)
        else:
            if end.set_running_or_notify_cancel():
                end.set_result(result)


def _drive(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[None, None, None]) -> None:
    """Run a coroutine to its end, whatever other tasks raise."""
    task = loop.create_task(coroutine)
    while not task.done():
        # SystemExit and KeyboardInterrupt of a task stop the loop. Its waiters get
        # them all the same, and the other tasks must go on.
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            loop.run_until_complete(task)
    task.result()


async def _cancel_what_is_left() -> None:
    """End the tasks that other people's code has left behind, as `asyncio.run` does."""
    loop = asyncio.get_running_loop()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    await loop.shutdown_asyncgens()


def _why_not_started(failure: BaseException) -> BaseException:
    """What the caller sees of it: a limit of the system is an outcome, a wrong setting is not."""
    if isinstance(failure, ValueError | TypeError):
        return failure
    words = failure.strerror if isinstance(failure, OSError) else str(failure)
    if not isinstance(failure, OSError | RuntimeError | MemoryError):
        # Another library's words, which may show what they should not.
        words = None
    what = type(failure).__name__ if not words else f"{type(failure).__name__}: {words}"
    return NotSentError(f"the client's thread could not start ({what})")
