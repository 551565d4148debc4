"""One call from another thread to the loop thread, and the calls in flight."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .._threads import Event
from .life_cycle import State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..client import AsyncVoiceClient
    from .life_cycle import LifeCycle

T = TypeVar("T")

CLOSED = "this client is closed: make a new one"

_GIVEN_UP = concurrent.futures.CancelledError()


class Call(Generic[T]):
    """One call: a coroutine for the loop thread, and its end for the thread that waits.

    The first end counts: the result, the exception, or that the waiting thread
    has given up.

    The end is not a future of `concurrent.futures`: a main thread under a
    signal handler may hold the future's lock while the loop thread wants it,
    and greenlets cannot wait for the future.

    Attributes:
        begun: whether the loop thread has begun the coroutine.
    """

    __slots__ = ("_callbacks", "_end", "_ended", "_start", "begun")

    def __init__(self, start: Callable[[AsyncVoiceClient], Awaitable[T]]) -> None:
        self._start = start
        self.begun: bool = False
        # As a `FirstValue`, without a second object per call. The result is in a tuple,
        # because it may be an exception that the call returned.
        self._end: dict[None, tuple[T] | BaseException] = {}
        self._ended = Event()
        self._callbacks: list[Callable[[Call[T]], object]] = []

    # --- for the loop thread ----------------------------------------------------

    def begin(self, client: AsyncVoiceClient) -> Awaitable[T]:
        """Begin the coroutine."""
        # In this order: a thread that gives up cancels first and reads `begun` after that.
        self.begun = True
        if self.cancelled():
            raise asyncio.CancelledError  # pragma: no cover - only a race gets here
        return self._start(client)

    def set_result(self, result: T) -> None:
        """Hand over what the call returned."""
        self._end_with((result,))

    def set_exception(self, exception: BaseException) -> None:
        """Hand over what the call raised."""
        self._end_with(exception)

    # --- for any thread ---------------------------------------------------------

    def cancel(self) -> bool:
        """Give up. Returns whether the call was given up, now or earlier."""
        if not self._ended.is_set():
            self._end_with(_GIVEN_UP)
        return self.cancelled()

    def cancelled(self) -> bool:
        """Whether the call was given up."""
        return self._end.get(None) is _GIVEN_UP

    def done(self) -> bool:
        """Whether the call has ended."""
        return self._ended.is_set()

    def wait(self, timeout: float) -> bool:
        """Wait for the end, at most `timeout` seconds. Returns whether the call has ended."""
        return self._ended.wait(timeout)

    def result(self) -> T:
        """Wait for the end, and return what the call returned.

        Raises:
            BaseException: what the call raised.
            concurrent.futures.CancelledError: the call was given up.
        """
        self._ended.wait()
        end = self._end[None]
        if end is _GIVEN_UP:
            raise concurrent.futures.CancelledError
        if isinstance(end, BaseException):
            raise end
        return end[0]

    def add_done_callback(self, fn: Callable[[Call[T]], object]) -> None:
        """Call `fn` once, in some thread, when the call has ended."""
        self._callbacks.append(fn)
        if self._ended.is_set():
            self._call_back()

    def _end_with(self, end: tuple[T] | BaseException) -> None:
        self._end.setdefault(None, end)
        # Also after a later end: a signal handler may have interrupted the first one here.
        self._ended.set()
        self._call_back()

    def _call_back(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._callbacks.pop()(self)


class Calls:
    """The calls in flight, each in a task of the loop.

    Attributes:
        client: the open client of the loop, after `open`.
        loop: the event loop, after `open`.
        stopping: set in the loop when it is to end.
    """

    client: AsyncVoiceClient
    loop: asyncio.AbstractEventLoop

    def __init__(self, life: LifeCycle) -> None:
        self._life = life
        self.stopping: asyncio.Event = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        # The calls that have not ended, for the case that the loop ends first.
        self._waited_for: dict[Call[Any], None] = {}
        self._cancels_new = False

    # --- for other threads ------------------------------------------------------

    def begin(self, call: Call[T]) -> None:
        """Run a call in the loop, in the context of the calling thread.

        Cancelling the call cancels its coroutine.

        anyio's BlockingPortal waits for the loop once more, until the task
        exists, and asyncio's run_coroutine_threadsafe needs one more round of
        the loop to notice the end. That is a third of a call's time, so
        neither is used.

        Raises:
            RuntimeError: no call can begin any more.
        """
        self._waited_for[call] = None
        # `give_up` cancels every call that it finds, and the state is CLOSED by then. So it
        # finds this one, or this check sees the state.
        if self._life.state is not State.CLOSED:
            # The loop may have been closed meanwhile.
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._start, call)
                return
        self._forget(call)
        raise RuntimeError(CLOSED)

    def runs_here(self) -> bool:
        """Whether the calling thread is the loop's."""
        with contextlib.suppress(RuntimeError, AttributeError):
            return asyncio.get_running_loop() is self.loop
        return False

    def give_up(self) -> None:
        """End the waits for calls that nothing runs any more. The state must be CLOSED."""
        for call in list(self._waited_for):
            call.cancel()  # pragma: no cover - only a race gets here

    # --- in the loop ------------------------------------------------------------

    def open(self, client: AsyncVoiceClient) -> None:
        """Let calls begin, with a client that is open in the running loop."""
        self.client = client
        self.loop = asyncio.get_running_loop()

    def cancel(self) -> None:
        """Cancel the calls in flight, and each call that starts later."""
        self._cancels_new = True
        for task in self._tasks:
            task.cancel()

    async def wait(self) -> None:
        """Wait until no call is in flight."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self, call: Call[T]) -> None:
        """Start a call in a task of its own."""
        if call.cancelled():
            # Ctrl-C has returned already: the request must not be written any more.
            self._forget(call)
            return
        task = self.loop.create_task(_run(self.client, call))
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._forget(call)
            # A task that was canceled before its first step has not ended its call.
            call.cancel()

        def cancel(call: Call[T]) -> None:
            if call.cancelled():
                # A closed loop has no task to cancel.
                with contextlib.suppress(RuntimeError):
                    self.loop.call_soon_threadsafe(task.cancel)

        task.add_done_callback(ended)
        call.add_done_callback(cancel)
        if self._cancels_new:  # pragma: no cover - only a race gets here
            task.cancel()

    def _forget(self, call: Call[Any]) -> None:
        self._waited_for.pop(call, None)


async def _run(client: AsyncVoiceClient, call: Call[T]) -> None:
    """Run one call. Raises nothing: SystemExit would end the loop and all other calls."""
    try:
        result = await call.begin(client)
    except asyncio.CancelledError:
        call.cancel()
    except BaseException as error:  # noqa: BLE001 - the thread that waits gets it
        call.set_exception(error)
    else:
        call.set_result(result)
