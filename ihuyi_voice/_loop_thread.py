"""The thread that owns the event loop of a blocking client.

It runs coroutines for other threads and hands their results over; which
coroutines, and what an interrupted wait means, is `sync.py`'s business. The
thread is a daemon, because a client that is never closed must not keep the
interpreter from exiting.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from typing import TYPE_CHECKING, TypeVar

import anyio

from ._loops import fast_loop_factory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .client import AsyncVoiceClient

T = TypeVar("T")

# Seconds that closing a client waits for its loop to close, once it is idle.
_LOOP_CLOSING_SECONDS = 2.0

CLOSED = "this client is closed: make a new one"


class LoopThread:
    """A thread with an event loop, and one open client in it.

    Attributes:
        pid: the process it runs in; a forked child has no such thread.
        loop: its event loop.
        stopping: set in the loop once it is to end.
    """

    def __init__(self, client: AsyncVoiceClient) -> None:
        self.pid = os.getpid()
        self._client = client
        self._calls: set[asyncio.Task[None]] = set()
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._cancel_remaining = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ihuyi-voice", daemon=True)
        self._thread.start()
        self._started.result()

    def begin(
        self,
        start: Callable[[AsyncVoiceClient], Awaitable[T]],
        future: concurrent.futures.Future[T],
    ) -> None:
        """Run a coroutine in the thread, in the caller's context, for a future that can cancel it.

        Not by anyio's BlockingPortal, which waits for the loop once more, until
        the task is there, nor by asyncio's run_coroutine_threadsafe, which
        takes one more round of it to tell the end: a third of a call's time.
        """
        try:
            self.loop.call_soon_threadsafe(self._start, start, future)
        except RuntimeError:
            raise RuntimeError(CLOSED) from None

    def _start(
        self,
        start: Callable[[AsyncVoiceClient], Awaitable[T]],
        future: concurrent.futures.Future[T],
    ) -> None:
        if future.cancelled():
            # Ctrl-C has returned already: its request must not be written any more.
            return
        call = self.loop.create_task(self._call(start, future))
        self._calls.add(call)

        def ended(call: asyncio.Task[None]) -> None:
            self._calls.discard(call)
            # One that was cancelled before its first step has told nobody.
            future.cancel()

        call.add_done_callback(ended)

        def cancel(future: concurrent.futures.Future[T]) -> None:
            if future.cancelled():
                # A loop that is closed has nothing left to cancel.
                with contextlib.suppress(RuntimeError):
                    self.loop.call_soon_threadsafe(call.cancel)

        future.add_done_callback(cancel)

    async def _call(
        self,
        start: Callable[[AsyncVoiceClient], Awaitable[T]],
        future: concurrent.futures.Future[T],
    ) -> None:
        try:
            result = await start(self._client)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                future.cancel()
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            if future.set_running_or_notify_cancel():
                future.set_result(result)

    def stop(self, *, cancel_remaining: bool) -> None:
        """End the loop and wait for it, from any thread but its own.

        Calls on the way end by themselves, each within its own deadline,
        unless they are to be cancelled. Does nothing in a forked child: the
        thread is not there. Whoever was interrupted in it may do it again.
        """
        if os.getpid() != self.pid:
            return
        self._cancel_remaining = cancel_remaining
        # One that is closed has ended.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.stopping.set)
        # The garbage collector may run a finaliser in any thread, this one included.
        if threading.current_thread() is not self._thread:
            self._ended.wait()
            # Every request has its outcome and every connection is closed. The
            # loop's own closing was seen to hang (uvloop 0.21): not worth a wait.
            self._thread.join(timeout=_LOOP_CLOSING_SECONDS)

    def _run(self) -> None:
        try:
            anyio.run(self._main, backend_options={"loop_factory": fast_loop_factory()})
        except BaseException as exception:
            if self._started.done():
                raise
            # Whoever waits for the start is told why there is none.
            self._started.set_exception(exception)
        finally:
            self._ended.set()

    async def _main(self) -> None:
        # A caller's context may say that another library runs there, as trio's does.
        with contextlib.suppress(ModuleNotFoundError):
            import sniffio  # noqa: PLC0415 - asked by anyio, where it is installed

            sniffio.thread_local.name = "asyncio"
        self.loop = asyncio.get_running_loop()
        self.stopping = asyncio.Event()
        async with self._client:
            self._started.set_result(None)
            await self.stopping.wait()
            while self._calls:
                if self._cancel_remaining:
                    for call in self._calls:
                        call.cancel()
                await asyncio.wait(self._calls)
        self._ended.set()
