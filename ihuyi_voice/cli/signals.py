"""Signals that ask the command to end: Ctrl-C, SIGTERM and SIGHUP, all alike.

Before and after a run each raises `Interrupted`; during a run they are
collected, so that what is in flight can be finished. A signal that is ignored
when the command starts, as under nohup, stays ignored.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType, TracebackType
    from typing import Any, TypeAlias

    from typing_extensions import Self

    Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | None

# SIGHUP is not on every platform.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_NUMBERS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """One of the signals came while none were collected.

    Attributes:
        status: the exit status by which a shell knows it.
    """

    def __init__(self, number: int) -> None:
        self.status: int = 128 + number
        super().__init__(number)


class Interruptions:
    """Takes the signals over while it is entered; in another thread than the main one, none.

    Attributes:
        process_ends: the process ends with the command. Then the signals are
            ignored afterwards: one that comes while the interpreter exits must
            not replace the exit status of the outcome.
    """

    process_ends: ClassVar[bool] = False

    def __init__(self) -> None:
        self._earlier: dict[int, Handler] = {}
        self._collecting = False
        self._collected: deque[int] = deque()
        self._wake: Callable[[], object] | None = None

    def __enter__(self) -> Self:
        # Python delivers signals to the main thread alone.
        in_main_thread = threading.current_thread() is threading.main_thread()
        for number in _NUMBERS if in_main_thread else ():
            handler = signal.getsignal(number)
            # None: whatever set it is not Python, and knows better.
            if handler not in (signal.SIG_IGN, None):
                self._earlier[number] = handler
                signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, signal.SIG_IGN if self.process_ends else handler)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Signals raise nothing in here: `next` returns them."""
        self._collecting = True
        try:
            yield
        finally:
            self._collecting = False

    async def next(self) -> int:
        """The next signal that was collected, in the order they came."""
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        self._wake = lambda: loop.call_soon_threadsafe(arrived.set)
        try:
            if not self._collected:
                await arrived.wait()
            return self._collected.popleft()
        finally:
            self._wake = None

    def forget(self, number: int) -> None:
        """Drop those of this kind that were collected and not looked at."""
        while number in self._collected:
            self._collected.remove(number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - signal's
        if not self._collecting:
            raise Interrupted(number)
        self._collected.append(number)
        if self._wake is not None:
            self._wake()
