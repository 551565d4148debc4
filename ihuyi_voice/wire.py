"""The gateway's protocol, pure: check, sign, encode a form, decode an answer.

No clock (the time is an argument), no I/O, no event loop, no logging. Requests
are checked strictly, answers are read with tolerance.

The facts below are documented by the vendor or seen in several programs in
production, unless the line says otherwise:

- POST `/webservice/voice.php?method=Submit` or `?method=GetNum`, a UTF-8 form.
- The dynamic password is lower-case hex MD5 over UTF-8 without separators, of
  account + key + mobile + content + time for a submit, of account + key + time
  for a balance query; `time` is Unix seconds in 10 digits and goes with it.
- Ids have up to 20 digits, with or without quotes, as `voiceid` or `smsid`;
  `0`, `"0"`, empty and absent all mean "no id".
- Only code 2 is success, and the id is 0 unless the submit succeeded. So a code
  that the voice product does not document is a refusal if it comes without an
  id. With an id the answer contradicts itself, and the outcome is unknown.
- An answer that declares utf-8 and holds GBK was seen once: the code must be
  read even if the text cannot be decoded.

Errors about a request are returned, not raised. The frames here hold the number,
the code and the answer as plain strings, and tools that report an exception show
the variables of every frame that it passes.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote_plus

import orjson

from .errors import (
    ACCEPTED,
    CODES,
    AuthenticationError,
    InvalidRequestError,
    OutcomeUnknownError,
    gateway_error,
)
from .models import (
    MOBILE_PATTERN,
    MOBILE_PREFIX,
    Balance,
    SignedBody,
    SubmitResult,
    charset_of,
    exact_text,
    is_content,
    is_mobile,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from .errors import GatewayError, IhuyiVoiceError
    from .models import Answer, AnswerFormat

PATH = "/webservice/voice.php"
SUBMIT_TARGET = f"{PATH}?method=Submit"
BALANCE_TARGET = f"{PATH}?method=GetNum"
CONTENT_TYPE = "application/x-www-form-urlencoded"

MAX_ANSWER_BYTES = 64 * 1024
"""The gateway's answers are far shorter; the client does not read a longer one."""

# --- checks -----------------------------------------------------------------

_is_prefixed_mobile = re.compile(rf"{MOBILE_PREFIX}({MOBILE_PATTERN})").fullmatch
_blanks_and_hyphens = re.compile(r"[\s-]+")


def normalize_mobile(mobile: object) -> str:
    """The number as the gateway takes it: 11 ASCII digits.

    `submit` does this itself. A program uses it to store or compare numbers.

    Args:
        mobile: one mainland number, a str. Blanks, hyphens and a prefix +86, 0086
            or 86 are removed; then 1, a digit 3-9 and nine digits must remain.

    Raises:
        InvalidRequestError: it is no such number. The text says what is wrong, and
            shows no digit of it.
    """
    number = read_mobile(mobile)
    # The error's traceback must not show the number.
    del mobile
    if isinstance(number, InvalidRequestError):
        raise number
    return number


def read_mobile(mobile: object) -> str | InvalidRequestError:
    """As `normalize_mobile`, but return the error: the caller's frame must not hold the number."""
    if type(mobile) is str and is_mobile(mobile):
        return mobile
    text = exact_text(mobile)
    if text is None:
        return InvalidRequestError(
            f"mobile must be a str with one number, not {type(mobile).__name__}"
            "; submit once per number"
        )
    bare = _blanks_and_hyphens.sub("", text)
    if is_mobile(bare):
        return bare
    if match := _is_prefixed_mobile(bare):
        return match[1]
    return InvalidRequestError(_what_is_wrong_with_mobile(bare))


def _what_is_wrong_with_mobile(bare: str) -> str:  # noqa: PLR0911 - one per mistake
    expected = "mobile must be a mainland number: 1, then 3-9, then nine digits"
    if not bare:
        return f"{expected}; it is empty"
    if any(c in bare for c in ",;，；、|/"):  # noqa: RUF001 - as typed in Chinese
        return f"{expected}; it looks like several numbers: submit once per number"
    if bare.isdigit() and not bare.isascii():
        return f"{expected}; it has digits that are not ASCII: write them as 0-9"
    if not (bare.isascii() and bare.removeprefix("+").isdigit()):
        return f"{expected}; it has characters other than digits"
    if bare.startswith("+") and not bare.startswith("+86"):
        return f"{expected}; its country code is not 86"
    if len(bare) == 11:
        return f"{expected}; its first two digits are not those of a mobile number"
    return f"{expected}; it has {len(bare.removeprefix('+'))} digits"


def check_content(content: object) -> str:
    """The verification code itself, when it is a str of 4-6 ASCII digits.

    Raises:
        InvalidRequestError: saying what is wrong, without showing the content.
    """
    code = read_content(content)
    # The error's traceback must not show the code.
    del content
    if isinstance(code, InvalidRequestError):
        raise code
    return code


def read_content(content: object) -> str | InvalidRequestError:
    """Like `check_content`, but return the error: the caller's frame must not hold the code."""
    if type(content) is str and is_content(content):
        return content
    text = exact_text(content)
    if text is None:
        why = f", not {type(content).__name__}"
        # Not isinstance: a lazy object's `__class__` may raise.
        if issubclass(type(content), int):
            why += ": an int loses leading zeros, write '0042' in quotes"
    elif is_content(text):
        return text
    elif not text:
        why = "; it is empty"
    elif text.isdigit() and not text.isascii():
        why = "; it has digits that are not ASCII: write them as 0-9"
    elif not (text.isascii() and text.isdigit()):
        why = "; it has characters other than digits"
    else:
        why = f"; it has {len(text)}"
    return InvalidRequestError(f"content must be a str of 4-6 digits{why}")


# --- signing and encoding ---------------------------------------------------


def sign_submit(account: str, api_key: str, mobile: str, content: str, time: str) -> str:
    """The dynamic password of a submit, by the vendor's formula."""
    return _md5(account + api_key + mobile + content + time).hexdigest()


def sign_balance(account: str, api_key: str, time: str) -> str:
    """The dynamic password of a balance query, by the vendor's formula."""
    return _md5(account + api_key + time).hexdigest()


def _md5(text: str) -> hashlib._Hash:
    # The vendor chose MD5. Without the flag, Python builds for FIPS refuse it.
    return hashlib.md5(text.encode(), usedforsecurity=False)


class FormEncoder:
    """Makes the signed forms of one account. It computes the constant parts once.

    Its repr shows no part of the account.
    """

    __slots__ = ("_dynamic", "_head", "_signed_head", "_tail")

    def __init__(
        self,
        account: str,
        api_key: str,
        *,
        dynamic_password: bool = True,
        answer_format: AnswerFormat = "json",
    ) -> None:
        head = f"account={quote_plus(account)}&password="
        self._dynamic = dynamic_password
        self._head = head if dynamic_password else head + quote_plus(api_key)
        self._tail = f"&format={answer_format}"
        self._signed_head = _md5(account + api_key)

    def submit(self, mobile: str, content: str, unix_time: int) -> SignedBody:
        """The body of a submit.

        Args:
            mobile: as `normalize_mobile` returns it: it needs no quoting.
            content: as `check_content` returns it: it needs no quoting.
            unix_time: seconds since 1970, taken just before sending.
        """
        rest = f"&mobile={mobile}&content={content}{self._tail}"
        return self._body(f"{mobile}{content}", unix_time, rest)

    def balance(self, unix_time: int) -> SignedBody:
        """The body of a balance query; `unix_time` as for `submit`."""
        return self._body("", unix_time, self._tail)

    def _body(self, signed: str, unix_time: int, rest: str) -> SignedBody:
        if not self._dynamic:
            return SignedBody(f"{self._head}{rest}".encode())
        digest = self._signed_head.copy()
        digest.update(f"{signed}{unix_time}".encode())
        return SignedBody(f"{self._head}{digest.hexdigest()}{rest}&time={unix_time}".encode())


# --- redaction ----------------------------------------------------------------

_passwords = re.compile(r"[0-9a-f]{32}").finditer
# A secret of at least `_COMPARED` letters and digits is found even with other characters
# between them, and one of at least `_LONG` also inside an id. A shorter one may be there
# by chance.
_COMPARED, _LONG = 4, 8
_REMEMBERED_TEXTS = 64


class Redaction:
    """Masks an account's secrets, and a request's number and code, in the gateway's text.

    Only letters and digits are compared, without their case, script or style, and
    without the blanks and punctuation between them: it finds `139-1234`, `1 3 9` and
    full-width digits. A match is masked from its first to its last character.

    Args:
        secrets: of the account and its proxy, in every spelling. The repr shows
            none of them.
    """

    __slots__ = ("_compared", "_harmless", "_numbers", "_short")

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        compared = {secret: _letters(secret) for secret in secrets if secret}
        self._compared = tuple(dict.fromkeys(c for c in compared.values() if len(c) >= _COMPARED))
        self._short = tuple(secret for secret, c in compared.items() if len(c) < _COMPARED)
        self._numbers = tuple(filter(str.isdigit, self._compared))
        # Printable texts without a digit and without a secret of the account, as in nearly
        # every answer. They cannot contain the number or the code of any request.
        self._harmless: set[str] = set()

    def mask(self, text: str, mobile: str = "", content: str = "") -> str:
        """The text with `****` for each secret, and blanks for control characters.

        Args:
            text: the gateway's text.
            mobile: the request's number, 11 ASCII digits; "" without one.
            content: the request's code, 4-6 ASCII digits; "" without one.
        """
        if text in self._harmless:
            return text
        letters = [_letters_of(character) for character in text]
        compared = "".join(letters)
        # The place in the text of each letter that is compared.
        places = [place for place, some in enumerate(letters) for _ in some]
        spans = [
            (places[at], places[at + len(secret) - 1] + 1)
            for secret in filter(None, (mobile, content, *self._compared))
            for at in _places_of(secret, compared)
        ]
        for secret in self._short:
            spans += [(at, at + len(secret)) for at in _places_of(secret, text)]
        # The signed password is not known here, but no other text looks like one.
        aligned = "".join(some if len(some) == 1 else " " for some in letters)
        spans += [match.span() for match in _passwords(aligned)]
        if spans:
            text = _with_masked(text, sorted(spans))
        if not text.isprintable():
            # Control characters could forge log lines and control terminals.
            return " ".join(_printable(text).split())
        if not spans and len(self._harmless) < _REMEMBERED_TEXTS and not _has_digit(compared):
            self._harmless.add(text)
        return text

    def covers(self, voice_id: str, mobile: str, content: str) -> bool:
        """Whether an id is a secret, or contains a long one; arguments as for `mask`."""
        if voice_id.isdigit():
            # Nearly every id is a number: only secrets that are numbers can be in it.
            letters, secrets = voice_id, self._numbers
        else:
            letters, secrets = _letters(voice_id), self._compared
        if mobile in letters or content == letters or voice_id in self._short:
            return True
        for secret in secrets:
            if secret == letters or (len(secret) >= _LONG and secret in letters):
                return True
        return False


def _places_of(secret: str, text: str) -> Iterator[int]:
    """Where the secret begins in the text; occurrences may overlap."""
    at = text.find(secret)
    while at >= 0:
        yield at
        at = text.find(secret, at + 1)


def _with_masked(text: str, spans: list[tuple[int, int]]) -> str:
    masked, done = "", 0
    for begin, end in spans:
        if begin >= done:
            masked += f"{text[done:begin]}****"
        done = max(done, end)
    return masked + text[done:]


_has_digit = re.compile(r"[0-9]").search


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _letters(text: str) -> str:
    return "".join(map(_letters_of, text))


@lru_cache(maxsize=4096)
def _letters_of(character: str) -> str:
    """The letters and digits that a character is compared as; "" for any other character."""
    letters = ""
    for letter in unicodedata.normalize("NFKC", character).casefold():
        value = unicodedata.numeric(letter, -1.0)
        if value in range(10):
            letters += str(int(value))
        elif letter.isalnum():
            letters += letter
    return letters


# --- decoding ---------------------------------------------------------------

_is_integer = re.compile(r"-?[0-9]{1,18}").fullmatch
_whole_number = re.compile(r"(-?[0-9]{1,18})(?:\.0*)?").fullmatch
# Longer than any id that was seen, and shorter than a signed password.
_is_id = re.compile(r"[!-~]{1,31}").fullmatch
_ID_NAMES = ("voiceid", "smsid")
_bare_ids = re.compile(rb'"(voiceid|smsid)"\s*:\s*([0-9]{18,40})(?![0-9.eE])').findall
_is_no_id = re.compile(r"[+-]?0*(?:\.0*)?").fullmatch


def decode_submit(
    answer: Answer,
    mobile: str,
    content: str,
    unix_time: int,
    redaction: Redaction,
) -> SubmitResult | IhuyiVoiceError:
    """The result or the error that the gateway's answer to a submit means.

    Args:
        answer: as received: JSON or XML, independent of the format asked for.
        mobile: the number that was called, as `normalize_mobile` returned it.
        content: the code, as `check_content` returned it.
        unix_time: the local clock in seconds when the request was signed; it is
            compared with the answer's `Date`.
        redaction: masks secrets in the gateway's text.

    Returns:
        The result if the gateway answered code 2; for any other code, a
        GatewayError of the class for that code. An OutcomeUnknownError if the
        answer cannot be read or contradicts itself.
    """
    try:
        fields, code = _read(answer)
    except _UnreadableError as error:
        return OutcomeUnknownError(str(error))
    voice_id = _voice_id(fields, redaction, mobile, content)
    msg = _msg(fields, redaction, mobile, content)
    if code == ACCEPTED:
        return SubmitResult(voice_id, msg, mobile)
    refusal = _refusal(code, msg, answer, unix_time)
    if code not in CODES and _has_id(fields):
        named = "an id" if voice_id is None else f"the id {voice_id}"
        return OutcomeUnknownError(
            f"the gateway answered code {code}, which the voice product does not document, with"
            f" {named}, which only a submit that succeeded has (its text: {msg!r})"
        )
    return refusal


def decode_balance(
    answer: Answer, unix_time: int, redaction: Redaction
) -> Balance | IhuyiVoiceError:
    """The balance in the gateway's answer; arguments and errors as for `decode_submit`.

    An OutcomeUnknownError of a balance query says that no phone was involved.
    """
    try:
        fields, code = _read(answer)
        msg = _msg(fields, redaction)
        if code == ACCEPTED:
            return Balance(_remaining(fields), msg)
    except _UnreadableError as error:
        return OutcomeUnknownError(str(error), may_have_rung=False)
    return _refusal(code, msg, answer, unix_time)


class _UnreadableError(Exception):
    """Why an answer cannot be read; never leaves this module."""


def _read(answer: Answer) -> tuple[Mapping[str, object], int]:
    """The fields of an answer and the code among them."""
    try:
        # A redirect is not followed, and its body is not the gateway's answer.
        if 300 <= answer.status < 400:
            msg = "a redirect is not an answer"
            raise _UnreadableError(msg)  # noqa: TRY301 - worded below like the others
        fields = _fields(answer.body)
        return fields, _code(fields)
    except _UnreadableError as error:
        msg = f"HTTP status {answer.status}, no readable answer ({error})"
        raise _UnreadableError(msg) from None


def _refusal(code: int, msg: str, answer: Answer, unix_time: int) -> GatewayError:
    refusal = gateway_error(code, msg)
    if isinstance(refusal, AuthenticationError) and answer.date:
        return gateway_error(code, msg, _clock_hint(answer.date, unix_time))
    return refusal


def _fields(body: bytes) -> Mapping[str, object]:
    """The answer's fields by local name; the first byte decides between JSON and XML."""
    if len(body) > MAX_ANSWER_BYTES:
        msg = f"it is longer than {MAX_ANSWER_BYTES} bytes"
        raise _UnreadableError(msg)
    text = body.removeprefix(b"\xef\xbb\xbf").strip()
    if text.startswith(b"{"):
        return _json_fields(text)
    if text.startswith(b"<"):
        return _xml_fields(text)
    msg = "it is neither JSON nor XML" if text else "it is empty"
    raise _UnreadableError(msg)


def _json_fields(body: bytes) -> Mapping[str, object]:
    try:
        # Nearly every answer is UTF-8, which orjson reads directly.
        return _keep_long_ids(orjson.loads(body), body)
    except orjson.JSONDecodeError:
        pass
    for text in _readings(body):
        with contextlib.suppress(orjson.JSONDecodeError):
            return _keep_long_ids(orjson.loads(text), text.encode())
    msg = "it is not valid JSON"
    raise _UnreadableError(msg)


def _keep_long_ids(fields: dict[str, object], text: bytes) -> dict[str, object]:
    """Replace ids that became floats, being longer than 64 bits, by their digits in the text."""
    for name in _ID_NAMES:
        value = fields.get(name)
        if isinstance(value, float):
            found = ((n.decode(), d.decode()) for n, d in _bare_ids(text))
            # Without its digits it stays a float: there is an id, and it cannot be read.
            fields[name] = next((d for n, d in found if n == name and float(d) == value), value)
    return fields


def _readings(body: bytes) -> Iterator[str]:
    """The body as text: in its own charset, or else with undecodable bytes replaced."""
    charset = charset_of(body)
    if charset is not None:
        yield body.decode(charset)
    yield body.decode("utf-8", "replace")
    # Needed where the second byte of a GBK character is a backslash.
    yield body.decode("gb18030", "replace")


def _xml_fields(body: bytes) -> Mapping[str, object]:
    # Only an XML answer needs them: a client that asks for JSON does not load them.
    from xml.parsers.expat import ExpatError  # noqa: PLC0415 - see above

    import xmltodict  # noqa: PLC0415 - see above

    if b"<!DOCTYPE" in body or b"<!ENTITY" in body:
        msg = "it declares a document type or an entity"
        raise _UnreadableError(msg)
    for text in _readings(body):
        try:
            # As a str, it is parsed as UTF-8 even if it declares another encoding.
            document = xmltodict.parse(text, xml_attribs=False)
        except (ExpatError, ValueError):
            continue
        root = next(iter(document.values()))
        if isinstance(root, dict):
            return {name.rpartition(":")[2]: value for name, value in root.items()}
        break
    msg = "it is not the XML of an answer"
    raise _UnreadableError(msg)


def _code(fields: Mapping[str, object]) -> int:
    value = fields.get("code")
    if type(value) is int:
        return value
    if isinstance(value, str) and _is_integer(value.strip()):
        return int(value)
    msg = "it has no code" if value is None else "its code is not a number"
    raise _UnreadableError(msg)


def _msg(
    fields: Mapping[str, object], redaction: Redaction, mobile: str = "", content: str = ""
) -> str:
    value = fields.get("msg")
    return redaction.mask(value, mobile, content) if isinstance(value, str) else ""


def _voice_id(
    fields: Mapping[str, object], redaction: Redaction, mobile: str, content: str
) -> str | None:
    """The answer's id; None if it is missing, unreadable, or contains a secret."""
    for name in _ID_NAMES:
        value = fields.get(name)
        text = str(value).strip() if type(value) in (str, int) else ""
        if text.strip("0") and _is_id(text) and not redaction.covers(text, mobile, content):
            return text
    return None


def _has_id(fields: Mapping[str, object]) -> bool:
    """Whether the answer has an id, readable or not. Absent, empty and 0 are no id."""
    values = (fields.get(name) for name in _ID_NAMES)
    return any(value and not _is_no_id(str(value).strip()) for value in values)


def _clock_hint(date: str, unix_time: int) -> str:
    """How wrong the local clock is by the answer's `Date` header; "" within a minute."""
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 - rarely needed

    try:
        gateway_time = parsedate_to_datetime(date)
    except (TypeError, ValueError, OverflowError):
        return ""
    if gateway_time.tzinfo is None:
        # `timestamp` would take it for local time, which may be hours off.
        return ""
    ahead = round(unix_time - gateway_time.timestamp())
    if abs(ahead) <= 60:
        return ""
    way = "ahead of" if ahead > 0 else "behind"
    return f"the local clock is {abs(ahead)} s {way} the gateway's: set it right"


def _remaining(fields: Mapping[str, object]) -> int:
    value = fields.get("num")
    # 20023.0 in JSON is a float.
    number = str(value).strip() if isinstance(value, int | float | str) else ""
    if match := _whole_number(number):
        return int(match[1])
    msg = "the answer has no readable balance"
    raise _UnreadableError(msg)
