"""The values of idempotency keys: fingerprints, entries, claims and settlements.

Pure: no clock, no database, and no import of SQLAlchemy, which is an extra.
`sql/connection.py` stores the entries.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from ..errors import InvalidRequestError
from ..models import exact_text

if TYPE_CHECKING:
    from datetime import datetime

    from .answer import StoredAnswer


def row_prefix(job: str) -> str:
    """How the keys begin that `Fingerprints.of_row` derives for the rows of a job.

    It depends on no API key, so that a job is recognised that was run with another one.
    """
    # The name of a file may contain bytes that are no text.
    name = job.encode(errors="surrogateescape")
    return "row:" + hashlib.blake2b(name, digest_size=4, person=b"job").hexdigest()


def check_key(key: object) -> str:
    """Check an idempotency key.

    The store stores the key unchanged. A key that contains a mobile or a
    verification code writes it into the store.

    Raises:
        InvalidRequestError: it is not a str of 1-255 printable characters, or
            begins or ends with a blank.
    """
    text = exact_text(key)
    if text is None:
        msg = f"idempotency_key must be a str, not {type(key).__name__}"
        raise InvalidRequestError(msg)
    key = text
    if not 1 <= len(key) <= 255:
        msg = f"idempotency_key must have 1-255 characters, not {len(key)}"
        raise InvalidRequestError(msg)
    if key != key.strip():
        msg = "idempotency_key begins or ends with a blank, which is easily lost: strip it"
        raise InvalidRequestError(msg)
    if not key.isprintable():
        msg = "idempotency_key has a character that cannot be printed"
        raise InvalidRequestError(msg)
    return key


class Fingerprint(NamedTuple):
    """A keyed hash of mobile and content: it can be compared, and not be read.

    Attributes:
        digest: the hash, 32 hex digits.
        hashed_with: identifies the API key that keyed the hash, 8 hex digits.
    """

    digest: str
    hashed_with: str


class Fingerprints:
    """Computes fingerprints.

    They are keyed, so that a reader of the file cannot find a short
    verification code by trying all of them.

    Args:
        api_key: the account's APIKEY; it is hashed at once and not stored.
    """

    __slots__ = ("_of", "_of_number", "_of_row", "hashed_with")

    def __init__(self, api_key: str) -> None:
        master = hashlib.blake2b(api_key.encode(), person=b"ihuyi-voice").digest()
        self._of = hashlib.blake2b(key=master, digest_size=16, person=b"request")
        self._of_row = hashlib.blake2b(key=master, digest_size=12, person=b"row")
        self._of_number = hashlib.blake2b(key=master, digest_size=16, person=b"number")
        self.hashed_with: str = hashlib.blake2b(
            key=master, digest_size=4, person=b"account"
        ).hexdigest()

    def __repr__(self) -> str:
        return f"Fingerprints(hashed_with={self.hashed_with!r})"

    def of(self, mobile: str, content: str) -> Fingerprint:
        """The fingerprint of one request; `mobile` has all its 11 digits."""
        hashed = self._of.copy()
        hashed.update(f"{mobile}\0{content}".encode())
        return Fingerprint(hashed.hexdigest(), self.hashed_with)

    def of_number(self, mobile: str) -> str:
        """The hash of a number, 32 hex digits; `mobile` has all its 11 digits."""
        hashed = self._of_number.copy()
        hashed.update(mobile.encode())
        return hashed.hexdigest()

    def of_row(self, job: str, mobile: str, content: str, occurrence: int) -> str:
        """Derive the key of a file's row that has no key.

        Args:
            job: the name of the job: the same row is another call in another job.
            mobile: all 11 digits.
            content: the verification code.
            occurrence: how many earlier rows have the same mobile and content.
                Equal rows get different keys, and each is one call.

        Returns:
            `row:` and 32 hex digits, the first 8 from the job alone: the same
            each time the file is read, in any order of its rows.
        """
        hashed = self._of_row.copy()
        # Number and content have no NUL, so the name of the job may.
        hashed.update(f"{mobile}\0{content}\0{occurrence}\0".encode())
        hashed.update(job.encode(errors="surrogateescape"))
        return row_prefix(job) + hashed.hexdigest()


class EntryState(Enum):
    """What is known about the request of a key."""

    CLAIMED = "claimed"
    """A process may be sending it, or crashed meanwhile: unknown until it is settled."""
    UNKNOWN = "unknown"
    """It was sent, and its outcome could not be learnt."""
    ACCEPTED = "accepted"
    """The gateway accepted it, or a person recorded that."""
    REFUSED = "refused"
    """The gateway refused it: it may be claimed again."""
    NOT_SENT = "not_sent"
    """Nothing was written, or a person recorded that: it may be claimed again."""


# Seconds for which the network may deliver a request that was given up: the kernel
# retransmits what was written once the connection works again.
DELIVERY_SECONDS = 60.0

UNSETTLED = (EntryState.CLAIMED, EntryState.UNKNOWN)
REPEATABLE = (EntryState.REFUSED, EntryState.NOT_SENT)


@dataclass(frozen=True, slots=True)
class Entry:
    """What the store stores for one key.

    Attributes:
        key: the idempotency key.
        fingerprint: of the mobile and content of the last claim.
        mobile: masked.
        state: what is known about the request.
        answer: what the gateway answered, or why that is not known.
        token: identifies the claim; only its holder settles it.
        claimed_at: time of the last claim, Unix time in seconds.
        live_until: Unix time in seconds. While the state is CLAIMED: until when
            the process may send or settle the request. Once it is UNKNOWN:
            until when the network may still deliver the request.
    """

    key: str
    fingerprint: Fingerprint
    mobile: str
    state: EntryState
    answer: StoredAnswer
    token: str
    claimed_at: float
    live_until: float

    @property
    def unsettled(self) -> bool:
        """Whether the phone may have rung and the outcome is not known."""
        return self.state in UNSETTLED

    @property
    def resolvable_at(self) -> float:
        """From when a person may record the outcome, Unix time in seconds."""
        if self.state is EntryState.CLAIMED:
            # Its process may write the request up to the last moment.
            return self.live_until + DELIVERY_SECONDS
        return self.live_until

    def matches(self, fingerprint: Fingerprint, mobile: str) -> bool:
        """Whether it belongs to a request with the same mobile and content.

        Where another API key made the fingerprint, only the masked mobiles
        can be compared. That is enough to send again a request that did not
        ring. It is not enough to report a call as made, because ten thousand
        mobiles have the same mask.
        """
        if self.fingerprint.hashed_with == fingerprint.hashed_with:
            return self.fingerprint.digest == fingerprint.digest
        return self.mobile == mobile and self.state in REPEATABLE


class FailureScope(Enum):
    """What a failed transaction means for other transactions."""

    DATABASE = "database"
    """They fail too."""
    CONNECTION = "connection"
    """The server closed the connection: they may succeed on a new one."""
    KEY = "key"
    """They may succeed without the key that caused the failure."""
    ROW_LOCK = "row lock"
    """As `KEY`, and temporary: another transaction locks the row of the key."""


class NewClaim(NamedTuple):
    """A claim to be written; the fields are those of `Entry`."""

    key: str
    digest: str
    hashed_with: str
    mobile: str
    token: str
    claimed_at: float
    live_until: float


class Settlement(NamedTuple):
    """The outcome of a claim, to be written; the fields are those of `Entry`.

    `changed_at` is the time of the settlement, Unix time in seconds.
    """

    key: str
    token: str
    state: EntryState
    answer: StoredAnswer
    changed_at: float
    live_until: float


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to a claim: the right to send once, or what blocks it.

    Attributes:
        token: the argument of `settle`, when the claim succeeded; else "".
        entry: accepted or unsettled, when an earlier request blocks it; else None.
        wait: seconds until the number may be called again, when its limit
            blocks it; else 0.
    """

    token: str
    entry: Entry | None
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class UnknownClaim:
    """A claim without settlement: the phone may have rung.

    Attributes:
        key: the idempotency key.
        mobile: masked.
        claimed_at: time of the claim, in UTC.
        age: seconds since the claim.
        reason: why the outcome is unknown; "" where the process never settled it.
        resolvable_in: seconds until `resolve` accepts the key; 0 when it does now.
    """

    key: str
    mobile: str
    claimed_at: datetime
    age: float
    reason: str
    resolvable_in: float = 0.0
