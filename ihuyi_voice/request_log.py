"""The end of each request: one line on the logger `ihuyi_voice`, and one `SubmitEvent`.

Neither contains an API key, a code or a whole number. A `RequestLog` passes
finished entries to its `sink`, so its owner chooses the thread that delivers
them.

A line is INFO for an accepted or replayed request and WARNING for any other. Its
record has the fields of the event as attributes, with the prefix `ihuyi_`, such
as `ihuyi_status`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from .errors import (
    ACCEPTED,
    GatewayError,
    IhuyiVoiceError,
    InvalidRequestError,
    OutcomeStatus,
)
from .events import SUCCESSES, SubmitEvent
from .models import SubmitRequest, exact_text, mask_key, mask_mobile
from .wire import PATH, read_mobile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .events import OnSubmit
    from .models import Balance, SubmitResult
    from .transport.base import Exchange

logger: logging.Logger = logging.getLogger("ihuyi_voice")
logger.addHandler(logging.NullHandler())

SUBMIT = "submit"
SUBMIT_MANY = "submit_many"
QUERY_BALANCE = "query_balance"
_OPERATIONS = (SUBMIT, SUBMIT_MANY, QUERY_BALANCE)

# The attributes of a log record, by the fields of the event.
_EXTRA = (
    "operation",
    "mobile",
    "status",
    "code",
    "voice_id",
    "seconds",
    "attempts",
    "key",
    "error",
    "reason",
    "host",
    "http_status",
)


class LogEntry(NamedTuple):
    """A log record that has not been written yet."""

    level: int
    message: str
    args: tuple[object, ...]
    extra: dict[str, object] | None = None


def _write(record: LogEntry) -> None:
    """Write a record from the calling thread; a log handler that raises is ignored."""
    # The outcome must reach the caller even if its log line cannot be written.
    with contextlib.suppress(Exception):
        logger.log(record.level, record.message, *record.args, extra=record.extra)


class Entry:
    """A log record, an event, or both, to be delivered once.

    Attributes:
        pid: the process that delivers it. A forked child has a copy.
    """

    __slots__ = ("_calls", "_event", "_records", "pid")

    def __init__(
        self,
        record: LogEntry | None,
        event: SubmitEvent | None = None,
        on_event: tuple[OnSubmit, ...] = (),
    ) -> None:
        self.pid: int = os.getpid()
        # Iterators: what an interrupted delivery has begun is not begun again.
        self._records: Iterator[LogEntry] = iter(() if record is None else (record,))
        self._event = event
        self._calls: Iterator[OnSubmit] = iter(() if event is None else on_event)

    def deliver(self) -> None:
        """Write the record and call the functions, in the calling thread.

        Their exceptions are logged and ignored. After KeyboardInterrupt,
        SystemExit and their like in one of them the others are called, and then
        it is raised.
        """
        for record in self._records:
            _write(record)
        event = self._event
        for call in self._calls:
            # Between here and the call Python runs no signal handler.
            try:
                call(event)  # type: ignore[arg-type] # there are no calls without an event
            except Exception as error:  # noqa: BLE001, PERF203 - each may fail by itself
                args = (type(error).__name__, getattr(event, "operation", ""))
                _write(LogEntry(logging.WARNING, "on_event raised %s for %s: ignored", args))
            except BaseException:
                self.deliver()
                raise


# Seconds for a delivery of another thread at the exit: a function of `on_event` may take longer.
_EXIT_SECONDS = 1.0


class DeferredLog:
    """Entries of a loop thread, delivered later by the threads that use the client.

    A log handler may wait, for a lock or for a disk, and a signal handler may
    interrupt a thread inside one. The loop thread never waits for either. The
    same holds for the functions of `on_event`: each may hold a lock that is not
    reentrant. So a signal handler that interrupts a delivery, and uses the
    client, delivers nothing: the interrupted delivery does that.
    """

    __slots__ = ("_delivering", "_entries", "_level", "_taking")

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        # Removes entries. Between that and the body of a `for` loop Python runs no
        # signal handler, so an interrupt loses none.
        self._taking: map[Entry] = map(deque.popleft, repeat(self._entries))
        self._level = logging.DEBUG
        # The threads that deliver, each by its process and identifier.
        self._delivering: set[tuple[int, int]] = set()

    def add(self, entry: Entry) -> None:
        """Keep an entry until it is delivered."""
        self._entries.append(entry)

    def is_enabled(self, level: int) -> bool:
        """Whether the application wanted this level when entries were last delivered."""
        return level >= self._level

    def write_if_any(self) -> None:
        """Deliver what there is. Nearly free if there is nothing."""
        if self._entries:
            self.write()

    def write(self) -> None:
        """Deliver what there is, from the calling thread."""
        # Asked here, because it may wait for logging's own lock.
        self._level = _lowest_enabled_level()
        me = (os.getpid(), threading.get_ident())
        if me in self._delivering:
            return
        try:
            self._delivering.add(me)
            with contextlib.suppress(IndexError):
                for entry in self._taking:  # pragma: no branch - it never ends
                    try:
                        if entry.pid == me[0]:
                            entry.deliver()
                    except BaseException:  # noqa: PERF203 - one entry is interrupted
                        # An interrupt may come before the first call.
                        self._entries.appendleft(entry)
                        raise
        finally:
            self._delivering.discard(me)

    def write_at_exit(self) -> None:
        """Deliver what there is, and wait a moment for what other threads deliver.

        At its exit the interpreter stops daemon threads, also in a delivery.
        """
        self.write()
        end = time.monotonic() + _EXIT_SECONDS
        while self._others_deliver() and time.monotonic() < end:
            time.sleep(0.001)

    def _others_deliver(self) -> bool:
        pid, ident = os.getpid(), threading.get_ident()
        # A copy: the other threads change the set.
        return any(one[0] == pid and one[1] != ident for one in tuple(self._delivering))


def _lowest_enabled_level() -> int:
    for level in (logging.INFO, logging.WARNING):
        if logger.isEnabledFor(level):
            return level
    return logging.CRITICAL


class RequestLog:
    """Ends the requests of one client: logs them and reports them to `on_event`.

    Args:
        base_url: of the gateway.
        on_event: called with the event of each request.
        sink: receives each entry, by default to deliver it at once. A blocking
            client collects the entries and delivers them in the caller's
            thread: its loop thread must not wait for a lock that the caller may
            hold.
        is_enabled: whether to log records of a level. The default asks the
            logger, which sometimes takes logging's own lock.
    """

    __slots__ = ("_base_url", "_host", "_is_enabled", "_on_event", "_sink", "_url")

    def __init__(
        self,
        base_url: str,
        on_event: tuple[OnSubmit, ...] = (),
        sink: Callable[[Entry], object] = Entry.deliver,
        is_enabled: Callable[[int], bool] = logger.isEnabledFor,
    ) -> None:
        self._base_url = base_url
        self._on_event = on_event
        self._sink = sink
        self._is_enabled = is_enabled
        parts = urlsplit(base_url)
        default = "443" if parts.scheme == "https" else "80"
        self._host = parts.netloc if parts.port else f"{parts.netloc.rstrip(':')}:{default}"
        self._url = f"{base_url}{PATH}"

    def collected_by(self, deferred: DeferredLog) -> RequestLog:
        """The log of a client in a loop thread: `deferred` collects its entries."""
        return RequestLog(self._base_url, self._on_event, deferred.add, deferred.is_enabled)

    def wants(self, status: OutcomeStatus) -> bool:
        """Whether anything is to be done about a request that ends like this."""
        return self._on_event != () or self._is_enabled(_level(status))

    def end(
        self,
        operation: str,
        request: SubmitRequest | None,
        end: SubmitResult | Balance | BaseException,
        status: OutcomeStatus,
        exchange: Exchange | None = None,
    ) -> None:
        """Log how a request ended, and report it. The only place that does.

        Args:
            operation: what it was.
            request: None for a balance query, and for a row that is no request.
            end: its result, or what was raised.
            status: its outcome.
            exchange: how it went; None where it did not begin.
        """
        if not self.wants(status):
            return
        is_success = status in SUCCESSES
        event = SubmitEvent(
            operation=operation,
            mobile=_masked(request),
            status=status,
            code=_code_of(end, status),
            voice_id=getattr(end, "voice_id", None),
            seconds=0.0 if exchange is None else time.monotonic() - exchange.began,
            attempts=0 if exchange is None else exchange.attempts,
            key=None if request is None else _key_of(request),
            error="" if is_success else type(end).__name__,
            reason="" if is_success else _reason(end, request),
            host=self._host,
            url=self._url,
            http_status=None if exchange is None else exchange.http_status,
            ended_at=time.time(),
        )
        record = _record(event) if self._is_enabled(_level(status)) else None
        # A verifier reports its own events.
        is_reported = operation in _OPERATIONS
        self._sink(Entry(record, event if is_reported else None, self._on_event))

    def warn(self, message: str, *args: object) -> None:
        """Log a warning about a request."""
        self._sink(Entry(LogEntry(logging.WARNING, message, args)))


def _code_of(end: object, status: OutcomeStatus) -> int | None:
    """The gateway's code. A foreign exception, `SystemExit` for one, has another `code`."""
    if isinstance(end, GatewayError):
        return end.code
    return ACCEPTED if status is OutcomeStatus.ACCEPTED else None


def _level(status: OutcomeStatus) -> int:
    return logging.INFO if status in SUCCESSES else logging.WARNING


def _record(event: SubmitEvent) -> LogEntry:
    message = "%s %s %s code=%s voice_id=%s %.0f ms"
    args: tuple[object, ...] = (
        event.operation,
        event.mobile,
        event.status.value,
        "-" if event.code is None else event.code,
        event.voice_id or "-",
        event.seconds * 1000,
    )
    extra = {f"ihuyi_{name}": getattr(event, name) for name in _EXTRA}
    # Plain text: formatters that write JSON know no enum.
    extra["ihuyi_status"] = event.status.value
    if event.failed:
        message += " host=%s: %s"
        args += (event.host, event.reason)
    return LogEntry(_level(event.status), message, args, extra)


_LONG_KEY = 8


def _reason(end: object, request: SubmitRequest | None) -> str:
    """What happened, without the advice that the error's text adds, and without the key."""
    if not isinstance(end, IhuyiVoiceError):
        # A foreign text may hold anything.
        return type(end).__name__
    reason = str(getattr(end, "reason", None) or end)
    if isinstance(end, GatewayError):
        # A balance query has no number and no code, which could be redacted in the text.
        said = "" if request is None else f" ({end.msg!r})"
        reason = f"{end.meaning}{said}" + (f"; {end.hint}" if end.hint else "")
    # A lazy string gives `str` as its class without being one.
    key = None if request is None else exact_text(request.idempotency_key)
    if key:
        reason = reason.replace(repr(key), "its key")
        if len(key) >= _LONG_KEY:
            # A shorter one may be part of a word.
            reason = reason.replace(key, "its key")
    return reason


def _key_of(request: SubmitRequest) -> str | None:
    """The masked key; None where it is no key."""
    key = mask_key(request.idempotency_key, request.mobile, request.content)
    return key if key and len(key) <= 255 and key.isprintable() else None


def _masked(request: SubmitRequest | None) -> str:
    """The masked number of a request; `****` if it has none."""
    if request is None:
        return mask_mobile("")
    number = read_mobile(request.mobile)
    return mask_mobile("" if isinstance(number, InvalidRequestError) else number)
