"""The rules of the gateway: a form goes in, an answer comes out.

Pure: no I/O, no event loop, no lock, no clock; the time is an argument. It
judges a form like the real gateway, as far as that is known, and records every
submit. The length of the history does not change the cost of an answer.

Taken from the vendor: the codes and their texts, both passwords, the shapes of
the answers. Not known of the real gateway, and therefore the sandbox's own
choice: the order of the checks, how old a `time` may be, the codes of the
per-number limit (4081 and 4082, of sibling products), and when abuse freezes an
account. A stale `time` is refused with 405, which the voice product's table gives
for a wrong clock; 40501, "expired", is known of a sibling product only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import orjson

from ihuyi_voice.errors import ACCEPTED, CODES
from ihuyi_voice.models import is_content, is_mobile
from ihuyi_voice.wire import BALANCE_TARGET

from .faults import NOTHING_HAPPENS, as_sent
from .history import Attempt, Call, History, OtherRequest
from .masking import MOST_FIELDS, masked_name, masked_value
from .reasons import CALLER_CODES, caller_reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from .faults import Roll
    from .history import Reason, Received
    from .reasons import Method
    from .settings import Settings

MINUTE_LIMIT = 4081
DAY_LIMIT = 4082

FIRST_VOICE_ID = 100_000_001
"""Where the ids begin unless the caller of these rules says otherwise."""

XML = "text/xml; charset=utf-8"
JSON = "application/json; charset=utf-8"

_TEXTS = {code.number: code.vendor_text for code in CODES.values()} | {
    # Not in the voice product's table, so the words are the sandbox's own.
    MINUTE_LIMIT: "该号码一分钟内的呼叫次数已达上限",
    DAY_LIMIT: "该号码一天内的呼叫次数已达上限",
}
_TEXT_OF_ANY_OTHER = "未知错误"
_FOUND = "查询成功"

_MINUTE = 60.0
_DAY = 86_400.0

# [0-9], not \d: in a str pattern \d also takes the digits of other scripts.


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
        other: what was recorded of a balance query; None for a submit.
    """

    body: bytes
    content_type: str
    code: int
    time: float
    call: Call | None = None
    attempt: Attempt | None = None
    other: OtherRequest | None = None


class GatewayState:
    """The accounts, what they have left, and everything that was submitted to them.

    Attributes:
        settings: changed from outside; the balance also from here.
        history: what was submitted, and the calls that were placed.
        next_id: the voice id of the next call.
    """

    __slots__ = (
        "_frozen_for_abuse",
        "_placed_at",
        "_refused_in_a_row",
        "history",
        "next_id",
        "settings",
    )

    def __init__(self, settings: Settings, next_id: int = FIRST_VOICE_ID) -> None:
        self.settings: Settings = settings
        self.history: History = History(settings.keep)
        self._frozen_for_abuse = False
        self._refused_in_a_row = 0
        self.next_id: int = next_id
        self._placed_at: dict[str, list[float]] = {}

    @property
    def frozen_with(self) -> int | None:
        """What a frozen account's submits are refused with: 408 for abuse, or 4050; else None."""
        if self._frozen_for_abuse:
            return 408
        return 4050 if self.settings.frozen else None

    def forgive_abuse(self) -> None:
        """End a freeze for abuse, and count refusals from 0."""
        self._frozen_for_abuse = False
        self._refused_in_a_row = 0

    def answer(  # noqa: PLR0913 - `request` is only recorded
        self,
        method: Method,
        form: Mapping[str, str],
        ip: str,
        now: float,
        *,
        roll: Roll = NOTHING_HAPPENS,
        request: Received | None = None,
    ) -> Reply:
        """Judge one form, record it, and answer.

        Args:
            method: what the query names.
            form: the fields, whatever they are; unknown ones are ignored.
            ip: where the request came from.
            now: seconds since 1970.
            roll: the fault `code` refuses with its code instead of judging;
                any other is recorded with the attempt and has no effect here.
            request: the request that brought the form, if one did.
        """
        if method == "GetNum":
            return self._get_num(form, ip, now, roll, request)
        return self._submit(form, ip, now, roll, request)

    def _get_num(
        self,
        form: Mapping[str, str],
        ip: str,
        now: float,
        roll: Roll,
        request: Received | None,
    ) -> Reply:
        code = roll.code
        if code is None:
            code = next(self._balance_refusals(form, ip, now), ACCEPTED)
        accepted = code == ACCEPTED
        msg = _FOUND if accepted else _text(code)
        num = str(self.settings.balance) if accepted else "0"
        body, content_type = self._written(form, "GetNumResult", code, msg, ("num", num))
        status, sent = as_sent(body, roll)
        fields, values = self._recorded(form)
        other = self.history.add_other(
            OtherRequest(
                kind="balance",
                line=BALANCE_TARGET,
                reason="",
                time=now,
                ip=ip,
                status=status,
                code=code,
                msg=msg,
                fault=roll.fault,
                fields=fields,
                values=values,
                answer=sent,
                request=request,
                why=self._why("GetNum", form, now, code, roll),
            )
        )
        return Reply(body, content_type, code, now, other=other)

    def _submit(
        self,
        form: Mapping[str, str],
        ip: str,
        now: float,
        roll: Roll,
        request: Received | None,
    ) -> Reply:
        code = roll.code
        if code is None:
            code = next(self._submit_refusals(form, ip, now), ACCEPTED)
            self._count_abuse(code)
        call = self._place(form, now) if code == ACCEPTED else None
        body, content_type = self._submit_answer(form, code, call)
        status, sent = as_sent(body, roll)
        fields, values = self._recorded(form)
        keys = self.settings.keys
        attempt = Attempt(
            mobile=masked_value("mobile", form.get("mobile", ""), keys),
            content=masked_value("content", form.get("content", ""), keys),
            code=code,
            msg=_text(code),
            voice_id=None if call is None else call.voice_id,
            time=now,
            ip=ip,
            fields=fields,
            fault=roll.fault,
            values=values,
            status=status,
            answer=sent,
            number=self.history.taken + 1,
            request=request,
            why=self._why("Submit", form, now, code, roll),
        )
        self.history.add(attempt, call)
        return Reply(body, content_type, code, now, call, attempt)

    def _recorded(self, form: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names and the values of the form, as they are recorded."""
        keys, fields = self.settings.keys, list(form.items())[:MOST_FIELDS]
        names = tuple(masked_name(name, keys) for name, _ in fields)
        return names, tuple(masked_value(name, value, keys) for name, value in fields)

    def _count_abuse(self, code: int) -> None:
        self._refused_in_a_row = 0 if code == ACCEPTED else self._refused_in_a_row + 1
        limit = self.settings.abuse_limit
        if limit is not None and self._refused_in_a_row >= limit and not self.settings.frozen:
            self._frozen_for_abuse = True

    def _place(self, form: Mapping[str, str], now: float) -> Call:
        call = Call(form["mobile"], form["content"], str(self.next_id), now)
        self.next_id += 1
        self.settings.balance -= 1
        if self.settings.frequency_limit:
            self._placed_at.setdefault(call.mobile, []).append(now)
        return call

    # --- every reason to refuse, in the order of the checks; the first one counts

    def _balance_refusals(self, form: Mapping[str, str], ip: str, now: float) -> Iterator[int]:
        if _excludes(self.settings.allowed_ips, ip):
            yield 400
        yield from self._caller_refusals("GetNum", form, now)
        # A balance query has one code for a frozen account, independent of the reason.
        if self.frozen_with is not None:
            yield 4050

    def _submit_refusals(  # noqa: C901 - a flat list, a check for each code
        self, form: Mapping[str, str], ip: str, now: float
    ) -> Iterator[int]:
        settings = self.settings
        if _excludes(settings.allowed_ips, ip):
            yield 400
        if _excludes(settings.registered_ips, ip):
            yield 4052
        yield from self._caller_refusals("Submit", form, now)
        if (frozen_with := self.frozen_with) is not None:
            yield frozen_with
        mobile, content = form.get("mobile", ""), form.get("content", "")
        if not mobile:
            yield 403
        if not is_mobile(mobile):
            yield 406
        if mobile in settings.blacklist:
            yield 4030
        if not content:
            yield 404
        # Before the check for digits, so that a banned word gets its own code.
        if content in settings.banned_contents:
            yield 407
        if not is_content(content):
            yield 4070
        if settings.frequency_limit:
            yield from self._frequency_refusals(mobile, now)
        if mobile in settings.failing_mobiles:
            yield 0
        if settings.balance <= 0:
            yield 4051

    def _caller_refusals(
        self, method: Method, form: Mapping[str, str], now: float
    ) -> Iterator[int]:
        reason = self._caller_reason(method, form, now)
        if reason is not None:
            yield reason.code

    def _caller_reason(self, method: Method, form: Mapping[str, str], now: float) -> Reason | None:
        settings = self.settings
        return caller_reason(method, form, settings.key_by_account, now, settings.time_window)

    def _why(
        self, method: Method, form: Mapping[str, str], now: float, code: int, roll: Roll
    ) -> Reason | None:
        """Why the account or the password was refused; None when `code` has another cause."""
        if roll.code is not None or code not in CALLER_CODES:
            return None
        return self._caller_reason(method, form, now)

    def _frequency_refusals(self, mobile: str, now: float) -> Iterator[int]:
        recent = [at for at in self._placed_at.get(mobile, ()) if at > now - _DAY]
        # Kept pruned, so that the list is never longer than a day's limit.
        self._placed_at[mobile] = recent
        if sum(at > now - _MINUTE for at in recent) >= self.settings.calls_per_minute:
            yield MINUTE_LIMIT
        if len(recent) >= self.settings.calls_per_day:
            yield DAY_LIMIT

    # --- the answers

    def _submit_answer(
        self, form: Mapping[str, str], code: int, call: Call | None
    ) -> tuple[bytes, str]:
        if call is not None:
            last_field = ("voiceid", call.voice_id)
        else:
            last_field = ("voiceid" if _wants_json(form) else "smsid", "0")
        return self._written(form, "SubmitResult", code, _text(code), last_field)

    def _written(
        self,
        form: Mapping[str, str],
        root: str,
        code: int,
        msg: str,
        last_field: tuple[str, str],
    ) -> tuple[bytes, str]:
        """The answer in the format the form asks for, and its content type."""
        name, value = last_field
        if _wants_json(form):
            return orjson.dumps({"code": code, "msg": msg, name: value}), JSON
        in_lines = self.settings.multiline_refusals and code != ACCEPTED
        elements = (("code", str(code)), ("msg", msg), (name, value))
        return _xml(root, elements, "\r\n" if in_lines else "").encode(), XML


def _excludes(ips: frozenset[str] | None, ip: str) -> bool:
    return ips is not None and ip not in ips


def _text(code: int) -> str:
    return _TEXTS.get(code, _TEXT_OF_ANY_OTHER)


def _wants_json(form: Mapping[str, str]) -> bool:
    return form.get("format") == "json"


def _xml(root: str, elements: Iterable[tuple[str, str]], between: str) -> str:
    """The answer as XML; `between` surrounds each element and each text."""
    texts = (
        f"<{name}>{between}{escape(text)}{between}</{name}>{between}" for name, text in elements
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f'<{root} xmlns="http://106.ihuyi.com/">{between}{"".join(texts)}</{root}>'
    )
