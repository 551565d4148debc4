"""Where the rows of a bulk run come from, pulled lazily and without blocking the loop.

A list, tuple, set or deque is in memory and is read in place. Any other
iterable may block, so a thread of the run's own pulls it (a generator over a
file, a database cursor that may change threads); an async iterable is pulled
by a task. Both read at most `READ_AHEAD` rows ahead of what has been started.

Rows are not looked at here.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import AsyncIterable, Iterable, Mapping
from enum import Enum
from functools import partial
from typing import Protocol

import anyio

from ._threads import Event, start_thread

READ_AHEAD = 32
"""How many rows may have been taken from a source without having been started."""


class Nothing(Enum):
    """What a source gives when it has no row to give."""

    YET = "none yet: wait"
    LEFT = "none any more"


class Source(Protocol):
    """Rows, one by one."""

    def take(self) -> object:
        """The next row, or what there is instead of one.

        Raises:
            Exception: what the iterable itself raised, after its last row.
        """

    async def wait(self) -> None:
        """Wait until `take` has something other than `Nothing.YET`."""

    async def pump(self) -> None:
        """Fetch rows until there are no more; to be cancelled when none are wanted."""

    def leftovers(self) -> list[object]:
        """The rows that were read ahead and never taken, once the pump has ended."""


def open_source(rows: object) -> Source:
    """The source for an iterable of rows.

    Raises:
        TypeError: it is no iterable of rows.
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


class _MemorySource:
    """Rows that are there already: nothing is read ahead."""

    def __init__(self, rows: Iterable[object]) -> None:
        self._rows = iter(rows)

    def take(self) -> object:
        return next(self._rows, Nothing.LEFT)

    async def wait(self) -> None:
        """Never called: there is always a row, or none any more."""

    async def pump(self) -> None:
        """Nothing to fetch."""

    def leftovers(self) -> list[object]:
        return []


class _BufferedSource:
    """Rows that a pump puts into a small buffer."""

    def __init__(self) -> None:
        self._buffer: deque[object] = deque()
        self._ended = False
        self._error: Exception | None = None
        self._news: anyio.Event | None = None

    def take(self) -> object:
        if self._buffer:
            row = self._buffer.popleft()
            # The pump is woken for half a buffer at a time, not for each row.
            if len(self._buffer) == READ_AHEAD // 2:
                self._make_room()
            return row
        if not self._ended:
            return Nothing.YET
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return Nothing.LEFT

    async def wait(self) -> None:
        self._news = news = anyio.Event()
        # The pump may have come between the last look and now.
        if not self._buffer and not self._ended:
            await news.wait()

    def leftovers(self) -> list[object]:
        rows = list(self._buffer)
        self._buffer.clear()
        return rows

    def _make_room(self) -> None:
        """Let the pump go on."""


class _AsyncSource(_BufferedSource):
    def __init__(self, rows: AsyncIterable[object]) -> None:
        super().__init__()
        self._rows = rows
        self._room = anyio.Event()

    async def pump(self) -> None:
        try:
            async for row in self._rows:
                self._buffer.append(row)
                self._tell()
                if len(self._buffer) >= READ_AHEAD:
                    self._room = anyio.Event()
                    await self._room.wait()
        except Exception as error:  # noqa: BLE001 - the caller's own; raised by `take`
            self._error = error
        finally:
            self._ended = True
            self._tell()

    def _make_room(self) -> None:
        self._room.set()

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()


class _ThreadSource(_BufferedSource):
    def __init__(self, rows: Iterable[object]) -> None:
        super().__init__()
        self._rows = rows
        self._room = Event()
        self._unwanted = False

    async def pump(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._left = anyio.Event()
        context = contextvars.copy_context()
        start_thread(partial(context.run, self._pull), "ihuyi-voice-source", self._fail)
        try:
            await self._left.wait()
        finally:
            self._unwanted = True
            self._room.set()
            # The thread may be inside the iterable's own code, which nobody can interrupt.
            with anyio.CancelScope(shield=True):
                await self._left.wait()

    def _fail(self, error: Exception) -> None:
        """No thread could be started."""
        self._error = error
        self._ended = True
        self._tell(self._news)
        self._tell(self._left)

    def _pull(self) -> None:
        try:
            for row in self._rows:
                self._buffer.append(row)
                self._tell(self._news)
                if len(self._buffer) >= READ_AHEAD:
                    self._room.clear()
                    # The pump may have been cancelled just before the room was cleared.
                    if len(self._buffer) > READ_AHEAD // 2 and not self._unwanted:
                        self._room.wait()
                if self._unwanted:
                    break
        except Exception as error:  # noqa: BLE001 - the caller's own; raised by `take`
            self._error = error
        finally:
            self._ended = True
            self._tell(self._news)
            self._tell(self._left)

    def _make_room(self) -> None:
        self._room.set()

    def _tell(self, event: anyio.Event | None) -> None:
        if event is not None and not event.is_set():
            # A loop that was closed under the run has nobody left to tell.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(event.set)
