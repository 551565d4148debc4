"""The thread that reads and writes the ledger for everybody who waits for it.

While one transaction is made durable, the wishes of all others gather and
become the next: so thousands of claims a second share a few dozen waits for
the disk, and none waits for a timer. What the wishes mean is `ledger.py`'s
business, the SQL is `ledger_store.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, TypeAlias

from .errors import LedgerError
from .ledger_entry import Attempt, Entry, EntryState, Settlement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .ledger_store import Connection

Wish: TypeAlias = Attempt | Settlement | str
"""To claim, to settle, or to read what is under a key."""

# Wishes in one transaction: few enough that nobody else waits long for it.
_MOST_AT_ONCE = 500
# Claims to take back that are remembered while the database cannot be reached.
_MOST_TO_TAKE_BACK = 10_000
# Seconds that a settlement is waited for: whoever waits has a result to give.
_SETTLE_PATIENCE = 10.0
# Seconds that a fork waits for a transaction to end.
_FORK_PATIENCE = 10.0

_NO_ANSWER = "it did not answer in time"
_CLOSED = "this ledger is closed"
_OVERTAKEN = "this process was forked in the middle of a transaction; open the ledger anew"


class _Item:
    """A wish, and whoever waits for it: nobody, where a claim is taken back.

    The writer fills it in; `waited_for` and `done` are changed under the
    writer's lock alone.
    """

    __slots__ = ("done", "entry", "error", "future", "loop", "succeeded", "waited_for", "wish")

    def __init__(
        self,
        wish: Wish,
        loop: asyncio.AbstractEventLoop | None = None,
        future: asyncio.Future[None] | None = None,
    ) -> None:
        self.wish = wish
        self.loop = loop
        self.future = future
        self.waited_for = future is not None
        self.done = False
        self.succeeded = False
        self.entry: Entry | None = None
        self.error: LedgerError | None = None


class Writer:
    """Owns the connection and the thread; both are made when they are first needed.

    Args:
        connect: makes a connection that can write.
        clock: wall-clock seconds.
        settle_apart: settle in a transaction of its own, for a database that
            locks rows one by one: two machines that settle what the other
            claims would wait for each other.
        survives_fork: whether a connection that a fork could not wait for may
            be left behind in the child and another be made.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        clock: Callable[[], float],
        *,
        settle_apart: bool,
        survives_fork: bool,
    ) -> None:
        self._connect = connect
        self._clock = clock
        self._settle_apart = settle_apart
        self._survives_fork = survives_fork
        self._closed = False
        self._connection: Connection | None = None
        # Whether it was forked while a connection was at work.
        self._overtaken = False
        self._begin_anew()
        _writers.add(self)

    def _begin_anew(self) -> None:
        # The garbage collector may run a finaliser, which takes it, while it is held.
        self._lock = threading.RLock()
        # Held while a connection is at work, so that no fork takes one along.
        self.at_work: threading.Lock = threading.Lock()
        self.at_work_aside: threading.Lock = threading.Lock()
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        # The thread's own: what the next transaction begins with.
        self._next: deque[_Item] = deque()
        self._to_take_back: deque[_Item] = deque(maxlen=_MOST_TO_TAKE_BACK)
        self._failed = False

    @property
    def closed(self) -> bool:
        """Whether it was stopped for good."""
        return self._closed

    def check_usable(self) -> None:
        """Raise RuntimeError if it was stopped, LedgerError if a fork has spoilt it."""
        if self._closed:
            raise RuntimeError(_CLOSED)
        if self._overtaken:
            raise LedgerError(_OVERTAKEN)

    async def claim(self, attempt: Attempt, deadline: float) -> Entry | None:
        """Claim durably; the entry that stands in the way, or None when it is claimed.

        Raises:
            LedgerError: the database failed, or did not answer before the
                deadline (monotonic seconds). Nothing stays claimed, neither
                then nor when the caller is cancelled.
        """
        item = await self._answered(attempt, deadline)
        return item.entry

    async def find(self, key: str, deadline: float) -> Entry | None:
        """What is under the key.

        Raises:
            LedgerError: as `claim` does.
        """
        item = await self._answered(key, deadline)
        return item.entry

    async def settle(self, settlement: Settlement) -> bool:
        """Settle durably; False when the claim is no longer the token's.

        It goes on when the caller is cancelled, or has waited long enough.

        Raises:
            LedgerError: the database failed, or did not answer in time.
        """
        item = await self._answered(settlement, time.monotonic() + _SETTLE_PATIENCE)
        return item.succeeded

    def stop(self, timeout: float | None = None) -> None:
        """Write what was wished for, close the connection and end; the second time, nothing.

        Args:
            timeout: seconds to wait for it at most.
        """
        with self._lock:
            thread = None if self._closed else self._thread
            self._closed = True
        if thread is not None:
            self._queue.put(None)
            # The garbage collector may run a finaliser in any thread, that one included.
            if thread is not threading.current_thread():
                thread.join(timeout)

    async def _answered(self, wish: Wish, deadline: float) -> _Item:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        item = _Item(wish, loop, future)
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise LedgerError(_NO_ANSWER)
        timer = loop.call_later(remaining, _answer, future)
        try:
            self._put(item)
            await future
        except BaseException:
            self._give_up(item)
            raise
        finally:
            timer.cancel()
        if not item.done:
            self._give_up(item)
            raise LedgerError(_NO_ANSWER)
        if item.error is not None:
            # One of its own for each, because raising one fills in its traceback.
            raise LedgerError(item.error.reason) from item.error.__cause__
        return item

    def _put(self, item: _Item) -> None:
        with self._lock:
            self.check_usable()
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="ihuyi-voice-ledger", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    msg = "no thread can be started for it"
                    raise LedgerError(msg) from error
                self._thread = thread
            self._queue.put(item)

    def _give_up(self, item: _Item) -> None:
        """Nobody waits any more: a claim that was made, or is being made, is taken back."""
        with self._lock:
            item.waited_for = False
            # What fails is taken back by the thread, if there is anything.
            if item.done and item.error is None:
                for taking_back in _taking_back(item, self._now()):
                    self._queue.put(taking_back)

    # --- in the thread ---------------------------------------------------------

    def _run(self) -> None:
        over = False
        while not over or self._has_work():
            over = self._gather(wait=not over and not self._has_work()) or over
            batch = self._batch()
            if self._settle_apart:
                self._perform([item for item in batch if type(item.wish) is Settlement])
                batch = [item for item in batch if type(item.wish) is not Settlement]
            self._perform(batch)
        with self.at_work:
            self._hang_up()

    def _has_work(self) -> bool:
        # What could not be taken back is tried again when somebody else comes.
        return bool(self._next or (self._to_take_back and not self._failed))

    def _gather(self, *, wait: bool) -> bool:
        """Take whatever is waiting; True when it is to end."""
        over = False
        with contextlib.suppress(queue.Empty):
            item = self._queue.get(block=wait)
            while True:
                if item is None:
                    over = True
                else:
                    self._next.append(item)
                item = self._queue.get_nowait()
        self._next.extendleft(self._to_take_back)
        self._to_take_back.clear()
        return over

    def _batch(self) -> list[_Item]:
        """The next transaction: no key twice to settle or to claim; the rest stays for later."""
        batch: list[_Item] = []
        later: deque[_Item] = deque()
        taken: set[tuple[type, str]] = set()
        for item in self._next:
            wish = item.wish
            if isinstance(wish, str) and len(batch) < _MOST_AT_ONCE:
                batch.append(item)
                continue
            kind = type(wish), wish if isinstance(wish, str) else wish.key
            if len(batch) >= _MOST_AT_ONCE or kind in taken:
                later.append(item)
            elif item.waited_for or type(wish) is Settlement:
                taken.add(kind)
                batch.append(item)
        self._next = later
        return batch

    def _perform(self, batch: list[_Item]) -> None:
        """One transaction, and everybody told."""
        if not batch:
            return
        with self.at_work:
            error, lost, maybe_recorded = self._try(batch)
            if lost:
                # The server may have been away and be back. What a lost commit
                # has recorded all the same, the second try finds as its own.
                error, _, maybe_too = self._try(batch)
                maybe_recorded = maybe_recorded or maybe_too
        self._failed = error is not None
        by_loop = self._done(batch, error, maybe_recorded=maybe_recorded)
        for loop, items in by_loop.items():
            self._tell(loop, items)

    def _try(self, batch: list[_Item]) -> tuple[LedgerError | None, bool, bool]:
        """What went wrong; whether the server hung up; whether it may be recorded all the same."""
        connection = self._connection
        try:
            if connection is None:
                connection = self._connection = self._connect()
            _apply(connection, batch)
        except LedgerError as failure:
            error = failure
        except Exception as bug:  # noqa: BLE001 - whoever waits must be told, whatever it is
            error = LedgerError(f"an unexpected exception ({type(bug).__name__})")
            error.__cause__ = bug
        else:
            return None, False, False
        self._hang_up()
        if connection is None:
            return error, False, False
        return error, connection.lost, connection.committing

    def _done(
        self, batch: list[_Item], error: LedgerError | None, *, maybe_recorded: bool
    ) -> dict[asyncio.AbstractEventLoop, list[_Item]]:
        """Who is to be told, by loop. From here on who gives up takes its claim back itself."""
        by_loop: dict[asyncio.AbstractEventLoop, list[_Item]] = {}
        now = self._now()
        with self._lock:
            for item in batch:
                # In this order: who waits looks at both without the lock.
                item.error = error
                item.done = True
                if item.waited_for and item.loop is not None:
                    by_loop.setdefault(item.loop, []).append(item)
                if item.loop is None:
                    if error is not None:
                        self._to_take_back.append(item)
                elif maybe_recorded if error is not None else not item.waited_for:
                    self._to_take_back.extend(_taking_back(item, now))
        return by_loop

    def _tell(self, loop: asyncio.AbstractEventLoop, items: list[_Item]) -> None:
        # One call for all of them, because each interrupts the loop.
        try:
            loop.call_soon_threadsafe(_wake, items)
        except RuntimeError:
            # Closed: nobody will ever ask again.
            for item in items:
                self._give_up(item)

    def _now(self) -> float:
        # The caller's clock may fail; the thread must not, for others wait for it.
        try:
            return self._clock()
        except Exception:  # noqa: BLE001 - whatever it is
            return time.time()

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # --- around a fork ---------------------------------------------------------

    def before_fork(self) -> list[threading.Lock]:
        """Close the connection, because SQLite's must not be carried across, and let none open.

        Returns:
            The locks that are now held.
        """
        held = [
            lock
            for lock in (self.at_work, self.at_work_aside)
            if lock.acquire(timeout=_FORK_PATIENCE)
        ]
        if self.at_work in held:
            self._hang_up()
        self._overtaken = len(held) < 2 and not self._survives_fork
        return held

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._overtaken = False

    def after_fork_in_child(self) -> None:
        """Begin with a queue, a thread and a connection of its own."""
        if self._connection is not None:
            # Only where it could not be closed; the parent still uses it.
            _inherited.append(self._connection)
            self._connection = None
        self._begin_anew()


def _apply(connection: Connection, batch: Iterable[_Item]) -> None:
    settlements: list[Settlement] = []
    keys: list[str] = []
    attempts: list[Attempt] = []
    for item in batch:
        wish = item.wish
        if isinstance(wish, Attempt):
            attempts.append(wish)
        elif isinstance(wish, Settlement):
            settlements.append(wish)
        else:
            keys.append(wish)
    astray, found, in_the_way = connection.apply(settlements, keys, attempts)
    for item in batch:
        wish = item.wish
        if isinstance(wish, Attempt):
            item.entry = in_the_way.get(wish.key)
        elif isinstance(wish, Settlement):
            item.succeeded = wish.key not in astray
        else:
            item.entry = found.get(wish)


def _taking_back(item: _Item, now: float) -> list[_Item]:
    """What takes back the claim, if there is one."""
    wish = item.wish
    if not isinstance(wish, Attempt) or item.entry is not None:
        return []
    why = "given up before it was sent"
    state = EntryState.NOT_SENT
    return [_Item(Settlement(wish.key, wish.token, state, None, why, None, now))]


def _wake(items: list[_Item]) -> None:
    for item in items:
        if item.future is not None:  # pragma: no branch - for type checkers
            _answer(item.future)


def _answer(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


_writers: weakref.WeakSet[Writer] = weakref.WeakSet()
# Never closed by us: they are the parent's.
_inherited: list[Connection] = []
_forking = threading.local()


def _before_fork() -> None:
    _forking.writers = [(writer, writer.before_fork()) for writer in list(_writers)]


def _after_fork_in_parent() -> None:
    for writer, held in _forking.writers:
        writer.after_fork_in_parent()
        for lock in held:
            lock.release()
    _forking.writers = []


def _after_fork_in_child() -> None:
    for writer, _ in _forking.writers:
        writer.after_fork_in_child()
    _forking.writers = []


if hasattr(os, "register_at_fork"):  # pragma: no branch - absent on Windows alone
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
