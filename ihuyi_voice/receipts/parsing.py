"""Reads a receipt from the fields of a form or from the body of a request.

Pure: no clock, no I/O, no event loop, no logging. Users import the public names from
`ihuyi_voice.receipts`; `handlers.py` says what a receipt does not prove.

The facts are from the vendor's SMS manual; those of the voice product are not
published. A form has `code` (2 = delivered), `msg`, `mobilephone`, an id under
one of several names, and `report_time`, in Beijing time without a zone. The code
may also be a text of an operator or an aggregator, such as `DB:0142`.

The gateway gives up after three refusals, and the receipt is lost. So a value that
cannot be read is kept as is; only a form that names no call is refused.

Forms hold whole numbers, and tools print the variables of every frame that an
exception passes. So the functions that read a form return an error instead of raising it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from ..models import BEIJING, MOBILE_PATTERN, MOBILE_PREFIX, charset_of, mask_mobile

if TYPE_CHECKING:
    from collections.abc import Iterator

DELIVERED = frozenset({"2", "DELIVRD"})
"""The codes that mean delivered: the vendor's and the SMPP standard's."""

_MAX_FIELDS = 100

# Characters of a code that a log line shows.
_MAX_SHOWN = 40

# Digits of the shortest telephone numbers; most dates and codes have fewer.
_SHORTEST_MOBILE = 7

_ID_NAMES = ("voiceid", "smsid", "task_id", "taskid")
_MOBILE_NAMES = ("mobilephone", "mobile")

# Other products of the family name a task with 32 hex digits, or a UUID.
_is_id = re.compile(r"[!-~]{1,64}").fullmatch
_is_mainland_mobile = re.compile(rf"{MOBILE_PREFIX}?({MOBILE_PATTERN})").fullmatch
_mainland_mobiles = re.compile(MOBILE_PATTERN).findall
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
    """The form is not a receipt. The text names the field and never its value.

    Not an `IhuyiVoiceError`, because those state the outcome of a request.
    """


class ReceiptFields(Mapping[str, str]):
    """The unchanged fields of a form, read-only.

    Its repr hides them, because one of them is a number.
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
    """What the gateway reports about a call that has ended: a hint, not proof.

    Attributes:
        voice_id: the id that `SubmitResult.voice_id` had, digit for digit;
            None where there was none, or none of 1 to 64 ASCII characters
            without blanks.
        mobile: the number: 11 digits where it is one mainland number, with
            or without blanks, hyphens and a prefix +86, 0086 or 86. Any other
            text is kept as is and may hold any character. None where
            there was none.
        delivered: whether `code` is `2` or `DELIVRD`. False does not mean that
            no phone rang.
        code: the receipt's code without the blanks around it. These codes differ
            from a submit's and are not always numbers: `DB:0142`. It may hold any
            character. Empty where there was none.
        msg: the gateway's text; do not match on it.
        reported_at: an aware datetime in Beijing time; None where it is missing
            or cannot be read.
        raw: every field with its original name and value.
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
        """One line for a log: `139****5678 code=2 voice_id=197362477`."""
        code = self._quiet(self.code)
        if len(code) > _MAX_SHOWN:
            code = f"{code[:_MAX_SHOWN]}…"
        # Quoted, it cannot look like another line or another field of this one.
        shown = code if _is_plain(code) else repr(code)
        return f"{self._quiet_mobile()} code={shown} voice_id={self._quiet_id()}"

    def _quiet_mobile(self) -> str | None:
        return None if self.mobile is None else mask_mobile(self.mobile)

    def _quiet_id(self) -> str | None:
        """The id, with the receipt's own number masked. Other digits are the id's."""
        if self.voice_id is None or self.mobile is None:
            return self.voice_id
        text = self._without_mobile(self.voice_id)
        for number in _mainland_mobiles(_separators.sub("", _ascii_digits(self.mobile))):
            text = text.replace(number, mask_mobile(number))
        return text

    def _quiet(self, text: str) -> str:
        """The text with all numbers masked, in any script's digits and any spacing."""
        text = self._without_mobile(text)
        shown, end = "", 0
        for found in _numbers(_ascii_digits(text)):
            shown += text[end : found.start()] + mask_mobile(_separators.sub("", found[0]))
            end = found.end()
        return shown + text[end:]

    def _without_mobile(self, text: str) -> str:
        # A shorter text is not a number and would be found everywhere.
        if self.mobile is None or len(self.mobile) < _SHORTEST_MOBILE:
            return text
        return text.replace(self.mobile, mask_mobile(self.mobile))


def _ascii_digits(text: str) -> str:
    """The text with full-width and other digits replaced by `0` to `9`, one for one."""
    if text.isascii():
        return text
    return "".join(str(unicodedata.digit(c, c)) for c in text)


def parse_receipt(form: Mapping[str, object]) -> Receipt:
    """Read a receipt that the gateway has sent.

    Args:
        form: the fields by name: a dict, or the form object of aiohttp, Starlette,
            FastAPI, Django or `urllib.parse.parse_qs`. A value,
            `form[name]`, is a str, or a list of str, of which the last counts;
            any other (an uploaded file) is ignored, as is the case of names.

    Returns:
        The receipt. The id is taken from the first of `voiceid`, `smsid`,
        `task_id` and `taskid` that has one, the number from `mobilephone` or
        `mobile`, the time from `report_time`. A code, a time or a number that
        cannot be read is kept as is.

    Raises:
        InvalidReceiptError: there is neither an id nor a number, so the
            receipt names no call.
    """
    receipt = _read(form)
    del form
    if isinstance(receipt, InvalidReceiptError):
        raise receipt
    return receipt


def read_receipt(body: bytes) -> Receipt | InvalidReceiptError:
    """The receipt in the body of a POST: a form in UTF-8 or, failing that, in GBK.

    It returns the error that `parse_receipt` raises, and one for too many fields.
    """
    try:
        # Latin-1 keeps each byte, percent-encoded or not.
        pairs = parse_qsl(
            body.decode("latin-1"),
            keep_blank_values=True,
            encoding="latin-1",
            max_num_fields=_MAX_FIELDS,
        )
    except ValueError:
        return InvalidReceiptError(f"it has more than {_MAX_FIELDS} fields")
    everything = "".join(name + value for name, value in pairs).encode("latin-1")
    charset = charset_of(everything) or "utf-8"
    return _read({_recoded(name, charset): _recoded(value, charset) for name, value in pairs})


def _recoded(text: str, charset: str) -> str:
    return text.encode("latin-1").decode(charset, "replace")


def _read(form: Mapping[str, object]) -> Receipt | InvalidReceiptError:
    raw = ReceiptFields(dict(_texts(form)))
    fields = {name.strip().lower(): value.strip() for name, value in raw.items()}
    # An id of another form than a submit's still names a call.
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
    """As in the answer to a submit, `0`, empty and absent all mean "no id"."""
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
    # Control characters could forge log lines and control terminals.
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _reported_at(fields: Mapping[str, str]) -> datetime | None:
    if match := _is_time(fields.get("report_time", "")):
        parts = [*map(int, filter(None, match.groups())), 0]
        year, month, day, hour, minute, second = parts[:6]
        try:
            return datetime(year, month, day, hour, minute, second, tzinfo=BEIJING)
        except ValueError:
            # There is no such day or hour.
            return None
    return None
