"""The public class without HTTP: its settings, its history, its reset."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from attrs import asdict

from ihuyi_voice.sandbox import Attempt, Chaos, OtherRequest, SandboxGateway, core
from ihuyi_voice.sandbox.core import Setting
from ihuyi_voice.sandbox.faults import NOTHING_HAPPENS
from ihuyi_voice.sandbox.settings import Settings
from tests.sandbox.forms import CONTENT, MOBILE, NOW, balance_form, md5, submit_form

if TYPE_CHECKING:
    from ihuyi_voice.sandbox.reasons import Method

# At import: while tests run, another takes its place.
DRAW_FIRST_ID = core.draw_first_id


def submit(gateway: SandboxGateway, form: dict[str, str] | None = None) -> int:
    form = submit_form() if form is None else form
    return gateway.answer("Submit", form, "127.0.0.1", gateway.roll()).code


def at_now() -> float:
    return NOW


def test_by_default_the_account_accepts_calls() -> None:
    gateway = SandboxGateway(clock=at_now)
    assert asdict(Settings()) == {name: getattr(gateway, name) for name in asdict(Settings())}
    assert (False, Chaos()) == (gateway.frozen, gateway.chaos)
    assert 2 == submit(gateway)


def test_every_setting_counts_when_it_is_set_while_running() -> None:
    gateway = SandboxGateway(clock=at_now)
    gateway.api_id = "other"
    assert 405 == submit(gateway)
    gateway.api_id = "sandbox"
    gateway.api_key = "other"
    assert 405 == submit(gateway)
    gateway.api_key = "sandbox-key"
    gateway.blacklist |= {MOBILE}
    assert 4030 == submit(gateway)
    gateway.blacklist = []
    gateway.banned_contents = ["1125"]
    assert 407 == submit(gateway)
    gateway.banned_contents = []
    gateway.failing_mobiles = {"+86 139-1234-5678"}
    assert 0 == submit(gateway)
    gateway.failing_mobiles = []
    gateway.allowed_ips = ["::1"]
    assert 400 == submit(gateway)
    gateway.allowed_ips = None
    gateway.registered_ips = ["::1"]
    assert 4052 == submit(gateway)
    gateway.registered_ips = None
    gateway.frozen = True
    assert 4050 == submit(gateway)
    gateway.frozen = False
    gateway.balance = 0
    assert 4051 == submit(gateway)
    gateway.balance = 1
    assert 2 == submit(gateway)
    assert 0 == gateway.balance


def test_ending_a_freeze_for_abuse() -> None:
    gateway = SandboxGateway(abuse_limit=1, clock=at_now)
    assert [401, 408] == [submit(gateway, {}), submit(gateway)]
    assert (True, 408) == (gateway.frozen, gateway.frozen_with)
    gateway.frozen = False
    assert None is gateway.frozen_with
    assert 2 == submit(gateway)


def test_addresses_are_compared_in_any_spelling() -> None:
    gateway = SandboxGateway(allowed_ips=["0:0::1", "::ffff:127.0.0.1"])
    assert frozenset({"::1", "127.0.0.1"}) == gateway.allowed_ips


def test_the_calls_and_attempts_are_new_lists() -> None:
    gateway = SandboxGateway(clock=at_now)
    submit(gateway)
    gateway.calls.clear()
    gateway.attempts.clear()
    assert (1, 1) == (len(gateway.calls), len(gateway.attempts))


def test_each_submit_is_reported_and_a_balance_query_is_not() -> None:
    seen: list[Attempt] = []
    gateway = SandboxGateway(on_attempt=seen.append, clock=at_now)
    submit(gateway)
    submit(gateway, {})
    gateway.answer("GetNum", balance_form(), "127.0.0.1", NOTHING_HAPPENS)
    assert gateway.attempts == seen
    assert [2, 401] == [attempt.code for attempt in seen]


def test_a_callback_that_raises_is_logged_and_changes_no_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: Attempt) -> None:
        raise BrokenPipeError

    gateway = SandboxGateway(on_attempt=fail, clock=at_now)
    assert 2 == submit(gateway)
    assert 1 == len(gateway.calls)
    logged = [record for record in caplog.records if record.name == "ihuyi_voice.sandbox"]
    assert [logging.ERROR] == [record.levelno for record in logged]
    assert "on_attempt raised" in logged[0].getMessage()


def test_reset_restores_the_settings_of_the_constructor() -> None:
    chaos = Chaos(code=4085, seed=1)
    gateway = SandboxGateway(balance=7, frozen=True, blacklist=[MOBILE], chaos=chaos, clock=at_now)
    gateway.frozen = False
    gateway.chaos = Chaos()
    gateway.blacklist = []
    assert 2 == submit(gateway)
    first_id = gateway.calls[0].voice_id
    gateway.reset()
    assert ([], [], 7, True, chaos) == (
        gateway.calls, gateway.attempts, gateway.balance, gateway.frozen, gateway.chaos,
    )  # fmt: skip
    assert frozenset({MOBILE}) == gateway.blacklist
    gateway.frozen = False
    gateway.chaos = Chaos()
    gateway.blacklist = []
    submit(gateway)
    gateway.reset()
    assert 7 == gateway.balance
    assert "100000001" == first_id


def test_reset_unfreezes_an_account_that_was_not_frozen_at_first() -> None:
    gateway = SandboxGateway(clock=at_now)
    gateway.frozen = True
    gateway.reset()
    assert not gateway.frozen


def test_the_repr_says_what_happened_so_far() -> None:
    gateway = SandboxGateway(balance=3, clock=at_now)
    submit(gateway)
    submit(gateway, {})
    assert "SandboxGateway(api_id='sandbox', balance=2, calls=1, attempts=2)" == repr(gateway)


def test_a_setting_looked_up_on_the_class_is_itself() -> None:
    assert isinstance(SandboxGateway.balance, Setting)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("api_id", "", "must be a str that is not empty, not ''"),
        ("api_key", 5, "must be a str that is not empty, not 5"),
        ("balance", -1, "must be an int of at least 0, not -1"),
        ("balance", 1.5, "must be an int of at least 0, not 1.5"),
        ("balance", True, "must be an int of at least 0, not True"),
        ("time_window", -1, "must be a finite number of seconds of at least 0, not -1"),
        ("time_window", "600", "must be a finite number of seconds of at least 0, not '600'"),
        ("allowed_ips", ["localhost"], "must hold IP addresses: 'localhost' does not appear"),
        ("allowed_ips", [2130706433], "must hold IP addresses: 2130706433 is not a str"),
        ("registered_ips", [True], "must hold IP addresses: True is not a str"),
        ("registered_ips", "127.0.0.1", "must be several str, as a list or a set"),
        ("blacklist", ["123"], "must hold mobile numbers: mobile must be a mainland number"),
        ("blacklist", MOBILE, "must be several str, as a list or a set"),
        ("failing_mobiles", 5, "must be several str, as a list or a set"),
        ("banned_contents", [4444], "must be a str that is not empty, not 4444"),
        ("frozen", 1, "must be True or False, not 1"),
        ("abuse_limit", 0, "must be an int of at least 1, not 0"),
        ("frequency_limit", "yes", "must be True or False, not 'yes'"),
        ("calls_per_minute", 0, "must be an int of at least 1, not 0"),
        ("calls_per_day", True, "must be an int of at least 1, not True"),
        ("chaos", {"garbage": 1}, "must be a Chaos, not "),
        ("receipt_url", "ftp://127.0.0.1/", "must be a URL such as http://"),
        ("receipt_url", "http://", "must be a URL such as http://"),
        ("receipt_url", "http://[::1", "must be a URL such as http://"),
        ("receipt_url", "http://127.0.0.1:99999/", "must be a URL such as http://"),
        ("receipt_url", "", "must be a URL such as http://"),
        ("receipt_url", b"http://127.0.0.1/", "must be a URL such as http://"),
        ("receipt_delay", -1, "must be a finite number of seconds of at least 0, not -1"),
        ("receipt_interval", None, "must be a finite number of seconds of at least 0, not None"),
        ("receipt_timeout", "5", "must be a finite number of seconds of at least 0, not '5'"),
        ("receipt_timeout", 0, "must be more than 0 seconds, not 0"),
        ("receipt_id", "", "must be a str that is not empty, not ''"),
        ("keep", 0, "must be an int of at least 1, not 0"),
        ("keep", 10**9 + 1, "must be an int of at most 1000000000"),
        ("keep", 10**400, "must be an int of at most 1000000000"),
        ("abuse_limit", 2**63, "must be an int of at most 1000000000"),
        ("calls_per_day", 2**63, "must be an int of at most 1000000000"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: object, text: str) -> None:
    settings = {name: value}
    with pytest.raises(ValueError, match=f"{name} .*{text}|{name} {text}"):
        SandboxGateway(**settings)  # type: ignore[arg-type]
    gateway = SandboxGateway()
    before = getattr(gateway, name)
    with pytest.raises(ValueError, match=text):
        setattr(gateway, name, value)
    assert before == getattr(gateway, name)


def test_the_history_is_bounded_and_the_counts_are_not() -> None:
    gateway = SandboxGateway(keep=2, clock=at_now)
    for _ in range(3):
        submit(gateway)
    submit(gateway, {})
    assert (2, 2) == (len(gateway.calls), len(gateway.attempts))
    assert (4, 3) == (gateway.taken, gateway.placed)
    assert 10_000 == SandboxGateway().keep
    gateway.keep = 1
    assert [401] == [attempt.code for attempt in gateway.attempts]
    gateway.reset()
    assert (2, 0, 0) == (gateway.keep, gateway.taken, gateway.placed)


def test_the_largest_count_is_accepted_for_keep() -> None:
    gateway = SandboxGateway(keep=10**9, clock=at_now)
    submit(gateway)
    assert (10**9, 1) == (gateway.keep, len(gateway.calls))


def test_clear_forgets_the_calls_and_nothing_else() -> None:
    gateway = SandboxGateway(balance=5, clock=at_now)
    submit(gateway)
    gateway.blacklist = [MOBILE]
    gateway.clear()
    assert ([], [], 4) == (gateway.calls, gateway.attempts, gateway.balance)
    assert 4030 == submit(gateway)
    gateway.blacklist = []
    submit(gateway)
    assert ["100000002"] == [call.voice_id for call in gateway.calls]


def test_several_settings_are_changed_at_once_or_none() -> None:
    gateway = SandboxGateway(clock=at_now)
    gateway.change({"balance": 5, "frozen": True, "keep": 7, "allowed_ips": ["0:0::1"]})
    assert (5, True, 7) == (gateway.balance, gateway.frozen, gateway.keep)
    assert frozenset({"::1"}) == gateway.allowed_ips
    with pytest.raises(ValueError, match="keep"):
        gateway.change({"balance": 6, "keep": 0})
    with pytest.raises(ValueError, match="unknown: api_key; there are frozen, "):
        gateway.change({"balance": 6, "api_key": "other"})
    assert 5 == gateway.balance
    assert gateway.settings()["balance"] == 5


def kept_of(form: dict[str, str]) -> Attempt:
    gateway = SandboxGateway(clock=at_now)
    submit(gateway, form)
    (attempt,) = gateway.attempts
    return attempt


def test_the_key_is_masked_in_a_name() -> None:
    assert ("x-********",) == kept_of(submit_form() | {"x-sandbox-key": "1"}).fields[-1:]


@pytest.mark.parametrize("name", ["mobile", "content", "rd"])
def test_a_value_that_holds_the_key_is_masked_in_all_that_is_kept(name: str) -> None:
    attempt = kept_of(submit_form() | {name: "a sandbox-key"})
    assert "********" == dict(zip(attempt.fields, attempt.values, strict=True))[name]
    assert "sandbox-key" not in repr(attempt)


@pytest.mark.parametrize("password", ["sandbox-key", "another", submit_form()["password"]])
def test_any_password_is_masked(password: str) -> None:
    attempt = kept_of(submit_form(password=password))
    assert "********" == dict(zip(attempt.fields, attempt.values, strict=True))["password"]
    assert password not in repr(attempt)


def test_an_empty_password_is_seen_to_be_empty() -> None:
    attempt = kept_of(submit_form(password=""))
    assert "" == dict(zip(attempt.fields, attempt.values, strict=True))["password"]


def test_a_key_as_short_as_a_code_masks_neither_a_number_nor_a_code() -> None:
    gateway = SandboxGateway(api_key="1", clock=at_now)
    submit(gateway, submit_form(password="1"))
    (attempt,) = gateway.attempts
    assert (MOBILE, "1125") == (attempt.mobile, attempt.content)
    assert ("account", "password", "mobile", "content", "time") == attempt.fields


# --- accounts, ids, and requests that are no submits --------------------------------


def signed(account: str, key: str) -> dict[str, str]:
    return submit_form(account=account, password=md5(f"{account}{key}{MOBILE}{CONTENT}{NOW}"))


def test_several_accounts_share_a_balance_and_keep_their_keys() -> None:
    gateway = SandboxGateway(accounts={"VM1": "key-1", "VM2": "key-2"}, balance=3, clock=at_now)
    assert 2 == submit(gateway)
    assert 2 == submit(gateway, signed("VM1", "key-1"))
    assert 2 == submit(gateway, submit_form(account="VM2", password="key-2"))
    assert 405 == submit(gateway, signed("VM1", "key-2"))
    assert 405 == submit(gateway, submit_form(account="VM3", password="key-2"))
    assert 0 == gateway.balance
    balance = {"account": "VM2", "password": md5(f"VM2key-2{NOW}"), "time": str(NOW)}
    assert 2 == gateway.answer("GetNum", balance, "127.0.0.1", NOTHING_HAPPENS).code


def test_the_accounts_are_copied_and_can_be_set() -> None:
    accounts = {"VM1": "key-1"}
    gateway = SandboxGateway(accounts=accounts, clock=at_now)
    accounts["VM2"] = "key-2"
    assert {"VM1": "key-1"} == gateway.accounts
    gateway.accounts = {}
    assert 405 == submit(gateway, signed("VM1", "key-1"))
    assert "accounts" not in gateway.settings()


@pytest.mark.parametrize(
    "accounts", [{"VM1": ""}, {"": "secret-k"}, {"VM1": 5}, {"VM1": ["secret-k"]}, ["secret-k"]]
)
def test_wrong_accounts_are_refused_without_their_keys(accounts: Any) -> None:
    with pytest.raises(ValueError, match="accounts must map each APIID to its APIKEY") as caught:
        SandboxGateway(accounts=accounts)
    assert "secret-k" not in str(caught.value)


def test_no_key_is_shown_or_kept() -> None:
    settings = Settings(api_key="first-k", accounts={"VM1": "second-k"})
    assert "-k" not in repr(settings)
    gateway = SandboxGateway(api_key="first-k", accounts={"VM1": "second-k"}, clock=at_now)
    submit(gateway, submit_form(rd="first-k", rd2="second-k"))
    gateway.answer("GetNum", balance_form(rd="second-k"), "127.0.0.1", NOTHING_HAPPENS)
    gateway.record("unknown", "GET /second-k?mobile=first-k", "", "", 404)
    assert "-k" not in repr((gateway.attempts, gateway.others))


def test_voice_ids_go_on_after_a_reset_and_a_clear() -> None:
    gateway = SandboxGateway(clock=at_now)
    ids = []
    for forget in (gateway.reset, gateway.clear, gateway.reset):
        submit(gateway)
        ids.append(int(gateway.calls[-1].voice_id))
        forget()
    assert [ids[0], ids[0] + 1, ids[0] + 2] == ids


def test_voice_ids_differ_after_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with the same clock: a test may freeze it."""
    drawn = iter([0, 8 * 10**15 - 1, 10])
    monkeypatch.setattr(core, "draw_first_id", DRAW_FIRST_ID)
    monkeypatch.setattr("secrets.randbelow", lambda _: next(drawn))
    ids = []
    for _ in range(3):
        gateway = SandboxGateway(clock=at_now)
        submit(gateway)
        ids.append(gateway.calls[0].voice_id)
    assert ["1000000000000000", "8999999999999999", "1000000000000010"] == ids


def test_a_balance_query_is_recorded_and_reported() -> None:
    seen: list[OtherRequest] = []
    gateway = SandboxGateway(on_other=seen.append, chaos=Chaos(truncate=1), clock=at_now)
    submit(gateway)
    form = balance_form(format="json")
    reply = gateway.answer("GetNum", form, "127.0.0.1", gateway.roll())
    (other,) = gateway.others
    assert [other] == seen
    assert reply.other is other
    assert ("balance", 2, "查询成功", "127.0.0.1", 200, "truncate") == (
        other.kind, other.code, other.msg, other.ip, other.status, other.fault,
    )  # fmt: skip
    assert reply.body.startswith(other.answer)
    assert (NOW, 1, 1) == (other.time, other.after, other.number)
    assert {"account": "sandbox", "password": "********", "time": str(NOW), "format": "json"} == (
        dict(zip(other.fields, other.values, strict=True))
    )
    assert "/webservice/voice.php?method=GetNum" == other.line


def test_a_reader_gets_the_other_requests_once() -> None:
    gateway = SandboxGateway(clock=at_now)
    gateway.record("unknown", "GET /", "no such path", "127.0.0.1", 404)
    first = gateway.snapshot(None, 0, 10)
    assert (["GET /"], 1) == ([other.line for other in first.others], first.others_taken)
    assert [] == gateway.snapshot(first.history, 0, 10, first.others_taken).others
    gateway.reset()
    assert [] == gateway.others


def test_a_callback_for_other_requests_that_raises_changes_no_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: OtherRequest) -> None:
        raise BrokenPipeError

    gateway = SandboxGateway(on_other=fail, clock=at_now)
    assert 2 == gateway.answer("GetNum", balance_form(), "", NOTHING_HAPPENS).code
    assert ["on_other raised; the request is recorded and answered as usual"] == [
        record.getMessage() for record in caplog.records
    ]


@pytest.mark.parametrize("method", ["Submit", "GetNum"])
def test_refusals_in_xml_may_have_line_breaks(method: Method) -> None:
    gateway = SandboxGateway(multiline_refusals=True, clock=at_now)
    text = gateway.answer(method, {}, "", NOTHING_HAPPENS).body.decode()
    assert "<code>\r\n401\r\n</code>\r\n<msg>\r\n帐号不能为空\r\n</msg>\r\n" in text
    json = gateway.answer(method, {"format": "json"}, "", NOTHING_HAPPENS).body
    form = submit_form() if method == "Submit" else balance_form()
    placed = gateway.answer(method, form, "", NOTHING_HAPPENS).body
    assert b"\r\n" not in json + placed
