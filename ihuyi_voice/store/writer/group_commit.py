"""The thread that executes queued operations in batches, each in one transaction.

Group commit: operations queued during one fsync form the next batch. Thousands
of claims a second share a few dozen waits for the disk, and no timer delays
them. A batch that fails because of one key is retried key by key, so that the
key delays no other. A failed settlement is kept and retried until it is
recorded or the program ends.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time

# The C implementation, which gevent does not replace.
from _queue import Empty, SimpleQueue
from itertools import chain
from typing import TYPE_CHECKING

from ..._threads import Event, destroy_hub, start_raw_thread, threads_are_greenlets, unpatched
from ...errors import StoreError
from ..entry import FailureScope
from . import bounds
from .backlog import Backlog, divide
from .operations import Failed, LastingOperation, StartOperation

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Sequence

    from .operations import Operation, Result
    from .transactions import Transactions

CLOSED = "this store is closed"


class GroupCommit:
    """The thread, its queue and its backlog.

    Args:
        transactions: executes batches.
        lock: guards what tasks and the thread both change; re-entrant, because
            the garbage collector may run a finalizer that takes it.
        clock: wall-clock seconds.
        settle_apart: whether settlements, and steps of verifications, get a
            transaction of their own. On a server that locks single rows, two
            machines that each settle what the other claims would otherwise wait
            for each other.
    """

    def __init__(
        self,
        transactions: Transactions,
        lock: threading.RLock,
        clock: Callable[[], float],
        *,
        settle_apart: bool,
    ) -> None:
        self.transactions: Transactions = transactions
        self.backlog: Backlog = Backlog()
        self.clock: Callable[[], float] = clock
        self.ended: Event = Event()
        self.started: bool = False
        self._settle_apart = settle_apart
        self._lock = lock
        self._queue: SimpleQueue[Operation | None] = SimpleQueue()
        # The thread's own number, by which it recognises itself.
        self._ident: int | None = None

    def put(self, operation: Operation) -> None:
        """Queue an operation, and start the thread if it does not run yet.

        The caller holds the lock.

        Raises:
            StoreError: no thread can be started.
        """
        if not self.started:
            self._start()
        self._queue.put(operation)

    def stop(self, timeout: float | None, *, greenlets_run: bool) -> None:
        """Execute what is queued, close the connection, and end the thread.

        Args:
            timeout: how long to wait for it, in seconds.
            greenlets_run: whether other greenlets may run meanwhile, as in `Event.wait`.
        """
        self._queue.put(None)
        # The garbage collector may run a finalizer in any thread, this one included.
        if self._ident != _thread_ident():
            self.ended.wait(timeout, greenlets_run=greenlets_run)

    def give_up(self, operation: Operation) -> None:
        """Stop waiting for an operation; its claim or reservation is reverted.

        The thread reverts it, and not the cancelled task. A task that awaited
        its claim and settled it as not sent would delay its cancellation by the
        database's timeouts, 5 s for SQLite and more for a server. And it would
        not replace this: a task past its deadline must fail at once, a task
        whose loop is closed never runs again, and only the thread knows that a
        failed commit may have succeeded.
        """
        with self._lock:
            operation.waiting = False
            # `_finish` reverts one that failed and may be committed all the same.
            if isinstance(operation, StartOperation) and operation.succeeded:
                self._queue.put(operation.reverting(self.now()))

    def now(self) -> float:
        """Wall-clock seconds; the system's where the caller's clock fails."""
        try:
            return self.clock()
        except Exception:  # noqa: BLE001 - whatever it is, the outcome must be recorded
            return time.time()

    def _start(self) -> None:
        try:
            if threads_are_greenlets():
                start_raw_thread(self._run)
            else:
                threading.Thread(target=self._run, name="ihuyi-voice-store", daemon=True).start()
        except RuntimeError as error:
            msg = "no thread can be started for it"
            raise StoreError(msg) from error
        self.started = True

    # --- in the thread ---------------------------------------------------------

    def _run(self) -> None:
        self._ident = _thread_ident()
        try:
            while self._receive():
                self._execute()
            self._execute_the_rest()
        finally:
            # Before the program can end: a driver in Python has made the hub.
            destroy_hub()
            self.ended.set()

    def _receive(self) -> bool:
        """Take what is queued, or wait for it or for a retry; False once `stop` was called."""
        goes_on = True
        with contextlib.suppress(Empty):
            operation = self._queue.get(timeout=self._seconds_to_wait())
            while True:
                if operation is None:
                    goes_on = False
                else:
                    self.backlog.new.append(operation)
                operation = self._queue.get_nowait()
        return goes_on

    def _seconds_to_wait(self) -> float | None:
        """How long there is nothing to execute; None is until something is queued."""
        if self.backlog.new:
            return 0.0
        due = self.backlog.next_due()
        if due == math.inf:
            return None
        return max(0.0, max(due, self.transactions.away_until) - time.monotonic())

    def _execute_the_rest(self) -> None:
        """Execute what was queued before `stop`, retry for some seconds, and close."""
        backlog = self.backlog
        end = time.monotonic() + bounds.LAST_RETRIES
        self.transactions.away_until = 0.0
        backlog.make_singles_due()
        self._execute()
        while backlog.new or (backlog.next_due() < math.inf and time.monotonic() < end):
            self._receive()
            self._execute()
        self._finish(list(backlog.singles), Failed(StoreError(CLOSED), FailureScope.DATABASE))
        self.transactions.shut_down()

    def _execute(self) -> None:
        """Execute the next batch, and then the operations that are tried alone."""
        batch = self.backlog.next_batch()
        parts = divide(batch) if self._settle_apart else [batch]
        for number, part in enumerate(parts, start=1):
            failed = self._execute_batch(part)
            if failed is not None:
                # Do not wait a second time for a database that has just failed.
                not_tried = chain(*parts[number:], self.backlog.take_new_settlements())
                self._finish(not_tried, Failed(failed.error, failed.scope))
                break
        self._execute_singles()
        self.transactions.forget_expired()

    def _execute_batch(self, batch: Sequence[Operation]) -> Failed | None:
        """Execute a batch; returns a failure that concerns other batches too."""
        if not batch:
            return None
        result = self.transactions.run(batch, bounds.BATCH_ROW_TIMEOUT)
        failed = result if isinstance(result, Failed) else None
        if failed is not None and failed.concerns_one_key and len(batch) > 1:
            for operation in batch:
                self.backlog.isolate(operation)
            return None
        self._finish(batch, result)
        return None if failed is None or failed.concerns_one_key else failed

    def _execute_singles(self) -> None:
        """Execute, one by one, the operations whose batch failed because of one key."""
        began = time.monotonic()
        if began < self.transactions.away_until:
            return
        while time.monotonic() - began < bounds.MAX_SECONDS_ON_SINGLES:
            operation = self.backlog.next_single(began)
            if operation is None:
                return
            result = self.transactions.run([operation], bounds.SINGLE_ROW_TIMEOUT)
            self._finish([operation], result)
            if isinstance(result, Failed) and not result.concerns_one_key:
                return

    def _finish(self, batch: Iterable[Operation], result: Result) -> None:
        """Store the result of a batch, and wake its tasks.

        A task that is cancelled after this reverts its claim by `give_up`.
        """
        by_loop: dict[asyncio.AbstractEventLoop, list[Operation]] = {}
        now = self.now()
        with self._lock:
            for operation in batch:
                if isinstance(operation, LastingOperation):
                    self._finish_lasting(operation, result)
                elif not self._finish_other(operation, result, now):
                    continue
                if operation.waiting and operation.future is not None:
                    by_loop.setdefault(operation.future.get_loop(), []).append(operation)
                    # The task of a settlement does not wait for its retries.
                    operation.waiting = not isinstance(operation, LastingOperation)
        for loop, operations in by_loop.items():
            self._wake(loop, operations)

    def _finish_lasting(self, operation: LastingOperation, result: Result) -> None:
        if isinstance(result, Failed):
            if result.concerns_one_key:
                operation.failures += 1
                pause = bounds.FIRST_BACK_OFF * 2.0 ** min(operation.failures - 1, 10)
                operation.due = time.monotonic() + min(pause, bounds.MAX_BACK_OFF)
            self.backlog.keep(operation)
        # After `dropped`, because the task reads both without the lock.
        operation.result = result
        if operation.is_recorded:
            operation.uncount()

    def _finish_other(self, operation: Operation, result: Result, now: float) -> bool:
        """Finish a claim or a look-up; False where it is tried again."""
        row_locked = isinstance(result, Failed) and result.scope is FailureScope.ROW_LOCK
        if row_locked and operation.waiting and self.backlog.postpone(operation):
            return False
        operation.result = result
        if isinstance(operation, StartOperation) and operation.must_be_reverted:
            self.backlog.keep(operation.reverting(now))
        return True

    def _wake(self, loop: asyncio.AbstractEventLoop, operations: list[Operation]) -> None:
        # One call for all of them, because each call interrupts the loop.
        try:
            loop.call_soon_threadsafe(_wake_tasks, operations)
        except RuntimeError:
            # The loop is closed, and its tasks never run again.
            for operation in operations:
                self.give_up(operation)


def _wake_tasks(operations: list[Operation]) -> None:
    for operation in operations:
        if operation.future is not None:  # pragma: no branch - for type checkers
            wake(operation.future)


def wake(future: asyncio.Future[None]) -> None:
    """Wake the task that waits for a future, unless it is awake."""
    if not future.done():
        future.set_result(None)


def _thread_ident() -> int:
    """The number of this thread, which all its greenlets share."""
    number: int = unpatched("_thread", "get_ident")()
    return number
