"""A request as it was received, without passwords and API keys.

Pure. A password is masked by its name, wherever a name can be: in a query, a form, a
part of a multipart form, JSON, XML or a header. An API key and a password that was
found are masked by their text too, however they are percent-encoded. If a text names a
password and no value could be masked, the whole text is masked.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus, unquote_plus

from .history import Received
from .masking import LONGEST_TEXT, MASK, cut

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LONGEST_BODY = 8_000
"""No more characters of a raw body are recorded."""

_SECRET_NAME = re.compile(r"pass|pwd|key|secret|token|sign|authoriz|cookie", re.IGNORECASE)
# A name of a password, and something after it that may be the password.
_NAMES_ONE = re.compile(r"passw\w*\W+\w|pwd\W+\w", re.IGNORECASE)
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")
_PART = (
    r"(?P<before>content-disposition:[^\r\n]*?\bname\*?=(?P<name>[^\r\n;]*)[^\r\n]*"
    r"(?:\r?\n[^\r\n]+)*\r?\n\r?\n)(?P<value>.*?)(?P<after>(?=\r?\n{delimiter})|\Z)"
)
_LINES = re.compile(r"(\r?\n)")
_is_head = re.compile(r"content-disposition:", re.IGNORECASE).match
_DELIMITER = re.compile(r"\s*(--[^\r\n]+)\r?\n")
_JSON = re.compile(
    r'(?P<before>"(?P<name>(?:\\.|[^"\\])*)"\s*:\s*"?)'
    r'(?P<value>(?:(?<=")(?:\\.|[^"\\])*|[^\s",}\]]+))(?P<after>)',
    re.DOTALL,
)
_XML = re.compile(r"(?P<before><(?P<name>[\w:.-]+)[^>]*>)(?P<value>[^<]*)(?P<after>)")

# A shorter password would mask digits and letters everywhere; its own place is masked.
_SHORTEST_ELSEWHERE = 6


def received(  # noqa: PLR0913 - the parts of a request
    *,
    method: str,
    path: str,
    query: str,
    headers: Sequence[tuple[str, str]],
    body: bytes,
    keys: Iterable[str],
) -> Received:
    """A request as it is recorded.

    Args:
        method: of the request.
        path: still percent-encoded.
        query: still percent-encoded, without the question mark.
        headers: names and values in their order.
        body: as it was read; b"" when it was not.
        keys: the API keys that must not be recorded.
    """
    # A secret may end beyond what is kept: it must be found before the text is cut.
    text = body.decode("utf-8", "backslashreplace")[: LONGEST_BODY + LONGEST_TEXT]
    mask = _Mask(keys)
    first = [mask.named(part) for part in (path, query, text)]
    values = [MASK if _is_secret(name) else mask.named(value) for name, value in headers]
    path, query, text, *values = map(mask.known, [*first, *values])
    return Received(
        method=cut(mask.known(method)),
        path=cut(path),
        query=cut(query),
        headers=tuple(
            (cut(name), cut(value)) for (name, _), value in zip(headers, values, strict=True)
        ),
        body=cut(text, LONGEST_BODY),
    )


class _Mask:
    """Masks the texts of one request; what it finds in one of them it masks in all."""

    __slots__ = ("_count", "_found", "_keys")

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = [(_plain(key), key) for key in keys]
        self._found: set[str] = set()
        self._count = 0  # of the places that have a secret name

    def named(self, text: str) -> str:
        """Mask the values that a name marks as secret."""
        if not _SECRET_NAME.search(decoded(text)):
            return text
        before, masked = self._count, text
        is_multipart = "content-disposition" in text.lower()
        if is_multipart:
            delimiter = _DELIMITER.match(text)
            if delimiter is None:
                # Where its parts end is not known.
                return MASK
            masked = _part_pattern(delimiter[1]).sub(self._masked, masked)
        for sign, pattern in (('"', _JSON), ("<", _XML)):
            if sign in masked:
                masked = pattern.sub(self._masked, masked)
        # The head of a part has equals signs of its own.
        lines = _LINES.split(masked) if is_multipart else [masked]
        masked = "".join(line if _is_head(line) else self._pairs(line) for line in lines)
        is_unmasked = self._count == before and _NAMES_ONE.search(decoded(text))
        return MASK if is_unmasked else masked

    def known(self, text: str) -> str:
        """Mask the keys, and what was found by its name in any text."""
        plain = _plain(decoded(text))
        for plain_key, key in self._keys:
            if plain_key in plain:
                text = _anyhow_encoded(key).sub(MASK, text)
        for value in self._found:
            text = text.replace(value, MASK)
        return text

    def _masked(self, match: re.Match[str]) -> str:
        if not _is_secret(match["name"]):
            return match[0]
        self._count += 1
        if not match["value"]:
            return match[0]
        self._find(match["value"])
        return f"{match['before']}{MASK}{match['after']}"

    def _pairs(self, text: str) -> str:
        return "&".join(map(self._pair, text.split("&")))

    def _pair(self, piece: str) -> str:
        # Behind the first equals sign that has a secret name anywhere before it.
        at = piece.find("=")
        while at != -1:
            if _is_secret(piece[:at]):
                break
            at = piece.find("=", at + 1)
        if at == -1:
            return piece
        self._count += 1
        value = piece[at + 1 :]
        if value in ("", MASK):
            return piece
        self._find(value)
        return f"{piece[: at + 1]}{MASK}"

    def _find(self, value: str) -> None:
        for form in {value, unquote_plus(value), quote(value, safe=""), quote_plus(value)}:
            if len(form) >= _SHORTEST_ELSEWHERE:
                self._found.add(form)


def decoded(text: str) -> str:
    r"""A text as a program may read it: percent-encoding, `\\u` and zero bytes taken away."""
    while "%" in text and (plainer := unquote_plus(text)) != text:
        text = plainer
    text = text.replace("\0", "")
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text) if "\\u" in text else text


def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(decoded(name)) is not None


def _plain(text: str) -> str:
    # A form writes a blank as a plus.
    return text.lower().replace("+", " ")


def _part_pattern(delimiter: str) -> re.Pattern[str]:
    pattern = _PART.replace("{delimiter}", re.escape(delimiter))
    return re.compile(pattern, re.IGNORECASE | re.DOTALL)


@lru_cache(maxsize=64)
def _anyhow_encoded(key: str) -> re.Pattern[str]:
    """Finds a key whose characters may be percent-encoded, once or repeatedly."""

    def one(character: str) -> str:
        octets = (f"%(?:25)*{octet:02x}" for octet in character.encode("utf-8", "replace"))
        forms = [re.escape(character), "".join(octets), rf"\\u{ord(character):04x}"]
        return f"(?:{'|'.join(forms)}{'|[+]' if character == ' ' else ''})"

    # In any case: a key in another case is still most of a key.
    return re.compile("".join(map(one, key)), re.IGNORECASE)
