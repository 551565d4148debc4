"""The thread that owns the event loop of a blocking client.

The thread creates an asyncio client, runs coroutines for other threads and
hands their results over. Which coroutines, and what an interrupted wait means,
is decided in `sync/client.py`. The thread is a daemon, because a client that
is never closed must not keep the interpreter from exiting.

There are no locks here: a signal handler may use a client while the thread
that it interrupted is between any two lines of this module. Where two threads
may compete, one atomic step decides (`Claim`, `FirstValue`).
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
from enum import Enum
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

# Seconds that `stop` waits for an idle loop to close.
_LOOP_CLOSING_SECONDS = 2.0

CLOSED = "this client is closed: make a new one"

# What the thread and the libraries in it import at their first use. A fork
# while a thread imports leaves the import lock held in the child for ever, and
# gevent's import locks are not safe between threads. So all of it is imported
# when the client is created, long before most programs fork or start a thread.
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
    """Import what the loop thread needs. Called when a client is created."""
    for name in _IMPORTED_AHEAD:
        # Some are extras, and some exist only in other releases.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if "ihuyi_voice.store.store" in sys.modules:
        importlib.import_module("ihuyi_voice.store.guard")
    # Python imports codecs at their first use as well.
    "localhost".encode("idna")


class Receiver(Protocol[T_contra]):
    """Receives the end of a call: a `Handover`, or a future of `concurrent.futures`."""

    def cancel(self) -> bool:
        """Cancel the call."""

    def cancelled(self) -> bool:
        """Whether the call was canceled."""

    def add_done_callback(self, fn: Callable[[Receiver[T_contra]], object]) -> None:
        """Call `fn` once there is a result, an exception or a cancellation."""

    def set_running_or_notify_cancel(self) -> bool:
        """Whether a result is still wanted."""

    def set_result(self, result: T_contra) -> None:
        """The call has returned."""

    def set_exception(self, exception: BaseException | None) -> None:
        """The call has raised."""


class Claim:
    """Granted to the first caller only, in one atomic step."""

    __slots__ = ("_granted",)

    def __init__(self) -> None:
        self._granted = [True]

    def take(self) -> bool:
        """Whether the caller is the first."""
        try:
            self._granted.pop()
        except IndexError:
            return False
        return True


class FirstValue(Generic[T]):
    """Keeps the first value that is offered, in one atomic step."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[None, T] = {}

    def offer(self, value: T) -> T:
        """Offer a value. Returns the first value that was offered."""
        return self._kept.setdefault(None, value)

    def is_set(self) -> bool:
        """Whether a value was offered."""
        return bool(self._kept)


class Handover(Generic[T]):
    """The end of one call, handed from the loop thread to the thread that waits.

    Not a future of `concurrent.futures`: a main thread under a signal handler
    may hold the future's lock while the loop thread wants it, and greenlets
    cannot wait for the future.
    """

    __slots__ = ("_callbacks", "_cancelled", "_ended", "_exception", "_open", "_result")

    def __init__(self) -> None:
        self._ended = Event()
        # As a `Claim`, without a second object per call. The thread that takes the item
        # ends the call, with its result or by giving up.
        self._open = [True]
        self._cancelled = False
        self._callbacks: list[Callable[[Receiver[T]], object]] = []
        self._result: list[T] = []
        self._exception: BaseException | None = None

    def cancel(self) -> bool:
        """Give up. False: the call has ended already."""
        if not self.set_running_or_notify_cancel():
            return self._cancelled
        self._cancelled = True
        self._end()
        return True

    def cancelled(self) -> bool:
        """Whether the wait was given up."""
        return self._cancelled

    def add_done_callback(self, fn: Callable[[Receiver[T]], object]) -> None:
        """Call `fn`, from some thread, when the call has ended."""
        self._callbacks.append(fn)
        if self._ended.is_set():
            self._call_back()

    def set_running_or_notify_cancel(self) -> bool:
        """Claim the right to end it. Only the first caller gets it."""
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
        """Wait for the end, at most so many seconds. Returns whether the call has ended."""
        return self._ended.wait(timeout)

    def done(self) -> bool:
        """Whether the call has ended."""
        return self._ended.is_set()

    def result(self) -> T:
        """Wait for the end, and return what the call returned.

        Raises:
            BaseException: what the call raised.
            concurrent.futures.CancelledError: the wait was given up.
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


class _Stop(Enum):
    """How the thread was asked to stop."""

    NOT_ASKED = "not asked"
    WAIT = "after the calls in progress have ended"
    CANCEL = "cancel the calls in progress"


class LoopThread:
    """A thread with an event loop, and one open client in it.

    Attributes:
        pid: the process that created it; a forked child has no such thread.
        client: the client in the thread, after `start` has returned.
        loop: its event loop, after `start` has returned.
        stopping: set in the loop when it is to end.
    """

    client: AsyncVoiceClient
    loop: asyncio.AbstractEventLoop
    stopping: asyncio.Event

    def __init__(self, make_client: Callable[[], AsyncVoiceClient]) -> None:
        self.pid: int = os.getpid()
        self._make_client = make_client
        self._thread: threading.Thread | None = None
        self._calls = _Calls()
        # Taken by the thread when it begins, or by `stop`: then it never begins.
        self._may_run = Claim()
        # The identifier of the thread that starts it. Other threads wait.
        self._starter: FirstValue[int] = FirstValue()
        self._stop_request = _Stop.NOT_ASKED
        # Whether no call can begin any more.
        self._over = False
        self._failure: BaseException | None = None
        self._started = Event()
        self._ended = Event()
        self._successor: FirstValue[LoopThread] = FirstValue()

    def is_usable(self) -> bool:
        """Whether it runs, or can be started, in this process."""
        return not self._over and self.pid == os.getpid()

    def was_started(self) -> bool:
        """Whether a caller has begun to start it."""
        return self._starter.is_set()

    def successor(self) -> LoopThread:
        """The loop thread to use instead, the same for all callers."""
        return self._successor.offer(LoopThread(self._make_client))

    # --- for other threads ------------------------------------------------------

    def start(self, seconds: float) -> bool:
        """Start it, unless another thread does, and wait until its client is open.

        If the wait is interrupted, the thread ends and a successor takes over.

        Returns:
            Whether it runs. False: it was stopped meanwhile.

        Raises:
            NotSentError: it did not start within so many seconds.
        """
        if self._started.is_set():
            return not self._over
        deadline = time.monotonic() + seconds
        me = threading.get_ident()
        try:
            # The same thread comes twice where a signal handler interrupts this line.
            if self._starter.offer(me) == me:
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
        """Ask it to end as soon as it can, and do not wait."""
        self._stop_request = _Stop.CANCEL
        self._over = True
        if self._may_run.take():
            self._finish()
        else:
            self._wake_to_stop()

    def begin(self, start: Callable[[AsyncVoiceClient], Awaitable[T]], end: Receiver[T]) -> None:
        """Run a coroutine in the thread, in the caller's context, and hand its end over.

        Cancelling the receiver cancels the coroutine.

        anyio's BlockingPortal waits for the loop once more, until the task
        exists, and asyncio's run_coroutine_threadsafe needs one more round of
        the loop to notice the end. That is a third of a call's time, so
        neither is used.

        Raises:
            RuntimeError: the thread has ended.
        """
        self._calls.expect(end)
        # `_finish` cancels every receiver that it finds, or has set `_over` before this check.
        if not self._over:
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._calls.start, self.client, start, end)
                return
        self._calls.forget(end)
        raise RuntimeError(CLOSED)

    def stop(self, seconds: float, *, cancel_remaining: bool) -> bool:
        """End the loop and wait for it, in any other thread.

        Calls in progress end by themselves, each within its own deadline,
        unless `cancel_remaining` cancels them. Does nothing in a forked child,
        which does not have the thread. An interrupted stop can be repeated.

        Returns:
            Whether it has ended within so many seconds.
        """
        if os.getpid() != self.pid:
            return True
        self._stop_request = _Stop.CANCEL if cancel_remaining else _Stop.WAIT
        if self._may_run.take():
            # The thread has not begun, and now never will.
            self._finish()
            return True
        self._wake_to_stop()
        # The garbage collector may run a finalizer in any thread, the loop thread included.
        if self._runs_here():
            return True
        # Only a finalizer cancels, or a caller that has waited already.
        ended = self._ended.wait(seconds, greenlets_run=not cancel_remaining)
        if ended and self._thread is not None and self._thread.ident is not None:
            # Every request has its outcome and every connection is closed. Closing
            # the loop was seen to hang (uvloop 0.21), so this wait is short.
            self._thread.join(timeout=_LOOP_CLOSING_SECONDS)
        return ended

    def _runs_here(self) -> bool:
        with contextlib.suppress(RuntimeError, AttributeError):
            return asyncio.get_running_loop() is self.loop
        return False

    def _wake_to_stop(self) -> None:
        # Before `_started` the thread checks `_stop_request` itself. A closed loop has ended.
        if self._started.is_set() and not self._ended.is_set():
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._stop)

    def _finish(self) -> None:
        """End every wait for this thread: no call runs any more."""
        self._over = True
        self._calls.cancel_receivers()
        self._ended.set()
        self._started.set()

    # --- in the thread ----------------------------------------------------------

    def _run(self, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        if not self._may_run.take():  # pragma: no cover - only a start that was given up
            return
        try:
            if self._stop_request is not _Stop.NOT_ASKED:  # pragma: no cover - only in a race
                return
            loop = loop_factory()
            try:
                _drive(loop, self._main())
                _drive(loop, _cancel_what_is_left())
            finally:
                loop.close()
        except BaseException as failure:
            if self._started.is_set():  # pragma: no cover - only if the loop fails
                raise
            self._failure = failure
        finally:
            self._finish()

    async def _main(self) -> None:
        # The caller's context may say that another library runs, such as trio.
        if (sniffio := sys.modules.get("sniffio")) is not None:  # pragma: no branch - if installed
            sniffio.thread_local.name = "asyncio"
        self.loop = asyncio.get_running_loop()
        self.stopping = asyncio.Event()
        async with self._make_client() as self.client:
            self._started.set()
            if self._stop_request is not _Stop.NOT_ASKED:
                self._stop()
            await self.stopping.wait()
            await self._calls.wait()
        self._finish()

    def _stop(self) -> None:
        self.stopping.set()
        if self._stop_request is _Stop.CANCEL:
            self._calls.cancel()


class _Calls:
    """The calls in progress, each a task of the loop with a receiver for its end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        # Of calls that have not ended, for the case that the loop ends first.
        self._receivers: dict[Receiver[Any], None] = {}
        self._cancel_new = False

    # --- for any thread ---------------------------------------------------------

    def expect(self, end: Receiver[Any]) -> None:
        """Remember the receiver of a call that is about to start."""
        self._receivers[end] = None

    def forget(self, end: Receiver[Any]) -> None:
        """Forget a receiver."""
        self._receivers.pop(end, None)

    def cancel_receivers(self) -> None:
        """End the waits for calls that nothing runs any more."""
        for end in list(self._receivers):
            end.cancel()  # pragma: no cover - only a race gets here

    # --- in the loop ------------------------------------------------------------

    def start(
        self,
        client: AsyncVoiceClient,
        start: Callable[[AsyncVoiceClient], Awaitable[T]],
        end: Receiver[T],
    ) -> None:
        """Start a call in a task of its own."""
        if end.cancelled():
            # Ctrl-C has returned already: the request must not be written any more.
            self.forget(end)
            return
        loop = asyncio.get_running_loop()
        task = loop.create_task(_call(client, start, end))
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self.forget(end)
            # A task that was canceled before its first step has not ended its receiver.
            end.cancel()

        def cancel(end: Receiver[T]) -> None:
            if end.cancelled():
                # A closed loop has no task to cancel.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(task.cancel)

        task.add_done_callback(ended)
        end.add_done_callback(cancel)
        if self._cancel_new:  # pragma: no cover - only a race gets here
            task.cancel()

    def cancel(self) -> None:
        """Cancel the calls in progress, and each call that starts later."""
        self._cancel_new = True
        for task in self._tasks:
            task.cancel()

    async def wait(self) -> None:
        """Wait until no call is in progress."""
        while self._tasks:
            await asyncio.wait(self._tasks)


async def _call(
    client: AsyncVoiceClient,
    start: Callable[[AsyncVoiceClient], Awaitable[T]],
    end: Receiver[T],
) -> None:
    """Run one call. Raises nothing: SystemExit would end the loop and all other calls."""
    try:
        result = await start(client)
    except asyncio.CancelledError:
        end.cancel()
    except BaseException as error:  # noqa: BLE001 - the thread that waits gets it
        if end.set_running_or_notify_cancel():
            end.set_exception(error)
    else:
        if end.set_running_or_notify_cancel():
            end.set_result(result)


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
