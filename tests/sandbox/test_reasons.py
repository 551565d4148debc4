"""Why an account or a password is refused: each reason, and that its words are true."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice.sandbox.page_files import TEXTS
from ihuyi_voice.sandbox.reasons import caller_reason
from ihuyi_voice.sandbox.rules import GatewayState
from ihuyi_voice.sandbox.settings import Settings
from tests.sandbox.forms import (
    ACCOUNT,
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
    from ihuyi_voice.sandbox.history import Reason
    from ihuyi_voice.sandbox.reasons import Method

TIME = str(NOW)
RIGHT = md5(f"{ACCOUNT}{KEY}{MOBILE}{CONTENT}{TIME}")
OF_BALANCE = md5(f"{ACCOUNT}{KEY}{TIME}")

ACCOUNTS: list[tuple[str, dict[str, str]]] = [
    ("no_fields", {}),
    ("no_account", without(submit_form(), "account")),
    ("no_password", without(submit_form(), "password")),
    ("unknown_account", submit_form(account="C12345")),
    ("account_spelling", submit_form(account=" Sandbox\n")),
    ("swapped", submit_form(account=KEY, password=ACCOUNT)),
    ("key_as_account", submit_form(account=KEY)),
]
WITHOUT_TIME = [
    ("wrong_key", {"account": ACCOUNT, "password": "another-key"}),
    ("no_time", {"account": ACCOUNT, "password": RIGHT}),
    ("legacy_password", {"account": ACCOUNT, "password": md5(KEY)}),
    ("password_with_blanks", {"account": ACCOUNT, "password": f"{KEY}\n"}),
]
TIMES = [
    ("time_in_milliseconds", submit_form() | {"time": f"{TIME}000"}),
    ("time_malformed", submit_form() | {"time": "2023-11-14 22:13:20"}),
    ("time_too_early", submit_form(time=NOW - 601)),
    ("time_too_late", submit_form(time=NOW + 601)),
]
# What a program signed or sent instead of the right digest.
PASSWORDS = [
    ("legacy_password", md5(KEY)),
    ("password_with_blanks", f" {RIGHT}"),
    ("password_with_blanks", f"{KEY} "),
    ("no_digest", "another-key"),
    ("digest_upper_case", RIGHT.upper()),
    ("digest_half", RIGHT[8:24]),
    ("digest_of_balance", OF_BALANCE),
    ("digest_other_time", md5(f"{ACCOUNT}{KEY}{MOBILE}{CONTENT}{NOW - 1}")),
    ("digest_other_time", md5(f"{ACCOUNT}{KEY}{MOBILE}{CONTENT}{NOW + 5}")),
    ("digest_parts_missing", md5(f"{ACCOUNT}{KEY}{MOBILE}{TIME}")),
    ("digest_parts_missing", md5(f"{MOBILE}{CONTENT}{TIME}")),
    ("digest_order", md5(f"{ACCOUNT}{MOBILE}{CONTENT}{KEY}{TIME}")),
    ("digest_separator", md5(f"{ACCOUNT}&{KEY}&{MOBILE}&{CONTENT}&{TIME}")),
    ("digest", md5(f"{ACCOUNT}another-key{MOBILE}{CONTENT}{TIME}")),
    ("digest", md5(f"{ACCOUNT}{KEY}{MOBILE}{CONTENT}{NOW + 6}")),
]
BALANCE_PASSWORDS = [
    ("digest_of_submit", RIGHT),
    ("digest_order", md5(f"{KEY}{ACCOUNT}{TIME}")),
    ("digest", md5("another")),
]


def reason_of(method: Method, form: dict[str, str], window: float | None = 600.0) -> Reason | None:
    return caller_reason(method, form, {ACCOUNT: KEY, "second": "key-2"}, NOW, window)


def kind_of(method: Method, form: dict[str, str]) -> str | None:
    reason = reason_of(method, form)
    return None if reason is None else reason.kind


@pytest.mark.parametrize(("expected", "form"), [*ACCOUNTS, *WITHOUT_TIME, *TIMES])
def test_each_mistake_has_its_reason(expected: str, form: dict[str, str]) -> None:
    assert expected == kind_of("Submit", form)


@pytest.mark.parametrize(("expected", "password"), PASSWORDS)
def test_each_wrong_password_of_a_submit_has_its_reason(expected: str, password: str) -> None:
    assert expected == kind_of("Submit", submit_form(password=password))


@pytest.mark.parametrize(("expected", "password"), BALANCE_PASSWORDS)
def test_each_wrong_password_of_a_balance_query_has_its_reason(
    expected: str, password: str
) -> None:
    form = balance_form(password=password) | {"mobile": MOBILE, "content": CONTENT}
    assert expected == kind_of("GetNum", form)


def test_a_number_that_was_signed_in_another_spelling_is_found() -> None:
    form = submit_form() | {"mobile": "+86 139-1234-5678"}
    assert "digest_mobile" == kind_of("Submit", form)


@pytest.mark.parametrize("window", [600.0, None])
def test_a_right_password_has_no_reason(window: float | None) -> None:
    for form in (
        submit_form(),
        submit_form(password=KEY),
        {"account": "second", "password": "key-2"},
    ):
        assert None is reason_of("Submit", form, window)
    assert None is reason_of("GetNum", balance_form(), window)


def test_a_wrong_digest_is_shown_beside_the_right_one_and_what_it_is_made_of() -> None:
    wrong = md5(f"{KEY}{ACCOUNT}{TIME}")
    reason = reason_of("Submit", submit_form(password=wrong))
    assert reason is not None
    assert {
        "expected": RIGHT,
        "received": wrong,
        "signed": f"{ACCOUNT} + APIKEY + {MOBILE} + {CONTENT} + {TIME}",
    } == dict(reason.facts)
    reason = reason_of("GetNum", balance_form(password=wrong))
    assert reason is not None
    assert {
        "expected": OF_BALANCE,
        "received": wrong,
        "signed": f"{ACCOUNT} + APIKEY + {TIME}",
    } == (dict(reason.facts))


def test_a_stale_time_is_shown_with_its_difference() -> None:
    reason = reason_of("Submit", submit_form(time=NOW - 3600))
    assert reason is not None
    facts = {"time": str(NOW - 3600), "now": TIME, "seconds": "3600", "window": "600"}
    assert facts == dict(reason.facts)


# What the sandbox's own key does not make may be a real key.
@pytest.mark.parametrize(
    ("shown", "password"),
    [
        ("0123********", "0123456789abcdef0123456789abcdef"),
        ("ABCD********", "ABCDEF0123456789"),
        (RIGHT.upper(), RIGHT.upper()),
        (RIGHT[8:24], RIGHT[8:24]),
        (OF_BALANCE, OF_BALANCE),
    ],
)
def test_a_digest_that_the_sandbox_cannot_make_is_shown_by_its_first_digits(
    shown: str, password: str
) -> None:
    reason = reason_of("Submit", submit_form(password=password))
    assert reason is not None
    assert {"expected": RIGHT, "received": shown}.items() <= dict(reason.facts).items()


# A real key may be sent by mistake, and it may look like a digest.
SECRETS = [
    {"account": ACCOUNT, "password": "0123456789abcdef0123456789abcdef", "time": TIME},
    {"account": ACCOUNT, "password": "0123456789abcdef", "time": TIME},
    {"account": ACCOUNT, "password": "0123456789abcdef0123456789abcdef"},
    {"account": "C12345", "password": "0123456789abcdef0123456789abcdef", "time": TIME},
    {"account": ACCOUNT, "password": "0123456789abcdef0123456789abcdef", "time": "now"},
    {"account": ACCOUNT, "password": "another-secret", "time": TIME},
    submit_form(mobile=f"x{KEY}x", password=md5("x")),
    submit_form(account=f"x{KEY}x"),
    submit_form() | {"time": KEY},
]


@pytest.mark.parametrize("form", SECRETS)
def test_no_reason_holds_a_key_or_a_password(form: dict[str, str]) -> None:
    reason = reason_of("Submit", form)
    assert reason is not None
    shown = repr(reason.facts)
    for secret in (KEY, "456789abcdef", "another-secret"):
        assert secret not in shown


def every_kind() -> set[str]:
    forms = [form for _, form in (*ACCOUNTS, *WITHOUT_TIME, *TIMES)]
    forms += [submit_form(password=password) for _, password in PASSWORDS]
    forms += [submit_form() | {"mobile": f"+86{MOBILE}"}]
    kinds = {kind_of("Submit", form) for form in forms}
    return {kind for kind in kinds if kind} | {"digest_of_submit"}


def test_every_reason_has_its_words_and_no_word_is_left_over() -> None:
    for language in TEXTS.values():
        for part in ("reason_", "fix_"):
            assert every_kind() == {
                key.removeprefix(part) for key in language if key.startswith(part)
            }


def test_the_words_of_a_reason_mention_only_what_it_knows() -> None:
    forms = [form for _, form in (*ACCOUNTS, *WITHOUT_TIME, *TIMES)]
    forms += [submit_form(password=password) for _, password in PASSWORDS]
    for reason in (reason_of("Submit", form) for form in forms):
        assert reason is not None
        for language in TEXTS.values():
            for part in ("reason", "fix"):
                text = language[f"{part}_{reason.kind}"]
                named = {name for _, name, _, _ in string.Formatter().parse(text) if name}
                assert named <= dict(reason.facts).keys()


def test_the_reason_is_recorded_with_the_request_that_was_refused() -> None:
    gateway = GatewayState(Settings())
    attempt = gateway.answer("Submit", submit_form(password=md5("x")), "", NOW).attempt
    assert attempt is not None
    assert attempt.why is not None
    assert ("digest", 405) == (attempt.why.kind, attempt.code)
    other = gateway.answer("GetNum", balance_form(time=NOW - 700), "", NOW).other
    assert other is not None
    assert other.why is not None
    assert ("time_too_early", 405) == (other.why.kind, other.code)
    placed = gateway.answer("Submit", submit_form(), "", NOW).attempt
    assert placed is not None
    assert None is placed.why
