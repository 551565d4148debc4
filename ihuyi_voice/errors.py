"""How a request can end: the errors, the outcomes, the gateway's table of codes.

The tree:

    IhuyiVoiceError
    ├── InvalidRequestError      refused by the local check (also a ValueError)
    ├── QuotaExceededError       the per-number limit was reached; `retry_after` seconds
    ├── NotSentError             nothing was written: no slot, DNS, connect, TLS, proxy
    │   └── StoreError                  the store could not be used, so nothing was sent
    ├── OutcomeUnknownError      something may have been written and no readable answer came
    ├── BulkStoppedError         a bulk run stopped before its rows were done
    └── GatewayError             the gateway answered with a code other than 2
        ├── AuthenticationError          401, 402, 405, 40501, 40502
        ├── AccessDeniedError            400, 4052
        ├── AccountFrozenError           4050, 408
        ├── InsufficientBalanceError     4051
        ├── InvalidMobileError           403, 406
        ├── BlockedMobileError           4030
        ├── InvalidContentError          404, 407, 4070
        ├── SubmitFailedError            0
        └── UnrecognizedCodeError        every other code

Errors cross processes. Celery's JSON backend rebuilds one as `cls(*args)`, and
pickle and copy do the same. So `args` are the constructor's arguments as JSON
values, attributes are derived from them, and the text is made by `__str__`.

`BulkStoppedError` carries a `BulkReport`, and the report an error, so both live here.

Nothing here sends, decides or logs. The code that raises an error makes sure that
its text holds no key, no password, no verification code and only masked numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterable


class OutcomeStatus(Enum):
    """How a request ended: always exactly one of these."""

    INVALID = "invalid"
    """The local check refused it: nothing was sent."""
    LIMITED = "limited"
    """The per-number limit was reached: nothing was sent."""
    NOT_SENT = "not_sent"
    """Nothing was written: no slot, DNS, connect, TLS or proxy failed."""
    UNKNOWN = "unknown"
    """Something may have been written and no readable answer came: the phone may have rung."""
    REFUSED = "refused"
    """The gateway answered with a code other than 2: no phone rang."""
    ACCEPTED = "accepted"
    """The gateway answered 2: the phone rings."""
    REPLAYED = "replayed"
    """Known from the store as done earlier: nothing was sent now."""


class IhuyiVoiceError(Exception):
    """The root of everything this library raises about a request.

    `type(error)(*error.args)`, pickle and copy give an equal error. Two errors
    are equal if they are of the same class and have equal `args`. Their causes
    and tracebacks are not compared.

    Attributes:
        may_have_rung: True when a phone may have rung for this request. A
            request whose error says True must not be repeated blindly.
    """

    may_have_rung: bool = False

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IhuyiVoiceError):
            return NotImplemented
        return type(self) is type(other) and self.args == other.args

    def __hash__(self) -> int:
        # Not from `args`: they may hold a report as a dict, which has no hash.
        return hash((type(self), str(self)))


class InvalidRequestError(IhuyiVoiceError, ValueError):
    """The local check refused the request: nothing was sent, no phone rang."""


class QuotaExceededError(IhuyiVoiceError):
    """The limit of calls to one number was reached: nothing was sent, no phone rang.

    Attributes:
        masked_mobile: the number, masked.
        retry_after: seconds until a call to this number is allowed again.
    """

    def __init__(self, masked_mobile: str, retry_after: float) -> None:
        self.masked_mobile = masked_mobile
        self.retry_after = retry_after
        super().__init__(masked_mobile, retry_after)

    def __str__(self) -> str:
        return (
            f"the limit of calls to {self.masked_mobile} is reached; nothing was sent,"
            f" no phone rang; allowed again in {self.retry_after:.1f} s"
        )


class NotSentError(IhuyiVoiceError):
    """Nothing was written to the gateway: no phone rang, repeating is safe.

    Raised when no slot came free in time, the name could not be resolved, or
    the connection, its TLS handshake or the proxy failed. If another exception
    led to it, that is the `__cause__`.

    Attributes:
        reason: what happened, without the advice that the text adds.
        advice: what to do next; "" for the advice that fits a submit.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        self.reason = reason
        self.advice = advice
        super().__init__(*((reason, advice) if advice else (reason,)))

    def __str__(self) -> str:
        advice = self.advice or "nothing was written, no phone rang, repeating is safe"
        return f"not sent: {self.reason}; {advice}"


class StoreError(NotSentError):
    """The store could not be used, so nothing was sent: repeating is safe.

    Raised where a claim fails, and by everything else that reads or writes the
    store. The database's own exception, where there is one, is the
    `__cause__`.

    Attributes:
        reason: which store, and what happened.
    """

    def __str__(self) -> str:
        # Not the base's text: a settlement fails after its request was sent.
        return f"the store could not be used: {self.reason}"


class OutcomeUnknownError(IhuyiVoiceError):
    """The request may have reached the gateway and no readable answer came back.

    For a submit `may_have_rung` is True: do not repeat it blindly, a repeat
    may ring the phone a second time. For a balance query, and for the check of
    a code, it is False.

    Attributes:
        reason: what happened, without the advice that the text adds.
        advice: what to do next; "" for the advice that fits a submit without a key.
        earlier: True when the store knows this of an earlier request with
            the same idempotency key: nothing was sent now.
    """

    def __init__(
        self,
        reason: str,
        # Positional, because `cls(*args)` rebuilds the error.
        may_have_rung: bool = True,  # noqa: FBT001, FBT002 - see above
        earlier: bool = False,  # noqa: FBT001, FBT002 - see above
        advice: str = "",
    ) -> None:
        self.reason = reason
        self.may_have_rung = may_have_rung
        self.earlier = earlier
        self.advice = advice
        super().__init__(reason, may_have_rung, earlier, *((advice,) if advice else ()))

    def __str__(self) -> str:
        advice = self.advice or (
            "the phone may have rung, do not repeat this blindly"
            if self.may_have_rung
            else "no phone was involved, repeating is safe"
        )
        return f"outcome unknown: {self.reason}; {advice}"


@dataclass(frozen=True, slots=True)
class BulkReport:
    """The outcomes of the rows that a bulk run has taken so far.

    Attributes:
        counts: how many rows ended with each status, every status included.
        elapsed: seconds since the run began; once it has ended, the seconds it took.
        stopped_by: the error that stopped the run before its rows were done,
            None where none did.
        stopped_at: the index of the row that stopped it, None where none did.
        unrecorded: how many outcomes the store has not recorded at the
            moment of the report. It tries again until the program ends; until
            then these requests are unknown to it.
    """

    counts: dict[OutcomeStatus, int]
    elapsed: float
    stopped_by: IhuyiVoiceError | None = None
    stopped_at: int | None = None
    unrecorded: int = 0

    def to_json(self) -> dict[str, object]:
        """The report as JSON values, for `from_json`."""
        return {
            "counts": {status.value: count for status, count in self.counts.items()},
            "elapsed": self.elapsed,
            "stopped_by": None if self.stopped_by is None else error_to_json(self.stopped_by),
            "stopped_at": self.stopped_at,
            "unrecorded": self.unrecorded,
        }

    @classmethod
    def from_json(cls, value: dict[str, object]) -> BulkReport:
        """The report that `to_json` was called on."""
        fields = cast("dict[str, Any]", dict(value))
        counts, stopped_by = fields.pop("counts"), fields.pop("stopped_by")
        return cls(
            {OutcomeStatus(status): count for status, count in counts.items()},
            stopped_by=None if stopped_by is None else error_from_json(stopped_by),
            **fields,
        )

    @property
    def total(self) -> int:
        """How many rows have an outcome."""
        return sum(self.counts.values())


class BulkStoppedError(IhuyiVoiceError):
    """A bulk run stopped before its rows were done. Requests in flight were finished.

    `may_have_rung` is True when any row's phone may have rung: do not run
    the same rows again blindly.

    Args:
        cause: the error that stopped it, also as JSON values; or None.
        report: a `BulkReport`, also as JSON values.

    Attributes:
        cause: the error that stopped it; None where `stop_on` stopped it on
            an outcome without one.
        report: the outcomes of the rows that were taken.
    """

    def __init__(
        self,
        cause: IhuyiVoiceError | dict[str, object] | None,
        report: BulkReport | dict[str, object],
    ) -> None:
        self.cause: IhuyiVoiceError | None = (
            error_from_json(cause) if isinstance(cause, dict) else cause
        )
        self.report: BulkReport = (
            BulkReport.from_json(report) if isinstance(report, dict) else report
        )
        self.may_have_rung: bool = any(
            count and status in (OutcomeStatus.ACCEPTED, OutcomeStatus.UNKNOWN)
            for status, count in self.report.counts.items()
        )
        super().__init__(
            None if self.cause is None else error_to_json(self.cause), self.report.to_json()
        )

    def __str__(self) -> str:
        counts = ", ".join(
            f"{count} {status.value}" for status, count in self.report.counts.items() if count
        )
        why = "stop_on asked for it" if self.cause is None else self.cause
        advice = (
            "do not send the accepted and the unknown rows again"
            if self.may_have_rung
            else "no phone rang"
        )
        stopped_at = self.report.stopped_at
        return f"the bulk run stopped at row {stopped_at}: {why}; so far {counts}; {advice}"


def error_to_json(error: IhuyiVoiceError) -> dict[str, object]:
    """An error as JSON values, for `error_from_json`."""
    return {"type": type(error).__name__, "args": list(error.args)}


def error_from_json(value: dict[str, object]) -> IhuyiVoiceError:
    """The error that `error_to_json` was given.

    A class that is not of this library becomes an IhuyiVoiceError with the same `args`.
    """
    cls = globals().get(str(value["type"]))
    if not (isinstance(cls, type) and issubclass(cls, IhuyiVoiceError)):
        cls = IhuyiVoiceError
    return cls(*cast("Iterable[object]", value["args"]))


class GatewayError(IhuyiVoiceError):
    """The gateway answered with a code other than 2: refused, not billed, no phone rang.

    Attributes:
        code: the gateway's code.
        msg: the gateway's own text. The vendor changes it: do not match on it.
        hint: what else is known, such as a wrong local clock; mostly "".
        meaning: what the code means, in English, by the vendor's table.
        account_level: True when every further request of this account would
            be refused the same way.
    """

    def __init__(self, code: int, msg: str, hint: str = "") -> None:
        row = _row(code)
        self.code = code
        self.msg = msg
        self.hint = hint
        self.meaning: str = row.meaning if row else "the voice product documents no such code"
        self.account_level: bool = row is not None and row.account_level
        super().__init__(*((code, msg, hint) if hint else (code, msg)))

    def __str__(self) -> str:
        text = (
            f"the gateway refused with code {self.code}: {self.meaning} (its text: {self.msg!r});"
            " no phone rang"
        )
        return f"{text}; {self.hint}" if self.hint else text


class AuthenticationError(GatewayError):
    """401, 402, 405, 40501, 40502: account or password missing, wrong or expired.

    With the dynamic password a wrong local clock leads to 405, 40501 or 40502.
    Where the answer's `Date` header shows the clock off by more than a minute,
    the text says by how much.
    """


class AccessDeniedError(GatewayError):
    """400, 4052: the caller's IP address is refused or not the registered one."""


class AccountFrozenError(GatewayError):
    """4050, 408: the account is frozen, by the vendor or for suspected abuse."""


class InsufficientBalanceError(GatewayError):
    """4051: the balance is used up."""


class InvalidMobileError(GatewayError):
    """403, 406: the gateway finds the mobile number missing or malformed."""


class BlockedMobileError(GatewayError):
    """4030: the mobile number is on the vendor's blacklist."""


class InvalidContentError(GatewayError):
    """404, 407, 4070: the gateway refuses the content."""


class SubmitFailedError(GatewayError):
    """0: the gateway failed to submit the call, without a reason."""


class UnrecognizedCodeError(GatewayError):
    """A code that the voice product does not document: number and text are kept."""


# Every further request of the account would meet one of these too.
_OF_THE_ACCOUNT = (
    AuthenticationError,
    AccessDeniedError,
    AccountFrozenError,
    InsufficientBalanceError,
)


@dataclass(frozen=True, slots=True)
class Code:
    """One row of the gateway's table of codes.

    Attributes:
        number: the code as the gateway sends it.
        error: the class of the error that it becomes; None for the code of success.
        vendor_text: what the vendor's table says about it, in Chinese.
        meaning: the same in English.
    """

    number: int
    error: type[GatewayError] | None
    vendor_text: str
    meaning: str

    @property
    def account_level(self) -> bool:
        """Whether the account, not this one request, is the problem."""
        return self.error in _OF_THE_ACCOUNT


ACCEPTED = 2
"""The code of success, for a submit and for a balance query."""

CODES: dict[int, Code] = {
    code.number: code
    for code in (
        Code(ACCEPTED, None, "提交成功", "accepted"),
        Code(0, SubmitFailedError, "提交失败", "submit failed"),
        Code(400, AccessDeniedError, "非法ip访问", "the caller's IP address is refused"),
        Code(401, AuthenticationError, "帐号不能为空", "the account (API ID) is missing"),
        Code(402, AuthenticationError, "密码不能为空", "the password is missing"),
        Code(
            405,
            AuthenticationError,
            "用户名或密码不正确",
            "wrong account or password, or a wrong clock with the dynamic password",
        ),
        Code(4050, AccountFrozenError, "账号被冻结", "the account is frozen"),
        Code(4051, InsufficientBalanceError, "剩余条数不足", "the balance is used up"),
        Code(
            4052,
            AccessDeniedError,
            "访问ip与备案ip不符",
            "the caller's IP address is not the registered one",
        ),
        Code(
            408,
            AccountFrozenError,
            "您的帐户疑被恶意利用,已被自动冻结,如有疑问请与客服联系。",
            "the account was frozen automatically for suspected abuse",
        ),
        Code(403, InvalidMobileError, "手机号码不能为空", "the mobile number is missing"),
        Code(406, InvalidMobileError, "手机格式不正确", "the mobile number is malformed"),
        Code(
            4030, BlockedMobileError, "手机号码已被列入黑名单", "the mobile number is blacklisted"
        ),
        Code(404, InvalidContentError, "语音内容不能为空", "the content is missing"),
        Code(407, InvalidContentError, "短信内容含有敏感字符", "the content has banned characters"),
        Code(
            4070,
            InvalidContentError,
            "语音验证码内容必须为4-6位数字",
            "the content must be 4-6 digits",
        ),
    )
}
"""The vendor's table for the voice product. Sibling products use the same
numbers with other meanings, so no row is taken from their tables."""

# Three copies of the SMS product's table have these rows; the voice product's table
# does not. They can only mean the dynamic password, which both products share.
_FAMILY_CODES: dict[int, Code] = {
    code.number: code
    for code in (
        Code(
            40501,
            AuthenticationError,
            "动态密码已过期",
            "the dynamic password has expired: the clock may be wrong",
        ),
        Code(
            40502,
            AuthenticationError,
            "动态密码校验失败",
            "the dynamic password is wrong: the API key or the clock may be wrong",
        ),
    )
}


def _row(code: int) -> Code | None:
    return CODES.get(code) or _FAMILY_CODES.get(code)


def is_listed(code: int) -> bool:
    """Whether the code is in the vendor's tables."""
    return _row(code) is not None


def gateway_error(code: int, msg: str, hint: str = "") -> GatewayError:
    """The error of the right class for a refusal.

    Args:
        code: the gateway's code, any but 2.
        msg: the gateway's own text.
        hint: what else is known; the error's text ends with it.
    """
    row = _row(code)
    cls = UnrecognizedCodeError if row is None or row.error is None else row.error
    return cls(code, msg, hint)


for _cls in tuple(globals().values()):
    if isinstance(_cls, type) and issubclass(_cls, IhuyiVoiceError):
        # Celery looks a class up in the module that it names, if the reading process has
        # imported that. It has imported the package, but perhaps not this module.
        _cls.__module__ = __package__
