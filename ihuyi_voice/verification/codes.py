"""The code of a verification: derived, never stored, compared in constant time.

Pure: no clock, no I/O. The code is an HMAC over id, purpose and number with the
application's key, so that a reader of the store cannot compute it, and a second
call reads the same code.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import unicodedata
from typing import TYPE_CHECKING, TypeAlias

from ..errors import InvalidRequestError
from ..models import Secret, SubmitRequest, exact_text, mask_mobile
from ..wire import read_mobile

if TYPE_CHECKING:
    from collections.abc import Sequence

KeyInput: TypeAlias = "str | bytes | Sequence[str | bytes]"

MIN_KEY_BYTES = 32
"""Shorter keys are refused. OWASP ASVS 5.0 6.5.3 asks for a cryptographic generator."""

_LONGEST_TYPED = 64
# What people and programs put between the digits of a code.
_SEPARATORS = str.maketrans("", "", " \t\r\n\u00a0\u3000-\u2010\u2011\u2012\u2013\u2014\u2212.")


class Person:
    """A number and the purpose of its verification, checked; no repr shows the number.

    Attributes:
        purpose: what the verification is for.
        masked_mobile: the number as it may be shown.
    """

    __slots__ = ("_mobile", "masked_mobile", "purpose")

    def __init__(self, mobile: str, purpose: str) -> None:
        self._mobile = mobile
        self.purpose: str = purpose
        self.masked_mobile: str = mask_mobile(mobile)

    def __repr__(self) -> str:
        return f"<Person {self.masked_mobile} purpose={self.purpose!r}>"

    def text(self) -> str:
        """What the hashes cover: purpose and number. A purpose has no NUL."""
        return f"{self.purpose}\0{self._mobile}"

    def request(self, code: Secret, key: str | None) -> SubmitRequest:
        """The call that reads the code out."""
        return SubmitRequest(self._mobile, code.reveal(), key)


def read_person(mobile: object, purpose: object) -> Person | InvalidRequestError:
    """A number and a purpose, checked; returns the error, as this frame holds the number."""
    text = exact_text(purpose)
    if text is None:
        return InvalidRequestError(f"purpose must be a str, not {type(purpose).__name__}")
    if not 1 <= len(text) <= 64 or not text.isprintable() or text != text.strip():
        return InvalidRequestError(
            "purpose must be a name of 1-64 printable characters without blanks around it,"
            " like 'login'"
        )
    number = read_mobile(mobile)
    return number if isinstance(number, InvalidRequestError) else Person(number, text)


class SigningKey:
    """One key of the application; no repr shows it.

    Attributes:
        name: identifies it in the store, 8 hex digits.
    """

    __slots__ = ("_key", "name")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.name: str = hashlib.blake2b(key, digest_size=4, person=b"verify-key").hexdigest()

    def __repr__(self) -> str:
        return f"<SigningKey {self.name}>"

    def code(self, id_: str, person: Person, length: int) -> Secret:
        """The code of a verification, `length` ASCII digits."""
        number = int.from_bytes(self._mac("code", id_, person), "big") % 10**length
        return Secret(f"{number:0{length}d}")

    def binding(self, id_: str, person: Person) -> str:
        """Binds an id to a number and purpose, 32 hex digits (OWASP ASVS 5.0 6.6.2)."""
        return self._mac("binding", id_, person).hex()[:32]

    def subject(self, person: Person) -> str:
        """Identifies a number and purpose over all verifications, 32 hex digits."""
        return self._mac("subject", "", person).hex()[:32]

    def _mac(self, what: str, id_: str, person: Person) -> bytes:
        text = f"ihuyi-voice {what}\0{id_}\0{person.text()}"
        return hmac.new(self._key, text.encode(), hashlib.sha256).digest()


def read_keys(key: object) -> tuple[SigningKey, ...] | Exception:
    """The application's keys, the first of which signs; returns the error to raise."""
    keys = list(key) if isinstance(key, list | tuple) else [key]
    if not keys:
        return ValueError("key is an empty list: give at least one key of 32 bytes or more")
    made = []
    for one in keys:
        # Of any characters: an error of `encode` would hold the key.
        raw = one.encode(errors="surrogatepass") if isinstance(one, str) else one
        if not isinstance(raw, bytes):
            return TypeError(
                f"key must be bytes, a str, or a list of them, not {type(one).__name__}"
            )
        if len(raw) < MIN_KEY_BYTES:
            return ValueError(
                f"key must have {MIN_KEY_BYTES} bytes or more, not {len(raw)}: make one with"
                " python -c 'import secrets; print(secrets.token_hex(32))' and keep it as you keep"
                " passwords"
            )
        made.append(SigningKey(raw))
    return tuple(made)


def new_id() -> str:
    """A verification id: 128 random bits, 32 hex digits (OWASP ASVS 5.0 6.5.3)."""
    return secrets.token_hex(16)


def read_id(id_: object) -> str | None:
    """An id as `new_id` draws it, else None."""
    text = exact_text(id_)
    if text is None or len(text) != 32 or not all(c in "0123456789abcdef" for c in text):
        return None
    return text


def typed_code(code: object) -> Secret:
    """What a person typed: without blanks and hyphens, full-width digits as ASCII."""
    text = exact_text(code) or ""
    if len(text) > _LONGEST_TYPED:
        text = ""
    return Secret(unicodedata.normalize("NFKC", text).translate(_SEPARATORS))


def same(code: Secret, typed: Secret) -> bool:
    """Whether the typed code is the right one, in constant time."""
    return hmac.compare_digest(code.reveal().encode(), typed.reveal().encode(errors="replace"))
