"""What a receipt says, pure: read from the fields of a form or from its body.

No clock, no I/O, no event loop, no logging. Users import all of this from
`receipts.py`; its docstring says what a receipt does not prove.

Facts used here are those of the vendor's SMS manual; the voice product's are not
published. A form has `code` (2 = delivered), `msg`, `mobilephone`, an id under
one of several names, and `report_time`, in Beijing time without a zone. The code
may also be a text of an operator or an aggregator, such as `DB:0142`.

A receipt that is refused three times is lost. So a value that cannot be read is
kept as it came; only a form that names no call is refused.

Forms hold whole numbers, and tools print the variables of every frame that an
exception passes. So what reads a form raises nothing: it returns the error.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from ..models import mask_mobile

if TYPE_CHECKING:
    from collections.abc import Iterator

DELIVERED = frozenset({"2", "DELIVRD"})
"""The codes that mean delivered: the vendor's, and that of the SMPP standard."""

BEIJING = timezone(timedelta(hours=8), "UTC+8")
"""The zone of a receipt's time; China has had no summer time since 1991."""

_MAX_FIELDS = 100

# What a log line shows of a code, in characters.
_MAX_SHOWN = 40

# Telephone numbers have as many digits; dates and codes mostly have fewer.
_SHORTEST_MOBILE = 7

_ID_NAMES = ("voiceid", "smsid", "task_id", "taskid")
_MOBILE_NAMES = ("mobilephone", "mobile")

# [0-9], not \d: in a str pattern \d also takes the digits of other scripts.
# Other products of the family name a task with 32 hex digits, or a UUID.
_is_id = re.compile(r"[!-~]{1,64}").fullmatch
_is_mainland_mobile = re.compile(r"(?:\+86|0086|86)?(1[3-9][0-9]{9})").fullmatch
_mainland_mobiles = re.compile(r"1[3-9][0-9]{9}").findall
_blanks_and_hyphens = re.compile(r"[ -]+")
_is_time = re.compile(
    r"([0-9]{4})[-/]([0-9]{1,2})[-/]([0-9]{1,2})[ T]+([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?"
    r"|([0-9]{4})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})"
).fullmatch

_SEPARATORS = r"[\s().-]*"
_separators = re.compile(_SEPARATORS)
_numbers = re.compile(rf"1{_SEPARATORS}[3-9](?:{_SEPARATORS}[0-9]){{9}}|[0-9]{{7,}}").finditer
_is_plain = re.compile(r"[A-Za-z0-9:.,;/+_*-]+").fullmatch


class InvalidReceiptError(ValueError):
    """What came is not a receipt. The text names the field and shows no value of it.

    Not an `IhuyiVoiceError`: those state the outcome of a request.
    """


class ReceiptFields(Mapping[str, str]):
    """The fields of a form as they came, to be read only.

    Its repr shows none of them: among them is a number.
    """

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, str]) -> None:
        self._fields = dict(fields)

    def __getitem__(self, name: str) -> str:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return f"<{len(self)} fields>"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the gateway says about the end of a call: a hint, not proof (see the module).

    Attributes:
        voice_id: the id that `SubmitResult.voice_id` had, kept to the digit;
            None where there was none, or none of 1 to 64 ASCII characters
            without blanks.
        mobile: the number: 11 digits where it is one mainland number, with
            or without blanks, hyphens and a prefix +86, 0086 or 86. Anything
            else is kept as it came and may hold any character. None where
            there was none.
        delivered: whether `code` is `2` or `DELIVRD`. False does not mean that
            no phone rang.
        code: the receipt's code as it came, without the blanks around it; of
            another vocabulary than a submit's, and not always a number:
            `DB:0142`. It may hold any character. Empty where there was none.
        msg: the gateway's own words; do not match on them.
        reported_at: when, aware, in Beijing time; None where it was not said
            or cannot be read.
        raw: every field, under the name and with the value that it came with.
    """

    voice_id: str | None
    mobile: str | None
    delivered: bool
    code: str
    msg: str
    reported_at: datetime | None
    raw: ReceiptFields = field(hash=False)

    def __repr__(self) -> str:
        return (
            f"Receipt(voice_id={self._quiet_id()!r}, mobile={self._quiet_mobile()!r},"
            f" delivered={self.delivered}, code={self._quiet(self.code)!r},"
            f" msg={self._quiet(self.msg)!r}, reported_at={self.reported_at!r}, raw={self.raw!r})"
        )

    def log_text(self) -> str:
        """What a log may say of it, in one line: `139****5678 code=2 voice_id=197362477`."""
        code = self._quiet(self.code)
        if len(code) > _MAX_SHOWN:
            code = f"{code[:_MAX_SHOWN]}…"
        # Quoted, it passes neither for another line nor for another field of this one.
        shown = code if _is_plain(code) else repr(code)
        return f"{self._quiet_mobile()} code={shown} voice_id={self._quiet_id()}"

    def _quiet_mobile(self) -> str | None:
        return None if self.mobile is None else mask_mobile(self.mobile)

    def _quiet_id(self) -> str | None:
        """The id without the number, which some may put there; ids have many digits too."""
        if self.voice_id is None or self.mobile is None:
            return self.voice_id
        text = self._without_mobile(self.voice_id)
        for number in _mainland_mobiles(_separators.sub("", _ascii_digits(self.mobile))):
            text = text.replace(number, mask_mobile(number))
        return text

    def _quiet(self, text: str) -> str:
        """The text without numbers, whatever the digits and however they are spaced."""
        text = self._without_mobile(text)
        shown, end = "", 0
        for found in _numbers(_ascii_digits(text)):
            shown += text[end : found.start()] + mask_mobile(_separators.sub("", found[0]))
            end = found.end()
        return shown + text[end:]

    def _without_mobile(self, text: str) -> str:
        # One or two characters are no number, and would be found everywhere.
        if self.mobile is None or len(self.mobile) < _SHORTEST_MOBILE:
            return text
        return text.replace(self.mobile, mask_mobile(self.mobile))


def _ascii_digits(text: str) -> str:
    """The text with `0` to `9` in the place of full-width and other digits, one for one."""
    if text.isascii():
        return text
    return "".join(str(unicodedata.digit(c, c)) for c in text)


def parse_receipt(form: Mapping[str, object]) -> Receipt:
    """Read a receipt that the gateway has pushed.

    Args:
        form: the fields by their names: a dict, or what aiohttp, Starlette,
            FastAPI, Django or `urllib.parse.parse_qs` make of a form. A value,
            `form[name]`, is a str, or a list of str, of which the last counts;
            any other (an uploaded file) is left out. The case of names does
            not matter.

    Returns:
        The receipt. The id is taken from the first of `voiceid`, `smsid`,
        `task_id` and `taskid` that has one, the number from `mobilephone` or
        `mobile`, the time from `report_time`. A code, a time or a number that
        cannot be read is kept as it came.

    Raises:
        InvalidReceiptError: there is neither an id nor a number, so that the
            receipt names no call.
    """
    receipt = _read(form)
    del form
    if isinstance(receipt, InvalidReceiptError):
        raise receipt
    return receipt


def read_receipt(body: bytes) -> Receipt | InvalidReceiptError:
    """The receipt in the body of a POST: a form in UTF-8 or, failing that, in GBK.

    Returned, not raised, is the error that `parse_receipt` raises, or that of
    more fields than any receipt has.
    """
    try:
        # By way of Latin-1 each byte stays itself, whether it was quoted or not.
        pairs = parse_qsl(
            body.decode("latin-1"),
            keep_blank_values=True,
            encoding="latin-1",
            max_num_fields=_MAX_FIELDS,
        )
    except ValueError:
        return InvalidReceiptError(f"it has more than {_MAX_FIELDS} fields")
    everything = "".join(name + value for name, value in pairs).encode("latin-1")
    encoding = _encoding(everything)
    return _read({_recoded(name, encoding): _recoded(value, encoding) for name, value in pairs})


def _encoding(everything: bytes) -> str:
    for encoding in ("utf-8", "gb18030"):
        try:
            everything.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    return "utf-8"


def _recoded(text: str, encoding: str) -> str:
    return text.encode("latin-1").decode(encoding, "replace")


def _read(form: Mapping[str, object]) -> Receipt | InvalidReceiptError:
    raw = ReceiptFields(dict(_texts(form)))
    fields = {name.strip().lower(): value.strip() for name, value in raw.items()}
    # An id that no submit can have had names a call all the same.
    has_id = any(fields.get(name, "").strip("0") for name in _ID_NAMES)
    mobile = _mobile(fields)
    if not has_id and mobile is None:
        return InvalidReceiptError("it has neither an id nor a mobile number: it names no call")
    code = fields.get("code", "")
    return Receipt(
        _voice_id(fields),
        mobile,
        code in DELIVERED,
        code,
        _msg(fields),
        _reported_at(fields),
        raw,
    )


def _texts(form: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for name in form:
        value = form[name]
        if isinstance(value, list | tuple) and value:
            value = value[-1]
        if isinstance(name, str) and isinstance(value, str):
            yield name, value


def _voice_id(fields: Mapping[str, str]) -> str | None:
    """As a submit's answer has it: `0`, empty and absent all mean "no id"."""
    for name in _ID_NAMES:
        text = fields.get(name, "")
        if text.strip("0") and _is_id(text):
            return text
    return None


def _mobile(fields: Mapping[str, str]) -> str | None:
    text = next((fields[name] for name in _MOBILE_NAMES if fields.get(name)), None)
    if text is not None and (match := _is_mainland_mobile(_blanks_and_hyphens.sub("", text))):
        return match[1]
    return text


def _msg(fields: Mapping[str, str]) -> str:
    text = fields.get("msg", "")
    if text.isprintable():
        return text
    # Control characters would forge log lines and steer terminals.
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _reported_at(fields: Mapping[str, str]) -> datetime | None:
    if match := _is_time(fields.get("report_time", "")):
        parts = [*map(int, filter(None, match.groups())), 0]
        year, month, day, hour, minute, second = parts[:6]
        try:
            return datetime(year, month, day, hour, minute, second, tzinfo=BEIJING)
        except ValueError:
            # No such day or hour.
            return None
    return None
