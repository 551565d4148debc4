"""The thread that reads and writes the ledger for every task that waits for it.

Group commit: operations queued during one fsync form the next batch, so
thousands of claims a second share a few dozen waits for the disk, and none
waits for a timer. What fails because of one key is tried again key by key, so
that it delays no other. A settlement that fails is kept and tried again until
it is recorded or the program ends.

What the operations mean is `ledger.py`'s business, the SQL is
`ledger_store.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
import time
import weakref

# The one of C, which gevent does not replace.
from _queue import Empty, SimpleQueue
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ..._threads import Event, load_ahead, start_raw_thread, threads_are_greenlets, unpatched
from ...errors import LedgerError
from ..entry import Attempt, Entry, EntryState, Settlement, Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ...models import Unrecorded
    from .store import Connection

Wish: TypeAlias = Attempt | Settlement | str
"""To claim, to settle, or to read what is under a key."""

# Wishes in one transaction: few enough that the next does not wait long for it.
_MOST_AT_ONCE = 500
# Settlements among them that failed before: new ones must not starve.
_MOST_RETRIED = 250
# Settlements kept to be tried again, at about 700 bytes each. What fails beyond
# that stays unknown.
_MOST_KEPT = 50_000
# Seconds from a failure to the next try: doubled from one to the other.
_RETRY_FIRST, _RETRY_MOST = 0.1, 2.0
# Seconds that a settlement is waited for. A commit takes milliseconds; the caller
# has a result to return, and does not need it recorded to do so.
_SETTLE_PATIENCE = 2.0
# Seconds to wait for a row that another transaction holds: in a batch, where every
# other key waits too, and for a key alone, for which the thread waits.
_BATCH_ROW_PATIENCE, _ALONE_ROW_PATIENCE = 0.5, 0.02
# Seconds until a claim whose row stays locked fails, and between its tries.
_CLAIM_ROW_PATIENCE, _CLAIM_RETRY = 5.0, 0.1
# Seconds in a row for keys that are tried alone, while others wait.
_ALONE_SECONDS = 1.0
# Seconds, from the moment it is closed, in which what failed is tried again.
_LAST_TRIES = 5.0
# Seconds that a fork waits for a transaction to end.
_FORK_PATIENCE = 10.0

_NO_ANSWER = "it did not answer in time"
_CLOSED = "this ledger is closed"
_OVERTAKEN = "this process was forked in the middle of a transaction; open the ledger anew"
_RETRYING = "not recorded yet: retrying until the program ends"
_DROPPED = "not recorded: too many others wait to be, so its key stays unknown"


class _Item:
    """A wish and the task that waits for it; no task waits where a claim is taken back.

    The writer fills it in. What a task and the thread both change, which is
    `waited_for`, `done`, `recorded` and `counted`, they change under the
    writer's lock.
    """

    __slots__ = (
        "counted",
        "done",
        "dropped",
        "due",
        "entry",
        "error",
        "failures",
        "future",
        "give_up_at",
        "loop",
        "recorded",
        "succeeded",
        "unrecorded",
        "waited_for",
        "wish",
    )

    def __init__(
        self,
        wish: Wish,
        loop: asyncio.AbstractEventLoop | None = None,
        future: asyncio.Future[None] | None = None,
        unrecorded: Unrecorded | None = None,
    ) -> None:
        self.wish = wish
        self.loop = loop
        self.future = future
        self.unrecorded = unrecorded
        self.waited_for = future is not None
        # Its first try has ended, well or not.
        self.done = False
        self.succeeded = False
        self.entry: Entry | None = None
        self.error: LedgerError | None = None
        # A settlement: whether it is in the database, counted as not recorded
        # yet, or not to be tried again.
        self.recorded = False
        self.counted = False
        self.dropped = False
        # Tried alone: how often it failed, and when it is tried next.
        self.failures = 0
        self.due = 0.0
        self.give_up_at = math.inf


class _Failure(NamedTuple):
    """Why a transaction failed.

    Attributes:
        error: what the waiting tasks raise.
        trouble: how far it reaches.
        maybe_recorded: the commit was sent, and its answer did not come.
    """

    error: LedgerError
    trouble: Trouble
    maybe_recorded: bool = False

    @property
    def of_a_key(self) -> bool:
        """Whether it may be one key's alone."""
        return self.trouble in (Trouble.KEY, Trouble.LOCK)


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
        # Not a framework's: a thread that is no greenlet takes all of these.
        if threads_are_greenlets():
            load_ahead()
        new_lock = unpatched("_thread", "allocate_lock")
        # The garbage collector may run a finalizer, which takes it, while it is held.
        self._lock = unpatched("_thread", "RLock")()
        # Held while a connection is at work, so that no fork takes one along.
        self.at_work: threading.Lock = new_lock()
        self.at_work_aside: threading.Lock = new_lock()
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        self._started = False
        self._ended = Event()
        # The thread's number, by which it knows itself.
        self._ident: int | None = None
        # The thread's own. New: what the next transaction begins with.
        self._next: deque[_Item] = deque()
        # Settlements to be tried again, together with whatever else there is to do.
        self._kept: deque[_Item] = deque()
        # Keys to be tried alone, because their batch failed over one of them.
        self._alone: deque[_Item] = deque()
        # While the database is away: the back-off, and its end.
        self._back_off = 0.0
        self._away_until = 0.0

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

    async def settle(self, settlement: Settlement, unrecorded: Unrecorded | None = None) -> bool:
        """Settle durably; False when the claim is no longer the token's.

        It goes on when the caller is cancelled, or has waited long enough, and
        is tried again where it fails.

        Args:
            settlement: what to record.
            unrecorded: counts it from the moment when its caller goes on
                without a record until there is one.

        Raises:
            LedgerError: it is not recorded yet; the text says whether it is
                tried again.
        """
        loop = asyncio.get_running_loop()
        item = _Item(settlement, loop, loop.create_future(), unrecorded)
        try:
            await self._answer_to(item, time.monotonic() + _SETTLE_PATIENCE)
        except LedgerError as error:
            words = _DROPPED if item.dropped else _RETRYING
            msg = f"{error.reason}; {words}"
            raise LedgerError(msg) from error.__cause__
        finally:
            # Once it is recorded it stays so, and needs no lock to see it.
            if not item.recorded:
                self._count(item)
        return item.succeeded

    def _count(self, item: _Item) -> None:
        with self._lock:
            if not item.recorded and item.unrecorded is not None:
                item.counted = True
                item.unrecorded.count += 1

    def stop(self, timeout: float | None = None, *, greenlets_run: bool = True) -> None:
        """Write what was wished for, close the connection and end; the second time, nothing.

        Args:
            timeout: seconds to wait for it at most.
            greenlets_run: whether other greenlets may run meanwhile, as in `Event.wait`.
        """
        with self._lock:
            runs = self._started and not self._closed
            self._closed = True
        if runs:
            self._queue.put(None)
            # The garbage collector may run a finalizer in any thread, that one included.
            if self._ident != _ident():
                self._ended.wait(timeout, greenlets_run=greenlets_run)

    async def _answered(self, wish: Wish, deadline: float) -> _Item:
        loop = asyncio.get_running_loop()
        item = _Item(wish, loop, loop.create_future())
        await self._answer_to(item, deadline)
        return item

    async def _answer_to(self, item: _Item, deadline: float) -> None:
        loop, future = item.loop, item.future
        remaining = deadline - time.monotonic()
        if remaining <= 0 or loop is None or future is None:
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
        error = item.error
        if error is not None:
            # One of its own for each, because raising one fills in its traceback.
            raise LedgerError(error.reason) from error.__cause__

    def _put(self, item: _Item) -> None:
        with self._lock:
            self.check_usable()
            if not self._started:
                self._start()
            self._queue.put(item)

    def _start(self) -> None:
        try:
            if threads_are_greenlets():
                start_raw_thread(self._run)
            else:
                threading.Thread(target=self._run, name="ihuyi-voice-ledger", daemon=True).start()
        except RuntimeError as error:
            msg = "no thread can be started for it"
            raise LedgerError(msg) from error
        self._started = True

    def _give_up(self, item: _Item) -> None:
        """Its task waits no more: a claim that was made, or is being made, is taken back."""
        with self._lock:
            item.waited_for = False
            # What fails is taken back by the thread, if there is anything.
            if item.done and item.error is None:
                for taking_back in _taking_back(item, self.now()):
                    self._queue.put(taking_back)

    def now(self) -> float:
        """Wall-clock seconds; the system's where the caller's clock fails."""
        try:
            return self._clock()
        except Exception:  # noqa: BLE001 - whatever it is, what happened must be recorded
            return time.time()

    # --- in the thread ---------------------------------------------------------

    def _run(self) -> None:
        ended = self._ended
        self._ident = _ident()
        try:
            self._serve()
        finally:
            ended.set()

    def _serve(self) -> None:
        end: float | None = None
        while end is None or self._has_work(end):
            if self._gather() and end is None:
                end = time.monotonic() + _LAST_TRIES
                self._away_until = 0.0
                for item in self._alone:
                    item.due = 0.0
            self._work()
        if self._alone:
            self._finish(list(self._alone), _Failure(LedgerError(_CLOSED), Trouble.DATABASE))
        with self.at_work:
            self._hang_up()

    def _has_work(self, end: float) -> bool:
        """Whether there is anything left to do before it ends."""
        return bool(self._next) or (bool(self._kept or self._alone) and time.monotonic() < end)

    def _gather(self) -> bool:
        """Take what is queued, or wait for something to do; True when it is to end."""
        over = False
        with contextlib.suppress(Empty):
            item = self._queue.get(timeout=self._seconds_to_wait())
            while True:
                if item is None:
                    over = True
                else:
                    self._next.append(item)
                item = self._queue.get_nowait()
        return over

    def _seconds_to_wait(self) -> float | None:
        """How long there is nothing to do but wait; None is until something is queued."""
        if self._next:
            return 0.0
        due = min((item.due for item in self._alone), default=math.inf)
        if self._kept:
            due = 0.0
        if due == math.inf:
            return None
        return max(0.0, max(due, self._away_until) - time.monotonic())

    def _work(self) -> None:
        failure: _Failure | None = None
        batch = self._batch()
        if self._settle_apart:
            settlements, batch = _parted(batch)
            failure = self._perform(settlements)
        if failure is None:
            failure = self._perform(batch)
            batch = []
        if failure is not None:
            # Not a second wait for a database that has just failed.
            settlements, others = _parted(self._next)
            self._next = deque(others)
            self._finish([*batch, *settlements], failure._replace(maybe_recorded=False))
        self._perform_alone()

    def _batch(self) -> list[_Item]:
        """The next transaction: no key twice to settle or to claim; the rest stays for later."""
        if self._kept and (self._next or time.monotonic() >= self._away_until):
            # First, so that whoever claims the key finds it settled.
            again = [self._kept.popleft() for _ in range(min(len(self._kept), _MOST_RETRIED))]
            self._next.extendleft(reversed(again))
        suspects = {_key(item.wish) for item in self._alone}
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
                if suspects and kind[1] in suspects:
                    self._set_aside(item)
                    continue
                taken.add(kind)
                batch.append(item)
        self._next = later
        return batch

    def _perform(self, batch: list[_Item]) -> _Failure | None:
        """One transaction, and its waiting tasks answered; the failure of the database."""
        if not batch:
            return None
        failure = self._attempt(batch, _BATCH_ROW_PATIENCE)
        if failure is not None and failure.of_a_key and len(batch) > 1:
            for item in batch:
                self._set_aside(item)
            return None
        self._finish(batch, failure)
        return None if failure is None or failure.of_a_key else failure

    def _set_aside(self, item: _Item) -> None:
        """To be tried alone, at once."""
        item.due = 0.0
        item.give_up_at = min(item.give_up_at, time.monotonic() + _CLAIM_ROW_PATIENCE)
        self._alone.append(item)

    def _perform_alone(self) -> None:
        """One transaction for each key that may have made its batch fail."""
        began = time.monotonic()
        if began < self._away_until:
            return
        waiting = (item for item in self._alone if item.waited_for or _is_settlement(item))
        self._alone = deque(waiting)
        for _ in range(len(self._alone)):
            if time.monotonic() - began >= _ALONE_SECONDS:
                return
            item = self._alone.popleft()
            if item.due > began:
                self._alone.append(item)
                continue
            failure = self._attempt([item], _ALONE_ROW_PATIENCE)
            self._finish([item], failure)
            if failure is not None and not failure.of_a_key:
                return

    def _attempt(self, batch: list[_Item], row_patience: float) -> _Failure | None:
        with self.at_work:
            failure = self._try(batch, row_patience)
            if failure is not None and failure.trouble is Trouble.HANGUP:
                # The server may have been away and be back. If the lost commit
                # succeeded, the retry recognises its own token.
                first = failure
                failure = self._try(batch, row_patience)
                if failure is not None and first.maybe_recorded:
                    failure = failure._replace(maybe_recorded=True)
        if failure is None or failure.of_a_key:
            self._back_off = self._away_until = 0.0
        else:
            self._back_off = min(max(2 * self._back_off, _RETRY_FIRST), _RETRY_MOST)
            self._away_until = time.monotonic() + self._back_off
        return failure

    def _try(self, batch: list[_Item], row_patience: float) -> _Failure | None:
        """One transaction."""
        connection = self._connection
        try:
            if connection is None:
                connection = self._connection = self._connect()
            connection.wait_for_rows(row_patience)
            _apply(connection, batch)
        except LedgerError as error:
            if connection is None:
                return _Failure(error, Trouble.DATABASE)
            failure = _Failure(error, connection.trouble, maybe_recorded=connection.committing)
            if not failure.of_a_key:
                self._hang_up()
            return failure
        except Exception as bug:  # noqa: BLE001 - those who wait must be answered, whatever it is
            stated = LedgerError(f"an unexpected exception ({type(bug).__name__})")
            # Without its frames, whose variables may hold the database's password.
            stated.__cause__ = bug.with_traceback(None)
            self._hang_up()
            trouble = Trouble.DATABASE if connection is None else Trouble.KEY
            maybe_recorded = connection is not None and connection.committing
            return _Failure(stated, trouble, maybe_recorded=maybe_recorded)
        return None

    def _finish(self, batch: list[_Item], failure: _Failure | None) -> None:
        """Mark items done and answer their tasks. Later cancellations revert their own claim."""
        by_loop: dict[asyncio.AbstractEventLoop, list[_Item]] = {}
        now = self.now()
        with self._lock:
            for item in batch:
                is_settlement = type(item.wish) is Settlement
                if is_settlement:
                    self._finish_settlement(item, failure)
                elif failure is not None and self._is_put_off(item, failure):
                    continue
                elif failure.maybe_recorded if failure is not None else not item.waited_for:
                    for taking_back in _taking_back(item, now):
                        self._keep(taking_back)
                # In this order: the task looks at both without the lock.
                item.error = None if failure is None else failure.error
                item.done = True
                if item.waited_for and item.loop is not None:
                    by_loop.setdefault(item.loop, []).append(item)
                    # A settlement that is kept has answered its task.
                    item.waited_for = not is_settlement
        for loop, items in by_loop.items():
            self._tell(loop, items)

    def _finish_settlement(self, item: _Item, failure: _Failure | None) -> None:
        if failure is None:
            item.recorded = item.succeeded
            if item.recorded and item.counted and item.unrecorded is not None:
                item.counted = False
                item.unrecorded.count -= 1
            return
        if failure.of_a_key:
            item.failures += 1
            pause = min(_RETRY_FIRST * 2.0 ** min(item.failures - 1, 10), _RETRY_MOST)
            item.due = time.monotonic() + pause
        self._keep(item)

    def _keep(self, item: _Item) -> None:
        """Try a settlement again: alone, where it failed alone before."""
        if len(self._kept) + len(self._alone) >= _MOST_KEPT:
            item.dropped = True
        elif item.failures:
            self._alone.append(item)
        else:
            self._kept.append(item)

    def _is_put_off(self, item: _Item, failure: _Failure) -> bool:
        """Whether it is tried again soon, because another transaction holds its row."""
        now = time.monotonic()
        item.give_up_at = min(item.give_up_at, now + _CLAIM_ROW_PATIENCE)
        if failure.trouble is not Trouble.LOCK or now >= item.give_up_at or not item.waited_for:
            return False
        item.due = now + _CLAIM_RETRY
        self._alone.append(item)
        return True

    def _tell(self, loop: asyncio.AbstractEventLoop, items: list[_Item]) -> None:
        # One call for all of them, because each interrupts the loop.
        try:
            loop.call_soon_threadsafe(_wake, items)
        except RuntimeError:
            # It is closed, and its tasks never run again.
            for item in items:
                self._give_up(item)

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


def _ident() -> int:
    """The number of this thread, which all its greenlets share."""
    number: int = unpatched("_thread", "get_ident")()
    return number


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
    if not isinstance(wish, Attempt) or item.entry is not None:  # pragma: no cover - a race
        return []
    why = "given up before it was sent"
    state = EntryState.NOT_SENT
    return [_Item(Settlement(wish.key, wish.token, state, None, why, None, now, now))]


def _parted(items: Iterable[_Item]) -> tuple[list[_Item], list[_Item]]:
    """The settlements, and the others."""
    settlements: list[_Item] = []
    others: list[_Item] = []
    for item in items:
        (settlements if _is_settlement(item) else others).append(item)
    return settlements, others


def _is_settlement(item: _Item) -> bool:
    return type(item.wish) is Settlement


def _key(wish: Wish) -> str:
    return wish if isinstance(wish, str) else wish.key


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
