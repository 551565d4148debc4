"""The values of the public API and of the transport, and how they are masked.

The values are frozen dataclasses. Their reprs show neither a key nor a verification
code, and only masked numbers. Nothing here sends, signs or waits.
"""

from __future__ import annotations

import base64
import re
import secrets
import sys
from dataclasses import dataclass, field
from datetime import timedelta, timezone
from enum import Enum
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote_plus, unquote, urlsplit

from ._limits import Limits
from .errors import BulkReport, IhuyiVoiceError, InvalidRequestError, OutcomeStatus

if TYPE_CHECKING:
    from collections.abc import Callable

# `BulkReport` and `OutcomeStatus` are defined beside the errors, which hold them.
__all__ = [
    "BEIJING",
    "DEFAULT_BASE_URL",
    "MOBILE_PATTERN",
    "MOBILE_PREFIX",
    "Answer",
    "AnswerFormat",
    "Balance",
    "BulkReport",
    "Outcome",
    "OutcomeStatus",
    "Secret",
    "Settings",
    "SignedBody",
    "SubmitRequest",
    "SubmitResult",
    "Unrecorded",
    "VerificationStatus",
    "charset_of",
    "check_count",
    "exact_text",
    "generate_code",
    "is_content",
    "is_mobile",
    "mask_key",
    "mask_mobile",
]

AnswerFormat = Literal["json", "xml"]

DEFAULT_BASE_URL = "https://api.voice.ihuyi.com"

# [0-9], not \d: in a str pattern \d also matches the digits of other scripts.
MOBILE_PATTERN = r"1[3-9][0-9]{9}"
"""A mainland mobile number as the gateway takes it."""
MOBILE_PREFIX = r"(?:\+86|0086|86)"
"""What people write before it."""
is_mobile: Callable[[str], re.Match[str] | None] = re.compile(MOBILE_PATTERN).fullmatch
"""Whether a text is a number as the gateway takes it."""
is_content: Callable[[str], re.Match[str] | None] = re.compile(r"[0-9]{4,6}").fullmatch
"""Whether a text is a verification code as the gateway takes it."""

BEIJING = timezone(timedelta(hours=8), "UTC+8")
"""The zone of the gateway's times; China has had no summer time since 1991."""


def exact_text(value: object) -> str | None:
    """The text of a str or of its subclass, as an exact `str`; None for anything else.

    The real type decides, because a lazy string only claims to be a str. The text is
    read by `str` itself, because a subclass may override any method.
    """
    return str.__str__(value) if issubclass(type(value), str) else None


def charset_of(text: bytes) -> str | None:
    """The charset of a text from the vendor: UTF-8 or GBK; None if it is valid in neither."""
    for charset in ("utf-8", "gb18030"):
        try:
            text.decode(charset)
        except UnicodeDecodeError:
            continue
        return charset
    return None


def mask_mobile(mobile: str) -> str:
    """The number as it may be shown in a log or on a page.

    Args:
        mobile: as `normalize_mobile` returns it.

    Returns:
        `139****5678` for 11 ASCII digits, and `****` for anything else: it may be a
        number in another form, and hiding too much does no harm.
    """
    if isinstance(mobile, str) and len(mobile) == 11 and mobile.isascii() and mobile.isdigit():
        return f"{mobile[:3]}****{mobile[7:]}"
    return "****"


def mask_key(key: object, mobile: object, content: object) -> str | None:
    """An idempotency key as it may be shown, None for anything but text.

    Many keys contain the number, and some the code: both become `****`. A key
    that has the number's digits in another spelling becomes `****` as a whole.
    """
    text = exact_text(key)
    if text is None:
        return None
    for part in (mobile, content):
        # A code of the wrong type is a code nevertheless.
        shown = str(part) if type(part) is int else exact_text(part)
        if shown:
            text = text.replace(shown, "****")
    number = "".join(filter(str.isdigit, exact_text(mobile) or ""))[-11:]
    if len(number) == 11 and number in "".join(filter(str.isdigit, text)):
        return "****"
    return text


def generate_code(length: int = 6) -> str:
    """Draw a new verification code of `length` ASCII digits, by `secrets`.

    Args:
        length: 4, 5 or 6: the gateway reads out no other.

    Raises:
        InvalidRequestError: for any other length.
    """
    # The type too: 4.0 is in (4, 5, 6).
    if type(length) is not int or length not in (4, 5, 6):
        msg = f"length must be 4, 5 or 6 digits, not {length!r}"
        raise InvalidRequestError(msg)
    return f"{secrets.randbelow(10**length):0{length}d}"


class Secret:
    """A string that no repr, no dataclass dump and no pickle shows; `reveal()` returns it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself."""
        return self._value

    def __repr__(self) -> str:
        return "Secret('****')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and secrets.compare_digest(
            self._value.encode(), other._value.encode()
        )

    def __hash__(self) -> int:
        return hash(self._value)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        # `dataclasses.asdict` copies deeply; a secret is immutable.
        return self

    def __reduce__(self) -> str:
        msg = "a Secret is not pickled: give the key to the other process by environment or file"
        raise TypeError(msg)


class SignedBody:
    """The form of one request, which no repr shows; `reveal()` returns the bytes."""

    __slots__ = ("_body",)

    def __init__(self, body: bytes) -> None:
        self._body = body

    def reveal(self) -> bytes:
        """The bytes to write."""
        return self._body

    def __repr__(self) -> str:
        return "SignedBody('****')"


@dataclass(frozen=True, slots=True)
class Settings:
    """The gateway, the account and the limits of a client. The values are checked on creation.

    Attributes:
        api_id: the account's APIID.
        api_key: the account's APIKEY.
        base_url: scheme and host, nothing more.
        dynamic_password: sign each request (True) or send the key itself.
        answer_format: the format of the answers.
        timeout: seconds for one request, from the wait for a slot to the
            last byte of the answer.
        connect_timeout: seconds for one attempt to connect, TLS included.
        connect_attempts: how many attempts to connect.
        max_connections: how many requests may be in flight at once.
        proxy: `http(s)://[user:password@]host[:port]`, or None for none.
        limits: the times and counts that users do not set.

    Raises:
        ValueError: a setting is wrong; the message names it and the values it allows.
        TypeError: a setting has the wrong type; the message names it.
    """

    api_id: str
    api_key: Secret
    base_url: str = DEFAULT_BASE_URL
    dynamic_password: bool = True
    answer_format: AnswerFormat = "json"
    timeout: float = 15.0
    connect_timeout: float = 5.0
    connect_attempts: int = 3
    max_connections: int = 100
    proxy: Secret | None = None
    limits: Limits = field(default_factory=Limits, repr=False)

    def __post_init__(self) -> None:
        _check_credential("api_id", self.api_id)
        _check_api_key(self.api_key)
        object.__setattr__(self, "base_url", _checked_base_url(self.base_url))
        if self.answer_format not in ("json", "xml"):
            msg = f"answer_format must be 'json' or 'xml', not {self.answer_format!r}"
            raise ValueError(msg)
        _check_seconds("timeout", self.timeout)
        _check_seconds("connect_timeout", self.connect_timeout)
        check_count("connect_attempts", self.connect_attempts)
        check_count("max_connections", self.max_connections)
        if self.proxy is not None:
            _check_proxy(self.proxy.reveal())

    def never_shown(self) -> tuple[Secret, ...]:
        """What the gateway and a proxy receive and may send back, in each spelling that is sent."""
        key = self.api_key.reveal()
        spellings = [key, quote_plus(key)]
        if self.proxy is not None:
            parts = urlsplit(self.proxy.reveal())
            user, password = unquote(parts.username or ""), unquote(parts.password or "")
            credentials = f"{user}:{password}".encode("latin-1", "replace")
            spellings += [password, parts.password or "", base64.b64encode(credentials).decode()]
        return tuple(Secret(spelling) for spelling in dict.fromkeys(spellings) if spelling)


def _check_credential(name: str, value: object) -> None:
    if not isinstance(value, str):
        msg = f"{name} must be a str, not {type(value).__name__}"
        raise TypeError(msg)
    if not value or value != value.strip():
        msg = (
            f"{name} is empty or has blanks around it; copy it from the account's page without them"
        )
        raise ValueError(msg)
    if not value.isprintable():
        msg = (
            f"{name} has a character that cannot be printed; copy it again from the account's page"
        )
        raise ValueError(msg)


def _check_api_key(value: object) -> None:
    if not isinstance(value, Secret):
        msg = f"api_key must be a Secret, not {type(value).__name__}"
        raise TypeError(msg)
    _check_credential("api_key", value.reveal())


def _checked_base_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except (ValueError, AttributeError, TypeError):
        parts, host, port = None, None, None
    # The URL itself is not shown: it may hold a user's name and password.
    if (
        parts is None
        or parts.scheme not in ("http", "https")
        or not host
        or port == 0
        or not url.isprintable()
        or any(c in url for c in " \\")
    ):
        msg = f"base_url must be http(s)://host[:port], like {DEFAULT_BASE_URL!r}"
        raise ValueError(msg)
    if parts.username is not None or parts.password is not None:
        msg = "base_url must not hold a user name or password"
        raise ValueError(msg)
    if parts.path not in ("", "/") or "?" in url or "#" in url:
        msg = (
            "base_url must be scheme and host alone, without a path or query:"
            " the path /webservice/voice.php is added by the client"
        )
        raise ValueError(msg)
    return f"{parts.scheme}://{parts.netloc}"


def _check_proxy(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except (ValueError, AttributeError, TypeError):
        usable = False
    if not usable:
        # The URL itself is not shown: it may hold a password.
        msg = "proxy must be http(s)://[user:password@]host[:port], or 'env' for the environment's"
        raise ValueError(msg)


def _check_seconds(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{name} is in seconds, an int or a float, not {type(value).__name__}"
        raise TypeError(msg)
    # Not math.isfinite: it cannot take an int beyond the floats.
    if not 0 < value <= sys.float_info.max:
        msg = f"{name} must be a finite number of seconds above 0, not {value!r}"
        raise ValueError(msg)


def check_count(name: str, value: int) -> None:
    """Raise TypeError or ValueError unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{name} must be an int, not {type(value).__name__}"
        raise TypeError(msg)
    if value < 1:
        msg = f"{name} must be at least 1, not {value}"
        raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class SubmitRequest:
    """One call to place. The repr shows neither the code nor the full number.

    It is checked when it is submitted, not on creation: rows of a file can
    become requests, and the bad ones are reported one by one.

    Attributes:
        mobile: one mainland number; blanks, hyphens and a +86/0086/86 prefix
            are stripped.
        content: the verification code, a str of 4-6 ASCII digits.
        idempotency_key: names the request across processes; needs a store.
    """

    mobile: str
    content: str
    idempotency_key: str | None = None

    def __repr__(self) -> str:
        # The fields are not checked yet: they may be of any type.
        masked = mask_mobile(exact_text(self.mobile) or "")
        key = mask_key(self.idempotency_key, self.mobile, self.content)
        return f"SubmitRequest(mobile={masked!r}, content='****', idempotency_key={key!r})"


class VerificationStatus(Enum):
    """Where a verification is in its life."""

    PENDING = "pending"
    """A code may still be checked."""
    APPROVED = "approved"
    """The right code was given, once."""
    CANCELED = "canceled"
    """It was canceled, or its call certainly never rang."""
    EXPIRED = "expired"
    """Its time is over."""
    MAX_ATTEMPTS_REACHED = "max_attempts_reached"
    """Too many wrong codes were given."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, not decoded yet.

    Attributes:
        status: the HTTP status.
        body: cut after one byte more than `wire.MAX_ANSWER_BYTES`.
        date: the `Date` header; None without one.
    """

    status: int
    body: bytes
    date: str | None = None

    def __repr__(self) -> str:
        # The body may repeat everything that the gateway or a proxy received.
        return f"Answer(status={self.status}, body=<{len(self.body)} bytes>)"


@dataclass(frozen=True, slots=True)
class SubmitResult:
    """The gateway accepted the call (code 2): the phone rings, usually within 5 s.

    Accepted does not mean that a person answered.

    Attributes:
        voice_id: the gateway's id of the call, 9 to 20 digits, unchanged; None if
            the answer had none.
        msg: the gateway's own text.
        mobile: the number that was called, 11 digits. The repr masks it.
        replayed: True if this is the stored result of an earlier request with
            the same idempotency key: nothing was sent now. A comparison ignores it.
    """

    voice_id: str | None
    msg: str
    mobile: str
    replayed: bool = field(default=False, compare=False)

    def __repr__(self) -> str:
        replayed = ", replayed=True" if self.replayed else ""
        return (
            f"SubmitResult(voice_id={self.voice_id!r}, msg={self.msg!r},"
            f" mobile={mask_mobile(self.mobile)!r}{replayed})"
        )


@dataclass(frozen=True, slots=True)
class Balance:
    """What the account has left.

    Attributes:
        remaining: calls left.
        msg: the gateway's own text.
    """

    remaining: int
    msg: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one row of a bulk run.

    Attributes:
        index: the row's place in the source, from 0.
        request: the row; None if it was neither a request nor a pair.
        status: how it ended.
        result: the gateway's answer if it was accepted, now or earlier; else None.
        error: the reason if it was not accepted; else None.
    """

    index: int
    request: SubmitRequest | None
    status: OutcomeStatus
    result: SubmitResult | None
    error: IhuyiVoiceError | None


class Unrecorded:
    """Counts outcomes that the store has not recorded yet.

    The store changes it under a lock of its own; any thread may read it.

    Attributes:
        count: how many there are at the moment.
    """

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count: int = 0
