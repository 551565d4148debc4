"""A request as it was received: complete, but without a password or an API key."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from ihuyi_voice.sandbox.received import received

KEY = "my own/key"
SECRET = "s3cret pass/word"

TYPED = (("Content-Type", "text/plain"),)


def shown(
    body: str | bytes = b"",
    query: str = "method=Submit",
    headers: tuple[tuple[str, str], ...] = TYPED,
    path: str = "/webservice/voice.php",
) -> str:
    raw = body.encode() if isinstance(body, str) else body
    got = received(method="POST", path=path, query=query, headers=headers, body=raw, keys=(KEY,))
    return repr(got)


def multipart(name: str, value: str, line: str = "\r\n", boundary: str = "--x") -> str:
    parts = (("account", "sandbox"), (name, value), ("mobile", "13912345678"))
    texts = [
        f'{boundary}{line}Content-Disposition: form-data; name="{n}"{line}{line}{v}{line}'
        for n, v in parts
    ]
    return "".join(texts) + f"{boundary}--{line}"


def twice(text: str) -> str:
    return quote(quote(text, safe=""), safe="")


BODIES = [
    f"account=sandbox&password={SECRET}&mobile=13912345678",
    f"password={quote(SECRET)}&password=s3cret&password={quote(SECRET, safe='')}",
    f"p%61ssword={SECRET}",
    f"%70%61%73%73%77%6f%72%64={SECRET}",
    f"p%2561ssword={twice(SECRET)}",
    f"password%3D{quote(SECRET, safe='')}",
    f"Password={SECRET};mobile=1",
    f"password[]={SECRET}=&x=1",
    f"passwd={SECRET}\r\nmobile=1",
    multipart("password", SECRET),
    multipart("password", SECRET, "\n"),
    multipart("PassWord", f"{SECRET}\r\n--y\r\n{SECRET}"),
    multipart("password", SECRET).replace('"password"', "password"),
    multipart("password", SECRET, boundary="no boundary"),
    multipart("password", SECRET).removesuffix("--x--\r\n"),
    json.dumps({"account": "sandbox", "password": SECRET, "x": [1]}),
    '{"pass\\u0077ord": "' + SECRET + '"}',
    '{"password": "' + SECRET,
    f"<password>{SECRET}</password><mobile>1</mobile>",
    f"the password is {SECRET}",
]


@pytest.mark.parametrize("body", BODIES)
def test_a_password_in_a_body_is_masked_however_it_is_written(body: str) -> None:
    for text in (shown(body), shown(body.encode("utf-16")), shown(query=body)):
        assert "s3cret" not in text
        assert "pass/word" not in text
        assert "pass%2Fword" not in text


KEYS = [
    KEY,
    quote(KEY),
    quote(KEY, safe=""),
    "my+own%2fkey",
    twice(KEY),
    "".join(f"%{octet:02X}" for octet in KEY.encode()),
    "".join(f"\\u{ord(character):04X}" for character in KEY),
    KEY.upper(),
]


@pytest.mark.parametrize("key", KEYS)
def test_an_api_key_is_masked_anywhere(key: str) -> None:
    headers = (("X-Note", f"a {key} b"),)
    text = shown(f"mobile={key}&content={key}", f"a={key}", headers, f"/{key}")
    assert key not in text
    assert "x-note" in text.lower()


def test_a_number_as_a_password_in_json_is_masked() -> None:
    assert "99887766" not in shown('{"password": 99887766, "mobile": "13912345678"}')


def test_what_was_masked_in_one_place_is_masked_in_all() -> None:
    headers = (("Referer", "http://x/?a=s3cretpassword"), ("X-Sum", "s3cretpassword"))
    assert "s3cret" not in shown("password=s3cretpassword", headers=headers)


@pytest.mark.parametrize(
    "name", ["Authorization", "Cookie", "X-Password", "X-Api-Key", "Proxy-Authorization"]
)
def test_a_header_that_is_secret_is_masked(name: str) -> None:
    text = shown(headers=((name, "Basic abcdef"),))
    assert "abcdef" not in text
    assert name in text


def test_everything_else_is_shown_as_it_came() -> None:
    headers = (("Host", "x"), ("Content-Type", "application/x-www-form-urlencoded"), ("Host", "y"))
    body = "account=sandbox&password=abcdefgh&passwd=&mobile=139+1234&content=1125&time="
    got = received(
        method="POST",
        path="/a%20b",
        query="method=Submit&x=%E4%B8%AD",
        headers=headers,
        body=body.encode() + b"\xff",
        keys=("abc",),
    )
    assert ("POST", "/a%20b", "method=Submit&x=%E4%B8%AD") == (got.method, got.path, got.query)
    assert headers == got.headers
    assert body.replace("abcdefgh", "********") + r"\xff" == got.body.replace("\\\\", "\\")
    assert "POST /a%20b?method=Submit&x=%E4%B8%AD" == got.line


def test_a_request_without_a_query_has_no_question_mark() -> None:
    got = received(method="GET", path="/a", query="", headers=(), body=b"", keys=())
    assert "GET /a" == got.line


def test_a_long_body_is_cut_but_not_inside_a_secret() -> None:
    text = "x" * 7995 + KEY + "y" * 5000
    got = received(method="POST", path="/", query="", headers=(), body=text.encode(), keys=(KEY,))
    assert "x" * 7995 + "*****…" == got.body


def test_an_empty_password_stays_visible_as_empty() -> None:
    assert "password=&mobile=1" in shown("password=&mobile=1")
    assert '"password": ""' in shown('{"password": ""}')


def test_a_short_password_is_masked_only_in_its_own_place() -> None:
    assert "password=********&mobile=abc" in shown("password=abc&mobile=abc")


def test_the_other_parts_of_a_multipart_form_stay_readable() -> None:
    text = shown(multipart("password", SECRET))
    assert "13912345678" in text
    assert 'name="mobile"' in text
