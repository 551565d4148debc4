"""One log line for each request, on the logger `ihuyi_voice`.

A line contains no key, no code and no whole number. A `RequestLog` passes
finished entries to its `sink`, so its owner chooses the thread that writes.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .errors import ACCEPTED, InvalidRequestError
from .models import OutcomeStatus, SubmitRequest, mask_mobile
from .wire import read_mobile

if TYPE_CHECKING:
    from collections.abc import Callable

    from .models import Balance, SubmitResult

logger: logging.Logger = logging.getLogger("ihuyi_voice")
logger.addHandler(logging.NullHandler())


class LogEntry(NamedTuple):
    """A log record that has not been written yet."""

    level: int
    message: str
    args: tuple[object, ...]


def write(entry: LogEntry) -> None:
    """Write an entry from the calling thread; a log handler that raises is ignored."""
    # The outcome must reach the caller even if its log line cannot be written.
    with contextlib.suppress(Exception):
        logger.log(entry.level, entry.message, *entry.args)


def is_info_enabled() -> bool:
    """Whether the application wants a line for each request."""
    return logger.isEnabledFor(logging.INFO)


class DeferredLog:
    """Entries of a loop thread, written later by the threads that use the client.

    A log handler may wait, for a lock or for a disk, and a signal handler may
    interrupt a thread inside one. The loop thread never waits for either.
    """

    __slots__ = ("_entries", "_is_wanted")

    def __init__(self) -> None:
        self._entries: deque[LogEntry] = deque()
        self._is_wanted = True

    def request_log(self) -> RequestLog:
        """The log to hand to the client in the loop thread."""
        return RequestLog(self._entries.append, lambda: self._is_wanted)

    def write_if_any(self) -> None:
        """Write what there is. Nearly free if there is nothing."""
        if self._entries:
            self.write()

    def write(self) -> None:
        """Write what there is, from the calling thread."""
        # Asked here, because it may wait for logging's own lock.
        self._is_wanted = is_info_enabled()
        with contextlib.suppress(IndexError):
            while True:
                write(self._entries.popleft())


class Masked(Protocol):
    """A checked request, which shows its number only masked."""

    def masked_mobile(self) -> str:
        """The masked number."""


class RequestLog:
    """Makes the log entries of one client.

    Args:
        sink: receives each entry, by default `write`. A blocking client collects
            the entries and writes them in the caller's thread: its loop thread
            must not wait for a log handler's lock that the caller may hold.
        is_wanted: whether to log each request. The default asks the logger,
            which sometimes takes logging's own lock.
    """

    __slots__ = ("is_wanted", "sink")

    def __init__(
        self,
        sink: Callable[[LogEntry], object] = write,
        is_wanted: Callable[[], bool] = is_info_enabled,
    ) -> None:
        self.sink: Callable[[LogEntry], object] = sink
        self.is_wanted: Callable[[], bool] = is_wanted

    def submit(
        self,
        request: Masked | SubmitRequest | None,
        end: SubmitResult | BaseException,
        status: OutcomeStatus,
        began: float,
    ) -> None:
        """Log one submit. `request` is None for a row that is not a request."""
        self.request("submit", request, end, status, began)

    def request(
        self,
        operation: str,
        request: Masked | SubmitRequest | None,
        end: SubmitResult | Balance | BaseException,
        status: OutcomeStatus,
        began: float,
    ) -> None:
        """Log one request. `began` is when it began, by `time.monotonic`."""
        if not self.is_wanted():
            return
        args = (
            operation,
            _masked(request),
            status.value,
            ACCEPTED if status is OutcomeStatus.ACCEPTED else getattr(end, "code", "-"),
            getattr(end, "voice_id", None) or "-",
            (time.monotonic() - began) * 1000,
        )
        self.sink(LogEntry(logging.INFO, "%s %s %s code=%s voice_id=%s %.0f ms", args))

    def warn(self, message: str, *args: object) -> None:
        """Log a warning about a request."""
        self.sink(LogEntry(logging.WARNING, message, args))


def _masked(request: Masked | SubmitRequest | None) -> str:
    """The masked number of a request; `****` if it has none."""
    if request is None:
        return mask_mobile("")
    if not isinstance(request, SubmitRequest):
        return request.masked_mobile()
    number = read_mobile(request.mobile)
    return mask_mobile("" if isinstance(number, InvalidRequestError) else number)
