"""The values of the ledger: keys, fingerprints, and what is remembered under a key.

Pure: no clock, no database, and no import of SQLAlchemy, which is an extra.
Where entries are kept is `ledger_store.py`'s business.
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

ROW_PREFIX = "row:"
"""How the keys begin that `Fingerprints.of_row` derives."""


def check_key(key: object) -> str:
    """The idempotency key as it is stored.

    It is stored as it is: a key that contains a number or a code writes them
    into the ledger.

    Raises:
        InvalidRequestError: it is not a str of 1-255 printable characters.
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
    """Number and content, to compare and not to read.

    Attributes:
        digest: a keyed hash of both, 32 hex digits.
        hashed_with: names the API key that it is keyed with, 8 hex digits.
    """

    digest: str
    hashed_with: str


class Fingerprints:
    """Makes fingerprints, keyed so that the short codes in them cannot be guessed from a file.

    Args:
        api_key: the account's APIKEY; it is hashed at once and not kept.
    """

    __slots__ = ("_of", "_of_row", "hashed_with")

    def __init__(self, api_key: str) -> None:
        master = hashlib.blake2b(api_key.encode(), person=b"ihuyi-voice").digest()
        self._of = hashlib.blake2b(key=master, digest_size=16, person=b"request")
        self._of_row = hashlib.blake2b(key=master, digest_size=16, person=b"row")
        self.hashed_with: str = hashlib.blake2b(
            key=master, digest_size=4, person=b"account"
        ).hexdigest()

    def __repr__(self) -> str:
        return f"Fingerprints(hashed_with={self.hashed_with!r})"

    def of(self, mobile: str, content: str) -> Fingerprint:
        """The fingerprint of one request; `mobile` is the full number, 11 digits."""
        hashed = self._of.copy()
        hashed.update(f"{mobile}\0{content}".encode())
        return Fingerprint(hashed.hexdigest(), self.hashed_with)

    def of_row(self, mobile: str, content: str, occurrence: int) -> str:
        """The key of a file's row that has none of its own.

        Args:
            mobile: the full number, 11 digits.
            content: the code.
            occurrence: how many rows before it have the same number and
                content, so that equal rows are as many calls.

        Returns:
            `row:` and 32 hex digits: the same whenever the same file is read,
            whatever the order of its rows.
        """
        hashed = self._of_row.copy()
        hashed.update(f"{mobile}\0{content}\0{occurrence}".encode())
        return ROW_PREFIX + hashed.hexdigest()


class EntryState(Enum):
    """What is known of the request that a key names."""

    CLAIMED = "claimed"
    """Somebody may be sending it, or died over it: unknown, unless they settle it."""
    UNKNOWN = "unknown"
    """It was sent, and what became of it could not be learnt."""
    ACCEPTED = "accepted"
    """The gateway accepted it, or a person recorded so."""
    REFUSED = "refused"
    """The gateway refused it: it may be claimed anew."""
    NOT_SENT = "not_sent"
    """Nothing was written, or a person recorded so: it may be claimed anew."""


# Seconds for which the network may deliver a request that was given up: a kernel
# keeps what was written and sends it again after the wire has healed.
DELIVERY_SECONDS = 60.0

UNSETTLED = (EntryState.CLAIMED, EntryState.UNKNOWN)
REPEATABLE = (EntryState.REFUSED, EntryState.NOT_SENT)


@dataclass(frozen=True, slots=True)
class Entry:
    """What the ledger holds under one key.

    Attributes:
        key: the idempotency key.
        fingerprint: of the number and content it was last claimed for.
        mobile: the number, masked.
        state: what is known of the request.
        code: the gateway's code, None where it gave none.
        msg: the gateway's words, or the reason why it is unknown.
        voice_id: the gateway's id of the call, None where it gave none.
        token: names the claim; only its holder settles it.
        claimed_at: when it was last claimed, Unix time in seconds.
        live_until: Unix time in seconds. While it is claimed: until when its
            process may send it or settle it. Once it is unknown: until when
            the network may still deliver it.
    """

    key: str
    fingerprint: Fingerprint
    mobile: str
    state: EntryState
    code: int | None
    msg: str
    voice_id: str | None
    token: str
    claimed_at: float
    live_until: float

    @property
    def unsettled(self) -> bool:
        """Whether the phone may have rung for it without anybody knowing."""
        return self.state in UNSETTLED

    @property
    def resolvable_at(self) -> float:
        """From when, in Unix time, a person may record what became of it."""
        if self.state is EntryState.CLAIMED:
            # Its process may write it up to the last moment.
            return self.live_until + DELIVERY_SECONDS
        return self.live_until

    def stands_for(self, fingerprint: Fingerprint, mobile: str) -> bool:
        """Whether it is about the same number and content.

        Where another API key made the fingerprint, only the masked numbers
        can be compared: enough to send what rang nobody, and not enough to
        say of one of ten thousand numbers that it was called.
        """
        if self.fingerprint.hashed_with == fingerprint.hashed_with:
            return self.fingerprint.digest == fingerprint.digest
        return self.mobile == mobile and self.state in REPEATABLE


class Trouble(Enum):
    """How far a failure of the database reaches."""

    DATABASE = "database"
    """The whole database: no other transaction can be expected to succeed."""
    HANGUP = "hang-up"
    """The server hung up: a new connection may succeed."""
    KEY = "key"
    """Perhaps one key's row: transactions without it may succeed."""
    LOCK = "lock"
    """As `KEY`, and it passes: another transaction holds the row."""


class Attempt(NamedTuple):
    """A claim to be written, as `Entry` has it."""

    key: str
    digest: str
    hashed_with: str
    mobile: str
    token: str
    claimed_at: float
    live_until: float


class Settlement(NamedTuple):
    """The outcome of a claim, to be written, as `Entry` has it; `changed_at` is now."""

    key: str
    token: str
    state: EntryState
    code: int | None
    msg: str
    voice_id: str | None
    changed_at: float
    live_until: float


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to a claim: the right to send once, or what stands in the way.

    Attributes:
        token: what `settle` takes, when the claim is the caller's; else "".
        entry: accepted or unsettled, when it is not the caller's; else None.
    """

    token: str
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class UnknownClaim:
    """A claim without settlement: the phone may have rung.

    Attributes:
        key: the idempotency key.
        mobile: the number, masked.
        claimed_at: when it was claimed, in UTC.
        age: seconds since then.
        reason: why it is unknown; "" where its process never settled it.
        resolvable_in: seconds until `resolve` accepts it; 0 when it does now.
    """

    key: str
    mobile: str
    claimed_at: datetime
    age: float
    reason: str
    resolvable_in: float = 0.0
