"""Where the ledger's entries are kept: an SQLite file or a PostgreSQL database.

It turns lists of attempts and settlements into transactions, and the
databases' exceptions into `LedgerError`. Only this module, `ledger_tables.py`
and `ledger_engine.py`, on which it stands, import SQLAlchemy. Threads, waiting
and the rules for callers are others' business.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import sqlite3
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from sqlalchemy import and_, delete, func, inspect, or_, select, update
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ...errors import LedgerError
from ..entry import DELIVERY_SECONDS, ROW_PREFIX, Entry, EntryState, Trouble
from .engine import Server, check_encoding, server_or_path, sqlite_engine
from .file import (
    Identity,
    check_path,
    identity_of,
    is_still,
    lost,
    open_for_reading,
    open_for_writing,
)
from .tables import (
    CLAIM_IN_POSTGRESQL,
    CLAIM_IN_SQLITE,
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
    from sqlalchemy import Engine, Executable
    from typing_extensions import Self

    from ...models import Secret
    from ..entry import Attempt, Settlement

# Any number, the same in every release: two processes may create the tables at once.
_ADVISORY_LOCK = 4_805_719_362

_c = calls.c

Errors: TypeAlias = tuple[type[Exception], ...]
_ERRORS: Errors = (SQLAlchemyError, sqlite3.Error, OSError)


class Connection:
    """One open connection, used by one thread at a time and never across a fork.

    Every method raises `LedgerError`, after which nothing of it is recorded,
    unless `committing` says otherwise, and the connection should be closed.

    Attributes:
        trouble: how far the last failure reaches.
        committing: whether the last transaction came as far as its commit, so
            that, if it failed, it may be recorded all the same.
    """

    def __init__(self, store: Store, *, writing: bool = True) -> None:
        self.trouble: Trouble = Trouble.DATABASE
        self.committing: bool = False
        self._row_patience = 0.0
        self._store = store
        self._files: dict[str, Identity] = {}
        # A driver may raise anything, through frames that hold the password.
        with self._stated((Exception,)):
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
        # One that the server hung up cannot say goodbye.
        with contextlib.suppress(SQLAlchemyError):
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_for_rows(self, seconds: float) -> None:
        """From now on wait so long at most for a row that another transaction holds.

        SQLite has no locks on rows: there it changes nothing.
        """
        if self._store.path is not None or seconds == self._row_patience:
            return
        with self._transaction(writing=False) as connection:
            connection.exec_driver_sql(f"SET lock_timeout = {math.ceil(seconds * 1000)}")
        self._row_patience = seconds

    def apply(
        self, settlements: Sequence[Settlement], keys: Sequence[str], attempts: Sequence[Attempt]
    ) -> tuple[set[str], dict[str, Entry], dict[str, Entry]]:
        """Settle, then read, then claim, in one transaction.

        No two settlements and no two attempts have the same key.

        Returns:
            The keys of the settlements whose claim is no longer theirs, the
            entries that were found, and those that stand in the way of an
            attempt. An attempt without one has succeeded.
        """
        with self._transaction(writing=bool(settlements or attempts)):
            astray = self._settle(settlements) if settlements else set()
            found = self._find(keys) if keys else {}
            in_the_way = self._claim(attempts) if attempts else {}
        return astray, found, in_the_way

    def unsettled(self) -> list[Entry]:
        """The claims without settlement, the oldest first."""
        query = select(*ENTRY).where(IS_UNSETTLED).order_by(_c.claimed_at, _c.key)
        with self._transaction(writing=False) as connection:
            return [entry_of(row) for row in connection.execute(query)]

    def resolve(self, key: str, state: EntryState, msg: str, now: float) -> Entry | None:
        """Settle an unsettled claim whose request can no longer be delivered.

        Returns:
            The entry as it was, None where there is none. It was settled if it
            was unsettled and its `resolvable_at` is not after `now`.
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
        """How many entries there are of each state that has any."""
        query = select(_c.state, func.count()).group_by(_c.state)
        with self._transaction(writing=False) as connection:
            return {EntryState(state): count for state, count in connection.execute(query)}

    def purge(self, before: float) -> int:
        """Delete the settled entries that last changed before then, and say how many."""
        statement = delete(calls).where(~IS_UNSETTLED, _c.changed_at < before)
        with self._transaction() as connection:
            return connection.execute(statement).rowcount

    def has_rows_hashed_otherwise(self, hashed_with: str) -> bool:
        """Whether a derived key stands that may not be repeated and has another API key's hash."""
        query = (
            select(_c.key)
            .where(_c.key.startswith(ROW_PREFIX), ~IS_REPEATABLE, _c.hashed_with != hashed_with)
            .limit(1)
        )
        with self._transaction(writing=False) as connection:
            return connection.execute(query).first() is not None

    def create_schema(self) -> bool:
        """Create the tables; False when another process was first."""
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

    def _claim(self, attempts: Sequence[Attempt]) -> dict[str, Entry]:
        """Claim what can be claimed; the entries that stand in the way of the others."""
        rows = [
            {**attempt._asdict(), "changed_at": attempt.claimed_at}
            # In one order everywhere, or two machines wait for each other.
            for attempt in sorted(attempts)
        ]
        claimed = set(self._connection.execute(self._store.claim_statement, rows).scalars())
        others = {attempt.key: attempt for attempt in attempts if attempt.key not in claimed}
        if not others:
            return {}
        standing = self._find(list(others))
        # One that is our own was claimed by a transaction whose commit seemed to fail.
        return {key: entry for key, entry in standing.items() if entry.token != others[key].token}

    def _find(self, keys: Sequence[str]) -> dict[str, Entry]:
        found = self._connection.execute(FIND, {"keys": keys})
        return {row[0]: entry_of(row) for row in found}

    def _settle(self, settlements: Sequence[Settlement]) -> set[str]:
        """Settle what can be settled; the keys of the others."""
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
        standing = self._find([settlement.key for settlement in settlements])
        return {
            settlement.key
            for settlement in settlements
            if settlement.key not in standing or overtaken(settlement, standing[settlement.key])
        }

    @contextlib.contextmanager
    def _transaction(self, *, writing: bool = True) -> Iterator[sqlalchemy.Connection]:
        self.committing = False
        self.trouble = Trouble.DATABASE
        with self._stated():
            self._connection.info["begin"] = "BEGIN IMMEDIATE" if writing else "BEGIN"
            with self._connection.begin():
                yield self._connection
                self._check_files()
                self.committing = writing
            # What went into a file that is gone would protect nobody.
            self._check_files()

    def _check_ledger(self, *, writing: bool) -> None:
        """Refuse what this release cannot read, and a ledger other than the one opened first."""
        store = self._store
        # In a transaction that writes, so that a file that is read-only is told at once.
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
            msg = f"{store.place} is not the ledger any more that was opened; open it anew"
            raise LedgerError(msg)
        store.ledger_id = facts.get("id")

    def _remember_files(self) -> None:
        path = self._store.path
        if path is None:
            return
        real = os.path.realpath(path)
        with self._stated():
            # There since the first transaction, and for as long as a connection is open.
            self._files = {name: identity_of(name) for name in (path, f"{real}-wal", f"{real}-shm")}
            names = os.stat(path).st_nlink  # noqa: PTH116 - as `identity_of`
        if names > 1:
            # SQLite names the log after the path: those who come by another know nothing of it.
            msg = f"{path} has {names} names (hard links), and may have one only"
            raise LedgerError(msg)
        if self._store.identity is not None:
            self._files[path] = self._store.identity
        self._check_files()

    def _check_files(self) -> None:
        # SQLite would go on writing into a file that no name leads to any more.
        for path, identity in self._files.items():
            if not is_still(path, identity):
                raise LedgerError(lost(path))

    @contextlib.contextmanager
    def _stated(self, errors: Errors = _ERRORS) -> Iterator[None]:
        """The errors of the database become `LedgerError`."""
        try:
            yield
        except LedgerError:
            raise
        except errors as error:
            cause: BaseException = getattr(error, "orig", None) or error
            hung_up = isinstance(error, DBAPIError) and error.connection_invalidated
            self.trouble = Trouble.HANGUP if hung_up else _trouble(cause)
            failure = LedgerError(f"{self._store.place}: {_words(cause)}")
            try:
                raise failure from without_frames(cause)
            finally:
                # SQLAlchemy's exception, whose frames hold the password.
                failure.__context__ = None


class Store:
    """A place for a ledger: makes connections to it, and knows it again.

    Attributes:
        place: what to call it in a text, without a password.
        path: the SQLite file; None for PostgreSQL.
        claim_statement: the statement that claims, for this database.
        identity: which file it was when it was opened; None for PostgreSQL.
        ledger_id: which ledger was in it when it was opened.
        is_new: whether that was created then.

    Args:
        where: a path or a URL, which may contain a password.

    Raises:
        ValueError: `where` names neither an SQLite file nor a PostgreSQL
            database.
        ModuleNotFoundError: psycopg is not installed.
    """

    def __init__(self, where: Secret) -> None:
        self.path: str | None = None
        self.identity: Identity | None = None
        self.ledger_id: str | None = None
        self.is_new: bool = False
        self.claim_statement: Executable = CLAIM_IN_SQLITE
        found = server_or_path(where)
        if isinstance(found, ValueError):
            raise found
        if not isinstance(found, Server):
            # Made absolute here, because the working directory may change.
            self.path = os.path.abspath(found)  # noqa: PTH100 - a link stays one
            self.place: str = self.path
            return
        self.place = found.place
        self.claim_statement = CLAIM_IN_POSTGRESQL
        engine = found.engine()
        if isinstance(engine, ModuleNotFoundError):
            raise engine
        self._postgresql = engine

    def open(self, *, create: bool) -> None:
        """Create what is missing, if it may be, and check that it is a ledger that can be read.

        Raises:
            LookupError: there is no ledger, and none may be created.
            LedgerError: it cannot be used.
        """
        there = self.path is None or Path(self.path).exists()
        if self.path is not None and (there or create):
            check_path(Path(self.path))
        if there:
            self.connect(writing=False).close()
        if self.ledger_id is None and not create:
            msg = f"there is no ledger in {self.place}" if there else f"there is no {self.place}"
            raise LookupError(msg)
        if self.ledger_id is None:
            with self.connect() as connection:
                self.is_new = connection.create_schema()
            self.connect(writing=False).close()
        if self.path is not None:
            self.identity = identity_of(self.path)

    def connect(self, *, writing: bool = True) -> Connection:
        """A connection; without `writing`, one that a read-only file allows too.

        Raises:
            LedgerError: it cannot be used.
        """
        return Connection(self, writing=writing)

    def engine(self, *, writing: bool) -> Engine:
        """What makes a connection."""
        path = self.path
        if path is None:
            return self._postgresql

        def connect() -> sqlite3.Connection:
            if self.ledger_id is not None and not Path(path).exists():
                raise LedgerError(lost(path))
            if writing:
                return open_for_writing(path, create=self.ledger_id is None)
            return open_for_reading(path)

        return sqlite_engine(connect)


# --- failures -----------------------------------------------------------------

# Classes of SQLSTATE: connection, insufficient resources, an operator, the system,
# PostgreSQL itself, access, permissions and missing tables, a read-only server.
_OF_THE_DATABASE = ("08", "53", "57", "58", "XX", "28", "3D", "3F", "42", "25")
# lock_not_available, query_canceled; 40 is a transaction that has to be repeated.
_PASSING = ("55P03", "57014")


def _trouble(cause: BaseException) -> Trouble:
    """How far a failure reaches on a connection that is still there."""
    state = getattr(cause, "sqlstate", None)
    if state is None:
        # A constraint, a trigger or a value: all that SQLite says of a single row.
        of_a_key = isinstance(cause, sqlite3.IntegrityError | sqlite3.DataError)
        return Trouble.KEY if of_a_key else Trouble.DATABASE
    if state in _PASSING or state.startswith("40"):
        return Trouble.LOCK
    return Trouble.DATABASE if state.startswith(_OF_THE_DATABASE) else Trouble.KEY


def without_frames(error: BaseException) -> BaseException:
    """An exception of others without its frames, whose variables may hold a password."""
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)


def _other_release(version: str) -> str:
    if version.isdecimal() and int(version) > SCHEMA_VERSION:
        return f"was written by a newer release (schema {version}): update ihuyi-voice"
    return (
        f"was written by an older release (schema {version or 'unknown'}), and this one cannot"
        " read it: go on with that release, or begin a new ledger"
    )


_WORDS = {
    "not a database": "it is not an SQLite database",
    "locked": "another process keeps it locked",
    "readonly": "it is read-only",
    "disk is full": "the disk is full",
    "unable to open": "it cannot be opened or created",
}


def _words(cause: BaseException) -> str:
    """What happened, on one line."""
    said = " ".join(str(cause).split())
    if isinstance(cause, sqlite3.Error):
        for part, words in _WORDS.items():
            if part in said:
                return words
    return f"{said} ({type(cause).__name__})"
