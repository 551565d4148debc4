"""The ledger: at most one call per idempotency key, across crashes and processes.

A key is claimed durably before its request may be written and settled after.
A claim without settlement is unknown, and is never sent again by itself: a
person looks at the account's web page and resolves it.

The database decides who sends, never a lock in memory. How claims become
transactions is `ledger_writer.py`'s business, and the SQL `ledger_store.py`'s,
which is imported when a ledger is opened, because SQLAlchemy is an extra.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import time
import weakref
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, TypeVar

from .._threads import call_blocking
from ..errors import InvalidRequestError, LedgerError
from ..models import Secret
from .entry import (
    DELIVERY_SECONDS,
    REPEATABLE,
    Attempt,
    Claim,
    Entry,
    EntryState,
    Fingerprint,
    Fingerprints,
    Settlement,
    UnknownClaim,
    check_key,
)
from .sql.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from ..models import Unrecorded
    from .sql.store import Connection, Store

T = TypeVar("T")

__all__ = [
    "Claim",
    "Entry",
    "EntryState",
    "Fingerprint",
    "Fingerprints",
    "Ledger",
    "UnknownClaim",
    "check_key",
]

# Seconds between two looks for another's settlement: first, and at most.
_LOOK_FIRST, _LOOK_MOST = 0.02, 0.1
# Seconds to wait for the last transaction: when it is closed, and at the end of the program.
_CLOSE_PATIENCE, _LAST_PATIENCE = 30.0, 10.0
# Seconds that a blocking call waits for another one's turn to end.
_TURN_PATIENCE = 30.0

_NOTHING_SENT = "nothing was sent, no phone rang"
_BY_HAND = {
    EntryState.ACCEPTED: "recorded by hand: placed",
    EntryState.NOT_SENT: "recorded by hand: not placed",
}


class Ledger:
    """What became of every idempotency key, in an SQLite file or a PostgreSQL database.

    Made by `Ledger.open`. It may be shared by several clients, threads and
    event loops; a forked child goes on with a connection of its own. SQLite
    is for the processes of one machine and needs a local disk; PostgreSQL is
    for several machines, whose clocks should agree to about a second.

    Attributes:
        require_key: whether a client refuses a request without a key.
        patience: how many seconds a claim waits for another's settlement.
        clock: wall-clock seconds.
        is_new: whether it was created when it was opened: then it knows of no
            earlier call, which a mistyped name would be told by.
    """

    def __init__(
        self, store: Store, *, require_key: bool, patience: float, clock: Callable[[], float]
    ) -> None:
        self.require_key: bool = require_key
        self.patience: float = patience
        self._store = store
        self.clock: Callable[[], float] = _stated(clock)
        self.is_new: bool = store.is_new
        self._writer = Writer(
            store.connect,
            self.clock,
            settle_apart=store.path is None,
            survives_fork=store.path is None,
        )
        self._finalizer = weakref.finalize(
            self, self._writer.stop, _LAST_PATIENCE, greenlets_run=False
        )

    @classmethod
    def open(
        cls,
        where: str | os.PathLike[str],
        *,
        create: bool = True,
        require_key: bool = True,
        patience: float = 2.0,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Open a ledger, and create it where there is none.

        No error shows a password that `where` contains, nor do the variables
        in its traceback.

        Args:
            where: a path of an SQLite file, or `sqlite:///path`, or
                `postgresql+psycopg://user@host/database`, whose password
                psycopg also finds in PGPASSWORD or ~/.pgpass. All its tables'
                names begin with `ihuyi_voice_`.
            create: False to open only what is there, as whoever looks into a
                ledger should: a mistyped name is no new one.
            require_key: whether a client refuses a request without a key.
            patience: how many seconds a claim waits for the settlement of
                another that is on its way under the same key; 0 not to wait.
            clock: wall-clock seconds.

        Raises:
            LedgerError: it cannot be used; the text says why.
            LookupError: there is none, and `create` is False.
            ModuleNotFoundError: the extra `ledger` or `postgresql` is not
                installed.
            TypeError: `where` is no path and no str, or `patience` no number.
            ValueError: `where` names no such database, or `patience` is no
                number of seconds.
        """
        # From here on no frame holds the password that it may contain.
        hidden, kind = _hidden(where), type(where).__name__
        del where
        if hidden is None:
            msg = f"a ledger is named by a str or a path, not by {kind}"
            raise TypeError(msg)
        if isinstance(patience, bool) or not isinstance(patience, int | float):
            msg = f"patience is in seconds, an int or a float, not {type(patience).__name__}"
            raise TypeError(msg)
        if not 0 <= patience < math.inf:
            msg = f"patience must be a finite number of seconds, 0 or more, not {patience!r}"
            raise ValueError(msg)
        try:
            from .sql.store import Store  # noqa: PLC0415 - it needs an extra
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "sqlalchemy":
                raise
            msg = "a ledger needs SQLAlchemy: pip install 'ihuyi-voice[ledger]'"
            raise ModuleNotFoundError(msg, name=error.name) from error
        store = Store(hidden)
        store.open(create=create)
        return cls(store, require_key=require_key, patience=patience, clock=clock)

    def close(self) -> None:
        """Record what is on its way to the database and close the connection; twice, no harm.

        What failed to be recorded is tried again for some seconds; after that
        it stays unknown. Close the clients first: what they send after this
        cannot be settled.
        """
        self._finalizer.detach()
        self._writer.stop(_CLOSE_PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._writer.closed else "open"
        return f"<{type(self).__name__} {self._store.place} {state}>"

    # --- for a person ----------------------------------------------------------

    def unknown(self) -> list[UnknownClaim]:
        """The claims without settlement, the oldest first: their phones may have rung.

        A request that is on its way just now is among them.

        Raises:
            LedgerError: the database failed.
            RuntimeError: the ledger is closed.
        """
        now = self.clock()
        entries = self._aside(lambda connection: connection.unsettled(), writing=False)
        return [
            UnknownClaim(
                entry.key,
                entry.mobile,
                datetime.fromtimestamp(entry.claimed_at, timezone.utc),
                now - entry.claimed_at,
                entry.msg,
                max(0.0, entry.resolvable_at - now),
            )
            for entry in entries
        ]

    def resolve(self, key: str, *, placed: bool) -> None:
        """Record what the account's web page showed of an unknown claim.

        For a minute after the outcome became unknown this is refused, because
        the network may still deliver the request: what the page shows is not
        final, and a key that is placed again could ring its phone twice. Only
        where the connection is known to have been reset there is no wait.

        Args:
            key: the idempotency key.
            placed: True when the call was placed: the key counts as accepted,
                without a voice id. False when it was not: the key may be
                claimed again, and its phone be rung.

        Raises:
            LookupError: there is no such key.
            ValueError: it is settled already, or its request may still be
                delivered; the text says for how long.
            LedgerError: the database failed.
            RuntimeError: the ledger is closed.
        """
        state = EntryState.ACCEPTED if placed else EntryState.NOT_SENT
        now = self.clock()
        entry = self._aside(lambda connection: connection.resolve(key, state, _BY_HAND[state], now))
        if entry is None:
            msg = f"the ledger has no key {key!r}"
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
        """How many keys are accepted, refused, not_sent and unknown; always these four.

        Raises:
            LedgerError: the database failed.
            RuntimeError: the ledger is closed.
        """
        counts = self._aside(lambda connection: connection.counts(), writing=False)
        return {
            "accepted": counts.get(EntryState.ACCEPTED, 0),
            "refused": counts.get(EntryState.REFUSED, 0),
            "not_sent": counts.get(EntryState.NOT_SENT, 0),
            "unknown": counts.get(EntryState.UNKNOWN, 0) + counts.get(EntryState.CLAIMED, 0),
        }

    def purge(self, older_than: timedelta) -> int:
        """Delete the settled keys that last changed longer ago, and say how many.

        A key that was purged is forgotten: the same key again is sent again.
        A claim without settlement is never deleted.

        Raises:
            ValueError: `older_than` is negative.
            LedgerError: the database failed.
            RuntimeError: the ledger is closed.
        """
        if older_than < timedelta(0):
            msg = f"older_than must not be negative, and it is {older_than}"
            raise ValueError(msg)
        before = self.clock() - older_than.total_seconds()
        return self._aside(lambda connection: connection.purge(before))

    @property
    def id(self) -> str:
        """What tells this ledger from every other: 16 hex digits, drawn when it was created."""
        return self._store.ledger_id or ""

    def known(self, keys: Sequence[str]) -> dict[str, EntryState]:
        """What is known of these keys, at most some thousands; those never claimed are left out.

        Raises:
            LedgerError: the database failed.
            RuntimeError: the ledger is closed.
        """
        _, found, _ = self._aside(lambda connection: connection.apply((), keys, ()), writing=False)
        return {key: entry.state for key, entry in found.items()}

    def hashed_with_another_key(self, hashed_with: str) -> bool:
        """Whether a row was placed, or may have been, whose key another API key derived.

        The same file would get other keys now, and every phone ring again.

        Args:
            hashed_with: `Fingerprints.hashed_with` of the API key in use.

        Raises:
            LedgerError: the database failed.
            RuntimeError: the ledger is closed.
        """
        return self._aside(
            lambda connection: connection.has_rows_hashed_otherwise(hashed_with), writing=False
        )

    def _aside(self, act: Callable[[Connection], T], *, writing: bool = True) -> T:
        """One blocking call, with a connection of its own."""
        return call_blocking(lambda: self._in_turn(act, writing=writing))

    def _in_turn(self, act: Callable[[Connection], T], *, writing: bool) -> T:
        # One at a time, so that a fork has one lock to wait for.
        turn = self._writer.at_work_aside
        if not turn.acquire(timeout=_TURN_PATIENCE):
            msg = f"another call has used it for more than {_TURN_PATIENCE:g} s"
            raise LedgerError(msg)
        try:
            self._writer.check_usable()
            with self._store.connect(writing=writing) as connection:
                return act(connection)
        finally:
            turn.release()

    # --- for the clients -------------------------------------------------------

    async def claim(
        self,
        key: str,
        fingerprint: Fingerprint,
        mobile: str,
        deadline: float,
        live_seconds: float,
    ) -> Claim:
        """Claim a key, durably, for one request.

        Where another's claim is on its way, its settlement is waited for, for
        `patience` seconds at most and not beyond the deadline or the time that
        it may be on its way. What is given up, or cancelled, is taken back.

        Args:
            key: the idempotency key, checked.
            fingerprint: of number and content.
            mobile: the number, masked.
            deadline: until when to wait, in monotonic seconds.
            live_seconds: for how long from now the request may be on its way.

        Returns:
            The claim's token, then and only then may the request be sent; or
            the entry that stands in the way, accepted or unsettled.

        Raises:
            InvalidRequestError: the key stands for another number or content.
            LedgerError: the database failed, or the deadline passed first.
            RuntimeError: the ledger is closed.
        """
        began = time.monotonic()
        pause = _LOOK_FIRST
        try:
            token, entry = await self._attempt(key, fingerprint, mobile, deadline, live_seconds)
            while entry is not None and entry.state is EntryState.CLAIMED:
                now = time.monotonic()
                alive = entry.live_until - self.clock()
                if now + pause > min(began + self.patience, deadline, now + alive):
                    break
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, _LOOK_MOST)
                entry = await self._writer.find(key, deadline)
                if entry is None or entry.state in REPEATABLE:
                    token, entry = await self._attempt(
                        key, fingerprint, mobile, deadline, live_seconds
                    )
        except LedgerError as error:
            msg = f"{error.reason}; {_NOTHING_SENT}"
            raise LedgerError(msg) from error.__cause__
        if entry is None:
            return Claim(token, None)
        _check_stands_for(entry, fingerprint, mobile)
        return Claim("", entry)

    async def _attempt(
        self,
        key: str,
        fingerprint: Fingerprint,
        mobile: str,
        deadline: float,
        live_seconds: float,
    ) -> tuple[str, Entry | None]:
        now = self.clock()
        token = secrets.token_hex(16)
        attempt = Attempt(key, *fingerprint, mobile, token, now, now + live_seconds)
        return token, await self._writer.claim(attempt, deadline)

    async def settle(  # noqa: PLR0913 - what the gateway said, each with a default
        self,
        key: str,
        token: str,
        state: EntryState,
        *,
        code: int | None = None,
        msg: str = "",
        voice_id: str | None = None,
        reset: bool = False,
        unrecorded: Unrecorded | None = None,
    ) -> None:
        """Record, durably, the outcome of a claimed request.

        It is recorded also when the caller is cancelled. What fails to be
        recorded is tried again until the program ends, without the caller. What
        a person recorded meanwhile gives way to what is known better, and never
        to less: a call that they saw placed stays placed.

        Args:
            key: the idempotency key.
            token: of the claim.
            state: the outcome. UNKNOWN, with the reason as `msg`, remains for
                a person to resolve, and no claim waits for it any more.
            code: the gateway's code.
            msg: the gateway's words.
            voice_id: the gateway's id of the call.
            reset: the request's connection was reset, so that the network
                cannot deliver it any more.
            unrecorded: counts the outcome from the moment when this call ends
                without a record until there is one.

        Raises:
            LedgerError: it is not recorded yet; the text says why, and whether
                it is tried again.
            RuntimeError: the ledger is closed.
        """
        if code is not None and not -(2**63) <= code < 2**63:
            # No database has room for it, and one that fails takes others with it.
            code = None
        # A clock that fails is no reason to lose the outcome.
        now = self._writer.now()
        live_until = now
        if state is EntryState.UNKNOWN and not reset:
            live_until += DELIVERY_SECONDS
        settlement = Settlement(key, token, state, code, _storable(msg), voice_id, now, live_until)
        if not await self._writer.settle(settlement, unrecorded):
            msg = (
                f"{self._store.place}: somebody else has settled or claimed {key!r} meanwhile, and"
                " that stands"
            )
            raise LedgerError(msg)

    async def find(
        self, key: str, fingerprint: Fingerprint, mobile: str, deadline: float
    ) -> Entry | None:
        """What the ledger holds under a key, without claiming it.

        Args:
            key: the idempotency key, checked.
            fingerprint: of number and content.
            mobile: the number, masked.
            deadline: until when to wait, in monotonic seconds.

        Raises:
            InvalidRequestError: the key stands for another number or content.
            LedgerError: the database failed, or the deadline passed first.
            RuntimeError: the ledger is closed.
        """
        entry = await self._writer.find(key, deadline)
        if entry is not None:
            _check_stands_for(entry, fingerprint, mobile)
        return entry

    def is_under_way(self, entry: Entry) -> bool:
        """Whether the request of an entry may be on its way just now."""
        return entry.state is EntryState.CLAIMED and entry.live_until > self.clock()


def _stated(clock: Callable[[], float]) -> Callable[[], float]:
    """The caller's clock, whose failure is one of the ledger."""

    def now() -> float:
        try:
            moment = float(clock())
        except Exception as error:
            msg = f"its clock failed ({type(error).__name__})"
            raise LedgerError(msg) from error
        if not math.isfinite(moment):
            msg = f"its clock failed (it says {moment})"
            raise LedgerError(msg)
        return moment

    return now


def _hidden(where: object) -> Secret | None:
    path = os.fspath(where) if isinstance(where, str | os.PathLike) else None
    return Secret(path) if isinstance(path, str) else None


def _check_stands_for(entry: Entry, fingerprint: Fingerprint, mobile: str) -> None:
    if not entry.stands_for(fingerprint, mobile):
        msg = (
            f"idempotency_key {entry.key!r} stands for another number or content in the ledger, or"
            " was used with another API key, with which they cannot be compared; nothing was sent"
        )
        raise InvalidRequestError(msg)


def _storable(text: str) -> str:
    """A gateway may say anything; PostgreSQL takes neither NUL nor half a surrogate pair."""
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\0")
