"""What the sandbox gateway knows of its one account, and the checks of each setting.

Every check takes the setting's name and the value given, returns the value as
the gateway keeps it, and raises a ValueError that names the setting and says
what it takes. Nothing here answers, waits or reads a clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

from ihuyi_voice.wire import check_mobile

MOST = 10**9
"""Of anything that is counted: no machine remembers more, and every container takes it."""


@dataclass(slots=True)
class Account:
    """The account's settings; `SandboxGateway` documents and checks each of them.

    Not frozen: the balance sinks with each call, and a developer changes the
    rest while the gateway runs.
    """

    api_id: str = "sandbox"
    api_key: str = "sandbox-key"
    balance: int = 1000
    time_window: float | None = 600.0
    allowed_ips: frozenset[str] | None = None
    registered_ips: frozenset[str] | None = None
    blacklist: frozenset[str] = frozenset()
    banned_contents: frozenset[str] = frozenset()
    failing_mobiles: frozenset[str] = frozenset()
    abuse_limit: int | None = None
    frequency_limit: bool = False
    calls_per_minute: int = 2
    calls_per_day: int = 10
    receipt_url: str | None = None
    receipt_delay: float = 1.0
    receipt_interval: float = 60.0
    receipt_timeout: float = 5.0
    receipt_id: str = "voiceid"


def credential(name: str, value: str) -> str:
    """A str with at least one character."""
    if not isinstance(value, str) or not value:
        msg = f"{name} must be a str that is not empty, not {value!r}"
        raise ValueError(msg)
    return value


def flag(name: str, value: object) -> bool:
    """True or False, and not what merely counts as one."""
    if not isinstance(value, bool):
        msg = f"{name} must be True or False, not {value!r}"
        raise ValueError(msg)  # noqa: TRY004 - every wrong setting is a ValueError
    return value


def whole_number(name: str, value: int) -> int:
    """An int of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        msg = f"{name} must be an int of at least 0, not {value!r}"
        raise ValueError(msg)
    return value


def count(name: str, value: int) -> int:
    """An int of at least 1 and at most `MOST`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        msg = f"{name} must be an int of at least 1, not {value!r}"
        raise ValueError(msg)
    if value > MOST:
        msg = f"{name} must be an int of at most {MOST}"
        raise ValueError(msg)
    return value


def count_or_none(name: str, value: int | None) -> int | None:
    """An int of at least 1 and at most `MOST`, or None for no limit."""
    return None if value is None else count(name, value)


def seconds(name: str, value: float) -> float:
    """A finite number of seconds, at least 0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0:
        msg = f"{name} must be a finite number of seconds of at least 0, not {value!r}"
        raise ValueError(msg)
    return float(value)


def some_seconds(name: str, value: float) -> float:
    """A finite number of seconds, more than 0."""
    # Nothing is ever done within none; what waits so long takes 0 for "no limit".
    if seconds(name, value) == 0:
        msg = f"{name} must be more than 0 seconds, not {value!r}"
        raise ValueError(msg)
    return float(value)


def seconds_or_none(name: str, value: float | None) -> float | None:
    """A finite number of seconds, at least 0, or None for no limit."""
    return None if value is None else seconds(name, value)


def url_or_none(name: str, value: str | None) -> str | None:
    """An http or https URL with a host, or None for none."""
    if value is None:
        return None
    try:
        parts = urlsplit(credential(name, value))
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        # It may hold a secret path or a password, so it is not repeated here.
        msg = f"{name} must be a URL such as http://127.0.0.1:8000/receipts, or None"
        raise ValueError(msg)
    return value


def ips_or_none(name: str, value: Iterable[str] | None) -> frozenset[str] | None:
    """IP addresses, each in its canonical spelling, or None for any."""
    if value is None:
        return None
    texts = _texts(name, value)
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


def mobiles(name: str, value: Iterable[str]) -> frozenset[str]:
    """Mobile numbers in any spelling that the clients take, kept as 11 digits."""
    texts = _texts(name, value)
    try:
        return frozenset(map(check_mobile, texts))
    except ValueError as error:
        msg = f"{name} must hold mobile numbers: {error}"
        raise ValueError(msg) from None


def contents(name: str, value: Iterable[str]) -> frozenset[str]:
    """Contents, compared as a whole."""
    return frozenset(credential(f"a content of {name}", text) for text in _texts(name, value))


def _texts(name: str, value: Iterable[str]) -> list[str]:
    # One str is an iterable of its characters: never what was meant.
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        msg = f"{name} must be several str, as a list or a set, not {value!r}"
        raise ValueError(msg)  # noqa: TRY004 - every wrong setting is a ValueError
    return list(value)
