"""Watch the balance: one alarm when it becomes low, and a cached value for health checks.

The gateway is asked at most once in `every` seconds, in the background. To read
the cached value costs no query.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._threads import Event, start_thread
from .client import AsyncVoiceClient
from .errors import IhuyiVoiceError
from .models import check_count
from .sync.client import VoiceClient

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import TypeAlias

    from typing_extensions import Self

    from .models import Balance

    OnCrossing: TypeAlias = "Callable[[BalanceReading], object]"

_logger = logging.getLogger("ihuyi_voice")


@dataclass(frozen=True, slots=True)
class BalanceReading:
    """The balance as it was last read.

    Attributes:
        remaining: calls left; None while no query has succeeded.
        age: seconds since it was read; None while no query has succeeded. If it
            is much more than `every`, queries fail.
        is_low: whether it is low: it fell below `below`, and has not reached
            `recovers_at` since.
        error: why the last query failed; "" where it succeeded.
    """

    remaining: int | None
    age: float | None
    is_low: bool
    error: str


class _Watched:
    """What is known of a balance, and when to ask for it again."""

    def __init__(
        self,
        below: int,
        every: float,
        recovers_at: int | None,
        on_crossing: Sequence[OnCrossing],
        clock: Callable[[], float],
    ) -> None:
        check_count("below", below)
        if isinstance(every, bool) or not isinstance(every, int | float):
            msg = f"every is in seconds, an int or a float, not {type(every).__name__}"
            raise TypeError(msg)
        if not 0 < every < math.inf:
            msg = f"every must be a finite number of seconds above 0, not {every!r}"
            raise ValueError(msg)
        if recovers_at is None:
            recovers_at = below + max(1, below // 10)
        check_count("recovers_at", recovers_at)
        if recovers_at < below:
            msg = f"recovers_at must be at least below ({below}), not {recovers_at}"
            raise ValueError(msg)
        self._below = below
        self._every = every
        self._recovers_at = recovers_at
        self._on_crossing = tuple(on_crossing)
        self._clock = clock
        self._remaining: int | None = None
        self._read_at = 0.0
        self._is_low = False
        self._error = ""
        self._asked_at = -math.inf
        # Tried, never waited for: other callers read the cached value. A fork may copy it locked.
        self._turn = threading.Lock()
        self._pid = os.getpid()

    def seconds_until_due(self) -> float:
        return max(0.0, self._asked_at + self._every - self._clock())

    def begin(self) -> bool:
        """Whether the caller may ask the gateway now; then it must call `end`."""
        if self._pid != os.getpid():
            self._pid, self._turn = os.getpid(), threading.Lock()
        if not self._turn.acquire(blocking=False):
            return False
        if self.seconds_until_due() > 0.0:
            self._turn.release()
            return False
        self._asked_at = self._clock()
        return True

    def end(self) -> None:
        self._turn.release()

    def reading(self) -> BalanceReading:
        remaining = self._remaining
        age = None if remaining is None else max(0.0, self._clock() - self._read_at)
        return BalanceReading(remaining, age, self._is_low, self._error)

    def note_failure(self, error: IhuyiVoiceError | RuntimeError) -> None:
        """A query failed: the earlier value stays."""
        self._error = str(error)

    def note(self, balance: Balance) -> None:
        """A query succeeded: keep its value, and report a crossing."""
        self._remaining, self._read_at, self._error = balance.remaining, self._clock(), ""
        was_low = self._is_low
        if balance.remaining < self._below:
            self._is_low = True
        elif balance.remaining >= self._recovers_at:
            self._is_low = False
        if self._is_low is was_low:
            return
        for call in self._on_crossing:
            try:
                call(self.reading())
            except Exception as error:  # noqa: BLE001, PERF203 - each may fail by itself
                _logger.warning("on_crossing raised %s: ignored", type(error).__name__)


class AsyncBalanceWatch:
    """Watches the balance of an account, for asyncio.

        async with AsyncBalanceWatch(client, below=500, every=300, on_crossing=[warn]) as watch:
            ...
            watch.reading  # the cached value, for health checks

    A balance below `below` is low, and it stays low until it reaches
    `recovers_at`. So a balance that moves around `below` is reported once.

    Args:
        client: asks for the balance. It stays open.
        below: calls left, below which the balance is low.
        every: seconds between two queries at least.
        recovers_at: calls left at which it is no longer low; by default a
            tenth more than `below`.
        on_crossing: called with the `BalanceReading` each time it becomes
            low, and each time it is no longer low. What they raise is logged
            and ignored. In an event loop they must not block.
        clock: seconds that only grow; for tests.

    Raises:
        ValueError: an argument is wrong; the text says which.
        TypeError: an argument is of the wrong type.
    """

    def __init__(  # noqa: PLR0913 - the settings of a watch
        self,
        client: AsyncVoiceClient,
        *,
        below: int,
        every: float,
        recovers_at: int | None = None,
        on_crossing: Sequence[OnCrossing] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        _check_client(client, AsyncVoiceClient, "BalanceWatch")
        self._client = client
        self._watched = _Watched(below, every, recovers_at, on_crossing, clock)
        self._task: asyncio.Task[None] | None = None

    @property
    def reading(self) -> BalanceReading:
        """The cached value. It costs no query."""
        return self._watched.reading()

    async def check(self) -> BalanceReading:
        """Ask the gateway if `every` seconds have passed since the last query.

        Returns:
            The new value, or the cached one, also where the query failed, which
            `error` says.

        Raises:
            RuntimeError: the client is closed, or used where it cannot run.
        """
        if self._watched.begin():
            try:
                self._watched.note(await self._client.query_balance())
            except IhuyiVoiceError as error:
                self._watched.note_failure(error)
            finally:
                self._watched.end()
        return self.reading

    async def aclose(self) -> None:
        """End the watch. Closing twice does no harm."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def __aenter__(self) -> Self:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _run(self) -> None:
        while True:
            try:
                await self.check()
            except RuntimeError as error:
                # The client is closed.
                self._watched.note_failure(error)
                return
            await asyncio.sleep(self._watched.seconds_until_due())


class BalanceWatch:
    """Watches the balance of an account, in a thread of its own.

        with BalanceWatch(client, below=500, every=300, on_crossing=[warn]) as watch:
            ...
            watch.reading  # the cached value, for health checks

    A balance below `below` is low, and it stays low until it reaches
    `recovers_at`. So a balance that moves around `below` is reported once.

    The thread ends with `close`, when the watch is no longer used, or with the
    program. A forked child has no such thread: its first `reading` starts one.

    Args:
        client: asks for the balance. It stays open.
        below: calls left, below which the balance is low.
        every: seconds between two queries at least.
        recovers_at: calls left at which it is no longer low; by default a
            tenth more than `below`.
        on_crossing: called with the `BalanceReading` each time it becomes
            low, and each time it is no longer low, in the watch's thread. What
            they raise is logged and ignored.
        clock: seconds that only grow; for tests.

    Raises:
        ValueError: an argument is wrong; the text says which.
        TypeError: an argument is of the wrong type.
    """

    def __init__(  # noqa: PLR0913 - the settings of a watch
        self,
        client: VoiceClient,
        *,
        below: int,
        every: float,
        recovers_at: int | None = None,
        on_crossing: Sequence[OnCrossing] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        _check_client(client, VoiceClient, "AsyncBalanceWatch")
        self._client = client
        self._watched = _Watched(below, every, recovers_at, on_crossing, clock)
        self._thread: _Thread | None = None

    @property
    def reading(self) -> BalanceReading:
        """The cached value. It costs no query."""
        if self._thread is not None and self._thread.pid != os.getpid():
            self._start()
        return self._watched.reading()

    def check(self) -> BalanceReading:
        """Ask the gateway if `every` seconds have passed since the last query.

        Returns:
            The new value, or the cached one, also where the query failed, which
            `error` says.

        Raises:
            RuntimeError: the client is closed, or used where it cannot run.
        """
        _check(self._client, self._watched)
        return self._watched.reading()

    def close(self) -> None:
        """End the watch, after a query that is under way. Closing twice does no harm."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.end()
            thread.join()

    def __enter__(self) -> Self:
        if self._thread is None:
            self._start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self) -> None:
        self._thread = thread = _Thread(self._client, self._watched)
        # The thread holds no reference to the watch.
        weakref.finalize(self, thread.end).atexit = False
        thread.start()


class _Thread:
    """The thread of a watch, in one process.

    Attributes:
        pid: the process.
    """

    def __init__(self, client: VoiceClient, watched: _Watched) -> None:
        self.pid: int = os.getpid()
        self._client = client
        self._watched = watched
        self._is_to_end = Event()
        self._has_ended = Event()
        self._ident: int | None = None

    def start(self) -> None:
        start_thread(self._run, "ihuyi-voice-balance", self._fail)

    def end(self) -> None:
        self._is_to_end.set()

    def join(self) -> None:
        # A function of `on_crossing` may close its own watch.
        if self.pid == os.getpid() and self._ident != threading.get_ident():
            self._has_ended.wait()

    def _fail(self, error: Exception) -> None:
        self._watched.note_failure(RuntimeError(f"the watch's thread could not start: {error}"))
        self._has_ended.set()

    def _run(self) -> None:
        self._ident = threading.get_ident()
        try:
            while not self._is_to_end.is_set():
                _check(self._client, self._watched)
                self._is_to_end.wait(self._watched.seconds_until_due())
        except RuntimeError as error:
            # The client is closed.
            self._watched.note_failure(error)
        finally:
            self._has_ended.set()


def _check(client: VoiceClient, watched: _Watched) -> None:
    if not watched.begin():
        return
    try:
        watched.note(client.query_balance())
    except IhuyiVoiceError as error:
        watched.note_failure(error)
    finally:
        watched.end()


def _check_client(client: object, needed: type, other: str) -> None:
    if not isinstance(client, needed):
        msg = (
            f"the client must be of class {needed.__name__}, not {type(client).__name__};"
            f" for the other class there is {other}"
        )
        raise TypeError(msg)
