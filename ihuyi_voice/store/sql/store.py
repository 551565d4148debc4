"""`SqlStore`: limits and idempotency keys in a database.

A key is claimed, and its start reserved, durably before its request is written,
and settled afterwards. A claim without settlement is unknown. No code sends it
again: a person looks at the account's web page and resolves it.

The database decides which process sends; no lock in memory does. `writer/` turns
claims into batches, and `connection.py` executes each as one transaction.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, TypeVar, cast

from ..._threads import call_blocking
from ...errors import InvalidRequestError, StoreError
from ..answer import NO_ANSWER, StoredAnswer
from ..entry import (
    DELIVERY_SECONDS,
    REPEATABLE,
    Claim,
    Entry,
    EntryState,
    Fingerprint,
    NewClaim,
    Settlement,
    UnknownClaim,
    row_prefix,
)
from ..jobs import Jobs
from ..limits import Release, Reservation
from ..queued import NOTHING_SENT, QueuedStore, check_age
from ..store import checked_clock
from ..writer import bounds
from ..writer.operations import Work
from ..writer.writer import Writer
from .database import Database
from .migrations import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    from typing_extensions import Self

    from ...models import Secret, Unrecorded
    from ..limits import Limited
    from ..verifications import Transaction
    from .connection import Connection

T = TypeVar("T")

_BY_HAND = {
    EntryState.ACCEPTED: StoredAnswer(msg="recorded by hand: placed"),
    EntryState.NOT_SENT: StoredAnswer(msg="recorded by hand: not placed"),
}


class SqlStore(QueuedStore):
    """A `Store` in an SQLite file, in PostgreSQL, or in MySQL or MariaDB.

    Attributes:
        patience: how long a claim waits for the settlement of another request
            with the same key, in seconds.
    """

    def __init__(self, database: Database, patience: float) -> None:
        self.patience: float = patience
        self._database = database
        self.is_new: bool = database.is_new
        on_server = database.path is None
        writer = Writer(database.connect, database.clock, place=database.place, on_server=on_server)
        super().__init__(writer)

    @classmethod
    def at(
        cls, url: Secret, *, create: bool, patience: float, clock: Callable[[], float] | None
    ) -> Self:
        """What `Store.open` calls, with arguments that it has checked."""
        database = Database(url, None if clock is None else checked_clock(clock))
        database.open(create=create)
        return cls(database, patience)

    @property
    def place(self) -> str:
        """See `Store`."""
        return self._database.place

    @property
    def claims(self) -> Self:
        """See `Store`."""
        return self

    @property
    def jobs(self) -> Jobs:
        """See `Store`."""
        return Jobs(self)

    def run_aside(self, step: Callable[[Transaction], T], *, writing: bool = True) -> T:
        """See `JobRunner`."""
        return cast("T", self._aside(lambda c: c.run(step, writing=writing), writing=writing))

    @property
    def known_keys(self) -> Self:
        """See `Store`."""
        return self

    @property
    def schema_version(self) -> int:
        """See `Store`: opening it ran the steps that it lacked."""
        return SCHEMA_VERSION

    def clock(self) -> float:
        """The store's clock, Unix time in seconds."""
        return self._database.clock()

    # --- for the operator ------------------------------------------------------

    def unknown(self) -> list[UnknownClaim]:
        """See `Store`."""
        now = self.clock()
        entries = self._aside(lambda connection: connection.unsettled(), writing=False)
        return [
            UnknownClaim(
                entry.key,
                entry.mobile,
                datetime.fromtimestamp(entry.claimed_at, timezone.utc),
                now - entry.claimed_at,
                entry.answer.msg,
                max(0.0, entry.resolvable_at - now),
            )
            for entry in entries
        ]

    def resolve(self, key: str, *, placed: bool) -> None:
        """See `Store`."""
        state = EntryState.ACCEPTED if placed else EntryState.NOT_SENT
        now = self.clock()
        entry = self._aside(lambda connection: connection.resolve(key, state, _BY_HAND[state], now))
        if entry is None:
            msg = f"the store has no key {key!r}"
            raise LookupError(msg)
        if not entry.unsettled:
            msg = f"{key!r} is settled already, as {entry.state.value}"
            raise ValueError(msg)
        if entry.resolvable_at > now:
            msg = (
                f"the request of {key!r} may still be on its way; it may be resolved in"
                f" {math.ceil(entry.resolvable_at - now)} s. Until then the request may still be"
                " delivered by the network and ring the phone"
            )
            raise ValueError(msg)

    def summary(self) -> dict[str, int]:
        """See `Store`."""
        counts = self._aside(lambda connection: connection.counts(), writing=False)
        return {
            "accepted": counts.get(EntryState.ACCEPTED, 0),
            "refused": counts.get(EntryState.REFUSED, 0),
            "not_sent": counts.get(EntryState.NOT_SENT, 0),
            "unknown": counts.get(EntryState.UNKNOWN, 0) + counts.get(EntryState.CLAIMED, 0),
        }

    def purge(self, older_than: timedelta) -> int:
        """See `Store`."""
        check_age(older_than)
        before = self.clock() - older_than.total_seconds()
        return self._aside(lambda connection: connection.purge(before))

    @property
    def id(self) -> str:
        """The random id of this store, 16 hex digits, drawn when it was created."""
        return self._database.store_id or ""

    def known(self, keys: Sequence[str]) -> dict[str, EntryState]:
        """The states of up to some thousands of keys, without those that were never claimed.

        Raises:
            StoreError: the database failed.
            RuntimeError: the store is closed.
        """
        return {key: entry.state for key, entry in self.entries(keys).items()}

    def entries(self, keys: Sequence[str]) -> dict[str, Entry]:
        """See `KnownKeys`."""
        work = Work([], [], list(keys), [], [])
        return self._aside(lambda connection: connection.apply(work), writing=False).found

    def hashed_with_another_key(self, job: str, hashed_with: str) -> bool:
        """See `KnownKeys`."""
        prefix = row_prefix(job)
        return self._aside(
            lambda connection: connection.has_rows_hashed_otherwise(prefix, hashed_with),
            writing=False,
        )

    def _aside(self, act: Callable[[Connection], T], *, writing: bool = True) -> T:
        """Make one blocking call, with a connection of its own."""
        return call_blocking(lambda: self._in_turn(act, writing=writing))

    def _in_turn(self, act: Callable[[Connection], T], *, writing: bool) -> T:
        # One at a time, so that a fork waits for one lock.
        turn = self._writer.at_work_aside
        if not turn.acquire(timeout=bounds.TURN_TIMEOUT):
            msg = f"another call has used it for more than {bounds.TURN_TIMEOUT:g} s"
            raise StoreError(msg)
        try:
            self._writer.check_usable()
            with self._database.connect(writing=writing) as connection:
                return act(connection)
        finally:
            turn.release()

    # --- for the clients -------------------------------------------------------

    async def claim(  # noqa: PLR0913, PLR0917 - a request, its times and its limits
        self,
        key: str,
        fingerprint: Fingerprint,
        mobile: str,
        deadline: float,
        live_seconds: float,
        limited: Limited | None = None,
    ) -> Claim:
        """Claim a key durably for one request, and reserve a start of its number.

        Where another request with the key is being sent, this waits for its
        settlement: for at most `patience` seconds, and not beyond the deadline
        or the other claim's `live_until`. A claim whose caller is cancelled, or
        whose deadline passes, is reverted in the background.

        Args:
            key: the idempotency key, checked.
            fingerprint: of mobile and content.
            mobile: masked.
            deadline: when to fail, in monotonic seconds.
            live_seconds: how long from now the request may be sent or settled.
            limited: the number and its limits; None without limits.

        Returns:
            The claim's token: only then may the request be sent. Or what
            blocks the claim: an entry, accepted or unsettled, or the limit of
            the number.

        Raises:
            InvalidRequestError: the key was used for another mobile or content.
            StoreError: the database failed, or the deadline passed first.
            RuntimeError: the store is closed.
        """

        async def attempt() -> Claim:
            now = self.clock()
            token = secrets.token_hex(16)
            new = NewClaim(key, *fingerprint, mobile, token, now, now + live_seconds)
            reservation = (
                None if limited is None else Reservation(limited.number, token, limited.windows)
            )
            blocked = await self._writer.claim(new, deadline, reservation)
            if isinstance(blocked, float):
                return Claim("", None, blocked)
            return Claim(token, None) if blocked is None else Claim("", blocked)

        wait_until = min(time.monotonic() + self.patience, deadline)
        pause = bounds.FIRST_PAUSE
        try:
            claim = await attempt()
            while claim.entry is not None and self._may_settle(claim.entry, pause, wait_until):
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, bounds.MAX_PAUSE)
                entry = await self._writer.find(key, deadline)
                if entry is None or entry.state in REPEATABLE:
                    claim = await attempt()
                else:
                    claim = Claim("", entry)
        except StoreError as error:
            msg = f"{error.reason}; {NOTHING_SENT}"
            raise StoreError(msg) from error.__cause__
        if claim.entry is not None:
            _check_matches(claim.entry, fingerprint, mobile)
        return claim

    def _may_settle(self, entry: Entry, pause: float, wait_until: float) -> bool:
        """Whether another request's claim may be settled within a pause that ends in time."""
        if entry.state is not EntryState.CLAIMED:
            return False
        seconds_left = min(wait_until - time.monotonic(), entry.live_until - self.clock())
        return pause <= seconds_left

    async def settle(  # noqa: PLR0913 - an outcome, and what depends on it
        self,
        key: str,
        token: str,
        state: EntryState,
        answer: StoredAnswer = NO_ANSWER,
        *,
        reset: bool = False,
        unrecorded: Unrecorded | None = None,
        number: str | None = None,
    ) -> None:
        """Record the outcome of a claimed request durably.

        It is recorded also when the caller is cancelled. A settlement that
        fails is retried until the program ends, without the caller. It replaces
        an outcome that a person recorded meanwhile, except that a call that the
        person saw placed stays accepted.

        Args:
            key: the idempotency key.
            token: the claim's token.
            state: the outcome. UNKNOWN is left for a person to resolve, and
                later claims do not wait for it.
            answer: what a later request with the key gets to know of it.
            reset: whether the request's connection was reset, so that the
                network can no longer deliver it.
            unrecorded: counts the outcome while it is not recorded and this
                call has ended.
            number: of the start that was reserved with the claim; it is given
                back where the outcome is NOT_SENT. None without limits.

        Raises:
            StoreError: it is not recorded yet; the text says why, and whether
                it is retried.
            RuntimeError: the store is closed.
        """
        # Not `self.clock`: a failing clock must not lose the outcome.
        now = self._writer.now()
        live_until = now
        if state is EntryState.UNKNOWN and not reset:
            live_until += DELIVERY_SECONDS
        settlement = Settlement(key, token, state, answer, now, live_until)
        release = None
        if number is not None and state is EntryState.NOT_SENT:
            release = Release(number, token)
        if not await self._writer.settle(settlement, unrecorded, release):
            msg = (
                f"{self.place}: another process or person has settled or claimed {key!r}"
                " meanwhile; that record is kept"
            )
            raise StoreError(msg)

    async def find(
        self, key: str, fingerprint: Fingerprint, mobile: str, deadline: float
    ) -> Entry | None:
        """The entry of a key, without claiming it.

        Args:
            key: the idempotency key, checked.
            fingerprint: of mobile and content.
            mobile: masked.
            deadline: when to fail, in monotonic seconds.

        Raises:
            InvalidRequestError: the key was used for another mobile or content.
            StoreError: the database failed, or the deadline passed first.
            RuntimeError: the store is closed.
        """
        entry = await self._writer.find(key, deadline)
        if entry is not None:
            _check_matches(entry, fingerprint, mobile)
        return entry

    def is_under_way(self, entry: Entry) -> bool:
        """Whether the request of an entry may be being sent at the moment."""
        return entry.state is EntryState.CLAIMED and entry.live_until > self.clock()


def _check_matches(entry: Entry, fingerprint: Fingerprint, mobile: str) -> None:
    if not entry.matches(fingerprint, mobile):
        msg = (
            f"idempotency_key {entry.key!r} was used for another mobile or content, or with another"
            " API key, so that they cannot be compared; nothing was sent, no phone rang"
        )
        raise InvalidRequestError(msg)
