"""Where the rows of a bulk run come from, pulled lazily and without blocking the loop.

A list, tuple, set or deque is in memory and is read in place. Any other
iterable may block (a generator over a file, a database cursor), so a thread of
the run pulls it. A task pulls an async iterable. Thread and task read ahead as
many rows as they are granted, at most `read_ahead`. The thread hands rows over
in chunks, because a switch between threads costs more than a row.

A row becomes a `SubmitRequest` as soon as it is taken, so that no frame holds
the plain strings when the next row raises. This module checks and sends no row.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
from _queue import SimpleQueue
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Mapping
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeAlias

import anyio
import anyio.lowlevel

from .._cancellation import is_cancelled
from .._threads import start_thread
from ..errors import InvalidRequestError, NotSentError
from ..models import SubmitRequest

if sys.version_info < (3, 11):  # pragma: no cover - built in since 3.11
    # anyio installs it where this runs. The type checkers' Python may not have it.
    from exceptiongroup import BaseExceptionGroup  # type: ignore[import-not-found,unused-ignore]

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

READ_AHEAD, MOST_READ_AHEAD = 32, 256
"""How many rows may have been read from a source without having been taken: at first, and at
most."""


def read_ahead(taken: int) -> int:
    """How many rows a source may read ahead once so many were taken.

    Half of them are granted at once. Each grant to a thread may cost two switches
    between threads, so a long run gets larger ones; a short one stays lazy.
    """
    return min(max(taken // 8, READ_AHEAD), MOST_READ_AHEAD)


# Seconds in which a thread may gather rows before the ones it has are taken.
_GATHER = 0.002


class Nothing(Enum):
    """What a source returns instead of a row."""

    YET = "no row yet: wait"
    LEFT = "no more rows"


Taken: TypeAlias = SubmitRequest | InvalidRequestError
"""A row as a request, or why it is not a request."""


class Source(Protocol):
    """Rows, one by one.

    Attributes:
        error: what the iterable raised, of any class; valid once there are
            no more rows.
    """

    error: BaseException | None

    @property
    def ahead(self) -> int:
        """How many rows are granted, or read, and not taken."""

    @property
    def ready(self) -> int:
        """How many rows can be taken without waiting, as far as is known."""

    def wants(self, most: int) -> int:
        """How many more rows the source can read ahead, of at most so many in all."""

    def grant(self, count: int) -> None:
        """Let the source read so many more rows ahead."""

    def take(self) -> Taken | Nothing:
        """The next row, or `Nothing`."""

    async def wait(self) -> None:
        """Wait until `take` returns something else than `Nothing.YET`."""

    async def pump(self) -> None:
        """Read rows until there are no more or `stop` is called; then close the iterable."""

    def stop(self) -> None:
        """Read no more rows."""

    def leftovers(self) -> list[Taken]:
        """The rows that were read ahead and never taken, once the pump has ended."""


def open_source(rows: object) -> Source:
    """The source for an iterable of rows.

    Raises:
        TypeError: it is not an iterable of rows.
    """
    if isinstance(rows, AsyncIterable):
        return _AsyncSource(rows)
    if not isinstance(rows, Iterable) or isinstance(rows, str | bytes | Mapping):
        msg = (
            "requests must be an iterable or async iterable of SubmitRequest or"
            f" (mobile, content) pairs, not {type(rows).__name__}"
        )
        raise TypeError(msg)
    if isinstance(rows, list | tuple | set | frozenset | deque):
        return _MemorySource(rows)
    return _ThreadSource(rows)


def as_request(row: object) -> Taken:
    """A row as a request. Never raises, because this frame holds the plain row."""
    what = type(row).__name__
    try:
        if isinstance(row, SubmitRequest):
            return row
        if isinstance(row, tuple | list):
            if len(row) == 2:
                return SubmitRequest(row[0], row[1])
            what = f"{what} of {len(row)}"
    except Exception as error:  # noqa: BLE001 - a class of the caller, perhaps a lazy one
        what = f"{what} that raises {type(error).__name__}"
    return InvalidRequestError(
        f"a row must be a SubmitRequest or a (mobile, content) pair, not a {what}"
    )


def _close(iterator: object) -> BaseException | None:
    """Close a generator in the thread that iterated it. Returns what it raises."""
    try:
        if isinstance(iterator, Generator):
            iterator.close()
    except BaseException as error:  # noqa: BLE001 - raised by the caller's iterable; the consumer gets it
        return error
    return None


async def _aclose(iterator: object) -> BaseException | None:
    """Close an async generator. Returns what it raises.

    There is no cancel scope around the call: the generator may have entered a
    scope that ends now, and scopes must end in the reverse order of their start.
    """
    try:
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()
    except BaseException as error:  # noqa: BLE001 - raised by the caller's iterable; the consumer gets it
        # A task group in a generator wraps the GeneratorExit that closes it.
        if isinstance(error, BaseExceptionGroup) and error.split(GeneratorExit)[1] is None:
            return None
        return error
    return None


class _MemorySource:
    """Rows that are in memory: nothing is read ahead."""

    ahead = 0
    ready = READ_AHEAD

    def __init__(self, rows: Iterable[object]) -> None:
        self.error: BaseException | None = None
        self._rows = rows
        self._requests: Iterator[Taken] | None = None

    def wants(self, most: int) -> int:  # noqa: ARG002 - it reads nothing ahead
        return 0

    def grant(self, count: int) -> None:
        """Never called: `wants` is 0."""

    def take(self) -> Taken | Nothing:
        if self.error is not None:
            return Nothing.LEFT
        try:
            if self._requests is None:
                self._rows = iter(self._rows)
                self._requests = map(as_request, self._rows)
            return next(self._requests, Nothing.LEFT)
        except BaseException as error:  # noqa: BLE001 - raised by the caller's iterable; the consumer gets it
            self.error = error
            return Nothing.LEFT

    async def wait(self) -> None:
        """Never called: `take` never returns `Nothing.YET`."""

    async def pump(self) -> None:
        """Nothing to read ahead."""

    def stop(self) -> None:
        """Nothing to stop."""

    def leftovers(self) -> list[Taken]:
        # A subclass of list may iterate with a generator.
        closing = _close(self._rows)
        self.error = self.error or closing
        return []


class _BufferedSource:
    """Rows that a task or thread reads ahead into a small buffer."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._buffer: deque[Taken] = deque()
        # Rows that were granted and not taken; they may be read or not.
        self._granted = 0
        self._stopped = False
        self._ended = False
        self._news: anyio.Event | None = None

    @property
    def ahead(self) -> int:
        return len(self._buffer) if self._ended else self._granted

    @property
    def ready(self) -> int:
        return len(self._buffer)

    def wants(self, most: int) -> int:
        # Half a buffer at a time, not each row.
        wanted = most - self._granted
        return 0 if wanted < most // 2 or self._ended or self._stopped else wanted

    def take(self) -> Taken | Nothing:
        # Read first: the pump may end meanwhile, and adds no row after that.
        ended = self._ended
        if self._buffer:
            self._granted -= 1
            return self._buffer.popleft()
        return Nothing.LEFT if ended else Nothing.YET

    def leftovers(self) -> list[Taken]:
        rows = list(self._buffer)
        self._buffer.clear()
        return rows


class _AsyncSource(_BufferedSource):
    def __init__(self, rows: AsyncIterable[object]) -> None:
        super().__init__()
        self._rows = rows
        self._unread = 0
        self._permitted: anyio.Event | None = None
        # The task that waits for a row of the iterable, while it may be cancelled.
        self._waiting: asyncio.Task[object] | None = None

    def grant(self, count: int) -> None:
        self._granted += count
        self._unread += count
        self._permit()

    async def wait(self) -> None:
        self._news = anyio.Event()
        await self._news.wait()

    async def pump(self) -> None:
        iterator: AsyncIterator[object] | None = None
        try:
            iterator = aiter(self._rows)
            await self._read(iterator)
        except BaseException as error:
            if not isinstance(error, anyio.get_cancelled_exc_class()):
                self.error = error
            elif not self._stopped:
                if is_cancelled():
                    raise
                self.error = error
        finally:
            self._end(await _aclose(iterator))

    def stop(self) -> None:
        self._stopped = True
        self._permit()
        waiting, self._waiting = self._waiting, None
        # Once, and not by a scope: the iterable may have to wait while it cleans up.
        if waiting is not None and waiting is not asyncio.current_task():
            waiting.cancel()

    async def _read(self, iterator: AsyncIterator[object]) -> None:
        while await self._permission():
            self._waiting = asyncio.current_task()
            try:
                self._buffer.append(as_request(await anext(iterator)))
            except StopAsyncIteration:
                return
            finally:
                self._waiting = None
            self._unread -= 1
            self._notify()

    async def _permission(self) -> bool:
        while not self._unread and not self._stopped:
            self._permitted = anyio.Event()
            await self._permitted.wait()
        return not self._stopped

    def _permit(self) -> None:
        if self._permitted is not None:
            self._permitted.set()

    def _end(self, error: BaseException | None) -> None:
        if not isinstance(error, anyio.get_cancelled_exc_class()):
            self.error = self.error or error
        self._ended = True
        self._notify()

    def _notify(self) -> None:
        if self._news is not None:
            self._news.set()


class _ThreadSource(_BufferedSource):
    def __init__(self, rows: Iterable[object]) -> None:
        super().__init__()
        self._rows = rows
        # How many rows the thread may read; 0 ends it. The C class, which gevent and
        # eventlet do not replace.
        self._permits: SimpleQueue[int] = SimpleQueue()
        # Whether the thread notifies the loop of the next row, not of the next chunk.
        self._notify_next_row = False

    def grant(self, count: int) -> None:
        self._granted += count
        self._permits.put(count)

    async def wait(self) -> None:
        self._news = news = anyio.Event()
        # The thread may have put a row in since `take`.
        if self._buffer or self._ended:
            return
        # Most iterables are fast. A slow one must not delay the rows that it gave.
        timer = asyncio.get_running_loop().call_later(_GATHER, self._stop_gathering, news)
        try:
            await news.wait()
        finally:
            timer.cancel()

    async def pump(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pull_ended = anyio.Event()
        context = contextvars.copy_context()
        pull = partial(context.run, self._pull)
        try:
            # A real thread, also where the threads of callers are greenlets.
            start_thread(pull, "ihuyi-voice-source", self._cannot_start)
        except RuntimeError as error:  # pragma: no cover - only under gevent and eventlet
            self._cannot_start(error)
        try:
            await self._pull_ended.wait()
        finally:
            self.stop()
            # The thread may be in the iterable's own code, which cannot be interrupted.
            with anyio.CancelScope(shield=True):
                await self._pull_ended.wait()

    def _cannot_start(  # pragma: no cover - in a thread that no tracer follows yet
        self, error: Exception
    ) -> None:
        self.error = NotSentError(f"the thread that reads the rows could not be started: {error}")
        self._ended = True
        self._notify(self._news)
        self._notify(self._pull_ended)

    def stop(self) -> None:
        self._stopped = True
        self._permits.put(0)

    def _stop_gathering(self, news: anyio.Event) -> None:
        self._notify_next_row = True
        if self._buffer or self._ended:
            news.set()

    # --- in the thread ------------------------------------------------------------

    def _pull(self) -> None:
        iterator: Iterator[object] | None = None
        try:
            iterator = iter(self._rows)
            self._read(map(as_request, iterator))
        except BaseException as error:  # noqa: BLE001 - raised by the caller's iterable; the consumer gets it
            self.error = error
        finally:
            closing = _close(iterator)
            self.error = self.error or closing
            self._ended = True
            self._notify(self._news)
            self._notify(self._pull_ended)

    def _read(self, requests: Iterator[Taken]) -> None:
        while (permits := self._permits.get()) and not self._is_stopped():
            for _ in range(permits):
                try:
                    self._buffer.append(next(requests))
                except StopIteration:
                    return
                if self._notify_next_row:
                    self._notify_next_row = False
                    self._notify(self._news)
                if self._is_stopped():
                    return
            self._notify(self._news)

    def _is_stopped(self) -> bool:
        # A function, because type checkers do not know that another thread sets it.
        return self._stopped

    def _notify(self, event: anyio.Event | None) -> None:
        if event is not None and not event.is_set():
            # A loop that was closed during the run has no task that waits.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(event.set)
