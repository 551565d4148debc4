"""Request lines over a bare socket: those that programs send wrongly, and those that are none."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice.sandbox import OtherRequest, SandboxGateway
from ihuyi_voice.sandbox.connection import has_bad_target, with_encoded_target
from ihuyi_voice.wire import CONTENT_TYPE, PATH, SUBMIT_TARGET
from tests.sandbox.forms import MOBILE
from tests.sandbox.http import (
    DEADLINE,
    FORM,
    ask,
    connected,
    exchange,
    parsed,
    received,
    request_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# Neither a key of the sandbox nor a digest: only its place tells that it is a secret.
SECRET = "f00-b4r"
TARGET = f"{SUBMIT_TARGET}&account=sandbox&password={SECRET}&mobile={MOBILE}&content=1125"
PLACING = TARGET.replace(SECRET, "sandbox-key")
HEADERS = "Host: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture(autouse=True)
def nothing_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The server logs nothing, whatever a caller sends."""
    yield
    assert [] == [record for record in caplog.records if record.levelno >= logging.WARNING]


async def sent(gateway: SandboxGateway, line: str | bytes, headers: str = HEADERS) -> bytes:
    """What comes back for a request with this line, to the last byte."""
    data = line if isinstance(line, bytes) else line.encode()
    async with gateway.serve() as url, connected(url) as (reader, writer):
        writer.write(data + b"\r\n" + headers.encode())
        return await received(reader)


# --- accepted ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "raw"),
    [
        ("语音", "语音"),
        ("1 1 2 5", "1 1 2 5"),
        ("语 音", "语 音"),
        ("语 音", "%E8%AF%AD 音"),
        ("1125", "1125 "),
        ("\t1", "\t1"),
        ("��", b"\xd6\xd0"),
    ],
)
async def test_raw_characters_in_a_query_are_taken(content: str, raw: str | bytes) -> None:
    gateway = SandboxGateway()
    raw = raw if isinstance(raw, bytes) else raw.encode()
    line = b"GET " + PLACING.replace("1125", "").encode() + raw + b" HTTP/1.1"
    answer = parsed(await sent(gateway, line))
    assert 200 == answer.status
    assert [content] == [attempt.content for attempt in gateway.attempts]
    assert [] == gateway.others


async def test_raw_characters_are_taken_in_each_request_of_a_connection() -> None:
    gateway = SandboxGateway()
    raw = PLACING.replace("1125", "语 音")
    keep = "Host: localhost\r\n\r\n"
    body = f"{keep[:-2]}Content-Type: {CONTENT_TYPE}\r\nContent-Length: 6\r\n\r\nrd=语"
    async with gateway.serve() as url, connected(url) as (reader, writer):
        # Each answer is awaited: what follows it is a request line again.
        for request in (
            f"GET {raw} HTTP/1.1\r\n{keep}",
            f"POST {raw} HTTP/1.1\r\n{body}",
            f"\r\nGET {raw} HTTP/1.1\r\n{keep}",
        ):
            writer.write(request.encode())
            await asyncio.wait_for(reader.readuntil(b"</SubmitResult>"), DEADLINE)
    assert ["语 音"] * 3 == [attempt.content for attempt in gateway.attempts]


async def test_a_request_may_come_in_pieces() -> None:
    gateway = SandboxGateway()
    arrived = asyncio.Event()
    gateway.on_attempt = lambda _: arrived.set()
    line = PLACING.replace("1125", "语 音")
    body = b"rd=1"
    data = request_bytes("POST", line, body, FORM)
    async with gateway.serve() as url, connected(url) as (reader, writer):
        for at in range(len(data)):
            writer.write(data[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0)
        await asyncio.wait_for(arrived.wait(), DEADLINE)
        assert 200 == parsed(await received(reader)).status
    assert [("语 音", True)] == [(a.content, "rd" in a.fields) for a in gateway.attempts]


async def test_requests_that_do_not_wait_for_answers_are_all_taken() -> None:
    gateway = SandboxGateway()
    one = request_bytes("GET", PLACING).replace(b"Connection: close\r\n", b"")
    async with gateway.serve() as url, connected(url) as (reader, writer):
        writer.write(one + one + one[:20])
        await asyncio.wait_for(reader.readuntil(b"</SubmitResult>"), DEADLINE)
        writer.write(one[20:])
        for _ in range(2):
            await asyncio.wait_for(reader.readuntil(b"</SubmitResult>"), DEADLINE)
    assert 3 == len(gateway.calls)


def test_a_line_that_needs_nothing_is_unchanged() -> None:
    line = f"GET {TARGET} HTTP/1.1\r\n".encode()
    assert line is with_encoded_target(line)
    assert not has_bad_target(b"CONNECT localhost:80 HTTP/1.1\r\n")
    assert not has_bad_target(f"GET http://localhost{TARGET} HTTP/1.1\r\n".encode())
    assert b"GET /a%20b HTTP/1.0\n" == with_encoded_target(b"GET  /a b  HTTP/1.0\n")


# --- refused ----------------------------------------------------------------------


def other_of(gateway: SandboxGateway) -> OtherRequest:
    (other,) = gateway.others
    return other


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("it is not HTTP", f"GET {TARGET} HTTP/1.1 x"),
        ("it is not HTTP", f"GET {TARGET} HTTQ/1.1"),
        ("it is not HTTP", f"G@T {TARGET} HTTP/1.1"),
        ("it is not HTTP", TARGET),
        ("it is not HTTP", f"password={SECRET}"),
        ("the target in its first line", f"GET http://[::1{TARGET} HTTP/1.1"),
        ("the target in its first line", f"GET {SECRET} HTTP/1.1"),
        ("the target in its first line", f"GET http://user:{SECRET}@ HTTP/1.1"),
        ("the target in its first line", f"GET {SECRET}:80/ HTTP/1.1"),
        ("the target in its first line", f"GET http://127.0.0.1:99999{TARGET} HTTP/1.1"),
        ("too long", f"GET {TARGET}{'x' * 9000} HTTP/1.1"),
        ("too long", f"GET {TARGET}{'音' * 9000} HTTP/1.1"),
        ("malformed", f"GET {TARGET} HTTP/1.1\r\nBad Header {SECRET}"),
        ("malformed", f"GET {TARGET} HTTP/1.1\r\nContent-Length: {SECRET}"),
    ],
)
async def test_what_cannot_be_read_is_recorded_and_repeated_nowhere(reason: str, line: str) -> None:
    gateway = SandboxGateway()
    data = await sent(gateway, line)
    other = other_of(gateway)
    assert ("unreadable", 400) == (other.kind, other.status)
    assert reason in other.reason
    assert b" 400 " in data.splitlines()[0]
    assert other.reason.encode() in data
    assert SECRET not in repr(other)
    assert SECRET.encode() not in data
    assert [] == gateway.attempts


async def test_a_line_without_an_end_is_refused() -> None:
    gateway = SandboxGateway()
    async with gateway.serve() as url, connected(url) as (reader, writer):
        writer.write(b"GET " + TARGET.encode() + b"x" * 20_000)
        assert b"too long" in (data := await received(reader))
    assert SECRET.encode() not in data
    assert SECRET not in repr(gateway.others)


async def test_tls_is_recognised() -> None:
    gateway = SandboxGateway()
    async with gateway.serve() as url, connected(url) as (reader, writer):
        writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        await received(reader)
    assert "use http:// in the URL" in other_of(gateway).reason
    assert "127.0.0.1" == other_of(gateway).ip


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Transfer-Encoding": "chunked"}, b"zz\r\n"),
        ({"Content-Encoding": "gzip"}, b"no gzip"),
    ],
)
async def test_a_broken_body_is_recorded(headers: dict[str, str], body: bytes) -> None:
    gateway = SandboxGateway()
    length = {} if "Transfer-Encoding" in headers else {"Content-Length": str(len(body))}
    request = request_bytes("POST", TARGET, b"", FORM | headers | length) + body
    async with gateway.serve() as url:
        response = await exchange(url, request)
    assert (400, "unreadable") == (response.status, other_of(gateway).kind)
    assert f"POST {PATH}?method=Submit&account=sandbox&password=********" in other_of(gateway).line
    assert SECRET.encode() not in response.body
    assert SECRET not in repr(other_of(gateway))
    assert [] == gateway.attempts


@pytest.mark.parametrize(
    ("status", "kind", "method", "target", "reason"),
    [
        (404, "unknown", "POST", "/webservice/sms.php?method=Submit", f"answers at {PATH}"),
        (404, "unknown", "GET", f"{PATH}?method=GetReport", "?method= must be Submit or GetNum"),
        (404, "unknown", "GET", f"{PATH}?", "?method= must be Submit or GetNum"),
        (405, "unknown", "PUT", f"{PATH}?method=Submit", "GET or POST"),
        (413, "unreadable", "POST", f"{PATH}?method=Submit", "more than 65536 bytes"),
    ],
)
async def test_what_reaches_no_method_is_recorded(
    status: int, kind: str, method: str, target: str, reason: str
) -> None:
    gateway = SandboxGateway()
    seen: list[OtherRequest] = []
    gateway.on_other = seen.append
    body = b"x" * 70_000 if status == 413 else b""
    async with gateway.serve() as url:
        response = await ask(url, method, f"{target}&password={SECRET}", body, FORM)
    other = other_of(gateway)
    assert [other] == seen
    assert (status, status, kind, "127.0.0.1") == (
        response.status, other.status, other.kind, other.ip,
    )  # fmt: skip
    assert other.line.startswith(f"{method} {target.partition('?')[0]}?")
    assert reason in other.reason
    assert reason.encode() in response.body
    assert SECRET.encode() not in response.body
    assert SECRET not in repr(other)


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/_sandbox/nothing", {}),
        ("/favicon.ico", {"Sec-Fetch-Site": "same-origin"}),
    ],
)
async def test_what_the_page_and_its_browser_ask_for_is_not_recorded(
    target: str, headers: dict[str, str]
) -> None:
    gateway = SandboxGateway()
    async with gateway.serve() as url:
        assert 404 == (await ask(url, "GET", target, headers=headers)).status
    assert [] == gateway.others


async def test_a_path_is_not_repeated() -> None:
    async with SandboxGateway().serve() as url:
        for path in ("/", "/_sandbox/"):
            response = await ask(url, "GET", f"{path}{SECRET}")
            assert (404, False) == (response.status, SECRET.encode() in response.body)


async def test_an_error_of_the_gateway_is_logged_and_answered_with_500(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> float:
        raise RuntimeError

    gateway = SandboxGateway(clock=fail)
    async with gateway.serve() as url:
        response = await ask(url, "GET", TARGET)
    assert 500 == response.status
    assert SECRET.encode() not in response.body
    assert [True] == ["Error handling request" in record.message for record in caplog.records]
    assert SECRET not in caplog.text
    caplog.clear()
