"""What tasks await: claims, look-ups and settlements that the writer's thread executes.

The parts: `operations.py` has the values that are queued, `group_commit.py` the
thread, `backlog.py` the choice of the next batch, `transactions.py` the
connection, `forks.py` what happens around a fork, and `limits.py` the numbers.
None imports SQLAlchemy.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from ..._threads import load_ahead, threads_are_greenlets, unpatched
from ...errors import LedgerError
from . import forks, limits
from .group_commit import CLOSED, GroupCommit, wake
from .operations import ClaimOperation, Failed, LookupOperation, SettleOperation
from .transactions import Transactions

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from ...models import Unrecorded
    from ..entry import Entry, NewClaim, Settlement
    from .connection import Connection
    from .operations import Committed, Operation

_TIMED_OUT = "it did not answer in time"
_BROKEN_BY_FORK = "this process was forked in the middle of a transaction; open the ledger again"
_RETRYING = "not recorded yet: retrying until the program ends"
_DROPPED = "not recorded: too many others wait to be, so its key stays unknown"


class Writer:
    """Queues the operations of all tasks for one thread; both start when first needed.

    Args:
        connect: opens a connection that can write.
        clock: wall-clock seconds.
        on_server: whether the database is a server: it locks single rows, and
            a forked child can leave a connection behind and open another.

    Attributes:
        closed: whether it was stopped.
        at_work: held while the thread uses its connection.
        at_work_aside: held while a blocking call uses a connection of its own.
        thread: executes the operations.
    """

    def __init__(
        self, connect: Callable[[], Connection], clock: Callable[[], float], *, on_server: bool
    ) -> None:
        self._connect = connect
        self._clock = clock
        self._on_server = on_server
        self._broken_by_fork = False
        self.closed: bool = False
        self._start_afresh()
        forks.register(self)

    def _start_afresh(self) -> None:
        if threads_are_greenlets():
            load_ahead()
        # Real locks, also under gevent and eventlet: a real thread takes them too.
        new_lock = unpatched("_thread", "allocate_lock")
        # Re-entrant: the garbage collector may run a finalizer that takes it too.
        self._lock: threading.RLock = unpatched("_thread", "RLock")()
        self.at_work: threading.Lock = new_lock()
        self.at_work_aside: threading.Lock = new_lock()
        self.thread: GroupCommit = GroupCommit(
            Transactions(self._connect, self.at_work),
            self._lock,
            self._clock,
            settle_apart=self._on_server,
        )

    def check_usable(self) -> None:
        """Raise RuntimeError if it was stopped, LedgerError if a fork has broken it."""
        if self.closed:
            raise RuntimeError(CLOSED)
        if self._broken_by_fork:
            raise LedgerError(_BROKEN_BY_FORK)

    async def claim(self, claim: NewClaim, deadline: float) -> Entry | None:
        """Claim a key durably.

        Returns:
            None when it is claimed; otherwise the entry that blocks the claim.

        Raises:
            LedgerError: the database failed, or did not answer before the
                deadline (monotonic seconds). No claim stays, neither then nor
                when the caller is cancelled.
        """
        operation = ClaimOperation(claim, asyncio.get_running_loop().create_future())
        committed = await self._execute(operation, deadline)
        return committed.blocking.get(claim.key)

    async def find(self, key: str, deadline: float) -> Entry | None:
        """The entry of a key.

        Raises:
            LedgerError: the database failed, or did not answer before the
                deadline (monotonic seconds).
        """
        operation = LookupOperation(key, asyncio.get_running_loop().create_future())
        committed = await self._execute(operation, deadline)
        return committed.found.get(key)

    async def settle(self, settlement: Settlement, unrecorded: Unrecorded | None = None) -> bool:
        """Settle a claim durably.

        The settlement is recorded also when the caller is cancelled or has
        waited long enough, and it is retried where it fails.

        Args:
            settlement: what to record.
            unrecorded: counts the settlement while it is not recorded and its
                caller no longer waits.

        Returns:
            False when the key was settled or claimed by others meanwhile.

        Raises:
            LedgerError: it is not recorded yet; the text says whether it is
                retried.
        """
        future = asyncio.get_running_loop().create_future()
        operation = SettleOperation(settlement, future, unrecorded)
        try:
            committed = await self._execute(operation, time.monotonic() + limits.SETTLE_TIMEOUT)
        except LedgerError as error:
            next_step = _DROPPED if operation.dropped else _RETRYING
            msg = f"{error.reason}; {next_step}"
            raise LedgerError(msg) from error.__cause__
        finally:
            # A recorded settlement stays recorded, so no lock is needed to see it.
            if not operation.is_recorded:
                with self._lock:
                    operation.count()
        return settlement.key not in committed.overtaken

    def now(self) -> float:
        """Wall-clock seconds; the system's where the caller's clock fails."""
        return self.thread.now()

    def stop(self, timeout: float | None = None, *, greenlets_run: bool = True) -> None:
        """Execute what is queued, close the connection, and end the thread; twice does no harm.

        Args:
            timeout: how long to wait for it, in seconds.
            greenlets_run: whether other greenlets may run meanwhile, as in `Event.wait`.
        """
        with self._lock:
            runs = self.thread.started and not self.closed
            self.closed = True
        if runs:
            self.thread.stop(timeout, greenlets_run=greenlets_run)

    async def _execute(self, operation: Operation, deadline: float) -> Committed:
        """Queue an operation and wait for its result."""
        future = operation.future
        remaining = deadline - time.monotonic()
        if remaining <= 0 or future is None:
            raise LedgerError(_TIMED_OUT)
        timer = future.get_loop().call_later(remaining, wake, future)
        try:
            with self._lock:
                self.check_usable()
                self.thread.put(operation)
            await future
        except BaseException:
            self.thread.give_up(operation)
            raise
        finally:
            timer.cancel()
        result = operation.result
        if result is None:
            self.thread.give_up(operation)
            raise LedgerError(_TIMED_OUT)
        if isinstance(result, Failed):
            # One exception for each task, because raising it fills in its traceback.
            raise LedgerError(result.error.reason) from result.error.__cause__
        return result

    # --- around a fork: see `forks.py` -------------------------------------------

    def before_fork(self) -> list[threading.Lock]:
        """Close the connection, and let none open until the fork is done.

        Returns:
            The locks that are now held.
        """
        held = [
            lock
            for lock in (self.at_work, self.at_work_aside)
            if lock.acquire(timeout=limits.FORK_TIMEOUT)
        ]
        if self.at_work in held:
            self.thread.transactions.close()
        self._broken_by_fork = len(held) < 2 and not self._on_server
        return held

    def after_fork_in_parent(self) -> None:
        """Go on with the same thread."""
        self._broken_by_fork = False

    def after_fork_in_child(self) -> None:
        """Start with an empty queue; the parent's operations are the parent's."""
        forks.leave_to_parent(self.thread.transactions.connection)
        self._start_afresh()
