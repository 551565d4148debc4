"""The gateway's language, pure: check, sign, encode a form, decode an answer.

No clock (the time is an argument), no I/O, no event loop, no logging. What the
gateway sends is read with tolerance, what is sent to it is checked strictly.

Facts used here, all documented by the vendor or met in several running
programs unless the line says otherwise:

- POST `/webservice/voice.php?method=Submit` or `?method=GetNum`, a UTF-8 form.
- The dynamic password is lower-case hex MD5 over UTF-8 without separators, of
  account + key + mobile + content + time for a submit, of account + key + time
  for a balance query; `time` is Unix seconds in 10 digits and goes with it.
- Ids have up to 20 digits and may come quoted or bare, as `voiceid` or `smsid`;
  `0`, `"0"`, empty and absent all mean "no id".
- An answer that declares utf-8 and holds GBK was seen once: the code must
  survive a text that cannot be decoded.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from typing import TYPE_CHECKING
from urllib.parse import quote_plus

import orjson

from .errors import (
    ACCEPTED,
    AuthenticationError,
    InvalidRequestError,
    OutcomeUnknownError,
    gateway_error,
)
from .models import Balance, SubmitResult

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .models import Answer, AnswerFormat

PATH = "/webservice/voice.php"
SUBMIT_TARGET = f"{PATH}?method=Submit"
BALANCE_TARGET = f"{PATH}?method=GetNum"
CONTENT_TYPE = "application/x-www-form-urlencoded"

MAX_ANSWER_BYTES = 64 * 1024
"""No answer of the gateway comes near it; a longer one is not read."""

# --- checks -----------------------------------------------------------------

# [0-9], not \d: in a str pattern \d also takes the digits of other scripts.
_is_mobile = re.compile(r"1[3-9][0-9]{9}").fullmatch
_is_content = re.compile(r"[0-9]{4,6}").fullmatch
_is_prefixed_mobile = re.compile(r"(?:\+86|0086|86)(1[3-9][0-9]{9})").fullmatch
_blanks_and_hyphens = re.compile(r"[\s-]+")


def check_mobile(mobile: object) -> str:
    """The number as the gateway takes it: 11 ASCII digits.

    Blanks, hyphens and a +86/0086/86 prefix are stripped first.

    Raises:
        InvalidRequestError: saying what is wrong, without showing the number.
    """
    if type(mobile) is str and _is_mobile(mobile):
        return mobile
    if not isinstance(mobile, str):
        msg = (
            f"mobile must be a str with one number, not {type(mobile).__name__}"
            "; submit once per number"
        )
        raise InvalidRequestError(msg)
    bare = _blanks_and_hyphens.sub("", mobile)
    if _is_mobile(bare):
        return bare
    if match := _is_prefixed_mobile(bare):
        return match[1]
    raise InvalidRequestError(_what_is_wrong_with_mobile(bare))


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
    if type(content) is str and _is_content(content):
        return content
    expected = "content must be a str of 4-6 digits"
    if not isinstance(content, str):
        why = f"not {type(content).__name__}"
        if isinstance(content, int):
            why += ": an int loses leading zeros, write '0042' in quotes"
        msg = f"{expected}, {why}"
    elif _is_content(content):
        return str.__str__(content)
    elif not content:
        msg = f"{expected}; it is empty"
    elif content.isdigit() and not content.isascii():
        msg = f"{expected}; it has digits that are not ASCII: write them as 0-9"
    elif not (content.isascii() and content.isdigit()):
        msg = f"{expected}; it has characters other than digits"
    else:
        msg = f"{expected}; it has {len(content)}"
    raise InvalidRequestError(msg)


# --- signing and encoding ---------------------------------------------------


def sign_submit(account: str, api_key: str, mobile: str, content: str, time: str) -> str:
    """The dynamic password of a submit, by the vendor's formula."""
    return _md5(account + api_key + mobile + content + time).hexdigest()


def sign_balance(account: str, api_key: str, time: str) -> str:
    """The dynamic password of a balance query, by the vendor's formula."""
    return _md5(account + api_key + time).hexdigest()


def _md5(text: str) -> hashlib._Hash:
    # The vendor chose MD5; saying that it guards nothing lets FIPS builds run it.
    return hashlib.md5(text.encode(), usedforsecurity=False)


class FormEncoder:
    """Writes the signed form of one account; what never changes is done once.

    Its repr shows nothing of the account.
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

    def submit(self, mobile: str, content: str, unix_time: int) -> bytes:
        """The body of a submit.

        Args:
            mobile: as `check_mobile` returns it, so that nothing needs quoting.
            content: as `check_content` returns it, likewise.
            unix_time: seconds since 1970, taken just before sending.
        """
        rest = f"&mobile={mobile}&content={content}{self._tail}"
        return self._body(f"{mobile}{content}", unix_time, rest)

    def balance(self, unix_time: int) -> bytes:
        """The body of a balance query; `unix_time` as in `submit`."""
        return self._body("", unix_time, self._tail)

    def _body(self, signed: str, unix_time: int, rest: str) -> bytes:
        if not self._dynamic:
            return f"{self._head}{rest}".encode()
        digest = self._signed_head.copy()
        digest.update(f"{signed}{unix_time}".encode())
        return f"{self._head}{digest.hexdigest()}{rest}&time={unix_time}".encode()


# --- decoding ---------------------------------------------------------------

_is_integer = re.compile(r"-?[0-9]{1,18}").fullmatch
_whole_number = re.compile(r"(-?[0-9]{1,18})(?:\.0*)?").fullmatch
# Longer than any id that was met, and shorter than a signed password.
_is_id = re.compile(r"[!-~]{1,31}").fullmatch
_ID_NAMES = ("voiceid", "smsid")
_bare_ids = re.compile(rb'"(voiceid|smsid)"\s*:\s*([0-9]{18,40})(?![0-9.eE])').findall
_is_spelt_out = re.compile(r"[0-9][\s-]+[0-9]").search
_hide_passwords = re.compile(r"[0-9a-fA-F]{32}").sub


class _UnreadableError(Exception):
    """Why an answer cannot be read; never leaves this module."""


def decode_submit(
    answer: Answer, mobile: str, unix_time: int, hide: tuple[str, ...] = ()
) -> SubmitResult:
    """What the gateway says became of a submit.

    Args:
        answer: as received, JSON or XML whatever was asked for.
        mobile: the number that was called, as `check_mobile` returned it.
        unix_time: the local clock in seconds, to be held against the answer's.
        hide: strings that must not come back out of the gateway's words.

    Returns:
        The result when the gateway answered code 2.

    Raises:
        GatewayError: of the class that goes with any other code.
        OutcomeUnknownError: the answer cannot be read.
    """
    try:
        fields = _read_accepted(answer, unix_time, hide)
        return SubmitResult(_voice_id(fields, hide), _msg(fields, hide), mobile)
    except _UnreadableError as error:
        reason = str(error)
    raise OutcomeUnknownError(reason)


def decode_balance(answer: Answer, unix_time: int, hide: tuple[str, ...] = ()) -> Balance:
    """What the gateway says is left; arguments and errors as `decode_submit`.

    An OutcomeUnknownError of a balance query says that no phone was involved.
    """
    try:
        fields = _read_accepted(answer, unix_time, hide)
        return Balance(_remaining(fields), _msg(fields, hide))
    except _UnreadableError as error:
        reason = str(error)
    raise OutcomeUnknownError(reason, may_have_rung=False)


def _read_accepted(answer: Answer, unix_time: int, hide: tuple[str, ...]) -> Mapping[str, object]:
    try:
        # A redirect is not followed and its body is nobody's answer.
        if 300 <= answer.status < 400:
            msg = "a redirect is not an answer"
            raise _UnreadableError(msg)  # noqa: TRY301 - worded below like the others
        fields = _fields(answer.body)
        code = _code(fields)
    except _UnreadableError as error:
        msg = f"HTTP status {answer.status}, no readable answer ({error})"
        raise _UnreadableError(msg) from None
    if code == ACCEPTED:
        return fields
    refusal = gateway_error(code, _msg(fields, hide))
    if isinstance(refusal, AuthenticationError) and answer.date:
        hint = _clock_hint(answer.date, unix_time)
        refusal = gateway_error(code, refusal.msg, hint)
    raise refusal


def _fields(body: bytes) -> Mapping[str, object]:
    """The answer's fields by local name; the first byte tells JSON from XML."""
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
        # Nearly every answer is UTF-8, which orjson reads as it stands.
        return _keep_long_ids(orjson.loads(body), body)
    except orjson.JSONDecodeError:
        pass
    for text in _readings(body):
        with contextlib.suppress(orjson.JSONDecodeError):
            return _keep_long_ids(orjson.loads(text), text.encode())
    msg = "it is not valid JSON"
    raise _UnreadableError(msg)


def _keep_long_ids(fields: dict[str, object], text: bytes) -> dict[str, object]:
    """Bare ids beyond 64 bits have become floats: take their digits from the text."""
    for name in _ID_NAMES:
        value = fields.get(name)
        if isinstance(value, float):
            found = ((n.decode(), d.decode()) for n, d in _bare_ids(text))
            fields[name] = next((d for n, d in found if n == name and float(d) == value), None)
    return fields


def _readings(body: bytes) -> Iterator[str]:
    """The body as text: the charset it should have, one it was seen to have, the rest."""
    for encoding in ("utf-8", "gb18030"):
        try:
            yield body.decode(encoding)
        except UnicodeDecodeError:  # noqa: PERF203 - two rounds
            continue
    yield body.decode("utf-8", "replace")
    # Of use where the second byte of a GBK character is a backslash.
    yield body.decode("gb18030", "replace")


def _xml_fields(body: bytes) -> Mapping[str, object]:
    # Both are of use here alone, and an account asked for JSON never pays for them.
    from xml.parsers.expat import ExpatError  # noqa: PLC0415 - see above

    import xmltodict  # noqa: PLC0415 - see above

    if b"<!DOCTYPE" in body or b"<!ENTITY" in body:
        msg = "it declares a document type or an entity"
        raise _UnreadableError(msg)
    for text in _readings(body):
        try:
            # A str is parsed as UTF-8, whatever encoding the document declares.
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


def _msg(fields: Mapping[str, object], hide: tuple[str, ...]) -> str:
    value = fields.get("msg")
    if not isinstance(value, str):
        return ""
    # The signed password first, because another secret may be a part of it.
    if len(value) >= 32:
        value = _hide_passwords("****", value)
    for secret in hide:
        if secret in value:
            value = value.replace(secret, "****")
    if _is_spelt_out(value):
        for secret in filter(str.isdecimal, hide):
            # A number or a code may come back with blanks or hyphens between its digits.
            value = re.sub(r"[\s-]*".join(secret), "****", value)
    # Control characters would forge log lines and steer terminals.
    return value if value.isprintable() else " ".join(_printable(value).split())


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _voice_id(fields: Mapping[str, object], hide: tuple[str, ...]) -> str | None:
    for name in _ID_NAMES:
        value = fields.get(name)
        text = str(value).strip() if type(value) in (str, int) else ""
        if text.strip("0") and _is_id(text) and text not in hide:
            return text
    return None


def _clock_hint(date: str, unix_time: int) -> str:
    """What an answer's `Date` header says of the local clock, when that is news."""
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 - rarely needed

    try:
        gateway_time = parsedate_to_datetime(date)
    except (TypeError, ValueError, OverflowError):
        return ""
    if gateway_time.tzinfo is None:
        # It would be read in this machine's own zone, and be hours off.
        return ""
    ahead = round(unix_time - gateway_time.timestamp())
    if abs(ahead) <= 60:
        return ""
    way = "ahead of" if ahead > 0 else "behind"
    return f"the local clock is {abs(ahead)} s {way} the gateway's: set it right"


def _remaining(fields: Mapping[str, object]) -> int:
    value = fields.get("num")
    # A float is what a bare 20023.0 has become.
    number = str(value).strip() if isinstance(value, int | float | str) else ""
    if match := _whole_number(number):
        return int(match[1])
    msg = "the answer has no readable balance"
    raise _UnreadableError(msg)
