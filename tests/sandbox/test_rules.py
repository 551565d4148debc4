"""The rules alone: forms in, answers out, no loop and no socket."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from ihuyi_voice.errors import CODES
from ihuyi_voice.sandbox import Attempt, Call, rules
from ihuyi_voice.sandbox.faults import Roll
from ihuyi_voice.sandbox.forms import parse_form
from ihuyi_voice.sandbox.masking import MASK
from ihuyi_voice.sandbox.rules import FIRST_VOICE_ID, GatewayState, Reply
from ihuyi_voice.sandbox.settings import Settings
from tests.sandbox.forms import (
    CONTENT,
    KEY,
    MOBILE,
    NOW,
    balance_form,
    md5,
    submit_form,
    without,
)

if TYPE_CHECKING:
    from ihuyi_voice.sandbox.reasons import Method

IP = "127.0.0.1"
FIRST_ID = str(FIRST_VOICE_ID)


def submit(gateway: GatewayState, form: dict[str, str], now: float = NOW) -> Reply:
    return gateway.answer("Submit", form, IP, now)


def get_num(gateway: GatewayState, form: dict[str, str], now: float = NOW) -> Reply:
    return gateway.answer("GetNum", form, IP, now)


def frozen(**settings: Any) -> GatewayState:
    return GatewayState(Settings(frozen=True, **settings))


# --- shapes -------------------------------------------------------------------


def test_a_success_in_xml_has_the_id_as_voiceid() -> None:
    expected = (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        '<SubmitResult xmlns="http://106.ihuyi.com/"><code>2</code>'
        f"<msg>提交成功</msg><voiceid>{FIRST_ID}</voiceid></SubmitResult>"
    )
    reply = submit(GatewayState(Settings()), submit_form())
    assert expected == reply.body.decode()
    assert rules.XML == reply.content_type


def test_a_success_in_json_has_the_id_as_a_voiceid_in_quotes() -> None:
    expected = f'{{"code":2,"msg":"提交成功","voiceid":"{FIRST_ID}"}}'
    reply = submit(GatewayState(Settings()), submit_form(format="json"))
    assert expected == reply.body.decode()
    assert rules.JSON == reply.content_type


def test_a_refusal_in_xml_has_smsid_0() -> None:
    expected = (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        '<SubmitResult xmlns="http://106.ihuyi.com/"><code>405</code>'
        "<msg>用户名或密码不正确</msg><smsid>0</smsid></SubmitResult>"
    )
    reply = submit(GatewayState(Settings()), submit_form(password=md5("guess")))
    assert expected == reply.body.decode()


def test_a_refusal_in_json_has_voiceid_0() -> None:
    expected = '{"code":405,"msg":"用户名或密码不正确","voiceid":"0"}'
    reply = submit(GatewayState(Settings()), submit_form(password=md5("guess"), format="json"))
    assert expected == reply.body.decode()


def test_the_balance_in_xml() -> None:
    expected = (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        '<GetNumResult xmlns="http://106.ihuyi.com/"><code>2</code>'
        "<msg>查询成功</msg><num>20023</num></GetNumResult>"
    )
    reply = get_num(GatewayState(Settings(balance=20023)), balance_form())
    assert expected == reply.body.decode()


def test_the_balance_in_json() -> None:
    reply = get_num(GatewayState(Settings(balance=20023)), balance_form(format="json"))
    assert '{"code":2,"msg":"查询成功","num":"20023"}' == reply.body.decode()


def test_a_refused_balance_query_has_num_0() -> None:
    reply = get_num(GatewayState(Settings()), balance_form(password=md5("guess"), format="json"))
    assert '{"code":405,"msg":"用户名或密码不正确","num":"0"}' == reply.body.decode()


def test_every_text_in_xml_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules._TEXTS, 401, "<&>")
    root = ET.fromstring(submit(GatewayState(Settings()), {}).body)  # noqa: S314 - our own
    assert "<&>" == root.findtext("{http://106.ihuyi.com/}msg")


def test_every_code_of_the_table_is_answered_in_the_vendors_words() -> None:
    gateway = GatewayState(Settings())
    for code in CODES.values():
        form = submit_form(format="json")
        roll = Roll(fault="code", code=code.number)
        reply = gateway.answer("Submit", form, IP, NOW, roll=roll)
        assert code.vendor_text == json.loads(reply.body)["msg"]


# --- what is placed -----------------------------------------------------------


def test_a_placed_call_is_recorded_and_billed() -> None:
    gateway = GatewayState(Settings(balance=5))
    reply = submit(gateway, submit_form(), NOW + 0.5)
    call = Call(MOBILE, CONTENT, FIRST_ID, NOW + 0.5)
    fields = ("account", "password", "mobile", "content", "time")
    values = ("sandbox", MASK, MOBILE, CONTENT, str(NOW))
    attempt = Attempt(
        MOBILE, CONTENT, 2, "提交成功", FIRST_ID, NOW + 0.5, IP, fields,
        None, values, 200, reply.body, 1,
    )  # fmt: skip
    assert [call] == list(gateway.history.calls)
    assert [attempt] == list(gateway.history.attempts)
    assert attempt.placed
    assert 4 == gateway.settings.balance
    assert (2, NOW + 0.5, call, attempt) == (reply.code, reply.time, reply.call, reply.attempt)


def test_a_form_is_checked_whole_and_recorded_up_to_100_fields() -> None:
    gateway = GatewayState(Settings())
    many = {f"x{number}": "" for number in range(150)}
    reply = submit(gateway, many | submit_form())
    assert reply.attempt is not None
    assert (2, tuple(many)[:100]) == (reply.code, reply.attempt.fields)
    assert 100 == len(reply.attempt.values)


def test_long_texts_are_cut_where_they_are_recorded() -> None:
    fits, cut = "x" * 2000, "x" * 2000 + "…"
    form = {"mobile": fits + "x", "content": fits, fits + "y": fits + "z"}
    attempt = submit(GatewayState(Settings()), form).attempt
    assert attempt is not None
    assert (cut, fits) == (attempt.mobile, attempt.content)
    assert (("mobile", "content", cut), (cut, fits, cut)) == (attempt.fields, attempt.values)


def test_a_cut_text_does_not_end_in_half_a_secret() -> None:
    text = "x" * 1995 + KEY
    form = {"mobile": text, "content": text, "rd": text, text: ""}
    attempt = submit(GatewayState(Settings()), form).attempt
    assert attempt is not None
    assert KEY[:4] not in repr(attempt)


def test_a_refused_submit_is_recorded_and_not_billed() -> None:
    gateway = GatewayState(Settings(balance=5))
    reply = submit(gateway, without(submit_form(), "account"))
    fields = ("password", "mobile", "content", "time")
    values = (MASK, MOBILE, CONTENT, str(NOW))
    attempt = Attempt(
        MOBILE, CONTENT, 401, "帐号不能为空", None, NOW, IP, fields,
        None, values, 200, reply.body, 1,
    )  # fmt: skip
    assert [] == list(gateway.history.calls)
    assert [attempt] == list(gateway.history.attempts)
    assert not attempt.placed
    assert 5 == gateway.settings.balance
    assert (401, None, attempt) == (reply.code, reply.call, reply.attempt)


def test_a_balance_query_is_no_attempt() -> None:
    gateway = GatewayState(Settings())
    assert None is get_num(gateway, balance_form()).attempt
    assert [] == list(gateway.history.attempts)


def test_voice_ids_are_unique_and_rise() -> None:
    gateway = GatewayState(Settings())
    for _ in range(100):
        submit(gateway, submit_form())
    ids = [int(call.voice_id) for call in gateway.history.calls]
    assert list(range(FIRST_VOICE_ID, FIRST_VOICE_ID + 100)) == ids
    assert 9 <= len(FIRST_ID)


def test_the_key_itself_is_a_password_and_needs_no_time() -> None:
    form = without(submit_form(password=KEY), "time")
    assert 2 == submit(GatewayState(Settings()), form).code
    assert 2 == get_num(GatewayState(Settings()), without(form, "mobile")).code


def test_unknown_fields_are_ignored() -> None:
    assert 2 == submit(GatewayState(Settings()), submit_form(rd="1")).code


def test_any_format_but_json_is_xml() -> None:
    assert rules.XML == submit(GatewayState(Settings()), submit_form(format="yaml")).content_type


# --- every code from its natural cause ----------------------------------------


@pytest.mark.parametrize(
    ("code", "form"),
    [
        (401, without(submit_form(), "account")),
        (401, submit_form(account="")),
        (402, without(submit_form(), "password")),
        (402, submit_form(password="")),
        (405, submit_form(account="somebody")),
        (405, submit_form(password=md5("guess"))),
        (405, submit_form(password=submit_form()["password"].upper())),
        (405, without(submit_form(), "time")),
        (405, submit_form(time=170)),
        (405, submit_form() | {"content": "9999"}),
        (403, submit_form("")),
        (403, without(submit_form(""), "mobile")),
        (406, submit_form("12912345678")),
        (406, submit_form("1391234567")),
        (406, submit_form("139123456789")),
        (406, submit_form("+8613912345678")),
        (406, submit_form("１３９12345678")),
        (406, submit_form("13912345678,13912345679")),
        (4030, submit_form("13900000001")),
        (404, submit_form(MOBILE, "")),
        (404, without(submit_form(MOBILE, ""), "content")),
        (4070, submit_form(MOBILE, "123")),
        (4070, submit_form(MOBILE, "1234567")),
        (4070, submit_form(MOBILE, "12a4")),
        (4070, submit_form(MOBILE, "１１２５")),
        (407, submit_form(MOBILE, "4444")),
        (407, submit_form(MOBILE, "赌博")),
        (0, submit_form("13900000002")),
    ],
)
def test_a_form_is_refused_with_its_code(code: int, form: dict[str, str]) -> None:
    settings = Settings(
        blacklist=frozenset({"13900000001"}),
        failing_mobiles=frozenset({"13900000002"}),
        banned_contents=frozenset({"4444", "赌博"}),
    )
    assert code == submit(GatewayState(settings), form).code


def test_a_submit_with_no_balance_left_is_4051() -> None:
    gateway = GatewayState(Settings(balance=1))
    assert [2, 4051] == [submit(gateway, submit_form()).code for _ in range(2)]
    assert 0 == gateway.settings.balance


@pytest.mark.parametrize("method", ["Submit", "GetNum"])
def test_an_address_that_is_not_allowed_is_400(method: Method) -> None:
    form = submit_form() if method == "Submit" else balance_form()
    gateway = GatewayState(Settings(allowed_ips=frozenset({"10.0.0.1"})))
    assert 2 == gateway.answer(method, form, "10.0.0.1", NOW).code
    assert 400 == gateway.answer(method, form, "10.0.0.2", NOW).code


def test_an_address_that_is_not_registered_is_4052() -> None:
    gateway = GatewayState(Settings(registered_ips=frozenset({"10.0.0.1"})))
    assert 2 == gateway.answer("Submit", submit_form(), "10.0.0.1", NOW).code
    assert 4052 == gateway.answer("Submit", submit_form(), "10.0.0.2", NOW).code
    assert 2 == gateway.answer("GetNum", balance_form(), "10.0.0.2", NOW).code


@pytest.mark.parametrize(
    ("code", "window", "late"),
    [
        (2, 600.0, 600),
        (405, 600.0, 601),
        (2, 600.0, -600),
        (405, 600.0, -601),
        (405, 0.0, 1),
        (2, None, 10**8),
    ],
)
def test_a_stale_time_is_405(code: int, window: float | None, late: int) -> None:
    gateway = GatewayState(Settings(time_window=window))
    assert code == submit(gateway, submit_form(), NOW + late).code
    assert code == get_num(gateway, balance_form(), NOW + late).code


def test_a_frozen_account_is_4050() -> None:
    assert 4050 == submit(frozen(), submit_form()).code
    assert 4050 == get_num(frozen(), balance_form()).code


@pytest.mark.parametrize(
    ("code", "form"),
    [
        (401, without(balance_form(), "account")),
        (402, without(balance_form(), "password")),
        (405, without(balance_form(), "time")),
        (405, submit_form()),
    ],
)
def test_a_balance_query_is_refused_with_its_code(code: int, form: dict[str, str]) -> None:
    assert code == get_num(GatewayState(Settings()), form).code


def test_a_run_of_refusals_freezes_the_account_for_abuse() -> None:
    gateway = GatewayState(Settings(abuse_limit=3))
    bad = submit_form(MOBILE, "1")
    codes = [submit(gateway, form).code for form in (bad, bad, submit_form(), bad, bad, bad)]
    assert [4070, 4070, 2, 4070, 4070, 4070] == codes
    assert 408 == submit(gateway, submit_form()).code
    assert 4050 == get_num(gateway, balance_form()).code
    gateway.settings.frozen = False
    gateway.forgive_abuse()
    assert [4070, 2] == [submit(gateway, form).code for form in (bad, submit_form())]


def test_abuse_of_a_frozen_account_is_still_4050() -> None:
    gateway = frozen(abuse_limit=1)
    assert [4050, 4050] == [submit(gateway, submit_form()).code for _ in range(2)]


def test_a_forced_code_is_answered_instead_of_placing_and_is_no_abuse() -> None:
    gateway = GatewayState(Settings(abuse_limit=1))
    roll = Roll(fault="code", code=4085)
    reply = gateway.answer("Submit", submit_form(), IP, NOW, roll=roll)
    assert (4085, None) == (reply.code, reply.call)
    (refused,) = gateway.history.attempts
    assert (4085, "未知错误", "code") == (refused.code, refused.msg, refused.fault)
    assert 4085 == gateway.answer("GetNum", balance_form(), IP, NOW, roll=roll).code
    assert 2 == submit(gateway, submit_form()).code


# --- the per-number limit -----------------------------------------------------


def test_there_is_no_limit_per_number_by_default() -> None:
    gateway = GatewayState(Settings())
    assert {2} == {submit(gateway, submit_form()).code for _ in range(20)}


def test_the_third_call_within_a_minute_is_4081() -> None:
    gateway = GatewayState(Settings(frequency_limit=True))
    codes = [submit(gateway, submit_form(), NOW + s).code for s in (0, 59, 59.9, 60, 61, 119)]
    assert [2, 2, 4081, 2, 4081, 2] == codes
    assert 2 == submit(gateway, submit_form("13912345679"), NOW + 119).code


def test_the_eleventh_call_within_a_day_is_4082() -> None:
    gateway = GatewayState(Settings(frequency_limit=True, time_window=None))
    codes = [submit(gateway, submit_form(), NOW + 100 * n).code for n in range(11)]
    assert [2] * 10 + [4082] == codes
    assert 2 == submit(gateway, submit_form(), NOW + 86_400).code
    assert 4082 == submit(gateway, submit_form(), NOW + 86_400).code


def test_the_limits_per_number_can_be_set() -> None:
    gateway = GatewayState(Settings(frequency_limit=True, calls_per_minute=1, calls_per_day=2))
    codes = [submit(gateway, submit_form(), NOW + s).code for s in (0, 1, 60, 120)]
    assert [2, 4081, 2, 4082] == codes


# --- the order of the checks --------------------------------------------------


def test_the_checks_have_a_fixed_order() -> None:
    """Each step mends what the last was refused for, and nothing after it."""
    settings = Settings(
        allowed_ips=frozenset(),
        registered_ips=frozenset(),
        blacklist=frozenset({MOBILE}),
        banned_contents=frozenset({"44444"}),
        failing_mobiles=frozenset({"13900000002"}),
        balance=0,
        frequency_limit=True,
        calls_per_minute=1,
    )
    settings.frozen = True
    gateway = GatewayState(settings)
    late = NOW + 1000
    codes = [submit(gateway, {}, late).code]
    settings.allowed_ips = None
    codes.append(submit(gateway, {}, late).code)
    settings.registered_ips = None
    codes.extend(
        submit(gateway, form, late).code
        for form in (
            {},
            {"account": "x"},
            {"account": "x", "password": "y"},
            submit_form("", ""),
            submit_form("", "", time=late),
        )
    )
    gateway.settings.frozen = False
    gateway.forgive_abuse()
    codes.extend(
        submit(gateway, submit_form(mobile, content, time=late), late).code
        for mobile, content in (
            ("", ""),
            ("1", ""),
            (MOBILE, ""),
            ("13900000002", ""),
            ("13900000002", "4"),
            ("13900000002", "44444"),
            ("13900000002", "4444"),
            ("13900000003", "4444"),
        )
    )
    settings.balance = 1
    codes.append(submit(gateway, submit_form("13900000003", time=late), late).code)
    settings.failing_mobiles = frozenset({"13900000003"})
    codes.append(submit(gateway, submit_form("13900000003", time=late), late).code)
    expected = [400, 4052, 401, 402, 405, 405, 4050]
    expected += [403, 406, 4030, 404, 4070, 407, 0, 4051, 2, 4081]
    assert expected == codes


# --- forms --------------------------------------------------------------------


def test_a_number_that_is_not_utf_8_is_malformed() -> None:
    form = parse_form("mobile=%ff%fe&content=%d6")
    signed = submit_form(form["mobile"], form["content"])
    assert 406 == submit(GatewayState(Settings()), signed).code
