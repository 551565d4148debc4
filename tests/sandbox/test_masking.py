"""What is masked in names, values and request lines."""

from __future__ import annotations

import pytest

from ihuyi_voice.sandbox.masking import MASK, masked_line, masked_name, masked_value
from tests.sandbox.forms import md5

KEYS = ("the-key", "another key")
SECRET = "f00-b4r"
PATH = "/webservice/voice.php"


@pytest.mark.parametrize(
    ("expected", "line"),
    [
        (f"GET {PATH}?content=语 音", f"GET {PATH}?content=语%20音 HTTP/1.1\r\n"),
        (f"POST {PATH}", f"POST {PATH} HTTP/1.1"),
        (f"POST {PATH}?", f"POST {PATH}?"),
        (f"GET {PATH}?password={MASK}&mobile=1", f"GET {PATH}?password={SECRET}&mobile=1"),
        (f"GET {PATH}?password=", f"GET {PATH}?password="),
        (f"GET {PATH}?other={MASK}", f"GET {PATH}?other={SECRET}"),
        # A key with a raw & in it.
        (f"GET {PATH}?password={MASK}&{MASK}", f"GET {PATH}?password={SECRET}&{SECRET}"),
        (f"GET {PATH}?{MASK}", f"GET {PATH}?pass%77ord={SECRET}"),
        (f"GET {PATH}?{MASK}", f"GET {PATH}?{{password:{SECRET}}}=1"),
        (f"GET {PATH}?mobile={MASK}", f"GET {PATH}?mobile=another+key"),
        (f"GET {PATH}?mobile={MASK}", f"GET {PATH}?mobile=th%65-key"),
        (f"GET {PATH}?mobile={MASK}", f"GET {PATH}?mobile={md5('x')}"),
        (f"GET {MASK}", "GET /a/the%2Dkey/b"),
        (f"GET {MASK}", f"GET {PATH}&password={SECRET}"),
        (f"GET {MASK}", f"GET {PATH} method=Submit&password={SECRET} HTTP/1.1"),
        (f"GET {MASK}", f"GET /password/{SECRET}"),
        (f"GET {MASK}", f"GET http://user:{SECRET}@host{PATH} HTTP/1.1"),
        (f"GET {MASK}", f"GET {SECRET} HTTP/1.1"),
        ("", f"{PATH}?password={SECRET}"),
        ("", f"\x16\x03\x01{SECRET}"),
        ("", ""),
    ],
)  # fmt: skip
def test_a_request_line_shows_only_what_is_known_to_be_harmless(expected: str, line: str) -> None:
    assert expected == masked_line(line, KEYS)


def test_a_long_line_is_cut() -> None:
    assert f"GET /{'x' * 395}…" == masked_line(f"GET /{'x' * 396}", KEYS)


def test_a_short_key_hides_neither_a_number_nor_a_code() -> None:
    line = "GET /?mobile=13912345678&content=1125&account=a1"
    assert f"GET /?mobile=13912345678&content=1125&account={MASK}" == masked_line(line, ("1",))
    assert "1125" == masked_value("content", "1125", ("1",))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("password", SECRET),
        ("Password", SECRET),
        ("passwd", SECRET),
        ("pwd", SECRET),
        ("api_key", SECRET),
        ("rd", "x the-key"),
        ("rd", "the-key, another key"),
        ("rd", f"account=a&password={SECRET}"),
        ("rd", f"account%3Da%26password%3D{SECRET}"),
        ("rd", f'{{"password": "{SECRET}"}}'),
    ],
)
def test_a_value_that_may_be_a_secret_is_masked(name: str, value: str) -> None:
    assert MASK == masked_value(name, value, KEYS)


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        ("password", "password"),
        (f"x-{MASK}-{MASK}", "x-the-key-another key"),
        # A body of JSON that is sent as a form is one long name.
        (MASK, f'{{"password": "{SECRET}"}}'),
        (MASK, f"password:{SECRET}"),
    ],
)
def test_a_name_that_holds_a_secret_is_masked(expected: str, name: str) -> None:
    assert expected == masked_name(name, KEYS)


def test_an_empty_value_is_seen_to_be_empty() -> None:
    assert "" == masked_value("password", "", KEYS)
