"""The ledger's transactions, in an SQLite file or a PostgreSQL database.

It turns lists of claims and settlements into transactions, and the databases'
exceptions into `LedgerError`. `tables.py` has the statements, `store.py` opens
connections, and `writer.py` and its parts, which do without SQLAlchemy, have the
thread and the retries.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
from operator import attrgetter
from typing import TYPE_CHECKING

from sqlalchemy import and_, delete, func, inspect, or_, select, update
from sqlalchemy.exc import SQLAlchemyError

from ...errors import LedgerError
from ..entry import DELIVERY_SECONDS, ROW_PREFIX, Entry, EntryState, FailureScope
from .engine import check_encoding
from .failures import (
    DATABASE_ERRORS,
    ErrorTypes,
    describe,
    driver_error,
    scope_of,
    without_frames,
)
from .file import Identity, identity_of, is_still, lost
from .operations import Committed
from .tables import (
    ENTRY,
    FIND,
    IS_REPEATABLE,
    IS_UNSETTLED,
    SCHEMA_VERSION,
    SETTLE,
    calls,
    entry_of,
    meta,
    metadata,
    overtaken,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import sqlalchemy
    from typing_extensions import Self

    from ..entry import NewClaim, Settlement
    from .store import Store

# Any number, the same in every release: it serialises processes that create the tables.
_ADVISORY_LOCK = 4_805_719_362

_c = calls.c


class Connection:
    """One open connection, used by one thread at a time and never across a fork.

    Every method raises `LedgerError`. Then the transaction is rolled back,
    unless `committing` is true, and the connection should be closed.

    Attributes:
        failure_scope: what the last failure means for other transactions.
        committing: whether the last transaction reached its commit. If it
            failed then, it may be committed all the same.
    """

    def __init__(self, store: Store, *, writing: bool = True) -> None:
        self.failure_scope: FailureScope = FailureScope.DATABASE
        self.committing: bool = False
        self._row_timeout = 0.0
        self._store = store
        self._files: dict[str, Identity] = {}
        # A driver may raise anything, and its frames hold the password.
        with self._translated((Exception,)):
            self._connection = store.engine(writing=writing).connect()
        try:
            self._check_ledger(writing=writing)
            if writing:
                self._remember_files()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close it; does no harm twice."""
        # The server may have closed it already.
        with contextlib.suppress(SQLAlchemyError):
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_for_rows(self, seconds: float) -> None:
        """Wait at most so many seconds for each row that another transaction locks.

        SQLite has no row locks: there it changes nothing.
        """
        if self._store.path is not None or seconds == self._row_timeout:
            return
        with self._transaction(writing=False) as connection:
            connection.exec_driver_sql(f"SET lock_timeout = {math.ceil(seconds * 1000)}")
        self._row_timeout = seconds

    def apply(
        self, settlements: Sequence[Settlement], keys: Sequence[str], claims: Sequence[NewClaim]
    ) -> Committed:
        """Settle, then look up the keys, then claim, in one transaction.

        No two settlements and no two claims have the same key.
        """
        with self._transaction(writing=bool(settlements or claims)):
            overtaken = self._settle(settlements) if settlements else set()
            found = self._find(keys) if keys else {}
            blocking = self._claim(claims) if claims else {}
        return Committed(overtaken, found, blocking)

    def unsettled(self) -> list[Entry]:
        """The claims without settlement, the oldest first."""
        query = select(*ENTRY).where(IS_UNSETTLED).order_by(_c.claimed_at, _c.key)
        with self._transaction(writing=False) as connection:
            return [entry_of(row) for row in connection.execute(query)]

    def resolve(self, key: str, state: EntryState, msg: str, now: float) -> Entry | None:
        """Settle an unsettled claim whose request can no longer be delivered.

        Returns:
            The entry before the change, None where there is none. It was
            settled if it was unsettled and its `resolvable_at` is not after `now`.
        """
        query = select(*ENTRY).where(_c.key == key).with_for_update()
        # The rule of `Entry.resolvable_at`.
        over = or_(
            and_(_c.state == EntryState.UNKNOWN.value, _c.live_until <= now),
            _c.live_until <= now - DELIVERY_SECONDS,
        )
        change = (
            update(calls)
            .where(_c.key == key, IS_UNSETTLED, over)
            .values(state=state.value, code=None, msg=msg, voice_id=None, changed_at=now)
        )
        with self._transaction() as connection:
            row = connection.execute(query).one_or_none()
            connection.execute(change)
        return None if row is None else entry_of(row)

    def counts(self) -> dict[EntryState, int]:
        """The number of entries of each state that occurs."""
        query = select(_c.state, func.count()).group_by(_c.state)
        with self._transaction(writing=False) as connection:
            return {EntryState(state): count for state, count in connection.execute(query)}

    def purge(self, before: float) -> int:
        """Delete the settled entries that last changed before a Unix time; returns how many."""
        statement = delete(calls).where(~IS_UNSETTLED, _c.changed_at < before)
        with self._transaction() as connection:
            return connection.execute(statement).rowcount

    def has_rows_hashed_otherwise(self, hashed_with: str) -> bool:
        """Whether a row's derived key may not be claimed again and is of another API key."""
        query = (
            select(_c.key)
            .where(_c.key.startswith(ROW_PREFIX), ~IS_REPEATABLE, _c.hashed_with != hashed_with)
            .limit(1)
        )
        with self._transaction(writing=False) as connection:
            return connection.execute(query).first() is not None

    def create_schema(self) -> bool:
        """Create the tables; False when another process has created them."""
        with self._transaction() as connection:
            if self._store.path is None:
                connection.execute(select(func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
            metadata.create_all(connection)
            is_new = connection.execute(select(meta.c.name)).first() is None
            if is_new:
                connection.execute(
                    meta.insert(),
                    [
                        {"name": "schema", "value": str(SCHEMA_VERSION)},
                        {"name": "id", "value": secrets.token_hex(8)},
                    ],
                )
        return is_new

    def _claim(self, claims: Sequence[NewClaim]) -> dict[str, Entry]:
        """Claim the keys that are free; returns the entries that block the other claims."""
        rows = [
            {**claim._asdict(), "changed_at": claim.claimed_at}
            # All machines lock rows in the same order, so that none waits for another in a circle.
            for claim in sorted(claims)
        ]
        claimed = set(self._connection.execute(self._store.claim_statement, rows).scalars())
        others = {claim.key: claim for claim in claims if claim.key not in claimed}
        if not others:
            return {}
        existing = self._find(list(others))
        # An entry with our own token was claimed by a transaction whose commit seemed to fail.
        return {key: entry for key, entry in existing.items() if entry.token != others[key].token}

    def _find(self, keys: Sequence[str]) -> dict[str, Entry]:
        found = self._connection.execute(FIND, {"keys": keys})
        return {row[0]: entry_of(row) for row in found}

    def _settle(self, settlements: Sequence[Settlement]) -> set[str]:
        """Settle the claims; returns the keys of those that were overtaken."""
        rows = [
            {
                "its_key": settlement.key,
                "its_token": settlement.token,
                "its_state": settlement.state.value,
                "state": settlement.state.value,
                "code": settlement.code,
                "msg": settlement.msg,
                "voice_id": settlement.voice_id,
                "changed_at": settlement.changed_at,
                "live_until": settlement.live_until,
            }
            for settlement in sorted(settlements, key=attrgetter("key"))
        ]
        if self._connection.execute(SETTLE, rows).rowcount == len(rows):
            return set()
        existing = self._find([settlement.key for settlement in settlements])
        return {
            settlement.key
            for settlement in settlements
            if settlement.key not in existing or overtaken(settlement, existing[settlement.key])
        }

    @contextlib.contextmanager
    def _transaction(self, *, writing: bool = True) -> Iterator[sqlalchemy.Connection]:
        self.committing = False
        self.failure_scope = FailureScope.DATABASE
        with self._translated():
            self._connection.info["begin"] = "BEGIN IMMEDIATE" if writing else "BEGIN"
            with self._connection.begin():
                yield self._connection
                self._check_files()
                self.committing = writing
            # A record in a file that is lost protects nothing.
            self._check_files()

    def _check_ledger(self, *, writing: bool) -> None:
        """Refuse a schema that this release cannot read, and another ledger than the opened one."""
        store = self._store
        # In a transaction that writes, so that a read-only file is detected at once.
        with self._transaction(writing=writing) as connection:
            if store.path is None:
                check_encoding(store.place, connection)
            facts: dict[str, str] = {}
            if inspect(connection).has_table(meta.name):
                facts = {row.name: row.value for row in connection.execute(select(meta))}
        if facts and facts.get("schema") != str(SCHEMA_VERSION):
            msg = f"{store.place} {_other_release(facts.get('schema', ''))}"
            raise LedgerError(msg)
        if store.ledger_id not in (None, facts.get("id")):
            msg = f"{store.place} was replaced by another ledger since it was opened; open it again"
            raise LedgerError(msg)
        store.ledger_id = facts.get("id")

    def _remember_files(self) -> None:
        path = self._store.path
        if path is None:
            return
        real = os.path.realpath(path)
        with self._translated():
            # They exist since the first transaction, and while a connection is open.
            self._files = {name: identity_of(name) for name in (path, f"{real}-wal", f"{real}-shm")}
            names = os.stat(path).st_nlink  # noqa: PTH116 - as `identity_of`
        if names > 1:
            # SQLite names the log after the path: with another path it reads another log.
            msg = f"{path} has {names} names (hard links), and may have one only"
            raise LedgerError(msg)
        if self._store.identity is not None:
            self._files[path] = self._store.identity
        self._check_files()

    def _check_files(self) -> None:
        # SQLite goes on writing into a file that was deleted or renamed.
        for path, identity in self._files.items():
            if not is_still(path, identity):
                raise LedgerError(lost(path))

    @contextlib.contextmanager
    def _translated(self, errors: ErrorTypes = DATABASE_ERRORS) -> Iterator[None]:
        """Translate the database's errors into `LedgerError`."""
        try:
            yield
        except LedgerError:
            raise
        except errors as error:
            cause = driver_error(error)
            self.failure_scope = scope_of(error)
            failure = LedgerError(f"{self._store.place}: {describe(cause)}")
            try:
                raise failure from without_frames(cause)
            finally:
                # SQLAlchemy's exception, whose frames hold the password.
                failure.__context__ = None


def _other_release(version: str) -> str:
    if version.isdecimal() and int(version) > SCHEMA_VERSION:
        return f"was written by a newer release (schema {version}): update ihuyi-voice"
    return (
        f"was written by an older release (schema {version or 'unknown'}), and this one cannot"
        " read it: go on with that release, or create a new ledger"
    )
