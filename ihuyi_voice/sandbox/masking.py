"""Masks secrets in all that the sandbox records, prints and shows. Pure.

A field is masked by its name, and any text that holds an account's key. Of a
request that cannot be read, only what is known to be harmless is shown: in it a
password may be at any place.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus

from ihuyi_voice.models import is_content, is_mobile

if TYPE_CHECKING:
    from collections.abc import Collection

MASK = "********"
MOST_FIELDS = 100
LONGEST_TEXT = 2_000
"""No more fields of a form are recorded, nor more characters of a name or a value."""

_LONGEST_LINE = 400
_HARMLESS = ("method", "account", "mobile", "content", "time", "format")

# Not `password` alone: people try programs for other gateways, and one that calls its field
# `pwd` sends a real password in it, which the inbox would show.
_names_a_secret = re.compile(r"pass|pwd|key|secret|token|sign", re.IGNORECASE).search
# A whole form or JSON in one name or value.
_holds_a_secret = re.compile(
    r"(?:pass|pwd|key|secret|token|sign)\w*[\"']?\s*(?:[=:]|%3[aAdD])", re.IGNORECASE
).search
_is_word = re.compile(r"[A-Za-z0-9_]{1,20}").fullmatch
_is_path = re.compile(r"/[A-Za-z0-9_./%~-]*").fullmatch
_version = re.compile(r" HTTP/[0-9.]*$")
# A dynamic password, or any other digest of this kind.
_digests = re.compile(r"(?<![0-9A-Za-z])[0-9A-Fa-f]{32}(?![0-9A-Za-z])")


def masked_name(name: str, keys: Collection[str]) -> str:
    """The name of a field, as it is recorded."""
    if _holds_a_secret(name):
        return MASK
    for key in keys:
        name = name.replace(key, MASK)
    return cut(name)


def masked_value(name: str, value: str, keys: Collection[str]) -> str:
    """The value of a field, as it is recorded; "" stays "", so that it is seen to be empty."""
    if _names_a_secret(name) or _holds_a_secret(value):
        return MASK if value else ""
    # A number or a code stays readable even if it contains a very short key.
    if any(key in value for key in keys) and not is_mobile(value) and not is_content(value):
        return MASK
    return cut(value)


def masked_line(line: str, keys: Collection[str]) -> str:
    """A request line as it is shown: its method, its path, and the values of known fields.

    Of a target that is not a path and a query, nothing is shown: a password may be
    anywhere in it.
    """
    method, _, target = _version.sub("", line.strip()).partition(" ")
    if not _is_word(method):
        return ""
    path, mark, query = target.partition("?")
    if not _is_path(path) or _names_a_secret(path):
        return f"{method} {MASK}"
    pairs = (_masked_pair(pair, keys) for pair in query.split("&") if pair)
    text = f"{method} {_without(path, keys)}{mark}{'&'.join(pairs)}"
    return cut(text, _LONGEST_LINE)


def _masked_pair(pair: str, keys: Collection[str]) -> str:
    name, equals, value = pair.partition("=")
    if not equals or not _is_word(name):
        return MASK
    value = unquote_plus(value)
    if name not in _HARMLESS:
        return f"{name}={MASK if value else ''}"
    return f"{name}={_without(value, keys)}"


def _without(text: str, keys: Collection[str]) -> str:
    decoded = unquote_plus(text)
    if any(key in text or key in decoded for key in keys):
        if is_mobile(text) or is_content(text):
            return text
        return MASK
    return _digests.sub(MASK, text)


def cut(text: str, longest: int = LONGEST_TEXT) -> str:
    """A text, followed by an ellipsis where it was longer."""
    return text if len(text) <= longest else f"{text[:longest]}…"
