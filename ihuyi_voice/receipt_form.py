"""What a receipt says, pure: read from the fields of a form or from its body.

No clock, no I/O, no event loop, no logging. `receipts.py`, whose docstring
tells what a receipt does not prove, is where users import all of this from.

Facts used here are those of the vendor's SMS manual; the voice product's are not
published. A form has `code` (2 = delivered), `msg`, `mobilephone`, an id under
one of several names, and `report_time`, in Beijing time without a zone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from .models import mask_mobile

if TYPE_CHECKING:
    from collections.abc import Iterator

DELIVERED = 2
"""The one code of a receipt whose meaning is documented."""

BEIJING = timezone(timedelta(hours=8), "UTC+8")
"""The zone of a receipt's time; China has had no summer time since 1991."""

_MAX_FIELDS = 100

_ID_NAMES = ("voiceid", "smsid", "task_id", "taskid")
_MOBILE_NAMES = ("mobilephone", "mobile")

# [0-9], not \d: in a str pattern \d also takes the digits of other scripts.
# Too short to be a number that was put in the wrong field.
_is_code = re.compile(r"-?[0-9]{1,9}").fullmatch
# Other products of the family name a task with 32 hex digits, or a UUID.
_is_id = re.compile(r"[!-~]{1,64}").fullmatch
_is_number = re.compile(r"(?=.*[0-9])[0-9*+ -]{1,32}").fullmatch
_is_mainland_mobile = re.compile(r"(?:\+86|0086|86)?(1[3-9][0-9]{9})").fullmatch
_blanks_and_hyphens = re.compile(r"[ -]+")
_is_time = re.compile(
    r"([0-9]{4})[-/]([0-9]{1,2})[-/]([0-9]{1,2})[ T]+([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?"
    r"|([0-9]{4})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})"
).fullmatch


class InvalidReceiptError(ValueError):
    """What came is not a receipt. The text names the field and shows no value of it.

    No `IhuyiVoiceError`: those tell what became of a request.
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
    """What the gateway says became of a call: a hint, not proof (see the module).

    Attributes:
        voice_id: the id that `SubmitResult.voice_id` had, kept to the digit;
            None where there was none.
        mobile: the number, 11 digits where it is a mainland number in any
            spelling, else as it came; None where there was none.
        delivered: whether `code` is 2.
        code: the receipt's code, of another vocabulary than a submit's.
        msg: the gateway's own words; do not match on them.
        reported_at: when, aware, in Beijing time; None where it was not said.
        raw: every field, under the name and with the value that it came with.
    """

    voice_id: str | None
    mobile: str | None
    delivered: bool
    code: int
    msg: str
    reported_at: datetime | None
    raw: ReceiptFields = field(hash=False)

    def __repr__(self) -> str:
        return (
            f"Receipt(voice_id={self._quiet(self.voice_id)!r},"
            f" mobile={self._quiet(self.mobile)!r}, delivered={self.delivered},"
            f" code={self.code}, msg={self._quiet(self.msg)!r},"
            f" reported_at={self.reported_at!r}, raw={self.raw!r})"
        )

    def log_text(self) -> str:
        """What a log may say of it, in one line: `139****5678 code=2 voice_id=197362477`."""
        mobile, voice_id = self._quiet(self.mobile), self._quiet(self.voice_id)
        return f"{mobile} code={self.code} voice_id={voice_id}"

    def _quiet(self, text: str | None) -> str | None:
        """The text without the number, wherever in the form that was put."""
        if text is None or self.mobile is None:
            return text
        return text.replace(self.mobile, mask_mobile(self.mobile))


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
        `mobile`, the time from `report_time`.

    Raises:
        InvalidReceiptError: there is no `code` or it is no whole number; the
            number or the time is there and cannot be read; or there is neither
            an id nor a number, so that it tells of no call at all.
    """
    raw = ReceiptFields(dict(_texts(form)))
    fields = {name.strip().lower(): value.strip() for name, value in raw.items()}
    code = _code(fields)
    voice_id, mobile = _voice_id(fields), _mobile(fields)
    if voice_id is None and mobile is None:
        msg = "it has neither an id nor a mobile number, so it tells of no call"
        raise InvalidReceiptError(msg)
    return Receipt(
        voice_id, mobile, code == DELIVERED, code, _msg(fields), _reported_at(fields), raw
    )


def _texts(form: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for name in form:
        value = form[name]
        if isinstance(value, list | tuple) and value:
            value = value[-1]
        if isinstance(name, str) and isinstance(value, str):
            yield name, value


def _code(fields: Mapping[str, str]) -> int:
    text = fields.get("code")
    if text is None:
        msg = "it has no code"
        raise InvalidReceiptError(msg)
    if not _is_code(text):
        msg = "its code is not a whole number"
        raise InvalidReceiptError(msg)
    return int(text)


def _voice_id(fields: Mapping[str, str]) -> str | None:
    """As a submit's answer has it: `0`, empty and absent all mean "no id"."""
    for name in _ID_NAMES:
        text = fields.get(name, "")
        if text.strip("0") and _is_id(text):
            return text
    return None


def _mobile(fields: Mapping[str, str]) -> str | None:
    text = next((fields[name] for name in _MOBILE_NAMES if fields.get(name)), None)
    if text is None:
        return None
    if match := _is_mainland_mobile(_blanks_and_hyphens.sub("", text)):
        return match[1]
    # Perhaps masked, perhaps a landline: but whatever it is, it can be shown and logged.
    if _is_number(text):
        return text
    msg = "its mobile number has other characters than a number"
    raise InvalidReceiptError(msg)


def _msg(fields: Mapping[str, str]) -> str:
    text = fields.get("msg", "")
    if text.isprintable():
        return text
    # Control characters would forge log lines and steer terminals.
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _reported_at(fields: Mapping[str, str]) -> datetime | None:
    text = fields.get("report_time")
    if not text:
        return None
    try:
        if match := _is_time(text):
            parts = [*map(int, filter(None, match.groups())), 0]
            year, month, day, hour, minute, second = parts[:6]
            return datetime(year, month, day, hour, minute, second, tzinfo=BEIJING)
    except ValueError:
        pass
    msg = "its report_time is not a time like 2017-08-02 14:31:51"
    raise InvalidReceiptError(msg)


def parse_receipt_body(body: bytes) -> Receipt:
    """The receipt in the body of a POST: a form in UTF-8 or, failing that, in GBK.

    Raises:
        InvalidReceiptError: as `parse_receipt`, or it has more fields than any receipt.
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
        msg = f"it has more than {_MAX_FIELDS} fields"
        raise InvalidReceiptError(msg) from None
    everything = "".join(name + value for name, value in pairs).encode("latin-1")
    encoding = _encoding(everything)
    return parse_receipt(
        {_recoded(name, encoding): _recoded(value, encoding) for name, value in pairs}
    )


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
