"""The ledger: at most one call per idempotency key, across crashes and processes.

A key is claimed durably before its request is written, and settled afterwards.
A claim without settlement is unknown. No code sends it again: a person looks at
the account's web page and resolves it.

The database decides which process sends; no lock in memory does. `sql/writer.py`
turns claims into transactions, and `sql/connection.py` executes them. `sql/store.py`
is imported when a ledger is opened, because SQLAlchemy is an extra.
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
    Claim,
    Entry,
    EntryState,
    Fingerprint,
    Fingerprints,
    NewClaim,
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
    from .sql.connection import Connection
    from .sql.store import Store

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

# Seconds between two look-ups for another request's settlement.
_FIRST_PAUSE, _MAX_PAUSE = 0.02, 0.1
# Seconds to wait for the last transaction: in `close`, and at the end of the program.
_CLOSE_TIMEOUT, _EXIT_TIMEOUT = 30.0, 10.0
# Seconds that a blocking call waits for another one to end.
_TURN_TIMEOUT = 30.0

_NOTHING_SENT = "nothing was sent, no phone rang"
_BY_HAND = {
    EntryState.ACCEPTED: "recorded by hand: placed",
    EntryState.NOT_SENT: "recorded by hand: not placed",
}


class Ledger:
    """The outcome of every idempotency key, in an SQLite file or a PostgreSQL database.

    Create it with `Ledger.open`. Several clients, threads and event loops may
    share it, and a forked child uses a connection of its own. SQLite is for the
    processes of one machine and needs a local disk. PostgreSQL is for several
    machines, whose clocks should agree to about a second.

    Attributes:
        require_key: whether a client refuses a request without a key.
        patience: how long a claim waits for the settlement of another request
            with the same key, in seconds.
        clock: wall-clock seconds.
        is_new: whether opening it created it. A new ledger knows no earlier
            call; if that is a surprise, its name is mistyped.
    """

    def __init__(
        self, store: Store, *, require_key: bool, patience: float, clock: Callable[[], float]
    ) -> None:
        self.require_key: bool = require_key
        self.patience: float = patience
        self._store = store
        self.clock: Callable[[], float] = _checked(clock)
        self.is_new: bool = store.is_new
        self._writer = Writer(
            store.connect,
            self.clock,
            on_server=store.path is None,
        )
        self._finalizer = weakref.finalize(
            self, self._writer.stop, _EXIT_TIMEOUT, greenlets_run=False
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

        Neither an error nor the variables in its traceback show a password
        that `where` contains.

        Args:
            where: the path of an SQLite file, or `sqlite:///path`, or
                `postgresql+psycopg://user@host/database`. psycopg also reads
                the password from PGPASSWORD or ~/.pgpass. The names of all
                tables begin with `ihuyi_voice_`.
            create: False to open an existing ledger only. Use it for programs
                that only read, so that a mistyped name creates no new ledger.
            require_key: whether a client refuses a request without a key.
            patience: how long a claim waits for the settlement of a running
                request with the same key, in seconds; 0 to not wait.
            clock: wall-clock seconds.

        Raises:
            LedgerError: it cannot be used; the text says why.
            LookupError: there is none, and `create` is False.
            ModuleNotFoundError: the extra `ledger` or `postgresql` is not
                installed.
            TypeError: `where` is not a str or path, or `patience` not a number.
            ValueError: `where` is neither an SQLite file nor a PostgreSQL
                database, or `patience` is negative or not finite.
        """
        # From here on no frame holds the password that `where` may contain.
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
        """Record what is queued and close the connection; calling it twice does no harm.

        Failed settlements are retried for some seconds; after that the keys
        stay unknown. Close the clients first: what they send after this cannot
        be settled.
        """
        self._finalizer.detach()
        self._writer.stop(_CLOSE_TIMEOUT)

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

    # --- for the operator ------------------------------------------------------

    def unknown(self) -> list[UnknownClaim]:
        """The claims without settlement, the oldest first: their phones may have rung.

        Requests that are being sent at the moment are among them.

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
        """Record the outcome of an unknown claim, as the account's web page shows it.

        For a minute after the outcome became unknown this is refused. The
        network may still deliver the request, so the page is not final, and a
        key that is sent again could ring its phone twice. There is no wait
        where the connection is known to have been reset.

        Args:
            key: the idempotency key.
            placed: True when the call was placed: the key counts as accepted,
                without a voice id. False when it was not placed: the key may
                be claimed again, and its phone may ring.

        Raises:
            LookupError: there is no such key.
            ValueError: the key is settled already, or its request may still be
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
        """The numbers of keys that are accepted, refused, not_sent and unknown: always these four.

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
        """Delete the settled keys that have not changed for so long; returns how many.

        A purged key is forgotten: a request with the same key is sent again.
        A claim without settlement is never deleted.

        Raises:
            ValueError: `older_than` is negative.
            LedgerError: the database failed.
            RuntimeError: the ledger is closed.
        """
        if older_than < timedelta(0):
            msg = f"older_than must not be negative, not {older_than}"
            raise ValueError(msg)
        before = self.clock() - older_than.total_seconds()
        return self._aside(lambda connection: connection.purge(before))

    @property
    def id(self) -> str:
        """The random id of this ledger, 16 hex digits, drawn when it was created."""
        return self._store.ledger_id or ""

    def known(self, keys: Sequence[str]) -> dict[str, EntryState]:
        """The states of up to some thousands of keys, without those that were never claimed.

        Raises:
            LedgerError: the database failed.
            RuntimeError: the ledger is closed.
        """
        committed = self._aside(lambda connection: connection.apply((), keys, ()), writing=False)
        return {key: entry.state for key, entry in committed.found.items()}

    def hashed_with_another_key(self, hashed_with: str) -> bool:
        """Whether a row was or may have been placed whose key another API key derived.

        With this API key the same file gets other keys, and every phone would
        ring again.

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
        """Make one blocking call, with a connection of its own."""
        return call_blocking(lambda: self._in_turn(act, writing=writing))

    def _in_turn(self, act: Callable[[Connection], T], *, writing: bool) -> T:
        # One at a time, so that a fork waits for one lock.
        turn = self._writer.at_work_aside
        if not turn.acquire(timeout=_TURN_TIMEOUT):
            msg = f"another call has used it for more than {_TURN_TIMEOUT:g} s"
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
        """Claim a key durably for one request.

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

        Returns:
            The claim's token: only then may the request be sent. Or the entry
            that blocks the claim, accepted or unsettled.

        Raises:
            InvalidRequestError: the key was used for another mobile or content.
            LedgerError: the database failed, or the deadline passed first.
            RuntimeError: the ledger is closed.
        """
        wait_until = min(time.monotonic() + self.patience, deadline)
        pause = _FIRST_PAUSE
        try:
            claim = await self._try_claim(key, fingerprint, mobile, deadline, live_seconds)
            while claim.entry is not None and self._may_settle(claim.entry, pause, wait_until):
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, _MAX_PAUSE)
                entry = await self._writer.find(key, deadline)
                if entry is None or entry.state in REPEATABLE:
                    claim = await self._try_claim(key, fingerprint, mobile, deadline, live_seconds)
                else:
                    claim = Claim("", entry)
        except LedgerError as error:
            msg = f"{error.reason}; {_NOTHING_SENT}"
            raise LedgerError(msg) from error.__cause__
        if claim.entry is not None:
            _check_matches(claim.entry, fingerprint, mobile)
        return claim

    async def _try_claim(
        self,
        key: str,
        fingerprint: Fingerprint,
        mobile: str,
        deadline: float,
        live_seconds: float,
    ) -> Claim:
        now = self.clock()
        token = secrets.token_hex(16)
        new = NewClaim(key, *fingerprint, mobile, token, now, now + live_seconds)
        entry = await self._writer.claim(new, deadline)
        return Claim(token, None) if entry is None else Claim("", entry)

    def _may_settle(self, entry: Entry, pause: float, wait_until: float) -> bool:
        """Whether another request's claim may be settled within a pause that ends in time."""
        if entry.state is not EntryState.CLAIMED:
            return False
        seconds_left = min(wait_until - time.monotonic(), entry.live_until - self.clock())
        return pause <= seconds_left

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
        """Record the outcome of a claimed request durably.

        It is recorded also when the caller is cancelled. A settlement that
        fails is retried until the program ends, without the caller. It replaces
        an outcome that a person recorded meanwhile, except that a call that the
        person saw placed stays accepted.

        Args:
            key: the idempotency key.
            token: the claim's token.
            state: the outcome. UNKNOWN, with the reason as `msg`, is left for
                a person to resolve, and later claims do not wait for it.
            code: the gateway's code.
            msg: the gateway's message.
            voice_id: the gateway's id of the call.
            reset: whether the request's connection was reset, so that the
                network can no longer deliver it.
            unrecorded: counts the outcome while it is not recorded and this
                call has ended.

        Raises:
            LedgerError: it is not recorded yet; the text says why, and whether
                it is retried.
            RuntimeError: the ledger is closed.
        """
        if code is not None and not -(2**63) <= code < 2**63:
            # No database can store it, and the settlement would fail with its whole batch.
            code = None
        # Not `self.clock`: a failing clock must not lose the outcome.
        now = self._writer.now()
        live_until = now
        if state is EntryState.UNKNOWN and not reset:
            live_until += DELIVERY_SECONDS
        settlement = Settlement(key, token, state, code, _storable(msg), voice_id, now, live_until)
        if not await self._writer.settle(settlement, unrecorded):
            msg = (
                f"{self._store.place}: another process or person has settled or claimed {key!r}"
                " meanwhile; that record is kept"
            )
            raise LedgerError(msg)

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
            LedgerError: the database failed, or the deadline passed first.
            RuntimeError: the ledger is closed.
        """
        entry = await self._writer.find(key, deadline)
        if entry is not None:
            _check_matches(entry, fingerprint, mobile)
        return entry

    def is_under_way(self, entry: Entry) -> bool:
        """Whether the request of an entry may be being sent at the moment."""
        return entry.state is EntryState.CLAIMED and entry.live_until > self.clock()


def _checked(clock: Callable[[], float]) -> Callable[[], float]:
    """The caller's clock; its failure becomes a `LedgerError`."""

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


def _check_matches(entry: Entry, fingerprint: Fingerprint, mobile: str) -> None:
    if not entry.matches(fingerprint, mobile):
        msg = (
            f"idempotency_key {entry.key!r} was used for another mobile or content, or with another"
            " API key, so that they cannot be compared; nothing was sent, no phone rang"
        )
        raise InvalidRequestError(msg)


def _storable(text: str) -> str:
    """The gateway's message, without NUL and lone surrogates: PostgreSQL refuses them."""
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\0")
