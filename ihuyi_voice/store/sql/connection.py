"""The store's transactions, in any of the databases.

It turns lists of claims and settlements into transactions, and the databases'
exceptions into `StoreError`. `tables.py` and the backends have the statements,
`database.py` opens connections, and `writer/`, which does without SQLAlchemy,
has the thread and the retries.
"""

from __future__ import annotations

import contextlib
import os
from operator import attrgetter
from typing import TYPE_CHECKING

from sqlalchemy import and_, delete, func, or_, select, update
from sqlalchemy.exc import SQLAlchemyError

from ...errors import StoreError
from ..entry import DELIVERY_SECONDS, Entry, EntryState, FailureScope
from ..limits import KEEP_SECONDS, Start, release, reserve
from ..writer import bounds
from ..writer.operations import Committed
from .failures import (
    DATABASE_ERRORS,
    ErrorTypes,
    describe,
    driver_error,
    may_not_create,
    scope_of,
    without_frames,
)
from .file import Identity, identity_of, is_still, lost
from .jobs import SqlJobTransaction
from .migrations import facts_of, migrate, version_of
from .steps import SqlTransaction
from .tables import (
    ENTRY,
    FIND,
    IS_REPEATABLE,
    IS_UNSETTLED,
    NO_OLDER_ANSWER,
    UNDO_CLAIM,
    calls,
    decode,
    encode,
    entry_of,
    overtaken,
    starts,
    verifications,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import sqlalchemy
    from typing_extensions import Self

    from ..answer import StoredAnswer
    from ..entry import NewClaim, Settlement
    from ..limits import Release
    from ..writer.operations import Step, Work
    from .database import Database

_c = calls.c


class Connection:
    """One open connection, used by one thread at a time and never across a fork.

    Every method raises `StoreError`. Then the transaction is rolled back,
    unless `committing` is true, and the connection should be closed.

    Attributes:
        failure_scope: what the last failure means for other transactions.
        committing: whether the last transaction reached its commit. If it
            failed then, it may be committed all the same.
        version: the schema of the store; 0 where there is none.
    """

    def __init__(self, database: Database, *, writing: bool = True) -> None:
        self.failure_scope: FailureScope = FailureScope.DATABASE
        self.committing: bool = False
        self.version: int = 0
        self._row_timeout = 0.0
        self._database = database
        self._backend = database.backend
        self._files: dict[str, Identity] = {}
        # A driver may raise anything, and its frames hold the password.
        with self._translated((Exception,)):
            self._connection = self._backend.engine(writing=writing).connect()
        try:
            self._check_store(writing=writing)
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
        if self._database.path is not None or seconds == self._row_timeout:
            return
        with self._transaction(writing=False) as connection:
            self._backend.wait_for_rows(connection, seconds)
        self._row_timeout = seconds

    def apply(self, work: Work) -> Committed:
        """Do the work in one transaction, in the order of its fields."""
        with self._transaction(writing=not work.only_reads):
            overtaken = self._settle(work.settlements) if work.settlements else set()
            if work.releases:
                self._release(work.releases)
            found = self._find(work.lookups) if work.lookups else {}
            blocking = self._claim(work.claims) if work.claims else {}
            waits = self._reserve(work, blocking) if work.reservations else {}
            results = self._run(work.steps) if work.steps else {}
        return Committed(overtaken, found, blocking, waits, results)

    def run(self, step: Step, *, writing: bool) -> object:
        """Run one step in a transaction of its own; without `writing`, it only reads."""
        with self._transaction(writing=writing):
            return self._run([("", step)])[""]

    def forget_expired(self) -> bool:
        """Delete some hundred rows that have expired; returns whether there may be more."""
        before = self._database.clock()
        old = delete(verifications).where(verifications.c.expires_at < before - KEEP_SECONDS)
        most = bounds.CLEANED_AT_ONCE
        query = select(starts.c.number).where(starts.c.expires_at < before).limit(most)
        with self._transaction() as connection:
            connection.execute(old)
            numbers = list(connection.execute(query).scalars())
            if numbers:
                connection.execute(
                    # Once more, because another transaction may have reserved meanwhile.
                    delete(starts).where(starts.c.number.in_(numbers), starts.c.expires_at < before)
                )
        return len(numbers) == most

    def unsettled(self) -> list[Entry]:
        """The claims without settlement, the oldest first."""
        query = select(*ENTRY).where(IS_UNSETTLED).order_by(_c.claimed_at, _c.key)
        with self._transaction(writing=False) as connection:
            return [entry_of(row) for row in connection.execute(query)]

    def resolve(
        self, key: str, state: EntryState, answer: StoredAnswer, now: float
    ) -> Entry | None:
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
            .values(state=state.value, answer=answer.to_json(), changed_at=now, **NO_OLDER_ANSWER)
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
        """Delete what ended before a Unix time: entries, verifications and jobs; how many."""
        settled = delete(calls).where(~IS_UNSETTLED, _c.changed_at < before)
        expired = delete(verifications).where(verifications.c.expires_at < before)
        with self._transaction() as connection:
            count = SqlJobTransaction(connection).purge_jobs(before)
            for statement in (settled, expired):
                count += connection.execute(statement).rowcount
            return count

    def has_rows_hashed_otherwise(self, prefix: str, hashed_with: str) -> bool:
        """Whether a key that begins so may not be claimed again and is of another API key."""
        query = (
            select(_c.key)
            .where(_c.key.startswith(prefix), ~IS_REPEATABLE, _c.hashed_with != hashed_with)
            .limit(1)
        )
        with self._transaction(writing=False) as connection:
            return connection.execute(query).first() is not None

    def migrate(self) -> bool:
        """Create the tables, or upgrade them; returns whether there was no store before."""
        try:
            with self._transaction() as connection, self._backend.lock_schema(connection):
                return migrate(connection, self._database.place)
        except StoreError as error:
            cause = error.__cause__
            if cause is None or not may_not_create(cause):
                raise
            msg = (
                f"{error.reason}. This user may not create or change tables: run"
                " `ihuyi-voice store URL upgrade` once, as a user who may"
            )
            raise StoreError(msg) from cause

    def _claim(self, claims: Sequence[NewClaim]) -> dict[str, Entry]:
        """Claim the keys that are free; returns the entries that block the other claims."""
        rows = [
            {**claim._asdict(), "changed_at": claim.claimed_at}
            # All machines lock rows in the same order, so that none waits for another in a circle.
            for claim in sorted(claims)
        ]
        if self._backend.claim(self._connection, rows):
            return {}
        existing = self._find([claim.key for claim in claims])
        # One that blocks nothing has our own token: it was claimed now, or by a transaction
        # whose commit seemed to fail.
        return {
            claim.key: existing[claim.key]
            for claim in claims
            if existing[claim.key].token != claim.token
        }

    def _reserve(self, work: Work, blocking: dict[str, Entry]) -> dict[str, float]:
        """Reserve the starts that the limits allow; returns the seconds to wait for the others.

        A claim whose start is not allowed is undone.
        """
        claims = {claim.token: claim for claim in work.claims}
        wanted = [
            reservation
            for reservation in work.reservations
            if reservation.token not in claims or claims[reservation.token].key not in blocking
        ]
        if not wanted:
            return {}
        of_number = self._lock_starts({reservation.number for reservation in wanted})
        now = self._now()
        waits: dict[str, float] = {}
        changed: set[str] = set()
        for reservation in wanted:
            result = reserve(of_number[reservation.number], reservation, now)
            if isinstance(result, float):
                waits[reservation.token] = result
            else:
                of_number[reservation.number] = result
                changed.add(reservation.number)
        self._save_starts({number: of_number[number] for number in changed})
        undone = [
            {"its_key": claims[token].key, "its_token": token} for token in waits if token in claims
        ]
        if undone:
            self._connection.execute(UNDO_CLAIM, undone)
        return waits

    def _run(self, steps: Sequence[tuple[str, Step]]) -> dict[str, object]:
        """Run steps of verifications and jobs; returns their results by name."""
        transaction = SqlTransaction(self._connection, self._backend, self._now)
        return {name: step(transaction) for name, step in steps}

    def _release(self, releases: Sequence[Release]) -> None:
        """Give reservations back; those that are not there any more change nothing."""
        of_number = self._lock_starts({one.number for one in releases})
        for one in releases:
            of_number[one.number] = release(of_number[one.number], one.token)
        self._save_starts(of_number)

    def _lock_starts(self, numbers: set[str]) -> dict[str, tuple[Start, ...]]:
        found = self._backend.lock_starts(self._connection, sorted(numbers))
        return {number: decode(found.get(number, "")) for number in numbers}

    def _save_starts(self, of_number: dict[str, tuple[Start, ...]]) -> None:
        rows = [
            {
                "number": number,
                "starts": encode(some),
                "expires_at": some[-1].at + KEEP_SECONDS if some else 0.0,
            }
            for number, some in sorted(of_number.items())
        ]
        if rows:
            self._backend.save_starts(self._connection, rows)

    def _now(self) -> float:
        """The store's clock, within a transaction."""
        database = self._database
        if database.asks_server and (now := self._backend.now(self._connection)) is not None:
            database.ahead += now - database.clock()
            return now
        return database.clock()

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
                "answer": settlement.answer.to_json(),
                "changed_at": settlement.changed_at,
                "live_until": settlement.live_until,
            }
            for settlement in sorted(settlements, key=attrgetter("key"))
        ]
        if self._backend.settle(self._connection, rows):
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

    def _check_store(self, *, writing: bool) -> None:
        """Refuse a schema that this release cannot read, and another store than the opened one."""
        database = self._database
        # In a transaction that writes, so that a read-only file is detected at once.
        with self._transaction(writing=writing) as connection:
            self._backend.check(connection)
            facts = facts_of(connection)
            self._now()
        self.version = version_of(facts, database.place)
        if database.store_id not in (None, facts.get("id")):
            msg = (
                f"{database.place} was replaced by another store since it was opened; open it again"
            )
            raise StoreError(msg)
        database.remember(facts.get("id"))

    def _remember_files(self) -> None:
        path = self._database.path
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
            raise StoreError(msg)
        if self._database.identity is not None:
            self._files[path] = self._database.identity
        self._check_files()

    def _check_files(self) -> None:
        # SQLite goes on writing into a file that was deleted or renamed.
        for path, identity in self._files.items():
            if not is_still(path, identity):
                raise StoreError(lost(path))

    @contextlib.contextmanager
    def _translated(self, errors: ErrorTypes = DATABASE_ERRORS) -> Iterator[None]:
        """Translate the database's errors into `StoreError`."""
        try:
            yield
        except StoreError:
            raise
        except errors as error:
            cause = driver_error(error)
            self.failure_scope = scope_of(error)
            failure = StoreError(f"{self._database.place}: {describe(cause)}")
            try:
                raise failure from without_frames(cause)
            finally:
                # SQLAlchemy's exception, whose frames hold the password.
                failure.__context__ = None
