"""The dynamic password against vectors made with md5sum, and the form it travels in."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ihuyi_voice import wire
from ihuyi_voice.wire import FormEncoder, sign_balance, sign_submit
from tests.pure import BOUNDED, DATA, MOBILE, NOW

if TYPE_CHECKING:
    from ihuyi_voice.models import AnswerFormat


class Vector(NamedTuple):
    kind: str
    account: str
    api_key: str
    mobile: str
    content: str
    time: str
    password: str


def vectors(kind: str) -> list[Vector]:
    lines = (DATA / "signing.tsv").read_text(encoding="utf-8").splitlines()
    rows = [Vector(*line.split("\t")) for line in lines if not line.startswith("#")]
    return [row for row in rows if row.kind == kind]


SUBMITS = vectors("submit")
BALANCES = vectors("balance")
AWKWARD = ["a&b=c+d e%41", "互亿无线", "k&e=y+z 100%#?/;", "🔑é", "a=b&mobile=13900000000"]


def fields(body: bytes) -> list[tuple[str, str]]:
    """The form as a server reads it: in order, percent-encoded UTF-8, nothing dropped."""
    return parse_qsl(body.decode("ascii"), keep_blank_values=True, strict_parsing=True)


def test_there_are_enough_vectors() -> None:
    assert 8 <= len(SUBMITS)
    assert 4 <= len(BALANCES)


@pytest.mark.parametrize("v", SUBMITS)
def test_a_submit_is_signed_as_md5sum_does(v: Vector) -> None:
    assert v.password == sign_submit(v.account, v.api_key, v.mobile, v.content, v.time)


@pytest.mark.parametrize("v", BALANCES)
def test_a_balance_query_is_signed_as_md5sum_does(v: Vector) -> None:
    assert v.password == sign_balance(v.account, v.api_key, v.time)


@pytest.mark.parametrize("answer_format", ["json", "xml"])
@pytest.mark.parametrize("v", SUBMITS)
def test_the_form_of_a_submit_holds_its_signature(v: Vector, answer_format: AnswerFormat) -> None:
    encoder = FormEncoder(v.account, v.api_key, answer_format=answer_format)

    assert {
        "account": v.account,
        "password": v.password,
        "mobile": v.mobile,
        "content": v.content,
        "time": v.time,
        "format": answer_format,
    } == dict(fields(encoder.submit(v.mobile, v.content, int(v.time)).reveal()))


@pytest.mark.parametrize("answer_format", ["json", "xml"])
@pytest.mark.parametrize("v", BALANCES)
def test_the_form_of_a_balance_query_holds_its_signature(
    v: Vector, answer_format: AnswerFormat
) -> None:
    encoder = FormEncoder(v.account, v.api_key, answer_format=answer_format)

    assert {
        "account": v.account,
        "password": v.password,
        "time": v.time,
        "format": answer_format,
    } == dict(fields(encoder.balance(int(v.time)).reveal()))


def test_one_encoder_signs_each_request_separately() -> None:
    first, second = (v for v in SUBMITS if v.content in {"1125", "001125"} and v.account[0] == "V")
    encoder = FormEncoder(first.account, first.api_key)
    bodies = [
        encoder.submit(first.mobile, first.content, int(first.time)).reveal(),
        encoder.balance(int(BALANCES[0].time)).reveal(),
        encoder.submit(second.mobile, second.content, int(second.time)).reveal(),
        encoder.submit(first.mobile, first.content, int(first.time)).reveal(),
    ]

    assert [first.password, BALANCES[0].password, second.password, first.password] == [
        dict(fields(body))["password"] for body in bodies
    ]


def test_the_body_is_written_as_the_vendor_has_it() -> None:
    assert (
        b"account=VM12345678&password=90d0f72aefd1c9e23867701203d5415e"
        b"&mobile=13912345678&content=1125&format=json&time=1700000000"
        == FormEncoder("VM12345678", SUBMITS[0].api_key).submit(MOBILE, "1125", NOW).reveal()
    )


@pytest.mark.parametrize(
    ("account", "api_key", "answer_format"),
    [
        ("sandbox", "sandbox-key", "json"),
        ("sandbox", "sandbox-key", "xml"),
        *((text, text, "json") for text in AWKWARD),
    ],
)
def test_the_static_password_is_the_key_itself_and_goes_without_a_time(
    account: str, api_key: str, answer_format: AnswerFormat
) -> None:
    encoder = FormEncoder(account, api_key, dynamic_password=False, answer_format=answer_format)

    assert [
        ("account", account),
        ("password", api_key),
        ("mobile", MOBILE),
        ("content", "0042"),
        ("format", answer_format),
    ] == fields(encoder.submit(MOBILE, "0042", NOW).reveal())
    assert [
        ("account", account),
        ("password", api_key),
        ("format", answer_format),
    ] == fields(encoder.balance(NOW).reveal())


@pytest.mark.parametrize("account", AWKWARD)
def test_an_awkward_account_comes_through_and_adds_no_field(account: str) -> None:
    body = fields(FormEncoder(account, "key").submit(MOBILE, "1125", NOW).reveal())

    assert ["account", "password", "mobile", "content", "format", "time"] == [n for n, _ in body]
    assert account == dict(body)["account"]


visible = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)


@BOUNDED
@given(visible, visible, st.booleans(), st.integers(10**9, 10**10 - 1))
def test_any_credential_comes_through_the_form(
    account: str, api_key: str, dynamic: bool, time: int
) -> None:
    encoder = FormEncoder(account, api_key, dynamic_password=dynamic)
    signed = sign_submit(account, api_key, MOBILE, "1125", str(time))
    signed_balance = sign_balance(account, api_key, str(time))
    submit = dict(fields(encoder.submit(MOBILE, "1125", time).reveal()))
    balance = dict(fields(encoder.balance(time).reveal()))

    assert account == submit["account"] == balance["account"]
    assert (signed if dynamic else api_key) == submit["password"]
    assert (signed_balance if dynamic else api_key) == balance["password"]


def test_the_dynamic_form_does_not_hold_the_key() -> None:
    api_key = "recognisable-key"
    encoder = FormEncoder("id", api_key)

    assert api_key.encode() not in encoder.submit(MOBILE, "1125", NOW).reveal()
    assert api_key.encode() not in encoder.balance(NOW).reveal()


@pytest.mark.parametrize("dynamic", [True, False])
def test_an_encoder_shows_nothing_of_the_account(dynamic: bool) -> None:
    encoder = FormEncoder("recognisable-id", "recognisable-key", dynamic_password=dynamic)

    assert "recognisable" not in repr(encoder)
    with pytest.raises(TypeError, match="__dict__"):
        vars(encoder)


def test_method_stays_in_the_query_string() -> None:
    assert "/webservice/voice.php?method=Submit" == wire.SUBMIT_TARGET
    assert "/webservice/voice.php?method=GetNum" == wire.BALANCE_TARGET
    assert "application/x-www-form-urlencoded" == wire.CONTENT_TYPE
