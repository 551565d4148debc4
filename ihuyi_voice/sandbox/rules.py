"""The sandbox gateway without a socket: a form goes in, an answer comes out.

Pure: no I/O, no event loop, no lock, no clock; the time is an argument. It
judges a form as the real gateway would as far as that is known, and records
every submit. Answering costs the same whatever has been recorded before.

Taken from the vendor: the codes and their texts, both passwords, the shapes of
the answers. Not known of the real gateway, and therefore the sandbox's own
choice: the order of the checks, how old a `time` may be (and that a stale one
is 40501, a code of sibling products), the codes of the per-number limit (4081
and 4082, likewise), and when abuse freezes an account.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

import orjson

from ihuyi_voice.errors import ACCEPTED, CODES
from ihuyi_voice.wire import sign_balance, sign_submit

from .faults import NOTHING_HAPPENS, as_sent
from .history import Attempt, Call, Record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .faults import Roll
    from .settings import Account

Method = Literal["Submit", "GetNum"]

STALE_TIME = 40501
MINUTE_LIMIT = 4081
DAY_LIMIT = 4082

MASK = "********"
MOST_FIELDS = 100
LONGEST_TEXT = 2_000
"""Of a form no more is recorded, nor more characters of a name or a value."""

FIRST_VOICE_ID = 100_000_001

XML = "text/xml; charset=utf-8"
JSON = "application/json; charset=utf-8"

_TEXTS = {code.number: code.vendor_text for code in CODES.values()} | {
    # Not in the voice product's table, so the words are the sandbox's own.
    STALE_TIME: "动态密码已过期",
    MINUTE_LIMIT: "该号码一分钟内的呼叫次数已达上限",
    DAY_LIMIT: "该号码一天内的呼叫次数已达上限",
}
_TEXT_OF_ANY_OTHER = "未知错误"
_FOUND = "查询成功"

_MINUTE = 60.0
_DAY = 86_400.0

# [0-9], not \d: in a str pattern \d also takes the digits of other scripts.
_is_mobile = re.compile(r"1[3-9][0-9]{9}").fullmatch
_is_content = re.compile(r"[0-9]{4,6}").fullmatch
_is_time = re.compile(r"[0-9]{10}").fullmatch
_PLAIN_FIELDS = frozenset({"account", "mobile", "content", "time", "format"})
_KNOWN_FIELDS = _PLAIN_FIELDS | {"password"}
# A password under a name that is not quite the gateway's is none the less one.
_is_secret_name = re.compile(r".*(pass|pwd|key|secret)", re.IGNORECASE | re.DOTALL).match
_is_identifier = re.compile(r"[\w.\[\]-]*").fullmatch
# A shorter password is no real one, and may be part of anything.
_SHORTEST_SECRET = 8


@dataclass(frozen=True, slots=True)
class Reply:
    """What the gateway answers.

    Attributes:
        body: the answer, XML or JSON.
        content_type: the header that goes with it.
        code: the code in it.
        time: when the request was taken, in seconds since 1970 by the gateway's clock.
        call: the call that was placed, if one was.
        attempt: what was recorded of a submit; None for a balance query.
    """

    body: bytes
    content_type: str
    code: int
    time: float
    call: Call | None = None
    attempt: Attempt | None = None


def parse_form(text: str) -> dict[str, str]:
    """The fields of a form or of a query; of a name sent twice the last counts.

    Lone surrogates become question marks.
    """
    # A URL's raw bytes are such to aiohttp's parser in Python, and neither MD5
    # nor JSON takes them.
    text = text.encode("utf-8", "replace").decode()
    return dict(parse_qsl(text, keep_blank_values=True))


class GatewayState:
    """One account, what it has left, and everything that was submitted to it.

    Attributes:
        account: the settings, changed from outside; its balance also from here.
        frozen_with: the code that a frozen account is answered, None while it
            is not frozen.
        record: what was submitted, and the calls that were placed.
    """

    __slots__ = (
        "_last_id",
        "_placed_at",
        "_refused_in_a_row",
        "account",
        "frozen_with",
        "record",
    )

    def __init__(self, account: Account, record: Record | None = None) -> None:
        self.account: Account = account
        self.record: Record = record or Record()
        self.frozen_with: int | None = None
        self._refused_in_a_row = 0
        self._last_id = FIRST_VOICE_ID - 1
        self._placed_at: dict[str, list[float]] = {}

    def freeze(self) -> None:
        """Refuse everything as 4050, as when the vendor freezes an account."""
        self.frozen_with = 4050

    def thaw(self) -> None:
        """End a freeze, whatever it came from; the run of refusals begins anew."""
        self.frozen_with = None
        self._refused_in_a_row = 0

    def answer(
        self,
        method: Method,
        form: Mapping[str, str],
        ip: str,
        now: float,
        *,
        roll: Roll = NOTHING_HAPPENS,
    ) -> Reply:
        """Judge one form, record it when it is a submit, and answer.

        Args:
            method: what the query names.
            form: the fields, whatever they are; unknown ones are ignored.
            ip: where the request came from.
            now: seconds since 1970.
            roll: the fault `code` refuses with its code instead of judging;
                any other is recorded with the attempt and has no effect here.
        """
        if method == "GetNum":
            return self._get_num(form, ip, now, roll.code)
        return self._submit(form, ip, now, roll)

    def _get_num(
        self, form: Mapping[str, str], ip: str, now: float, forced_code: int | None
    ) -> Reply:
        code = self._balance_refusal(form, ip, now) if forced_code is None else forced_code
        if code is None:
            code, msg, num = ACCEPTED, _FOUND, str(self.account.balance)
        else:
            msg, num = _text(code), "0"
        body, content_type = _written(form, "GetNumResult", code, msg, ("num", num))
        return Reply(body, content_type, code, now)

    def _submit(
        self,
        form: Mapping[str, str],
        ip: str,
        now: float,
        roll: Roll,
    ) -> Reply:
        code = roll.code
        if code is None:
            code = self._submit_refusal(form, ip, now)
            self._watch_for_abuse(refused=code is not None)
        call = voice_id = None
        last_field = ("voiceid" if _wants_json(form) else "smsid", "0")
        if code is None:
            code, call = ACCEPTED, self._place(form, now)
            voice_id, last_field = call.voice_id, ("voiceid", call.voice_id)
        msg = _text(code)
        body, content_type = _written(form, "SubmitResult", code, msg, last_field)
        status, sent = as_sent(body, roll)
        mobile, content = form.get("mobile", ""), form.get("content", "")
        secrets = self._secrets(form)
        fields, values = _recorded(form, secrets)
        attempt = Attempt(
            # Well-formed, they are none, even should the key be as short.
            mobile if _is_mobile(mobile) else _cut(_masked(mobile, secrets)),
            content if _is_content(content) else _cut(_masked(content, secrets)),
            code,
            msg,
            voice_id,
            now,
            ip,
            fields,
            roll.fault,
            values,
            status,
            sent,
            self.record.taken + 1,
        )
        self.record.add(attempt, call)
        return Reply(body, content_type, code, now, call, attempt)

    def _secrets(self, form: Mapping[str, str]) -> tuple[str, ...]:
        """What must not be recorded: the key, the right password and the one that was sent."""
        key, sent, time = self.account.api_key, form.get("password", ""), form.get("time", "")
        secrets = (key, sent) if len(sent) >= _SHORTEST_SECRET else (key,)
        return (
            (*secrets, self._dynamic_password("Submit", form, time)) if _is_time(time) else secrets
        )

    def _place(self, form: Mapping[str, str], now: float) -> Call:
        self._last_id += 1
        call = Call(form["mobile"], form["content"], str(self._last_id), now)
        self.account.balance -= 1
        if self.account.frequency_limit:
            self._placed_at.setdefault(call.mobile, []).append(now)
        return call

    def _watch_for_abuse(self, *, refused: bool) -> None:
        self._refused_in_a_row = self._refused_in_a_row + 1 if refused else 0
        limit = self.account.abuse_limit
        if limit is not None and self._refused_in_a_row >= limit and self.frozen_with is None:
            self.frozen_with = 408

    # --- the checks: each gives the code of its refusal, None when all is well

    def _balance_refusal(self, form: Mapping[str, str], ip: str, now: float) -> int | None:
        allowed = self.account.allowed_ips
        if allowed is not None and ip not in allowed:
            return 400
        refusal = self._caller_refusal("GetNum", form, now)
        if refusal is not None:
            return refusal
        # A balance query knows one code for a frozen account, whatever froze it.
        return None if self.frozen_with is None else 4050

    def _submit_refusal(self, form: Mapping[str, str], ip: str, now: float) -> int | None:
        refusal = self._ip_refusal(ip)
        if refusal is None:
            refusal = self._caller_refusal("Submit", form, now)
        if refusal is None:
            refusal = self.frozen_with
        if refusal is None:
            refusal = self._mobile_refusal(form.get("mobile", ""))
        if refusal is None:
            refusal = self._content_refusal(form.get("content", ""))
        if refusal is None:
            refusal = self._placing_refusal(form["mobile"], now)
        return refusal

    def _ip_refusal(self, ip: str) -> int | None:
        account = self.account
        if account.allowed_ips is not None and ip not in account.allowed_ips:
            return 400
        if account.registered_ips is not None and ip not in account.registered_ips:
            return 4052
        return None

    def _caller_refusal(self, method: Method, form: Mapping[str, str], now: float) -> int | None:
        if not form.get("account"):
            return 401
        if not form.get("password"):
            return 402
        if form["account"] != self.account.api_id:
            return 405
        if form["password"] == self.account.api_key:
            return None
        return self._dynamic_password_refusal(method, form, now)

    def _dynamic_password_refusal(
        self, method: Method, form: Mapping[str, str], now: float
    ) -> int | None:
        time = form.get("time", "")
        if not _is_time(time) or form["password"] != self._dynamic_password(method, form, time):
            return 405
        window = self.account.time_window
        if window is not None and abs(now - int(time)) > window:
            return STALE_TIME
        return None

    def _dynamic_password(self, method: Method, form: Mapping[str, str], time: str) -> str:
        account = self.account
        if method == "GetNum":
            return sign_balance(account.api_id, account.api_key, time)
        mobile, content = form.get("mobile", ""), form.get("content", "")
        return sign_submit(account.api_id, account.api_key, mobile, content, time)

    def _mobile_refusal(self, mobile: str) -> int | None:
        if not mobile:
            return 403
        if not _is_mobile(mobile):
            return 406
        return 4030 if mobile in self.account.blacklist else None

    def _content_refusal(self, content: str) -> int | None:
        if not content:
            return 404
        # Before the digits are counted, so that a banned word can be met at all.
        if content in self.account.banned_contents:
            return 407
        return None if _is_content(content) else 4070

    def _placing_refusal(self, mobile: str, now: float) -> int | None:
        if self.account.frequency_limit:
            refusal = self._frequency_refusal(mobile, now)
            if refusal is not None:
                return refusal
        if mobile in self.account.failing_mobiles:
            return 0
        return None if self.account.balance > 0 else 4051

    def _frequency_refusal(self, mobile: str, now: float) -> int | None:
        recent = [at for at in self._placed_at.get(mobile, ()) if at > now - _DAY]
        # Kept pruned, so that the list is never longer than a day's limit.
        self._placed_at[mobile] = recent
        if sum(at > now - _MINUTE for at in recent) >= self.account.calls_per_minute:
            return MINUTE_LIMIT
        return DAY_LIMIT if len(recent) >= self.account.calls_per_day else None


def _recorded(
    form: Mapping[str, str], secrets: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names and the values within bounds, but for what is or may be a secret."""
    pairs = [
        _recorded_field(name, value, secrets) for name, value in list(form.items())[:MOST_FIELDS]
    ]
    # Cut last: the half of a secret would not be found.
    return tuple(_cut(name) for name, _ in pairs), tuple(_cut(value) for _, value in pairs)


def _recorded_field(name: str, value: str, secrets: tuple[str, ...]) -> tuple[str, str]:
    if name in _PLAIN_FIELDS:
        return name, _masked(value, secrets)
    is_secret = _is_secret_name(name) is not None
    if not _is_identifier(name):
        # No name at all, but a part of something else that was posted as a
        # form, JSON for one, and the value is the rest of it.
        is_secret = is_secret or _is_secret_name(value) is not None
        name = MASK if is_secret else name
    if name not in _KNOWN_FIELDS:
        for secret in secrets:
            name = name.replace(secret, MASK)
    return name, MASK if value and is_secret else _masked(value, secrets)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"


def _masked(text: str, secrets: tuple[str, ...]) -> str:
    return MASK if any(secret in text for secret in secrets) else text


def _text(code: int) -> str:
    return _TEXTS.get(code, _TEXT_OF_ANY_OTHER)


def _wants_json(form: Mapping[str, str]) -> bool:
    return form.get("format") == "json"


def _written(
    form: Mapping[str, str], root: str, code: int, msg: str, last_field: tuple[str, str]
) -> tuple[bytes, str]:
    """The answer in the format the form asks for, and its content type."""
    name, value = last_field
    if _wants_json(form):
        return orjson.dumps({"code": code, "msg": msg, name: value}), JSON
    text = (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f'<{root} xmlns="http://106.ihuyi.com/"><code>{code}</code>'
        f"<msg>{escape(msg)}</msg><{name}>{escape(value)}</{name}></{root}>"
    )
    return text.encode(), XML
