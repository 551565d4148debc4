"""Runs transactions on one connection, reconnects, and backs off from a database that fails."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ...errors import LedgerError
from ..entry import FailureScope
from . import limits
from .operations import ClaimOperation, Failed, SettleOperation

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Sequence

    from ..entry import NewClaim, Settlement
    from .connection import Connection
    from .operations import Committed, Operation, Result


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
            self.back_off = min(max(2 * self.back_off, limits.FIRST_BACK_OFF), limits.MAX_BACK_OFF)
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
            return execute(self.connection, batch)
        except LedgerError as error:
            result = self._failed(error, None)
        except Exception as bug:  # noqa: BLE001 - the waiting tasks need a result, whatever it is
            stated = LedgerError(f"an unexpected exception ({type(bug).__name__})")
            # Without its frames, whose variables may hold the database's password.
            stated.__cause__ = bug.with_traceback(None)
            result = self._failed(stated, FailureScope.KEY)
            self.close()
        if not result.concerns_one_key:
            self.close()
        return result

    def _failed(self, error: LedgerError, scope: FailureScope | None) -> Failed:
        connection = self.connection
        if connection is None:
            return Failed(error, FailureScope.DATABASE)
        return Failed(
            error, scope or connection.failure_scope, may_be_committed=connection.committing
        )

    def shut_down(self) -> None:
        """Close the connection; the caller does not hold the lock."""
        with self._at_work:
            self.close()

    def close(self) -> None:
        """Close the connection, if it is open. The caller holds the lock."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()


def execute(connection: Connection, batch: Iterable[Operation]) -> Committed:
    """Execute a batch in one transaction."""
    settlements: list[Settlement] = []
    keys: list[str] = []
    claims: list[NewClaim] = []
    for operation in batch:
        if isinstance(operation, ClaimOperation):
            claims.append(operation.claim)
        elif isinstance(operation, SettleOperation):
            settlements.append(operation.settlement)
        else:
            keys.append(operation.key)
    return connection.apply(settlements, keys, claims)
