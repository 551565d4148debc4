"""Runs transactions on one connection, reconnects, and backs off from a database that fails."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from ...errors import StoreError
from ..entry import FailureScope
from . import bounds
from .operations import (
    ClaimOperation,
    Failed,
    LastingOperation,
    LastingStepOperation,
    ReserveOperation,
    SettleOperation,
    StepOperation,
    Work,
)

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Sequence

    from ..base import Connection
    from .operations import Operation, Result


class Transactions:
    """The writer's connection, which is opened when it is needed.

    Args:
        connect: opens a connection that can write.
        at_work: held while the connection is in use, so that no fork copies it.

    Attributes:
        connection: None while it is closed.
        back_off: the last pause after a failure of the database, in seconds.
        away_until: when a failed database is tried again without a new
            operation, in monotonic seconds; 0 while it works.
    """

    def __init__(self, connect: Callable[[], Connection], at_work: threading.Lock) -> None:
        self.connect = connect
        self.connection: Connection | None = None
        self.back_off: float = 0.0
        self.away_until: float = 0.0
        self._at_work = at_work
        # Until when nothing needs to be deleted, in monotonic seconds.
        self._clean_until = time.monotonic() + bounds.CLEANING_PAUSE

    def run(self, batch: Sequence[Operation], row_timeout: float) -> Result:
        """Execute a batch in one transaction.

        Args:
            batch: no two settlements and no two claims have the same key.
            row_timeout: how long to wait for a locked row, in seconds.
        """
        with self._at_work:
            result = self._try(batch, row_timeout)
            if isinstance(result, Failed) and result.scope is FailureScope.CONNECTION:
                result = self._try_again(batch, row_timeout, result)
        if isinstance(result, Failed) and not result.concerns_one_key:
            self.back_off = min(max(2 * self.back_off, bounds.FIRST_BACK_OFF), bounds.MAX_BACK_OFF)
            self.away_until = time.monotonic() + self.back_off
        else:
            self.back_off = 0.0
            self.away_until = 0.0
        return result

    def _try_again(self, batch: Sequence[Operation], row_timeout: float, first: Failed) -> Result:
        """Try once more on a new connection: the server may have restarted."""
        # If the lost commit succeeded, the retry recognises its own token.
        second = self._try(batch, row_timeout)
        if isinstance(second, Failed) and first.may_be_committed:
            return Failed(second.error, second.scope, may_be_committed=True)
        return second

    def _try(self, batch: Sequence[Operation], row_timeout: float) -> Result:
        try:
            if self.connection is None:
                self.connection = self.connect()
            self.connection.wait_for_rows(row_timeout)
            return self.connection.apply(work_of(batch))
        except StoreError as error:
            result = self._failed(error, None)
        except Exception as bug:  # noqa: BLE001 - the waiting tasks need a result, whatever it is
            stated = StoreError(f"an unexpected exception ({type(bug).__name__})")
            # Without its frames, whose variables may hold the database's password.
            stated.__cause__ = bug.with_traceback(None)
            result = self._failed(stated, FailureScope.KEY)
            self.close()
        if not result.concerns_one_key:
            self.close()
        return result

    def _failed(self, error: StoreError, scope: FailureScope | None) -> Failed:
        connection = self.connection
        if connection is None:
            return Failed(error, FailureScope.DATABASE)
        return Failed(
            error, scope or connection.failure_scope, may_be_committed=connection.committing
        )

    def forget_expired(self) -> None:
        """Delete what has expired, now and then; a failure only delays it."""
        now = time.monotonic()
        if self.connection is None or self.away_until or now < self._clean_until:
            return
        self._clean_until = now + bounds.CLEANING_PAUSE
        with self._at_work, contextlib.suppress(StoreError):
            # A fork may have closed it meanwhile.
            if self.connection is not None and self.connection.forget_expired():
                # The rest follows after the next batch, so that no operation waits for it.
                self._clean_until = 0.0

    def shut_down(self) -> None:
        """Close the connection; the caller does not hold the lock."""
        with self._at_work:
            self.close()

    def close(self) -> None:
        """Close the connection, if it is open. The caller holds the lock."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()


def work_of(batch: Iterable[Operation]) -> Work:
    """What a transaction has to do for a batch."""
    work = Work([], [], [], [], [], [])
    for operation in batch:
        if isinstance(operation, ClaimOperation):
            work.claims.append(operation.claim)
            if operation.reservation is not None:
                work.reservations.append(operation.reservation)
        elif isinstance(operation, StepOperation | LastingStepOperation):
            work.steps.append((operation.key, operation.step))
        elif isinstance(operation, ReserveOperation):
            work.reservations.append(operation.reservation)
        elif isinstance(operation, LastingOperation):
            if isinstance(operation, SettleOperation):
                work.settlements.append(operation.settlement)
            if operation.release is not None:
                work.releases.append(operation.release)
        else:
            work.lookups.append(operation.key)
    return work
