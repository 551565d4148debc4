"""What a developer sets of the sandbox gateway, and what each setting takes.

attrs runs the converters and the validators, when a `Settings` is made and when
an attribute is set. What they raise is a ValueError that names the setting and
says what it takes. Nothing here answers, waits or reads a clock.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from attrs import define, field, fields

from ihuyi_voice.wire import normalize_mobile

if TYPE_CHECKING:
    from attrs import Attribute

MOST = 10**9
"""The largest count: no machine remembers more, and every container takes it."""

DEFAULT_KEEP = 10_000


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a value must be, in words and as a test; attrs calls it as a validator."""

    words: str
    is_met_by: Callable[[Any], bool]
    shows_value: bool = True

    def __call__(self, _: object, attribute: Attribute[Any], value: object) -> None:
        """Check the value of an attribute."""
        self.check(attribute.name, value)

    def check(self, name: str, value: object) -> None:
        """Raise a ValueError that names the setting, unless the value meets this."""
        if not self.is_met_by(value):
            but = f", not {value!r}" if self.shows_value else ""
            msg = f"{name} must be {self.words}{but}"
            raise ValueError(msg)

    def or_none(self) -> Requirement:
        """The same, met by None too."""
        return replace(self, is_met_by=lambda value: value is None or self.is_met_by(value))


def is_int(value: object) -> bool:
    """True for an int that is not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return is_int(value) or isinstance(value, float)


def _is_url(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


TEXT = Requirement("a str that is not empty", lambda value: isinstance(value, str) and value != "")
FLAG = Requirement("True or False", lambda value: isinstance(value, bool))
WHOLE_NUMBER = Requirement("an int of at least 0", lambda value: is_int(value) and value >= 0)
COUNT = (
    Requirement("an int of at least 1", lambda value: is_int(value) and value >= 1),
    Requirement(f"an int of at most {MOST}", lambda value: value <= MOST, shows_value=False),
)
# Compared with the largest float: `isfinite` fails for an int beyond it.
SECONDS = Requirement(
    "a finite number of seconds of at least 0",
    lambda value: _is_number(value) and 0 <= value <= sys.float_info.max,
)
PROBABILITY = Requirement(
    "a probability between 0 and 1", lambda value: _is_number(value) and 0 <= value <= 1
)
# aiohttp takes a timeout of 0 for "no timeout".
NOT_ZERO = Requirement("more than 0 seconds", lambda value: value > 0)
# A URL may hold a password or a secret path: the error does not repeat it.
URL = Requirement(
    "a URL such as http://127.0.0.1:8000/receipts, or None", _is_url, shows_value=False
)


def _texts(name: str, given: Iterable[str]) -> list[str]:
    # One str is an iterable of its characters: never what was meant.
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        msg = f"{name} must be several str, as a list or a set, not {given!r}"
        raise ValueError(msg)  # noqa: TRY004 - every wrong setting is a ValueError
    return list(given)


def _accounts(given: Mapping[str, str]) -> Mapping[str, str]:
    """A copy of the accounts; an error shows no key."""
    texts = [*given, *given.values()] if isinstance(given, Mapping) else [None]
    if not all(map(TEXT.is_met_by, texts)):
        msg = "accounts must map each APIID to its APIKEY, all of them str that are not empty"
        raise ValueError(msg)
    return dict(given)


def _mobiles(name: str, given: Iterable[str]) -> frozenset[str]:
    texts = _texts(name, given)
    try:
        return frozenset(map(normalize_mobile, texts))
    except ValueError as error:
        msg = f"{name} must hold mobile numbers: {error}"
        raise ValueError(msg) from None


def _contents(name: str, given: Iterable[str]) -> frozenset[str]:
    texts = _texts(name, given)
    for text in texts:
        TEXT.check(f"a content of {name}", text)
    return frozenset(texts)


def _ips(name: str, given: Iterable[str] | None) -> frozenset[str] | None:
    if given is None:
        return None
    texts = _texts(name, given)
    try:
        return frozenset(map(_canonical_ip, texts))
    except ValueError as error:
        msg = f"{name} must hold IP addresses: {error}"
        raise ValueError(msg) from None


def _canonical_ip(text: object) -> str:
    # An int is an address to `ip_address`, and True the address 0.0.0.1.
    if not isinstance(text, str):
        msg = f"{text!r} is not a str"
        raise ValueError(msg)  # noqa: TRY004 - every wrong setting is a ValueError
    address = ip_address(text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        # A caller over IPv4 is known by its IPv4 address.
        return str(address.ipv4_mapped)
    return str(address)


# One function each, with the name for its error: mypy reads the types of a
# setting from its converter, and only from a function.


def _allowed_ips(given: Iterable[str] | None) -> frozenset[str] | None:
    return _ips("allowed_ips", given)


def _registered_ips(given: Iterable[str] | None) -> frozenset[str] | None:
    return _ips("registered_ips", given)


def _blacklist(given: Iterable[str]) -> frozenset[str]:
    return _mobiles("blacklist", given)


def _banned_contents(given: Iterable[str]) -> frozenset[str]:
    return _contents("banned_contents", given)


def _failing_mobiles(given: Iterable[str]) -> frozenset[str]:
    return _mobiles("failing_mobiles", given)


@define(kw_only=True)
class Settings:
    """The account and how the gateway treats it; `SandboxGateway` documents each setting.

    The values are immutable. One is replaced as a whole, under the gateway's lock.
    """

    api_id: str = field(default="sandbox", validator=TEXT)
    api_key: str = field(default="sandbox-key", validator=TEXT, repr=False)
    accounts: Mapping[str, str] = field(factory=dict, converter=_accounts, repr=False)
    frozen: bool = field(default=False, validator=FLAG)
    balance: int = field(default=1000, validator=WHOLE_NUMBER)
    time_window: float | None = field(default=600.0, validator=SECONDS.or_none())
    allowed_ips: frozenset[str] | None = field(default=None, converter=_allowed_ips)
    registered_ips: frozenset[str] | None = field(default=None, converter=_registered_ips)
    blacklist: frozenset[str] = field(default=frozenset(), converter=_blacklist)
    banned_contents: frozenset[str] = field(default=frozenset(), converter=_banned_contents)
    failing_mobiles: frozenset[str] = field(default=frozenset(), converter=_failing_mobiles)
    abuse_limit: int | None = field(default=None, validator=[limit.or_none() for limit in COUNT])
    frequency_limit: bool = field(default=False, validator=FLAG)
    calls_per_minute: int = field(default=2, validator=[*COUNT])
    calls_per_day: int = field(default=10, validator=[*COUNT])
    receipt_url: str | None = field(default=None, validator=URL.or_none())
    receipt_delay: float = field(default=1.0, validator=SECONDS)
    receipt_interval: float = field(default=60.0, validator=SECONDS)
    receipt_timeout: float = field(default=5.0, validator=[SECONDS, NOT_ZERO])
    receipt_id: str = field(default="voiceid", validator=TEXT)
    keep: int = field(default=DEFAULT_KEEP, validator=[*COUNT])
    multiline_refusals: bool = field(default=False, validator=FLAG)

    @property
    def keys(self) -> tuple[str, ...]:
        """The APIKEYs of all accounts."""
        return self.api_key, *self.accounts.values()

    @property
    def key_by_account(self) -> dict[str, str]:
        """The APIKEY of each account, by its APIID; the first account comes first."""
        return {self.api_id: self.api_key, **self.accounts, self.api_id: self.api_key}


DEFAULTS = Settings()

_CREDENTIALS = ("api_id", "api_key", "accounts")

CHANGEABLE: tuple[str, ...] = tuple(
    attribute.name for attribute in fields(Settings) if attribute.name not in _CREDENTIALS
)
"""What may be changed over HTTP: all but the credentials."""
