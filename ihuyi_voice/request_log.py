"""One log line for each request, on the logger `ihuyi_voice`.

A line holds no key, no code and no whole number. Where it is written from is
the caller's choice: a `RequestLog` hands finished entries to its `sink`.
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
    # The outcome of a request is more important than its log line.
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
        """As `write`, at next to no cost where there is nothing to write."""
        if self._entries:
            self.write()

    def write(self) -> None:
        """Write what there is, from the calling thread."""
        # Asked here, because the loop thread must not.
        self._is_wanted = is_info_enabled()
        with contextlib.suppress(IndexError):
            while True:
                write(self._entries.popleft())


class Masked(Protocol):
    """A request that was checked and shows its number masked."""

    def masked_mobile(self) -> str:
        """The number as it may be shown."""


class RequestLog:
    """Makes the log entries of one client.

    Args:
        sink: takes each entry, by default `write`. A blocking client collects
            them and writes them in the caller's thread: its loop thread must
            not wait for a log handler's lock that the caller may hold.
        is_wanted: whether a line for each request is wanted. The default asks
            the logger, which takes logging's own lock now and then.
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
        """The line for one submit; None for a row that is no request."""
        self.request("submit", request, end, status, began)

    def request(
        self,
        operation: str,
        request: Masked | SubmitRequest | None,
        end: SubmitResult | Balance | BaseException,
        status: OutcomeStatus,
        began: float,
    ) -> None:
        """The line for one request that began at `began`, on `time.monotonic`."""
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
        """A warning about a request."""
        self.sink(LogEntry(logging.WARNING, message, args))


def _masked(request: Masked | SubmitRequest | None) -> str:
    """The number of a request as it may be shown; `****` where it has none."""
    if request is None:
        return mask_mobile("")
    if not isinstance(request, SubmitRequest):
        return request.masked_mobile()
    number = read_mobile(request.mobile)
    return mask_mobile("" if isinstance(number, InvalidRequestError) else number)
