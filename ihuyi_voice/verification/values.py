"""What the verifiers return, and the events they report. Never a code, never a whole number."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import TYPE_CHECKING

from ..models import OutcomeStatus, VerificationStatus

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from ..store.verifications import Found

    OnEvent: TypeAlias = "Callable[[VerificationEvent], object]"


@dataclass(frozen=True, slots=True)
class Verification:
    """One verification, as it was when it was read.

    Attributes:
        id: 32 hex digits. Keep it in the user's session; it is no secret by
            itself, but only the user who asked for the call should have it.
        status: where it is in its life.
        purpose: what it is for.
        expires_at: until when the code is accepted, in UTC. A resend does not
            change it.
        resend_after: seconds until another call is allowed; 0.0 when it is now.
        call: how the last call ended. UNKNOWN: the phone may be ringing, and
            the code it reads is accepted. None while that is not known.
    """

    id: str
    status: VerificationStatus
    purpose: str
    expires_at: datetime
    resend_after: float
    call: OutcomeStatus | None


def verification_of(found: Found) -> Verification:
    """The public view of a record."""
    record, now = found
    return Verification(
        id=record.id,
        status=record.status_at(now),
        purpose=record.purpose,
        expires_at=datetime.fromtimestamp(record.expires_at, timezone.utc),
        resend_after=max(0.0, record.resend_at - now),
        call=OutcomeStatus(record.call) if record.call else None,
    )


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The answer to a check.

    Attributes:
        approved: the person holds the number. True for one check only.
        reason: why not, for logs; "" where it is approved. Do not show it: the
            difference between a wrong code and an unknown id helps an attacker
            (OWASP ASVS 5.0 6.3.8).
    """

    approved: bool
    reason: str = ""

    def __bool__(self) -> bool:
        """As `approved`: `if verifier.check(...)` must not let everyone in."""
        return self.approved


class EventName(str, Enum):
    """What happened to a verification."""

    STARTED = "started"
    """It was created."""
    CALLED = "called"
    """Its first call ended; `call` says how."""
    RESENT = "resent"
    """A further call ended; `call` says how."""
    CHECKED = "checked"
    """A code was checked and not approved; `reason` says why."""
    APPROVED = "approved"
    EXPIRED = "expired"
    """A check found that its time is over."""
    EXHAUSTED = "exhausted"
    """The last guess was wrong."""
    CANCELED = "canceled"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class VerificationEvent:
    """Something that happened to a verification; for audit, metrics and alarms.

    The alarm that matters: few approvals for many starts. Then someone may be
    using your service to call other people.

    Attributes:
        name: what happened; an `EventName`, which equals its text.
        id: of the verification; of a check, as the user gave it if it has the
            form of an id, else "".
        purpose: what it is for.
        mobile: masked.
        call: how the call ended, where the event is about one.
        reason: why a check was not approved, "" otherwise.
    """

    name: EventName
    id: str
    purpose: str
    mobile: str
    call: OutcomeStatus | None = None
    reason: str = ""
