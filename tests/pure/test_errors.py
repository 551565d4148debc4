"""The error tree, the table of codes, what the texts say, and that errors pickle."""

from __future__ import annotations

import copy
import json
import pickle
import re
import subprocess
import sys

import pytest

from ihuyi_voice import errors
from ihuyi_voice.errors import (
    ACCEPTED,
    CODES,
    AccessDeniedError,
    AccountFrozenError,
    AuthenticationError,
    BlockedMobileError,
    BulkStoppedError,
    GatewayError,
    IhuyiVoiceError,
    InsufficientBalanceError,
    InvalidContentError,
    InvalidMobileError,
    InvalidRequestError,
    NotSentError,
    OutcomeUnknownError,
    QuotaExceededError,
    StoreError,
    SubmitFailedError,
    UnrecognizedCodeError,
    error_from_json,
    error_to_json,
    gateway_error,
)
from ihuyi_voice.models import BulkReport, OutcomeStatus

# Class, account level, and the text on the vendor's page.
DOCUMENTED: dict[int, tuple[type[GatewayError], bool, str]] = {
    0: (SubmitFailedError, False, "提交失败"),
    400: (AccessDeniedError, True, "非法ip访问"),
    401: (AuthenticationError, True, "帐号不能为空"),
    402: (AuthenticationError, True, "密码不能为空"),
    403: (InvalidMobileError, False, "手机号码不能为空"),
    404: (InvalidContentError, False, "语音内容不能为空"),
    405: (AuthenticationError, True, "用户名或密码不正确"),
    406: (InvalidMobileError, False, "手机格式不正确"),
    407: (InvalidContentError, False, "短信内容含有敏感字符"),
    408: (AccountFrozenError, True, "您的帐户疑被恶意利用,已被自动冻结,如有疑问请与客服联系。"),
    4030: (BlockedMobileError, False, "手机号码已被列入黑名单"),
    4050: (AccountFrozenError, True, "账号被冻结"),
    4051: (InsufficientBalanceError, True, "剩余条数不足"),
    4052: (AccessDeniedError, True, "访问ip与备案ip不符"),
    4070: (InvalidContentError, False, "语音验证码内容必须为4-6位数字"),
}
ONE_OF_EACH_CLASS = {cls: code for code, (cls, _, _) in DOCUMENTED.items()}.values()
OF_THE_FAMILY = (40501, 40502)
MET_BUT_UNDOCUMENTED = [
    1, 4053, 40505, 4071, 4072, 4073, 4074, 4075, 4076, 4077, 40722, 4080, 4081,
    4082, 4083, 4084, 4085, 4086,
]  # fmt: skip
EXAMPLES: list[IhuyiVoiceError] = [
    IhuyiVoiceError("anything"),
    InvalidRequestError("content must be a str of 4-6 digits; it is empty"),
    QuotaExceededError("139****5678", 42.25),
    NotSentError("the name could not be resolved"),
    StoreError("calls.db: the disk is full"),
    OutcomeUnknownError("the connection was reset"),
    OutcomeUnknownError("the connection was reset", may_have_rung=False),
    OutcomeUnknownError("the connection was reset", advice="ask"),
    NotSentError("the name could not be resolved", "wait"),
    OutcomeUnknownError("an earlier request", earlier=True),
    GatewayError(4711, "?"),
    *(gateway_error(code, f"words {code}") for code in ONE_OF_EACH_CLASS),
    gateway_error(4050, "words 4050", "a hint"),
    gateway_error(4085, "同一手机号验证码类内容发送超出限制"),
    gateway_error(10**30, "beyond any integer of a database"),
    gateway_error(40501, "动态密码已过期", "the local clock is 61 s ahead"),
    BulkStoppedError(None, BulkReport({OutcomeStatus.REFUSED: 1}, 0.1)),
    BulkStoppedError(
        gateway_error(405, "?", "look at the clock"),
        BulkReport(
            {OutcomeStatus.ACCEPTED: 3, OutcomeStatus.REFUSED: 1},
            12.345678901234567,
            gateway_error(405, "?", "look at the clock"),
            stopped_at=3,
            unrecorded=2,
        ),
    ),
    BulkStoppedError(
        OutcomeUnknownError("reset", earlier=True),
        BulkReport({OutcomeStatus.UNKNOWN: 1}, 0.0, OutcomeUnknownError("reset", earlier=True), 0),
    ),
]


def public_errors() -> set[type[IhuyiVoiceError]]:
    return {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, IhuyiVoiceError)
    }


# --- the tree ---------------------------------------------------------------


def drawn_tree() -> list[tuple[str, str, str]]:
    """(parent, name, remark) of each line drawn in the module's docstring."""
    rows: list[tuple[str, str, str]] = []
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.fullmatch(r"([ │├└─]*)(\w+Error)\s*(.*)", line)
        if not match:
            continue
        depth = len(match[1])
        above = [(d, n) for d, n in above if d < depth]
        rows.append((above[-1][1] if above else "", match[2], match[3]))
        above.append((depth, match[2]))
    return rows


def test_the_drawn_tree_is_the_real_one() -> None:
    real = {
        (
            cls.__bases__[0].__name__ if cls is not IhuyiVoiceError else "",
            cls.__name__,
        )
        for cls in public_errors()
    }
    drawn = [(parent, name) for parent, name, _ in drawn_tree()]
    assert sorted(real) == sorted(drawn)


def test_the_drawn_codes_are_the_real_ones() -> None:
    real: dict[str, set[int]] = {cls.__name__: set() for cls in GatewayError.__subclasses__()}
    for code in (*DOCUMENTED, *OF_THE_FAMILY):
        real[type(gateway_error(code, "")).__name__].add(code)
    drawn = {
        name: {int(code) for code in re.findall(r"\d+", remark)}
        for parent, name, remark in drawn_tree()
        if parent == "GatewayError"
    }
    assert real == drawn


def test_the_docstring_of_each_refusal_names_its_codes() -> None:
    for parent, name, remark in drawn_tree():
        codes = re.findall(r"\d+", remark)
        if parent == "GatewayError" and codes:
            assert str(getattr(errors, name).__doc__).startswith(f"{', '.join(codes)}: ")


def test_an_invalid_request_is_also_a_value_error() -> None:
    assert (InvalidRequestError, IhuyiVoiceError, ValueError) == InvalidRequestError.__mro__[:3]


# --- the table of codes -----------------------------------------------------


@pytest.mark.parametrize("code", DOCUMENTED)
def test_a_documented_code_has_its_class_level_and_text(code: int) -> None:
    error = gateway_error(code, "")
    assert DOCUMENTED[code] == (type(error), error.account_level, CODES[code].vendor_text)


@pytest.mark.parametrize("code", [*MET_BUT_UNDOCUMENTED, -1, 3, 200, 10**18])
def test_an_undocumented_code_keeps_number_and_text(code: int) -> None:
    error = gateway_error(code, "某种原因")

    assert UnrecognizedCodeError is type(error)
    assert (code, "某种原因", False) == (error.code, error.msg, error.account_level)
    assert "the voice product documents no such code" == error.meaning
    assert str(code) in str(error)
    assert "某种原因" in str(error)


def test_the_table_holds_exactly_the_codes_of_the_voice_product() -> None:
    assert {ACCEPTED, *DOCUMENTED} == set(CODES)


def test_each_row_is_filed_under_its_own_number() -> None:
    assert [*CODES] == [row.number for row in CODES.values()]


@pytest.mark.parametrize("code", OF_THE_FAMILY)
def test_an_expired_or_wrong_dynamic_password_is_the_accounts_problem(code: int) -> None:
    error = gateway_error(code, "动态密码")

    assert AuthenticationError is type(error)
    assert (code, True, False) == (error.code, error.account_level, error.may_have_rung)
    assert "the dynamic password" in error.meaning
    assert "clock" in str(error)


def test_success_is_not_account_level() -> None:
    assert (False, "提交成功") == (CODES[ACCEPTED].account_level, CODES[ACCEPTED].vendor_text)


def test_every_meaning_is_english_and_its_own() -> None:
    meanings = [row.meaning for row in CODES.values()]

    assert len(meanings) == len(set(meanings))
    assert all(meaning and meaning.isascii() for meaning in meanings)


# --- what they say ----------------------------------------------------------


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: f"{type(e).__name__}-{e}"[:60])
def test_only_an_unknown_outcome_may_have_rung(error: IhuyiVoiceError) -> None:
    text = str(error)
    unknown = isinstance(error, OutcomeUnknownError) and "no phone" not in text
    # A run that stopped has counts of accepted and unknown rows, if any.
    run = isinstance(error, BulkStoppedError) and bool(re.search(r"\d (accepted|unknown)", text))
    assert (unknown or run) is error.may_have_rung


def test_a_refusal_says_code_meaning_text_and_that_no_phone_rang() -> None:
    assert (
        "the gateway refused with code 4051: the balance is used up (its text: '剩余条数不足');"
        " no phone rang" == str(gateway_error(4051, "剩余条数不足"))
    )


def test_a_hint_is_appended() -> None:
    assert str(gateway_error(405, "x")) + "; look at the clock" == str(
        gateway_error(405, "x", "look at the clock")
    )


def test_a_refusal_has_the_gateways_facts() -> None:
    error = gateway_error(405, "用户名或密码不正确")

    assert (405, "用户名或密码不正确", True) == (error.code, error.msg, error.account_level)
    assert CODES[405].meaning == error.meaning


def test_the_limit_says_when_the_number_is_free_again() -> None:
    error = QuotaExceededError("139****5678", 42.25)

    assert 42.25 == error.retry_after
    assert (
        "the limit of calls to 139****5678 is reached; nothing was sent,"
        " no phone rang; allowed again in 42.2 s" == str(error)
    )


def test_not_sent_says_that_repeating_is_safe() -> None:
    assert (
        "not sent: no slot came free; nothing was written, no phone rang, repeating is safe"
        == str(NotSentError("no slot came free"))
    )


def test_a_stores_failure_says_nothing_about_sending_because_it_may_come_after() -> None:
    error = StoreError("calls.db: the disk is full")

    assert "the store could not be used: calls.db: the disk is full" == str(error)
    assert "calls.db: the disk is full" == error.reason


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (OutcomeStatus.UNKNOWN, "do not send the accepted and the unknown rows again"),
        (OutcomeStatus.REFUSED, "no phone rang"),
    ],
)
def test_a_stopped_run_says_which_rows_must_not_be_sent_again(
    status: OutcomeStatus, advice: str
) -> None:
    error = BulkStoppedError(None, BulkReport({status: 2}, 0.1, stopped_at=7))

    assert (
        f"the bulk run stopped at row 7: stop_on asked for it; so far 2 {status.value}; {advice}"
        == str(error)
    )


def test_an_unknown_outcome_says_not_to_repeat_it() -> None:
    assert "outcome unknown: reset; the phone may have rung, do not repeat this blindly" == str(
        OutcomeUnknownError("reset")
    )


def test_an_unknown_balance_says_that_repeating_is_safe() -> None:
    assert "outcome unknown: reset; no phone was involved, repeating is safe" == str(
        OutcomeUnknownError("reset", may_have_rung=False)
    )


# --- across processes -------------------------------------------------------


def test_there_is_an_example_of_every_class() -> None:
    assert public_errors() == {type(error) for error in EXAMPLES}


def facts(error: IhuyiVoiceError) -> tuple[object, ...]:
    return type(error), str(error), repr(error), error.args, error.may_have_rung, vars(error)


EVERY_EXAMPLE = pytest.mark.parametrize(
    "error", EXAMPLES, ids=lambda e: f"{type(e).__name__}-{e}"[:60]
)


@EVERY_EXAMPLE
def test_its_args_rebuild_it(error: IhuyiVoiceError) -> None:
    again = type(error)(*error.args)
    assert facts(error) == facts(again)
    assert error == again
    assert hash(error) == hash(again)


@EVERY_EXAMPLE
def test_its_args_are_json_values(error: IhuyiVoiceError) -> None:
    """As Celery's JSON backend does: class and module by name, and the args."""
    stored = json.dumps([type(error).__module__, type(error).__qualname__, error.args])
    module, name, args = json.loads(stored)
    again = getattr(sys.modules[module], name)(*args)
    assert facts(error) == facts(again)
    assert error == again


@EVERY_EXAMPLE
def test_it_pickles_and_keeps_class_text_and_attributes(error: IhuyiVoiceError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert facts(error) == facts(again)
    assert error == again


def test_every_protocol_of_pickle_gives_the_same_error() -> None:
    error = gateway_error(405, "用户名或密码不正确", "look at the clock")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert facts(error) == facts(again)


@EVERY_EXAMPLE
def test_it_can_be_copied(error: IhuyiVoiceError) -> None:
    for again in (copy.copy(error), copy.deepcopy(error)):
        assert facts(error) == facts(again)
        assert error == again


def test_no_two_examples_are_equal() -> None:
    assert len(EXAMPLES) == len(set(EXAMPLES))
    assert [*EXAMPLES] == [error for error in EXAMPLES if EXAMPLES.count(error) == 1]


def test_an_error_is_not_equal_to_what_is_none() -> None:
    assert NotSentError("x") != "x"
    assert NotSentError("x") != StoreError("x")
    assert InvalidRequestError("x") != ValueError("x")


def test_a_note_travels_with_the_pickle() -> None:
    error = NotSentError("x")
    vars(error)["__notes__"] = ["a note"]
    assert ["a note"] == pickle.loads(pickle.dumps(error)).__notes__


def test_what_stopped_a_run_is_an_error_again_on_the_other_side() -> None:
    report = BulkReport(
        {OutcomeStatus.ACCEPTED: 1, OutcomeStatus.REFUSED: 1}, 1.5, gateway_error(4050, "冻结"), 1
    )
    error = BulkStoppedError(gateway_error(4050, "冻结"), report)
    again = BulkStoppedError(*json.loads(json.dumps(error.args)))
    assert isinstance(again.cause, AccountFrozenError)
    assert report == again.report
    assert "冻结" == again.cause.msg
    assert again.may_have_rung


class ForeignError(IhuyiVoiceError):
    """A class that another process need not know."""


@pytest.mark.parametrize("name", ["ForeignError", "CODES", "Code", "print"])
def test_a_cause_of_a_foreign_class_becomes_the_root_of_the_tree(name: str) -> None:
    again = error_from_json(error_to_json(ForeignError("what happened")) | {"type": name})
    assert (IhuyiVoiceError, "what happened") == (type(again), str(again))


def test_all_are_found_in_the_package_which_a_process_has_imported() -> None:
    """Celery does not import the module of an error: it looks into `sys.modules`."""
    assert {"ihuyi_voice"} == {cls.__module__ for cls in public_errors()}
    script = (
        "import sys; from ihuyi_voice.errors import NotSentError; import ihuyi_voice;"
        "print(NotSentError.__module__, ihuyi_voice.NotSentError is NotSentError)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True, timeout=60
    )
    assert "ihuyi_voice True\n" == done.stdout
