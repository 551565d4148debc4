"""Why an account or a password is refused: the commonest problem of a new integration.

Pure. `caller_reason` is the check itself, so the reason that is recorded is the one
that refused. It goes on to find what the caller probably did: it signs the request in
the ways that programs get wrong, with the account's own key, and compares.
"""

from __future__ import annotations

import hashlib
import re
from itertools import permutations
from typing import TYPE_CHECKING, Literal

from ihuyi_voice.wire import sign_balance, sign_submit

from .history import Reason
from .masking import MASK, cut, masked_value

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

Method = Literal["Submit", "GetNum"]

CALLER_CODES = frozenset({401, 402, 405})
"""The codes that `caller_reason` may give; nothing else in the rules gives them."""

_LONGEST_FACT = 120

# Of a received digest, to recognise it by: 16 of 128 bits.
_DIGITS_SHOWN = 4

_is_time = re.compile(r"[0-9]{10}").fullmatch
_is_milliseconds = re.compile(r"[0-9]{13}").fullmatch
_is_digest = re.compile(r"[0-9a-fA-F]{32}").fullmatch
_is_half_digest = re.compile(r"[0-9a-fA-F]{16}").fullmatch

# Programs that read the clock twice are a few seconds apart.
_CLOCK_READ_TWICE = 5


def caller_reason(  # noqa: PLR0911 - one reason after the other
    method: Method,
    form: Mapping[str, str],
    accounts: Mapping[str, str],
    now: float,
    time_window: float | None,
) -> Reason | None:
    """Why the account or the password of a form is refused; None when they are right.

    Args:
        method: "Submit" or "GetNum": they are signed differently.
        form: the fields as they were received.
        accounts: the API key of each account, by its APIID.
        now: seconds since 1970.
        time_window: seconds by which `time` may differ from `now`; None for any.
    """
    account, password = form.get("account", ""), form.get("password", "")
    if not account:
        return Reason("no_account" if form else "no_fields", 401)
    if not password:
        return Reason("no_password", 402)
    key = accounts.get(account)
    if key is None:
        return _unknown_account(account, password, accounts)
    if password == key:
        return None
    time = form.get("time", "")
    if not time:
        return _no_time(password, key)
    if not _is_time(time):
        kind = "time_in_milliseconds" if _is_milliseconds(time) else "time_malformed"
        return Reason(kind, 405, (_fact("time", time, (key,)),))
    expected = _dynamic_password(method, form, account, key, time)
    if password != expected:
        return _wrong_password(method, form, key, expected)
    if time_window is not None and abs(now - int(time)) > time_window:
        return _stale(int(time), now, time_window)
    return None


def _unknown_account(account: str, password: str, accounts: Mapping[str, str]) -> Reason:
    known = ("known", ", ".join(accounts))
    sent = _fact("account", account, accounts.values())
    if account in accounts.values():
        return Reason("swapped" if password in accounts else "key_as_account", 405, (known,))
    if any(account.strip().lower() == name.lower() for name in accounts):
        return Reason("account_spelling", 405, (sent, known))
    return Reason("unknown_account", 405, (sent, known))


def _no_time(password: str, key: str) -> Reason:
    # The password is not shown: it may be the key of a real account.
    if password.lower() == _md5(key):
        return Reason("legacy_password", 405)
    if password.strip() == key:
        return Reason("password_with_blanks", 405)
    return Reason("no_time" if _is_digest(password) else "wrong_key", 405)


def _wrong_password(method: Method, form: Mapping[str, str], key: str, expected: str) -> Reason:
    password = form["password"]
    if password.strip() in (key, expected):
        return Reason("password_with_blanks", 405)
    if password.lower() == _md5(key):
        return Reason("legacy_password", 405)
    if not (_is_digest(password) or _is_half_digest(password)):
        return Reason("no_digest", 405, (("length", str(len(password))),))
    names = ("account", "mobile", "content", "time") if method == "Submit" else ("account", "time")
    parts = [masked_value(name, form.get(name, ""), (key,)) for name in names]
    signed = " + ".join((parts[0], "APIKEY", *parts[1:]))
    kind = _digest_mistake(method, form, key, expected)
    # What the sandbox's own key does not make may be a real key: APIKEYs look like digests.
    received = f"{password[:_DIGITS_SHOWN]}{MASK}" if kind is None else password
    facts = (("expected", expected), ("received", received), ("signed", cut(signed, _LONGEST_FACT)))
    return Reason(kind or "digest", 405, facts)


def _digest_mistake(method: Method, form: Mapping[str, str], key: str, expected: str) -> str | None:
    """The mistake by which a program with the sandbox's own key makes what was received."""
    received = form["password"].lower()
    if received == expected:
        return "digest_upper_case"
    if received == expected[8:24]:
        return "digest_half"
    mistakes = _likely_mistakes(method, form, key)
    return next((kind for kind, digest in mistakes if received == digest), None)


def _likely_mistakes(
    method: Method, form: Mapping[str, str], key: str
) -> Iterator[tuple[str, str]]:
    """What programs sign instead, as the kind of the reason and the digest it leads to."""
    account, time = form["account"], form["time"]
    mobile, content = form.get("mobile", ""), form.get("content", "")
    right = (account, key, time) if method == "GetNum" else (account, key, mobile, content, time)
    if method == "Submit":
        yield "digest_of_balance", sign_balance(account, key, time)
        yield "digest_mobile", _md5(account, key, _plain(mobile), content, time)
    else:
        yield "digest_of_submit", sign_submit(account, key, mobile, content, time)
    for seconds in range(-_CLOCK_READ_TWICE, _CLOCK_READ_TWICE + 1):
        yield "digest_other_time", _md5(*right[:-1], f"{int(time) + seconds:010d}")
    for count in range(2, len(right)):
        for some in permutations(right, count):
            yield "digest_parts_missing", _md5(*some)
    for order in permutations(right):
        yield "digest_order", _md5(*order)
    for separator in ("&", ",", "|", "+", "-", "_", ":", ";", " "):
        yield "digest_separator", _md5(separator.join(right))


def _stale(time: int, now: float, time_window: float) -> Reason:
    difference = time - now
    facts = (
        ("time", str(time)),
        ("now", f"{now:.0f}"),
        ("seconds", f"{abs(difference):.0f}"),
        ("window", f"{time_window:g}"),
    )
    return Reason("time_too_late" if difference > 0 else "time_too_early", 405, facts)


def _dynamic_password(
    method: Method, form: Mapping[str, str], account: str, key: str, time: str
) -> str:
    if method == "GetNum":
        return sign_balance(account, key, time)
    return sign_submit(account, key, form.get("mobile", ""), form.get("content", ""), time)


def _plain(mobile: str) -> str:
    """The eleven digits of a number that was sent with a prefix, blanks or hyphens."""
    return re.sub("[^0-9]", "", mobile)[-11:]


def _md5(*parts: str) -> str:
    return hashlib.md5("".join(parts).encode(), usedforsecurity=False).hexdigest()


def _fact(name: str, value: str, keys: Collection[str]) -> tuple[str, str]:
    return name, cut(masked_value(name, value, keys), _LONGEST_FACT)
