"""Signals that ask the command to end: Ctrl-C, SIGTERM and SIGHUP, handled the same way.

Before and after a run each signal raises `Interrupted`. During a run signals
are collected, so that the requests in flight can finish. A signal that is ignored
when the command starts, as under nohup, stays ignored.
"""

from __future__ import annotations

import signal
import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from types import FrameType, TracebackType
    from typing import Any, TypeAlias

    from typing_extensions import Self

    Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | None

# Windows has no SIGHUP.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_NUMBERS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """A signal came while signals were not collected.

    Attributes:
        status: the exit status that shells use for this signal.
    """

    def __init__(self, number: int) -> None:
        self.status: int = 128 + number
        super().__init__(number)


class Interruptions:
    """Handles the signals while it is entered; outside the main thread it does nothing.

    Args:
        even_ignored: signals to handle although they are ignored when it is entered.

    Attributes:
        process_ends: the process ends with the command. The signals are then
            ignored afterwards: a signal during the interpreter's exit must not
            replace the exit status of the outcome.
    """

    process_ends: ClassVar[bool] = False

    def __init__(self, *, even_ignored: Collection[int] = ()) -> None:
        self._even_ignored = even_ignored
        self._earlier: dict[int, Handler] = {}
        self._collecting = False
        self._collected: deque[int] = deque()
        self._wake: Callable[[], object] | None = None

    def __enter__(self) -> Self:
        # Python delivers signals only to the main thread.
        in_main_thread = threading.current_thread() is threading.main_thread()
        for number in _NUMBERS if in_main_thread else ():
            handler = signal.getsignal(number)
            # None: C code installed the handler; keep it.
            kept = None if number in self._even_ignored else signal.SIG_IGN
            if handler not in (None, kept):
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
        """Inside this block signals do not raise; `next` returns them."""
        self._collecting = True
        try:
            yield
        finally:
            self._collecting = False

    async def next(self) -> int:
        """Wait for the next collected signal, in order of arrival."""
        import asyncio  # noqa: PLC0415 - no help needs it

        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        self._wake = lambda: loop.call_soon_threadsafe(arrived.set)
        try:
            if not self._collected:
                await arrived.wait()
            return self._collected.popleft()
        finally:
            self._wake = None

    def forget(self, number: int) -> None:
        """Drop collected signals of this number that `next` has not returned yet."""
        while number in self._collected:
            self._collected.remove(number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - signal's
        if not self._collecting:
            raise Interrupted(number)
        self._collected.append(number)
        if self._wake is not None:
            self._wake()


@contextmanager
def woken_by_signals() -> Iterator[None]:
    """Let each signal end the wait of the running event loop.

    Python calls a handler once its main thread runs Python code again. A signal that
    arrives just before the loop waits, or in another thread, does not end the wait.
    """
    if threading.current_thread() is not threading.main_thread():
        # Python delivers signals only to that.
        yield
        return
    import asyncio  # noqa: PLC0415 - no help needs it
    import socket  # noqa: PLC0415 - no help needs it

    loop = asyncio.get_running_loop()
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.settimeout(0)
        writer.settimeout(0)
        # A loop that has one of its own, as uvloop and the loops of Windows, keeps it.
        earlier = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        if earlier != -1:
            signal.set_wakeup_fd(earlier)
            yield
            return
        try:
            loop.add_reader(reader, reader.recv, 4096)
            yield
        finally:
            signal.set_wakeup_fd(-1)
            loop.remove_reader(reader)
