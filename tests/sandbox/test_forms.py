"""How the fields of a request are read, as PHP reads them: query first, then the body."""

from __future__ import annotations

import pytest

from ihuyi_voice.sandbox.forms import method_in, parse_form, read_fields

URL_ENCODED = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=x"


def part(head: str, value: str) -> bytes:
    return f"--x\r\n{head}\r\n\r\n{value}\r\n".encode()


def field(name: str, value: str) -> bytes:
    return part(f'Content-Disposition: form-data; name="{name}"', value)


@pytest.mark.parametrize(
    ("expected", "query"),
    [
        ("submit", "method=Submit"),
        ("submit", "account=a&method=SUBMIT"),
        ("getnum", "method=getnum"),
        ("", "Method=Submit"),
        ("", ""),
    ],
)
def test_the_method_is_taken_in_any_case(expected: str, query: str) -> None:
    assert expected == method_in(query)


def test_the_fields_of_the_query_are_fields_without_the_method() -> None:
    assert {"format": "json", "a": "语 音"} == read_fields(
        "method=Submit&format=json&a=%E8%AF%AD+%E9%9F%B3", "", b""
    )


def test_the_body_counts_where_the_query_has_the_same_field() -> None:
    fields = read_fields("method=Submit&format=xml&rd=1", URL_ENCODED, b"format=json&method=x")
    assert {"format": "json", "rd": "1", "method": "x"} == fields


@pytest.mark.parametrize(
    "content_type",
    [
        URL_ENCODED,
        f"{URL_ENCODED},charset=utf-8",
        f"{URL_ENCODED} charset=utf-8",
        f" {URL_ENCODED.upper()} ;charset=UTF-8",
    ],
)
def test_what_follows_the_type_is_a_parameter(content_type: str) -> None:
    assert {"a": "1"} == read_fields("", content_type, b"a=1")


@pytest.mark.parametrize(
    "content_type", ["", ";", "text/plain", "application/json", f"x{URL_ENCODED}", "multipart/mix"]
)
def test_a_body_of_another_type_has_no_fields(content_type: str) -> None:
    assert {"rd": "1"} == read_fields("rd=1", content_type, b"a=1")


@pytest.mark.parametrize(
    "content_type",
    [MULTIPART, 'multipart/form-data; boundary="x"', "Multipart/Form-Data;charset=utf8;BOUNDARY=x"],
)
def test_a_multipart_body_is_read(content_type: str) -> None:
    body = field("account", "a") + field("content", "1125") + b"--x--\r\n"
    assert {"account": "a", "content": "1125"} == read_fields("", content_type, body)


@pytest.mark.parametrize(
    ("expected", "parts"),
    [
        ({"语": "音\r\n节"}, field("语", "音\r\n节")),
        ({"a": ""}, field("a", "")),
        ({"a": "2"}, field("a", "1") + field("a", "2")),
        ({"a": "1"}, part("Content-Type: text/plain\r\ncontent-disposition: form; NAME=a", "1")),
        ({"a": "--xy"}, field("a", "--xy")),
        # PHP makes no field of a file.
        ({}, part('Content-Disposition: form-data; name="a"; filename="b.txt"', "1")),
        ({}, part('Content-Disposition: form-data; filename="a"', "1")),
        ({}, part("Content-Disposition: form-data; filename*=utf-8''a; name=b", "1")),
        ({}, part("Content-Type: text/plain", "1")),
        ({}, b"--x\r\nname=a"),
    ],
)
def test_the_parts_of_a_multipart_body(expected: dict[str, str], parts: bytes) -> None:
    assert expected == read_fields("", MULTIPART, b"before\r\n" + parts + b"--x--\r\nafter")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", field("a", "1") + b"--x--"),
        ("multipart/form-data; boundary=y", field("a", "1") + b"--x--"),
        (MULTIPART, b""),
        # Its last part is incomplete.
        (MULTIPART, field("a", "1")[:-2]),
    ],
)
def test_a_multipart_body_without_whole_parts_has_no_fields(content_type: str, body: bytes) -> None:
    assert {} == read_fields("", content_type, body)


def test_bytes_that_are_not_utf_8_are_replaced() -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\xd6\xd0\r\n--x--'
    assert {"a": "��"} == read_fields("", MULTIPART, body)
    assert {"a": "��"} == read_fields("a=%d6%d0", "", b"")
    assert {"a": "��"} == read_fields("", URL_ENCODED, b"a=\xd6\xd0")


def test_a_form_is_read_as_utf_8_and_its_last_value_counts() -> None:
    assert {"a": "2", "b": "", "c": "语 音"} == parse_form("a=1&b=&a=2&c=%E8%AF%AD+%E9%9F%B3")


def test_lone_surrogates_are_replaced() -> None:
    assert {"a?": "?1"} == parse_form("a\udcff=\udc801")
