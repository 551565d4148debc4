"""The public class without HTTP: its settings, its record, its reset."""

from __future__ import annotations

import logging

import pytest

from ihuyi_voice.sandbox import Attempt, Chaos, SandboxGateway
from ihuyi_voice.sandbox.faults import NOTHING_HAPPENS
from ihuyi_voice.sandbox.setting import Setting
from ihuyi_voice.sandbox.settings import Account
from tests.sandbox.forms import MOBILE, NOW, balance_form, submit_form


def submit(gateway: SandboxGateway, form: dict[str, str] | None = None) -> int:
    form = submit_form() if form is None else form
    return gateway.answer("Submit", form, "127.0.0.1", gateway.roll()).code


def at_now() -> float:
    return NOW


def test_the_defaults_are_those_of_an_account_in_order() -> None:
    gateway = SandboxGateway(clock=at_now)
    assert Account() == Account(
        **{name: getattr(gateway, name) for name in Account.__dataclass_fields__}
    )
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


def test_addresses_are_compared_whatever_their_spelling() -> None:
    gateway = SandboxGateway(allowed_ips=["0:0::1", "::ffff:127.0.0.1"])
    assert frozenset({"::1", "127.0.0.1"}) == gateway.allowed_ips


def test_the_record_is_a_list_of_its_own() -> None:
    gateway = SandboxGateway(clock=at_now)
    submit(gateway)
    gateway.calls.clear()
    gateway.attempts.clear()
    assert (1, 1) == (len(gateway.calls), len(gateway.attempts))


def test_each_attempt_is_reported_and_a_balance_query_is_none() -> None:
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
    assert "on_attempt failed" in logged[0].getMessage()


def test_reset_brings_back_how_it_was_constructed() -> None:
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


def test_reset_leaves_an_account_unfrozen_that_was_so() -> None:
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


def test_what_is_remembered_has_a_bound_and_what_is_counted_has_none() -> None:
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


def test_as_many_as_can_be_counted_may_be_remembered() -> None:
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


def test_a_secret_that_is_sent_as_a_name_is_masked_there() -> None:
    dynamic = submit_form()["password"]
    form = submit_form() | {"x-sandbox-key": "1", f"{dynamic}!": "2"}
    assert ("x-********", "********!") == kept_of(form).fields[-2:]
    unsent = {name: value for name, value in submit_form().items() if name != "password"}
    assert ("********",) == kept_of(unsent | {dynamic: "2"}).fields[-1:]


@pytest.mark.parametrize("secret", ["sandbox-key", submit_form()["password"]])
@pytest.mark.parametrize("name", ["mobile", "content"])
def test_a_secret_in_the_wrong_field_is_masked_in_all_that_is_kept(name: str, secret: str) -> None:
    attempt = kept_of(submit_form() | {name: f"a{secret}"})
    assert "********" == getattr(attempt, name)
    assert secret not in repr(attempt)


def test_a_password_unknown_to_the_sandbox_is_masked_wherever_it_was_sent() -> None:
    attempt = kept_of(submit_form(password="of another account", content="of another account"))
    assert "********" == attempt.content
    assert "of another account" not in repr(attempt)


@pytest.mark.parametrize(
    ("expected", "name", "value"),
    [
        ((("********",), ("",)), '{"account":"a","password":"theirs"}', ""),
        ((("********",), ("********",)), '{"Password":"theirs","rd":"', '1"}'),
        ((("********",), ("********",)), '{"rd":"', '1","password":"theirs"}'),
        ((('{"rd":"',), ('1"}',)), '{"rd":"', '1"}'),
        ((("my.pass[word]-1",), ("********",)), "my.pass[word]-1", "theirs"),
        ((("rd",), ("my password",)), "rd", "my password"),
    ],
)
def test_json_that_was_posted_as_a_form_shows_no_password(
    expected: tuple[tuple[str], tuple[str]], name: str, value: str
) -> None:
    attempt = kept_of({name: value})
    assert expected == (attempt.fields, attempt.values)


def test_a_key_as_short_as_a_code_masks_neither_a_number_nor_a_code() -> None:
    gateway = SandboxGateway(api_key="1", clock=at_now)
    submit(gateway, submit_form(password="1"))
    (attempt,) = gateway.attempts
    assert (MOBILE, "1125") == (attempt.mobile, attempt.content)
    assert ("account", "password", "mobile", "content", "time") == attempt.fields


def test_no_secret_is_kept_with_an_attempt() -> None:
    form = submit_form(apikey="other", Pwd="", rd="my sandbox-key", password="sandbox-key")
    gateway = SandboxGateway(clock=at_now)
    submit(gateway, form)
    (attempt,) = gateway.attempts
    kept = dict(zip(attempt.fields, attempt.values, strict=True))
    assert {"********"} == {kept[name] for name in ("apikey", "rd", "password")}
    assert ("", MOBILE) == (kept["Pwd"], kept["mobile"])
    assert "sandbox-key" not in repr(attempt)
