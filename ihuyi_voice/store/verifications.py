"""What a store keeps of a verification, and each change of it.

The rules are here, once for all stores: each function reads and writes through a
`Transaction`, which memory, SQL and Redis implement. A function runs whole or
not at all, and no other process sees or changes its records meanwhile.

No code, whole number or key of the application is here: `binding` and `subject`
are keyed hashes that the verifier computes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from ..models import VerificationStatus
from .limits import Reservation, Start, Windows, release, reserve

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import timedelta

T = TypeVar("T")

GUESSES: Windows = ((10, 3600.0),)
"""Guesses for one number and purpose, over all its verifications.

So that opening many verifications does not multiply guesses: NIST SP 800-63B-4
3.2.2, OWASP ASVS 5.0 6.6.3.
"""


@dataclass(frozen=True, slots=True)
class Record:
    """One verification as it is stored.

    Attributes:
        id: 32 hex digits, 128 random bits.
        purpose: what it is for.
        binding: keyed hash of id, purpose and number.
        subject: keyed hash of purpose and number.
        hashed_with: names the application's key, 8 hex digits.
        mobile: masked.
        status: EXPIRED only once a guess has found it so; see `status_at`.
        length: digits of the code.
        expires_at: by the store's clock, Unix time in seconds.
        attempts_left: guesses that are left.
        sends: calls that were begun.
        resend_at: from when another call is allowed, Unix time in seconds.
        call: an `OutcomeStatus`, how the last call ended; "" while it is not known.
        is_decoy: whether no call is placed.
        token: names the step that changed it last, so that a repeated step is
            recognised.
    """

    id: str
    purpose: str
    binding: str
    subject: str
    hashed_with: str
    mobile: str
    status: VerificationStatus
    length: int
    expires_at: float
    attempts_left: int
    sends: int
    resend_at: float
    call: str
    is_decoy: bool
    token: str

    def status_at(self, now: float) -> VerificationStatus:
        """The status at a moment: a pending verification expires."""
        if self.status is VerificationStatus.PENDING and now >= self.expires_at:
            return VerificationStatus.EXPIRED
        return self.status


class NewRecord(NamedTuple):
    """A verification to be created; the fields are those of `Record`, and its times in seconds."""

    id: str
    purpose: str
    binding: str
    subject: str
    hashed_with: str
    mobile: str
    length: int
    ttl: float
    attempts: int
    cooldown: float
    is_decoy: bool
    token: str


class Found(NamedTuple):
    """A record, and the store's clock when it was read."""

    record: Record
    now: float


class Refusal(Enum):
    """Why a guess or a call is refused. For logs: a user sees only "not approved"."""

    UNKNOWN_ID = "unknown_id"
    MISMATCH = "mismatch"
    EXPIRED = "expired"
    JUST_EXPIRED = "just_expired"
    APPROVED = "already_approved"
    CANCELED = "canceled"
    NO_ATTEMPTS_LEFT = "no_attempts_left"
    TOO_MANY_GUESSES = "too_many_guesses"


class Created(NamedTuple):
    """What `create` did: `wait` is above 0 where the cooldown forbids it."""

    found: Found | None
    is_new: bool
    wait: float


class Transaction(Protocol):
    """One transaction of a store: whole or not at all, and alone with what it read."""

    def now(self) -> float:
        """The store's clock, Unix time in seconds."""

    def find(self, id: str) -> Record | None:  # noqa: A002 - its name
        """A verification, which no other transaction changes until this one ends."""

    def save(self, record: Record, *, is_new: bool = False) -> None:
        """Write a verification that was found, or a new one."""

    def starts(self, number: str) -> Sequence[Start]:
        """The starts of a keyed hash, see `limits.py`; none other changes them meanwhile."""

    def save_starts(self, number: str, starts: Sequence[Start]) -> None:
        """Write the starts of a keyed hash."""

    def purge(self, before: float) -> int:
        """Delete the verifications that expired before a moment; returns how many."""


class VerificationStore(Protocol):
    """Where verifications are kept; every call is atomic and durable.

    Every method raises `StoreError` where the store failed or did not answer
    by the deadline (monotonic seconds), and RuntimeError once it is closed.
    """

    async def create(self, new: NewRecord, deadline: float) -> Created:
        """Create a verification, and take the cooldown of its number and purpose.

        Where there is one with its id already, that one is returned.
        """

    async def find(self, id: str, deadline: float) -> Found | None:  # noqa: A002 - its name
        """A verification."""

    async def spend(
        self,
        id: str,  # noqa: A002 - its name
        bindings: Mapping[str, str],
        token: str,
        deadline: float,
    ) -> Found | Refusal:
        """Spend one guess before the code is compared; returns the record after that.

        Args:
            id: as the user gave it.
            bindings: by `hashed_with`, what the binding must be.
            token: names this guess.
            deadline: monotonic seconds.
        """

    async def approve(self, id: str, token: str, deadline: float) -> bool:  # noqa: A002 - its name
        """Approve a verification after a right guess; False where another guess did, or it ended.

        Args:
            id: of the verification.
            token: names this guess; the same token again gives the same answer.
            deadline: monotonic seconds.
        """

    async def note_send(
        self,
        id: str,  # noqa: A002 - its name
        bindings: Mapping[str, str],
        cooldown: float,
        token: str,
        deadline: float,
    ) -> Found | Refusal | float:
        """Count one more call before it is placed, and take the cooldown.

        Returns:
            The record with `sends` raised; why there is no call; or the
            seconds until one is allowed.
        """

    async def note_call(
        self,
        id: str,  # noqa: A002 - its name
        send: int,
        call: str,
        deadline: float,
        *,
        gives_back: bool,
    ) -> Found | None:
        """Record how a call ended.

        Where the cooldown does not end, the caller need not wait: the store may
        return before this is durable, and retry it. A record that lacks it is
        valid all the same.

        Args:
            id: of the verification.
            send: its number, as `sends` was.
            call: an `OutcomeStatus`.
            deadline: monotonic seconds.
            gives_back: whether nothing was sent, so that its cooldown ends.

        Returns:
            The record after it; None where it is deleted, or not recorded yet.
        """

    async def cancel(self, id: str, deadline: float) -> Found | None:  # noqa: A002 - its name
        """Cancel a verification that is pending; returns it as it is then."""

    async def guesses(self, subject: str, deadline: float) -> int:
        """How many guesses were spent on a number and purpose within the last hour."""

    async def purge(self, older_than: timedelta, deadline: float) -> int:
        """Delete the verifications that expired so long ago; returns how many."""


class StepRunner(Protocol):
    """A store that runs a function as one transaction."""

    async def run(self, step: Callable[[Transaction], T], deadline: float) -> T:
        """Run `step`, which may run twice where a commit seemed to fail."""

    async def run_later(self, step: Callable[[Transaction], object], deadline: float) -> None:
        """Run `step` soon, before the steps that are run after this call; or at once."""


class Verifications:
    """The `VerificationStore` of every store that can run a function as one transaction."""

    def __init__(self, runner: StepRunner) -> None:
        self._runner = runner

    async def create(self, new: NewRecord, deadline: float) -> Created:
        """See `VerificationStore`."""
        return await self._runner.run(lambda tx: _create(tx, new), deadline)

    async def find(self, id: str, deadline: float) -> Found | None:  # noqa: A002 - its name
        """See `VerificationStore`."""
        return await self._runner.run(lambda tx: _find(tx, id), deadline)

    async def spend(
        self,
        id: str,  # noqa: A002 - its name
        bindings: Mapping[str, str],
        token: str,
        deadline: float,
    ) -> Found | Refusal:
        """See `VerificationStore`."""
        return await self._runner.run(lambda tx: _spend(tx, id, bindings, token), deadline)

    async def approve(self, id: str, token: str, deadline: float) -> bool:  # noqa: A002 - its name
        """See `VerificationStore`."""
        return await self._runner.run(lambda tx: _approve(tx, id, token), deadline)

    async def note_send(
        self,
        id: str,  # noqa: A002 - its name
        bindings: Mapping[str, str],
        cooldown: float,
        token: str,
        deadline: float,
    ) -> Found | Refusal | float:
        """See `VerificationStore`."""
        return await self._runner.run(
            lambda tx: _note_send(tx, id, bindings, cooldown, token), deadline
        )

    async def note_call(
        self,
        id: str,  # noqa: A002 - its name
        send: int,
        call: str,
        deadline: float,
        *,
        gives_back: bool,
    ) -> Found | None:
        """See `VerificationStore`."""

        def step(tx: Transaction) -> Found | None:
            return _note_call(tx, id, send, call, gives_back=gives_back)

        if gives_back:
            return await self._runner.run(step, deadline)
        await self._runner.run_later(step, deadline)
        return None

    async def cancel(self, id: str, deadline: float) -> Found | None:  # noqa: A002 - its name
        """See `VerificationStore`."""
        return await self._runner.run(lambda tx: _cancel(tx, id), deadline)

    async def guesses(self, subject: str, deadline: float) -> int:
        """See `VerificationStore`."""
        return await self._runner.run(lambda tx: _guesses(tx, subject), deadline)

    async def purge(self, older_than: timedelta, deadline: float) -> int:
        """See `VerificationStore`."""
        seconds = older_than.total_seconds()
        return await self._runner.run(lambda tx: tx.purge(tx.now() - seconds), deadline)


# --- the steps ------------------------------------------------------------------


def _create(tx: Transaction, new: NewRecord) -> Created:
    # Locks the number and purpose, so that a second `create` with this id sees the first.
    tx.starts(new.subject)
    earlier, now = tx.find(new.id), tx.now()
    if earlier is not None:
        return Created(Found(earlier, now), earlier.token == new.token, 0.0)
    wait = _take_cooldown(tx, new.subject, _send_token(new.id, 1), new.cooldown, now)
    if wait > 0.0:
        return Created(None, is_new=False, wait=wait)
    record = Record(
        id=new.id,
        purpose=new.purpose,
        binding=new.binding,
        subject=new.subject,
        hashed_with=new.hashed_with,
        mobile=new.mobile,
        status=VerificationStatus.PENDING,
        length=new.length,
        expires_at=now + new.ttl,
        attempts_left=new.attempts,
        sends=1,
        resend_at=now + new.cooldown,
        call="",
        is_decoy=new.is_decoy,
        token=new.token,
    )
    tx.save(record, is_new=True)
    return Created(Found(record, now), is_new=True, wait=0.0)


def _find(tx: Transaction, id_: str) -> Found | None:
    record = tx.find(id_)
    return None if record is None else Found(record, tx.now())


def _spend(tx: Transaction, id_: str, bindings: Mapping[str, str], token: str) -> Found | Refusal:
    record, now = tx.find(id_), tx.now()
    refusal = _refusal(record, bindings, now)
    if record is None or refusal not in (None, Refusal.NO_ATTEMPTS_LEFT):
        if record is not None and refusal is Refusal.JUST_EXPIRED:
            tx.save(replace(record, status=VerificationStatus.EXPIRED))
        return refusal or Refusal.UNKNOWN_ID
    guess = Reservation(guesses_of(record.subject), token, GUESSES)
    earlier = tx.starts(guess.number)
    if any(start.token == token for start in earlier):
        # A repeated step, also where other guesses were spent after it.
        return Found(record, now)
    if refusal is not None:
        return refusal
    starts = reserve(earlier, guess, now)
    if isinstance(starts, float):
        return Refusal.TOO_MANY_GUESSES
    tx.save_starts(guess.number, starts)
    left = record.attempts_left - 1
    ended = VerificationStatus.PENDING if left else VerificationStatus.MAX_ATTEMPTS_REACHED
    record = replace(record, attempts_left=left, status=ended, token=token)
    tx.save(record)
    return Found(record, now)


def _approve(tx: Transaction, id_: str, token: str) -> bool:
    record, now = tx.find(id_), tx.now()
    if record is None:
        return False
    if record.status is VerificationStatus.APPROVED:
        # A repeated step: its first commit seemed to fail.
        return record.token == token
    # The guess was spent in time. Others may have spent the last one meanwhile.
    spent = (VerificationStatus.PENDING, VerificationStatus.MAX_ATTEMPTS_REACHED)
    if record.status not in spent or now >= record.expires_at:
        return False
    tx.save(replace(record, status=VerificationStatus.APPROVED, token=token))
    return True


def _note_send(
    tx: Transaction, id_: str, bindings: Mapping[str, str], cooldown: float, token: str
) -> Found | Refusal | float:
    record, now = tx.find(id_), tx.now()
    refusal = _refusal(record, bindings, now)
    if record is None or refusal is not None:
        return refusal or Refusal.UNKNOWN_ID
    if record.token == token:
        # A repeated step.
        return Found(record, now)
    send = record.sends + 1
    wait = _take_cooldown(tx, record.subject, _send_token(id_, send), cooldown, now)
    if wait > 0.0:
        return wait
    record = replace(record, sends=send, resend_at=now + cooldown, token=token)
    tx.save(record)
    return Found(record, now)


def _note_call(
    tx: Transaction, id_: str, send: int, call: str, *, gives_back: bool
) -> Found | None:
    record, now = tx.find(id_), tx.now()
    if record is None:
        return None
    resend_at = record.resend_at
    if gives_back:
        token = _send_token(id_, send)
        tx.save_starts(record.subject, release(tx.starts(record.subject), token))
        resend_at = now if record.sends == send else resend_at
    if record.sends == send:
        record = replace(record, call=call, resend_at=resend_at)
        tx.save(record)
    return Found(record, now)


def _cancel(tx: Transaction, id_: str) -> Found | None:
    record, now = tx.find(id_), tx.now()
    if record is None:
        return None
    if record.status_at(now) is VerificationStatus.PENDING:
        record = replace(record, status=VerificationStatus.CANCELED)
        tx.save(record)
    return Found(record, now)


def _guesses(tx: Transaction, subject: str) -> int:
    ((_, seconds),) = GUESSES
    since = tx.now() - seconds
    return sum(start.at > since for start in tx.starts(guesses_of(subject)))


def _refusal(record: Record | None, bindings: Mapping[str, str], now: float) -> Refusal | None:
    """Why neither a guess nor a call is allowed; None where both are."""
    if record is None:
        return Refusal.UNKNOWN_ID
    if bindings.get(record.hashed_with) != record.binding:
        return Refusal.MISMATCH
    if record.status is VerificationStatus.PENDING:
        return Refusal.JUST_EXPIRED if now >= record.expires_at else None
    return {
        VerificationStatus.APPROVED: Refusal.APPROVED,
        VerificationStatus.CANCELED: Refusal.CANCELED,
        VerificationStatus.EXPIRED: Refusal.EXPIRED,
        VerificationStatus.MAX_ATTEMPTS_REACHED: Refusal.NO_ATTEMPTS_LEFT,
    }[record.status]


def _take_cooldown(tx: Transaction, subject: str, token: str, cooldown: float, now: float) -> float:
    """Let one call to a number and purpose begin; returns the seconds to wait, 0.0 for none."""
    if not cooldown:
        return 0.0
    starts = reserve(tx.starts(subject), Reservation(subject, token, ((1, cooldown),)), now)
    if isinstance(starts, float):
        return starts
    tx.save_starts(subject, starts)
    return 0.0


def _send_token(id_: str, send: int) -> str:
    return f"{id_}:{send}"


def guesses_of(subject: str) -> str:
    """The keyed hash under which the guesses of a number and purpose are counted."""
    return hashlib.blake2b(subject.encode(), digest_size=16, person=b"guesses").hexdigest()
