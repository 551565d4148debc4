"""The steps of a verification: start, resend, check. Both verifiers run them.

The order in `start`: the record is durable before the call, so that a code that
is heard can always be checked; the call's outcome is recorded after it. Where
the outcome is unknown the phone may be ringing, so the record stays and its
code is accepted.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from .._advice import RESEND_NOT_SENT, START_NOT_SENT, advised
from .._pipeline import status_of
from ..errors import (
    IhuyiVoiceError,
    InvalidRequestError,
    OutcomeStatus,
    OutcomeUnknownError,
    QuotaExceededError,
    StoreError,
)
from ..models import VerificationStatus
from ..store.verifications import Found, NewRecord, Refusal
from .codes import new_id, same
from .values import CheckResult, EventName, Verification, VerificationEvent, verification_of

if TYPE_CHECKING:
    from ..client import AsyncVoiceClient
    from ..models import Secret
    from ..store.verifications import Record, VerificationStore
    from .codes import Person, SigningKey

# Seconds until the store counts as failed.
_STORE_SECONDS = 5.0
# Nothing was sent: the cooldown is given back.
_NOTHING_SENT = (OutcomeStatus.INVALID, OutcomeStatus.LIMITED, OutcomeStatus.NOT_SENT)

# The same for every reason: it must not say whether an id exists.
_NO_RESEND = (
    "this verification cannot be called again: it has ended, or does not exist for this number and"
    " purpose; nothing was sent, no phone rang. Start a new one"
)


class Flow:
    """The settings of a verifier, and what it does with them.

    Args:
        keys: of the application; the first signs.
        store: where verifications are kept.
        ttl: seconds for which a code is accepted.
        attempts: guesses for one verification.
        cooldown: seconds between two calls to a number and purpose.
        length: digits of a new code.
    """

    def __init__(  # noqa: PLR0913 - the settings of a verifier
        self,
        keys: tuple[SigningKey, ...],
        store: VerificationStore,
        *,
        ttl: float,
        attempts: int,
        cooldown: float,
        length: int,
    ) -> None:
        self._keys = keys
        self._store = store
        self._ttl = ttl
        self._attempts = attempts
        self._cooldown = cooldown
        self._length = length

    async def start(
        self,
        client: AsyncVoiceClient,
        person: Person,
        id_: str | None,
        events: list[VerificationEvent],
        *,
        is_decoy: bool,
    ) -> Verification:
        """See `AsyncVerifier.start`."""
        client._opened()  # noqa: SLF001 - ours: a closed client creates no record
        key, id_ = self._keys[0], id_ or new_id()
        new = NewRecord(
            id=id_,
            purpose=person.purpose,
            binding=key.binding(id_, person),
            subject=key.subject(person),
            hashed_with=key.name,
            mobile=person.masked_mobile,
            length=self._length,
            ttl=self._ttl,
            attempts=self._attempts,
            cooldown=self._cooldown,
            is_decoy=is_decoy,
            token=secrets.token_hex(8),
        )
        created = await self._store.create(new, _soon())
        if created.found is None:
            raise QuotaExceededError(person.masked_mobile, created.wait)
        if created.is_new:
            events.append(_event(EventName.STARTED, id_, person))
        elif not self._may_call_again(client, person, created.found):
            return verification_of(created.found)
        return await self._place(client, person, created.found, events, EventName.CALLED)

    def _may_call_again(self, client: AsyncVoiceClient, person: Person, found: Found) -> bool:
        """Whether a start that was delivered again may place the call, which may be missing.

        Only an idempotency key makes sure that it does not ring twice.
        """
        record = found.record
        if self._bindings(record.id, person).get(record.hashed_with) != record.binding:
            msg = "this id belongs to another number or purpose; nothing was sent, no phone rang"
            raise InvalidRequestError(msg)
        is_pending = record.status_at(found.now) is VerificationStatus.PENDING
        return is_pending and not record.call and record.sends == 1 and client._keeps_keys  # noqa: SLF001 - ours

    async def resend(
        self,
        client: AsyncVoiceClient,
        person: Person,
        id_: str | None,
        events: list[VerificationEvent],
    ) -> Verification:
        """See `AsyncVerifier.resend`."""
        client._opened()  # noqa: SLF001 - ours: a closed client counts no call
        id_ = id_ or new_id()
        found = await self._store.note_send(
            id_, self._bindings(id_, person), self._cooldown, secrets.token_hex(8), _soon()
        )
        if isinstance(found, float):
            raise QuotaExceededError(person.masked_mobile, found)
        if isinstance(found, Refusal):
            raise InvalidRequestError(_NO_RESEND)
        return await self._place(client, person, found, events, EventName.RESENT)

    async def _place(
        self,
        client: AsyncVoiceClient,
        person: Person,
        found: Found,
        events: list[VerificationEvent],
        name: EventName,
    ) -> Verification:
        """Place the call of a send that is recorded, and record its outcome."""
        record = found.record
        call, error = await self._submit(client, person, record)
        if error is not None:
            is_start = name is EventName.CALLED
            error = advised(error, not_sent=START_NOT_SENT if is_start else RESEND_NOT_SENT)
        noted = await self._note(client, record, call, found)
        events.append(_event(name, record.id, person, call=call))
        if error is None:
            return verification_of(noted)
        if name is EventName.CALLED:
            await self._give_up(client, record)
            events.append(_event(EventName.CANCELED, record.id, person))
        try:
            raise error
        finally:
            del error

    async def _submit(
        self, client: AsyncVoiceClient, person: Person, record: Record
    ) -> tuple[OutcomeStatus, IhuyiVoiceError | None]:
        """Place one call; the error is one after which no phone rings."""
        if record.is_decoy:
            return OutcomeStatus.ACCEPTED, None
        key = f"verification:{record.id}:{record.sends}" if client._keeps_keys else None  # noqa: SLF001 - ours
        code = self._key(record).code(record.id, person, record.length)
        try:
            await client._submit(person.request(code, key))  # noqa: SLF001 - ours
        except OutcomeUnknownError:
            return OutcomeStatus.UNKNOWN, None
        except IhuyiVoiceError as error:
            return status_of(error), error
        return OutcomeStatus.ACCEPTED, None

    async def _note(
        self, client: AsyncVoiceClient, record: Record, call: OutcomeStatus, found: Found
    ) -> Found:
        """Record how a call ended; where that fails, the verification is valid all the same."""
        try:
            with anyio.CancelScope(shield=True):
                noted = await self._store.note_call(
                    record.id,
                    record.sends,
                    call.value,
                    _soon(),
                    gives_back=call in _NOTHING_SENT,
                )
        except (StoreError, RuntimeError) as error:
            # RuntimeError: the store was closed meanwhile.
            client._log.warn(  # noqa: SLF001 - ours, and a RequestLog's
                "verification %s %s: the store has not recorded its call: %s",
                record.mobile,
                call.value,
                error,
            )
            noted = None
        return noted or Found(_with_call(record, call), found.now)

    async def _give_up(self, client: AsyncVoiceClient, record: Record) -> None:
        """Cancel a verification whose only call certainly never rang."""
        try:
            with anyio.CancelScope(shield=True):
                await self._store.cancel(record.id, _soon())
        except (StoreError, RuntimeError) as error:
            client._log.warn(  # noqa: SLF001 - ours, and a RequestLog's
                "verification %s: no phone rang, and the store has not canceled it; it expires: %s",
                record.mobile,
                error,
            )

    async def check(
        self, person: Person, id_: str | None, typed: Secret, events: list[VerificationEvent]
    ) -> CheckResult:
        """See `AsyncVerifier.check`."""
        shown_id, id_ = id_ or "", id_ or new_id()
        token = secrets.token_hex(8)
        spent = await self._store.spend(id_, self._bindings(id_, person), token, _soon())
        if isinstance(spent, Refusal):
            # As much work as for a known id: OWASP ASVS 5.0 6.3.8.
            same(self._keys[0].code(id_, person, self._length), typed)
            is_news = spent is Refusal.JUST_EXPIRED
            reason = (Refusal.EXPIRED if is_news else spent).value
            events.append(_event(EventName.CHECKED, shown_id, person, reason=reason))
            if is_news:
                events.append(_event(EventName.EXPIRED, shown_id, person))
            return CheckResult(approved=False, reason=reason)
        record = spent.record
        is_right = same(self._key(record).code(id_, person, record.length), typed)
        # No phone read out the code of a decoy: it can only be guessed.
        is_right = is_right and not record.is_decoy
        if is_right and await self._store.approve(id_, token, _soon()):
            events.append(_event(EventName.CHECKED, id_, person))
            events.append(_event(EventName.APPROVED, id_, person))
            return CheckResult(approved=True)
        # A right code that is not approved: another check was faster, or it has just ended.
        reason = "not_pending_any_more" if is_right else "wrong_code"
        events.append(_event(EventName.CHECKED, id_, person, reason=reason))
        if not record.attempts_left and not is_right:
            events.append(_event(EventName.EXHAUSTED, id_, person))
        return CheckResult(approved=False, reason=reason)

    async def cancel(self, id_: str | None, events: list[VerificationEvent]) -> Verification:
        """See `AsyncVerifier.cancel`."""
        before = await self._found(id_)
        after = await self._store.cancel(before.record.id, _soon())
        if after is None:
            raise LookupError(_NO_SUCH_ID)
        was_pending = before.record.status_at(before.now) is VerificationStatus.PENDING
        if was_pending and after.record.status is VerificationStatus.CANCELED:
            record = after.record
            events.append(
                VerificationEvent(EventName.CANCELED, record.id, record.purpose, record.mobile)
            )
        return verification_of(after)

    async def get(self, id_: str | None) -> Verification:
        """See `AsyncVerifier.get`."""
        return verification_of(await self._found(id_))

    async def _found(self, id_: str | None) -> Found:
        found = None if id_ is None else await self._store.find(id_, _soon())
        if found is None:
            raise LookupError(_NO_SUCH_ID)
        return found

    def _bindings(self, id_: str, person: Person) -> dict[str, str]:
        return {key.name: key.binding(id_, person) for key in self._keys}

    def _key(self, record: Record) -> SigningKey:
        """The key that a record was made with; its binding has been compared."""
        return next(key for key in self._keys if key.name == record.hashed_with)


_NO_SUCH_ID = "there is no verification with this id; it may have been deleted after it expired"


def _soon() -> float:
    return time.monotonic() + _STORE_SECONDS


def _with_call(record: Record, call: OutcomeStatus) -> Record:
    return replace(record, call=call.value)


def _event(
    name: EventName,
    id_: str,
    person: Person,
    *,
    call: OutcomeStatus | None = None,
    reason: str = "",
) -> VerificationEvent:
    return VerificationEvent(name, id_, person.purpose, person.masked_mobile, call, reason)
