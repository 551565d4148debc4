"""What the threads of a blocking client share, each decided in one atomic step.

There are no locks: a signal handler may use a client while the thread that it
interrupted is between any two lines of this subpackage.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
from typing import TYPE_CHECKING, Generic, TypeVar

from .._threads import Event

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_GIVEN_UP = concurrent.futures.CancelledError()


class FirstValue(Generic[T]):
    """Keeps the first value that is offered."""

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

    The first end counts: the result, the exception, or that the waiting thread
    has given up.

    Not a future of `concurrent.futures`: a main thread under a signal handler
    may hold the future's lock while the loop thread wants it, and greenlets
    cannot wait for the future.
    """

    __slots__ = ("_callbacks", "_end", "_ended")

    def __init__(self) -> None:
        # As a `FirstValue`, without a second object per call. The result is in a tuple,
        # because it may be an exception that the call returned.
        self._end: dict[None, tuple[T] | BaseException] = {}
        self._ended = Event()
        self._callbacks: list[Callable[[Handover[T]], object]] = []

    # --- for the loop thread ----------------------------------------------------

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

    def add_done_callback(self, fn: Callable[[Handover[T]], object]) -> None:
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
