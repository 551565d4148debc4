"""What tasks await: claims, look-ups and settlements that the writer's thread executes.

The parts: `operations.py` has the values that are queued, `group_commit.py` the
thread, `backlog.py` the choice of the next batch, `transactions.py` the
connection, `forks.py` what happens around a fork, and `bounds.py` the numbers.
None imports SQLAlchemy.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, TypeVar, cast

from ..._threads import load_ahead, threads_are_greenlets, unpatched
from ...errors import StoreError
from . import bounds, forks
from .group_commit import CLOSED, GroupCommit, wake
from .operations import (
    ClaimOperation,
    Failed,
    LastingStepOperation,
    LookupOperation,
    ReleaseOperation,
    ReserveOperation,
    SettleOperation,
    StepOperation,
)
from .transactions import Transactions

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from ...models import Unrecorded
    from ..base import Connection
    from ..entry import Entry, NewClaim, Settlement
    from ..limits import Release, Reservation
    from ..verifications import Transaction
    from .operations import Committed, LastingOperation, Operation

T = TypeVar("T")

# An event loop takes no infinite delay.
_LONGEST_WAIT = 86_400.0

_TIMED_OUT = "it did not answer in time"
_BROKEN_BY_FORK = "this process was forked in the middle of a transaction; open the store again"
_RETRYING = "not recorded yet: retrying until the program ends"
_DROPPED = "not recorded: too many others wait to be, so its key stays unknown"


class Writer:
    """Queues the operations of all tasks for one thread; both start when first needed.

    Args:
        connect: opens a connection that can write.
        clock: wall-clock seconds.
        place: names the store in messages.
        on_server: whether the database is a server: it locks single rows, and
            a forked child can leave a connection behind and open another.

    Attributes:
        closed: whether it was stopped.
        at_work: held while the thread uses its connection.
        at_work_aside: held while a blocking call uses a connection of its own.
        thread: executes the operations.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        clock: Callable[[], float],
        *,
        place: str,
        on_server: bool,
    ) -> None:
        self._connect = connect
        self._timed_out = f"{place}: {_TIMED_OUT}"
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
        """Raise RuntimeError if it was stopped, StoreError if a fork has broken it."""
        if self.closed:
            raise RuntimeError(CLOSED)
        if self._broken_by_fork:
            raise StoreError(_BROKEN_BY_FORK)

    async def claim(
        self, claim: NewClaim, deadline: float, reservation: Reservation | None = None
    ) -> Entry | float | None:
        """Claim a key durably, and reserve a start where there are limits.

        Args:
            claim: the claim.
            deadline: when to fail, in monotonic seconds.
            reservation: has the claim's token; None without limits.

        Returns:
            None when it is claimed; the entry that blocks the claim; or the
            seconds until the number may be called again.

        Raises:
            StoreError: the database failed, or did not answer before the
                deadline (monotonic seconds). No claim stays, neither then nor
                when the caller is cancelled.
        """
        future = asyncio.get_running_loop().create_future()
        operation = ClaimOperation(claim, future, reservation)
        committed = await self._execute(operation, deadline)
        return committed.waits.get(claim.token) or committed.blocking.get(claim.key)

    async def reserve(self, reservation: Reservation, deadline: float) -> float:
        """Reserve a start durably.

        Returns:
            0.0 when it is reserved, else the seconds until it would be allowed.

        Raises:
            StoreError: the store failed, or did not answer before the deadline
                (monotonic seconds). No reservation stays, neither then nor
                when the caller is cancelled.
        """
        operation = ReserveOperation(reservation, asyncio.get_running_loop().create_future())
        committed = await self._execute(operation, deadline)
        return committed.waits.get(reservation.token, 0.0)

    async def release(self, release: Release) -> None:
        """Give a reservation back; where that fails, it is retried without the caller.

        Raises:
            StoreError: it is not recorded yet; the text says whether it is
                retried.
        """
        operation = ReleaseOperation(release, asyncio.get_running_loop().create_future())
        await self._execute_lasting(operation)

    async def run(self, step: Callable[[Transaction], T], deadline: float) -> T:
        """Run a step of a verification as one transaction, or as part of one.

        Raises:
            StoreError: the store failed, or did not answer before the deadline
                (monotonic seconds). The step may have been executed then.
        """
        future = asyncio.get_running_loop().create_future()
        operation = StepOperation(secrets.token_hex(8), step, future)
        committed = await self._execute(operation, deadline)
        return cast("T", committed.results[operation.key])

    def run_later(self, step: Callable[[Transaction], object]) -> None:
        """Run a step without waiting for it; it is retried until it is recorded.

        The steps and look-ups that are queued after it see what it has changed.

        Raises:
            StoreError: no thread can be started.
        """
        with self._lock:
            self.check_usable()
            self.thread.put(LastingStepOperation(secrets.token_hex(8), step))

    async def find(self, key: str, deadline: float) -> Entry | None:
        """The entry of a key.

        Raises:
            StoreError: the database failed, or did not answer before the
                deadline (monotonic seconds).
        """
        operation = LookupOperation(key, asyncio.get_running_loop().create_future())
        committed = await self._execute(operation, deadline)
        return committed.found.get(key)

    async def settle(
        self,
        settlement: Settlement,
        unrecorded: Unrecorded | None = None,
        release: Release | None = None,
    ) -> bool:
        """Settle a claim durably.

        The settlement is recorded also when the caller is cancelled or has
        waited long enough, and it is retried where it fails.

        Args:
            settlement: what to record.
            unrecorded: counts the settlement while it is not recorded and its
                caller no longer waits.
            release: the claim's reservation, to be given back; None for none.

        Returns:
            False when the key was settled or claimed by others meanwhile.

        Raises:
            StoreError: it is not recorded yet; the text says whether it is
                retried.
        """
        future = asyncio.get_running_loop().create_future()
        operation = SettleOperation(settlement, future, unrecorded, release)
        try:
            committed = await self._execute_lasting(operation)
        finally:
            # A recorded settlement stays recorded, so no lock is needed to see it.
            if not operation.is_recorded:
                with self._lock:
                    operation.count()
        return settlement.key not in committed.overtaken

    async def _execute_lasting(self, operation: LastingOperation) -> Committed:
        """Queue an operation that is retried, and wait some seconds for its result."""
        try:
            return await self._execute(operation, time.monotonic() + bounds.SETTLE_TIMEOUT)
        except StoreError as error:
            next_step = _DROPPED if operation.dropped else _RETRYING
            msg = f"{error.reason}; {next_step}"
            raise StoreError(msg) from error.__cause__

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
            raise StoreError(self._timed_out)
        timer = future.get_loop().call_later(min(remaining, _LONGEST_WAIT), wake, future)
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
            raise StoreError(self._timed_out)
        if isinstance(result, Failed):
            # One exception for each task, because raising it fills in its traceback.
            raise StoreError(result.error.reason) from result.error.__cause__
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
            if lock.acquire(timeout=bounds.FORK_TIMEOUT)
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
