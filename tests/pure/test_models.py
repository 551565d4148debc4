"""Masking, secrets, and settings that name what is wrong with them."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import re
import secrets
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ihuyi_voice.errors import InvalidRequestError
from ihuyi_voice.models import (
    DEFAULT_BASE_URL,
    Answer,
    Balance,
    OutcomeStatus,
    Secret,
    Settings,
    SubmitRequest,
    SubmitResult,
    generate_code,
    mask_key,
    mask_mobile,
)
from tests.pure import BOUNDED, MOBILE

KEY = "4b9c7d1e0f2a3b4c5d6e7f8091a2b3c4"


# --- masking ----------------------------------------------------------------


def test_a_number_shows_its_first_three_and_last_four_digits() -> None:
    assert "139****5678" == mask_mobile(MOBILE)


@pytest.mark.parametrize(
    "mobile",
    [
        "",
        "1391234567",
        "139123456789",
        "+8613912345678",
        "139-1234-5678",
        "１３９１２３４５６７８",
        "1391234567a",
        "+1391234567",
    ],
)
def test_anything_else_shows_nothing_of_itself(mobile: str) -> None:
    assert "****" == mask_mobile(mobile)


@BOUNDED
@given(st.text() | st.text(alphabet="0123456789", min_size=9, max_size=13))
def test_a_mask_never_shows_the_middle_of_anything(text: str) -> None:
    assert re.fullmatch(r"([0-9]{3}|)\*{4}([0-9]{4}|)", mask_mobile(text))


# --- codes ------------------------------------------------------------------


@pytest.mark.parametrize("length", [4, 5, 6])
def test_a_generated_code_has_the_length_asked_for(length: int) -> None:
    codes = {generate_code(length) for _ in range(50)}

    assert {length} == {len(code) for code in codes}
    assert all(code.isascii() and code.isdigit() for code in codes)
    assert 40 < len(codes)


@pytest.mark.parametrize(
    ("shown", "key", "content"),
    [
        ("login-****", "login-13912345678", ""),
        ("login-****-****", "login-13912345678-1125", "1125"),
        ("order-****", "order-1125", 1125),
        (None, 4711, "1125"),
    ],
)
def test_a_key_is_shown_without_number_and_code(
    shown: str | None, key: object, content: object
) -> None:
    assert shown == mask_key(key, "13912345678", content)


def test_a_generated_code_has_six_digits_by_default() -> None:
    assert 6 == len(generate_code())


@pytest.mark.parametrize(("length", "code"), [(4, "0042"), (5, "00042"), (6, "000042")])
def test_a_generated_code_keeps_its_leading_zeros(
    length: int, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_below: list[int] = []

    def randbelow(limit: int) -> int:
        drawn_below.append(limit)
        return 42

    monkeypatch.setattr(secrets, "randbelow", randbelow)

    assert code == generate_code(length)
    assert [10**length] == drawn_below


@pytest.mark.parametrize("length", [3, 7, 0, -4, True, 4.0, "4", None, [4], math.nan])
def test_no_other_length_is_generated(length: Any) -> None:
    with pytest.raises(InvalidRequestError, match="length must be 4, 5 or 6 digits"):
        generate_code(length)


# --- secrets ----------------------------------------------------------------


def test_a_secret_reveals_its_value_when_asked() -> None:
    assert KEY == Secret(KEY).reveal()


@pytest.mark.parametrize("show", [repr, str, "{}".format, "%s".__mod__, "%r".__mod__, ascii])
def test_a_secret_does_not_show_itself(show: Any) -> None:
    assert "Secret('****')" == show(Secret(KEY))


def test_a_secret_has_nothing_to_dump() -> None:
    with pytest.raises(TypeError, match="__dict__"):
        vars(Secret(KEY))


def test_a_secret_equals_a_secret_of_the_same_value_alone() -> None:
    assert Secret(KEY) == Secret(KEY)
    assert hash(Secret(KEY)) == hash(Secret(KEY))
    assert Secret("密钥") != Secret(KEY)
    assert Secret(KEY) != KEY


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_secret_is_shared_by_its_copies(copied: Any) -> None:
    secret = Secret(KEY)
    assert secret is copied(secret)


@pytest.mark.parametrize("holder", [Secret(KEY), Settings("id", Secret(KEY))])
def test_a_secret_is_not_pickled(holder: object) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="a Secret is not pickled") as caught:
            pickle.dumps(holder, protocol)
        assert KEY not in str(caught.value)


def test_settings_do_not_show_the_key() -> None:
    settings = Settings("VM12345678", Secret(KEY))
    shown = [
        repr(settings),
        str(settings),
        repr(dataclasses.asdict(settings)),
        repr(dataclasses.astuple(settings)),
        repr(dataclasses.replace(settings, timeout=3)),
    ]

    assert [] == [text for text in shown if KEY in text]
    assert not hasattr(settings, "__dict__")


def test_a_dump_of_settings_still_holds_the_secret_itself() -> None:
    assert Secret(KEY) == dataclasses.asdict(Settings("id", Secret(KEY)))["api_key"]


# --- settings ---------------------------------------------------------------


def settings_with(**changes: Any) -> Settings:
    return Settings(**{"api_id": "VM12345678", "api_key": Secret(KEY), **changes})


def test_the_defaults_are_the_documented_ones() -> None:
    settings = Settings("VM12345678", Secret(KEY))

    assert (
        "https://api.voice.ihuyi.com",
        True,
        "json",
        15.0,
        5.0,
        3,
        100,
    ) == (
        settings.base_url,
        settings.dynamic_password,
        settings.answer_format,
        settings.timeout,
        settings.connect_timeout,
        settings.connect_attempts,
        settings.max_connections,
    )


@pytest.mark.parametrize(
    ("given_url", "kept"),
    [
        (DEFAULT_BASE_URL, DEFAULT_BASE_URL),
        ("https://api.voice.ihuyi.com/", "https://api.voice.ihuyi.com"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
        ("HTTPS://Voice.Example", "https://Voice.Example"),
        ("https://语音.example", "https://语音.example"),
        ("http://localhost:65535", "http://localhost:65535"),
    ],
)
def test_a_base_url_is_scheme_and_host(given_url: str, kept: str) -> None:
    assert kept == settings_with(base_url=given_url).base_url


@pytest.mark.parametrize(
    ("url", "clue"),
    [
        ("https://api.voice.ihuyi.com/webservice/voice.php", "path /webservice/voice.php is added"),
        ("https://api.voice.ihuyi.com//", "without a path or query"),
        ("https://api.voice.ihuyi.com?method=Submit", "without a path or query"),
        ("https://api.voice.ihuyi.com/?", "without a path or query"),
        ("https://api.voice.ihuyi.com#top", "without a path or query"),
        ("https://api.voice.ihuyi.com/#", "without a path or query"),
        ("https://user:hunter2@api.voice.ihuyi.com", "must not hold a user name or password"),
        ("https://hunter2@api.voice.ihuyi.com", "must not hold a user name or password"),
        ("https://:hunter2@api.voice.ihuyi.com", "must not hold a user name or password"),
        ("https://@api.voice.ihuyi.com", "must not hold a user name or password"),
        ("ftp://api.voice.ihuyi.com", "must be http"),
        ("api.voice.ihuyi.com", "must be http"),
        ("//api.voice.ihuyi.com", "must be http"),
        ("", "must be http"),
        ("https://", "must be http"),
        ("https:///webservice", "must be http"),
        ("https://:8080", "must be http"),
        ("https://host:hunter2", "must be http"),
        ("https://host:65536", "must be http"),
        ("https://host:0", "must be http"),
        ("https://host:-1", "must be http"),
        ("https://[::1", "must be http"),
        ("https://host ", "must be http"),
        (" https://host", "must be http"),
        ("https://ho st", "must be http"),
        ("https://host\n", "must be http"),
        ("https://ho\tst", "must be http"),
        ("https://ho\x00st", "must be http"),
        ("https://ho\u3000st", "must be http"),
        ("https://host\\path", "must be http"),
        (b"https://host", "must be http"),
        (None, "must be http"),
        (8080, "must be http"),
        (["https://host"], "must be http"),
        (object(), "must be http"),
    ],
)
def test_a_bad_base_url_is_refused_by_name_and_not_shown(url: Any, clue: str) -> None:
    with pytest.raises(ValueError, match=r"^base_url .*" + re.escape(clue)) as caught:
        settings_with(base_url=url)
    assert "hunter2" not in str(caught.value)


@BOUNDED
@given(st.text() | st.text(alphabet="htps:/@?#[]. 1\\a\n%;").map("http://".__add__))
def test_a_base_url_is_kept_as_a_plain_origin_or_refused(url: str) -> None:
    try:
        said = settings_with(base_url=url).base_url
    except ValueError as error:
        said = str(error)
    assert re.fullmatch(r"https?://[^\s/?#@\\]+|base_url must .*", said)


@pytest.mark.parametrize("name", ["timeout", "connect_timeout"])
@pytest.mark.parametrize("value", [1, 0.001, 15.0, 3600])
def test_seconds_are_ints_or_floats_above_zero(name: str, value: float) -> None:
    assert value == getattr(settings_with(**{name: value}), name)


@pytest.mark.parametrize("name", ["timeout", "connect_timeout"])
@pytest.mark.parametrize("value", [0, 0.0, -0.0, -1, math.nan, math.inf, -math.inf, 10**400])
def test_seconds_out_of_range_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be a finite number of seconds above 0"):
        settings_with(**{name: value})


@pytest.mark.parametrize("name", ["timeout", "connect_timeout"])
@pytest.mark.parametrize("value", [True, False, "15", None, [15], 3j])
def test_seconds_of_another_type_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{name} is in seconds, .* not {type(value).__name__}$"):
        settings_with(**{name: value})


@pytest.mark.parametrize("name", ["connect_attempts", "max_connections"])
def test_one_is_the_least_count(name: str) -> None:
    assert 1 == getattr(settings_with(**{name: 1}), name)


@pytest.mark.parametrize("name", ["connect_attempts", "max_connections"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_count_below_one_is_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be at least 1, not {value}$"):
        settings_with(**{name: value})


@pytest.mark.parametrize("name", ["connect_attempts", "max_connections"])
@pytest.mark.parametrize("value", [True, False, 3.0, math.nan, "3", None, [3]])
def test_a_count_of_another_type_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{name} must be an int, not {type(value).__name__}$"):
        settings_with(**{name: value})


@pytest.mark.parametrize("value", ["json", "xml"])
def test_both_formats_can_be_asked_for(value: str) -> None:
    assert value == settings_with(answer_format=value).answer_format


@pytest.mark.parametrize("value", ["JSON", "", "yaml", None, True, ["json"]])
def test_another_format_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^answer_format must be 'json' or 'xml', not "):
        settings_with(answer_format=value)


def credential(name: str, value: Any) -> Any:
    return Secret(value) if name == "api_key" else value


@pytest.mark.parametrize("name", ["api_id", "api_key"])
@pytest.mark.parametrize("value", ["x", "a b", "互亿无线", "a&b=c+d"])
def test_a_credential_is_kept_as_it_is(name: str, value: str) -> None:
    assert credential(name, value) == getattr(
        settings_with(**{name: credential(name, value)}), name
    )


@pytest.mark.parametrize("name", ["api_id", "api_key"])
@pytest.mark.parametrize("value", ["", " ", "\n", "hunter2\n", " hunter2", "hunter2 ", "\u3000"])
def test_an_empty_or_padded_credential_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is empty or has blanks around it") as caught:
        settings_with(**{name: credential(name, value)})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["api_id", "api_key"])
@pytest.mark.parametrize("value", ["hunter2\x00hunter2", "a\nhunter2", "\ufeffhunter2", "\ud800a"])
def test_a_credential_that_cannot_be_printed_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} has a character that cannot be ") as caught:
        settings_with(**{name: credential(name, value)})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["api_id", "api_key"])
@pytest.mark.parametrize("value", [None, 12345678, b"hunter2", ["hunter2"]])
def test_a_credential_of_another_type_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{name} must be a str, not {type(value).__name__}$"):
        settings_with(**{name: credential(name, value)})


@pytest.mark.parametrize("value", ["hunter2", None, b"hunter2"])
def test_a_bare_key_is_refused_by_name_and_not_shown(value: Any) -> None:
    expected = rf"^api_key must be a Secret, not {type(value).__name__}$"
    with pytest.raises(TypeError, match=expected):
        settings_with(api_key=value)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:3128",
        "https://user:hunter2@proxy.example",
        "http://[::1]:3128/",
    ],
)
def test_a_proxy_is_kept_and_not_shown(url: str) -> None:
    settings = settings_with(proxy=Secret(url))

    assert Secret(url) == settings.proxy
    assert url not in repr(settings)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "proxy.example:3128",
        "socks5://user:hunter2@proxy.example",
        "http://",
        "http://proxy.example:hunter2",
        "http://proxy.example:0",
        "http://[::1",
        3128,
    ],
)
def test_a_bad_proxy_is_refused_by_name_and_not_shown(url: Any) -> None:
    with pytest.raises(ValueError, match=r"^proxy must be http") as caught:
        settings_with(proxy=Secret(url))
    assert "hunter2" not in str(caught.value)


# --- values -----------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        Settings("id", Secret(KEY)),
        SubmitRequest(MOBILE, "1125"),
        SubmitResult("197362477", "提交成功", MOBILE),
        Balance(20023, "查询成功"),
        Answer(200, b""),
    ],
)
def test_a_value_is_frozen_and_slotted(value: Any) -> None:
    name = dataclasses.fields(value)[0].name

    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, None)
    assert not hasattr(value, "__dict__")


def test_a_request_shows_neither_code_nor_full_number() -> None:
    assert "SubmitRequest(mobile='139****5678', content='****', idempotency_key='order-7')" == repr(
        SubmitRequest(MOBILE, "1125", idempotency_key="order-7")
    )


@pytest.mark.parametrize("mobile", [13912345678, None, ["13912345678"], "+8613912345678"])
def test_a_request_with_a_bad_number_can_be_made_and_shown(mobile: Any) -> None:
    shown = repr(SubmitRequest(mobile, "1125"))

    assert "12345678" not in shown
    assert "1125" not in shown


def test_a_result_shows_its_number_masked() -> None:
    assert "SubmitResult(voice_id='197362477', msg='提交成功', mobile='139****5678')" == repr(
        SubmitResult("197362477", "提交成功", MOBILE)
    )


def test_there_is_a_status_for_each_row_of_the_outcome_table() -> None:
    expected = ["INVALID", "LIMITED", "NOT_SENT", "UNKNOWN", "REFUSED", "ACCEPTED", "REPLAYED"]
    assert expected == [status.name for status in OutcomeStatus]
    assert [name.lower() for name in expected] == [status.value for status in OutcomeStatus]
