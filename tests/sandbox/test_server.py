"""The gateway over real HTTP on loopback: its own path, and what a fault does to the socket."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

import pytest

from ihuyi_voice._limits import SandboxLimits
from ihuyi_voice.sandbox import Chaos, SandboxGateway
from ihuyi_voice.sandbox.server import MAX_BODY_BYTES, serving
from ihuyi_voice.wire import BALANCE_TARGET, PATH, SUBMIT_TARGET
from tests.sandbox.forms import MOBILE, NOW, balance_form, submit_form
from tests.sandbox.http import (
    DEADLINE,
    FORM,
    ask,
    connected,
    exchange,
    parsed,
    received,
    request_bytes,
    submit_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ihuyi_voice.sandbox.faults import Roll

IPV6 = Path("/proc/net/if_inet6")


def at_now() -> float:
    return NOW


def sandbox(chaos: Chaos | None = None) -> SandboxGateway:
    return SandboxGateway(clock=at_now, chaos=chaos or Chaos())


def encoded(form: dict[str, str]) -> bytes:
    return urlencode(form).encode()


class Watched(SandboxGateway):
    """Shows when the first request has arrived, and which task answers it."""

    def __init__(self, chaos: Chaos | None = None) -> None:
        super().__init__(clock=at_now, chaos=chaos or Chaos())
        self._answering: asyncio.Future[asyncio.Task[object] | None] = asyncio.Future()

    def roll(self) -> Roll:
        self._answering.set_result(asyncio.current_task())
        return super().roll()

    async def answering(self) -> asyncio.Task[object]:
        task = await asyncio.wait_for(self._answering, DEADLINE)
        assert task is not None
        return task


@pytest.fixture(autouse=True)
def no_errors_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The server logs no error, whatever a caller does."""
    yield
    assert [] == [record for record in caplog.records if record.levelno >= logging.ERROR]


# --- the gateway's own path ---------------------------------------------------


async def test_a_post_is_answered() -> None:
    gateway = sandbox()
    async with gateway.serve() as url:
        response = await exchange(url, submit_bytes(submit_form(format="json")))
    assert 200 == response.status
    assert {"code": 2, "msg": "提交成功", "voiceid": "100000001"} == json.loads(response.body)
    assert "application/json; charset=utf-8" == response.headers["Content-Type"]
    assert [(MOBILE, "127.0.0.1")] == [(a.mobile, a.ip) for a in gateway.attempts]


async def test_a_get_is_answered() -> None:
    gateway = sandbox()
    async with gateway.serve() as url:
        response = await ask(url, "GET", f"{SUBMIT_TARGET}&{urlencode(submit_form(rd='1'))}")
    assert b"<voiceid>100000001</voiceid>" in response.body
    assert "text/xml; charset=utf-8" == response.headers["Content-Type"]
    assert 1 == len(gateway.calls)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_balance_query_is_answered(method: str) -> None:
    form = urlencode(balance_form())
    async with sandbox().serve() as url:
        if method == "GET":
            response = await ask(url, "GET", f"{BALANCE_TARGET}&{form}")
        else:
            response = await ask(url, "POST", BALANCE_TARGET, form.encode(), FORM)
    assert b"<num>1000</num>" in response.body


async def test_a_connection_is_kept_alive() -> None:
    gateway = sandbox()
    request = submit_bytes(submit_form()).replace(b"Connection: close\r\n", b"")
    async with gateway.serve() as url, connected(url) as (reader, writer):
        for _ in range(3):
            writer.write(request)
            await asyncio.wait_for(reader.readuntil(b"</SubmitResult>"), DEADLINE)
    assert 3 == len(gateway.calls)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded;charset=UTF-8",
        "APPLICATION/X-WWW-Form-Urlencoded ; charset=utf-8",
    ],
)
async def test_a_forms_content_type_may_have_parameters(content_type: str) -> None:
    async with sandbox().serve() as url:
        headers = {"Content-Type": content_type}
        response = await ask(url, "POST", SUBMIT_TARGET, encoded(submit_form()), headers)
    assert b"<code>2</code>" in response.body


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain"}])
async def test_without_its_content_type_a_form_has_no_fields(headers: dict[str, str]) -> None:
    gateway = sandbox()
    async with gateway.serve() as url:
        response = await ask(url, "POST", SUBMIT_TARGET, encoded(submit_form()), headers)
    assert b"<code>401</code>" in response.body
    assert [()] == [attempt.fields for attempt in gateway.attempts]


@pytest.mark.parametrize(
    "headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}]
)
async def test_another_sites_page_places_no_call(headers: dict[str, str]) -> None:
    gateway = sandbox(Chaos(no_answer=1))
    form, escaped = urlencode(submit_form()), SUBMIT_TARGET.replace(".", "%2E")
    async with gateway.serve() as url:
        responses = [
            await ask(url, "GET", f"{SUBMIT_TARGET}&{form}", headers=headers),
            await ask(url, "POST", SUBMIT_TARGET, form.encode(), FORM | headers),
            # The router decodes the path before it finds the handler.
            await ask(url, "GET", f"{escaped}&{form}", headers=headers),
        ]
    assert [403, 403, 403] == [response.status for response in responses]
    assert all(b"a page of another site" in response.body for response in responses)
    assert [] == gateway.attempts


@pytest.mark.parametrize(
    ("status", "method", "target"),
    [
        (404, "GET", "/webservice"),
        (404, "POST", "/webservice/sms.php?method=Submit"),
        (404, "POST", PATH),
        (404, "GET", f"{PATH}?method=GetReport"),
        (405, "PUT", SUBMIT_TARGET),
        (405, "DELETE", BALANCE_TARGET),
    ],
)
async def test_an_unknown_path_or_method_is_answered_with_html(
    status: int, method: str, target: str
) -> None:
    gateway = sandbox(Chaos(no_answer=1))
    async with gateway.serve() as url:
        response = await ask(url, method, target)
    assert status == response.status
    assert response.headers["Content-Type"].startswith("text/html")
    assert b"<html>" in response.body
    assert [] == gateway.attempts


@pytest.mark.parametrize(
    ("expected", "size"), [(b"<code>2</code>", MAX_BODY_BYTES - 1), (b"413", MAX_BODY_BYTES + 1)]
)
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_above_64_kib_is_refused(expected: bytes, size: int, chunked: bool) -> None:
    gateway = sandbox()
    body = encoded(submit_form()) + b"&rest="
    body += b"x" * (size - len(body))
    request = request_bytes("POST", SUBMIT_TARGET, body, FORM)
    if chunked:
        head = request_bytes("POST", SUBMIT_TARGET, headers=FORM | {"Transfer-Encoding": "chunked"})
        request = head + f"{size:x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    async with gateway.serve() as url:
        response = await exchange(url, request)
    assert expected in response.body
    assert (413 if expected == b"413" else 200) == response.status
    assert (response.status == 200) == bool(gateway.attempts)


async def test_a_caller_that_expects_100_continue_gets_it() -> None:
    body = encoded(submit_form())
    request = request_bytes("POST", SUBMIT_TARGET, body, FORM | {"Expect": "100-continue"})
    async with sandbox().serve() as url, connected(url) as (reader, writer):
        writer.write(request.removesuffix(body))
        interim = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE)
        writer.write(body)
        response = parsed(await received(reader))
    assert interim.startswith(b"HTTP/1.1 100 ")
    assert b"<code>2</code>" in response.body


@pytest.mark.parametrize("expect", ["s3cret", "100-continue, s3cret", "password=s3cret"])
@pytest.mark.parametrize("path", [SUBMIT_TARGET, "/another", "/_sandbox/calls", "/"])
async def test_another_expectation_is_refused_and_not_repeated(path: str, expect: str) -> None:
    gateway = sandbox()
    # The body is never sent: who waits for an answer before it must get one.
    head = {"Expect": expect, "Content-Length": "9"}
    async with gateway.serve() as url, connected(url) as (reader, writer):
        writer.write(request_bytes("POST", path, headers=FORM | head))
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE)
        answer += await asyncio.wait_for(reader.readuntil(b"100-continue"), DEADLINE)
    assert answer.startswith(b"HTTP/1.1 417 ")
    assert b"s3cret" not in answer
    assert [] == gateway.attempts
    is_control = path in ("/", "/_sandbox/calls")
    kinds = [] if is_control else ["unreadable"]
    assert kinds == [other.kind for other in gateway.others]
    assert (b"application/json" in answer) is is_control


async def test_the_date_header_shows_the_gateways_clock() -> None:
    times = [NOW, NOW, NOW + 3600]
    gateway = SandboxGateway(clock=lambda: times.pop(0), time_window=None)
    async with gateway.serve() as url:
        dates = [
            (await exchange(url, submit_bytes(submit_form()))).headers["Date"] for _ in range(3)
        ]
    first, last = "Tue, 14 Nov 2023 22:13:20 GMT", "Tue, 14 Nov 2023 23:13:20 GMT"
    assert [first, first, last] == dates


async def test_an_address_that_is_not_allowed_is_refused() -> None:
    gateway = SandboxGateway(allowed_ips=["10.0.0.1"], clock=at_now)
    async with gateway.serve() as url:
        response = await exchange(url, submit_bytes(submit_form()))
    assert b"<code>400</code>" in response.body


# --- faults on the socket -----------------------------------------------------


async def test_close_before_reading_takes_nothing() -> None:
    gateway = sandbox(Chaos(close_before_reading=1))
    async with gateway.serve() as url:
        response = await exchange(url, submit_bytes(submit_form()))
    assert 0 == response.status
    assert [] == gateway.attempts


async def test_a_code_is_answered_instead_of_placing() -> None:
    gateway = sandbox(Chaos(code=4085))
    async with gateway.serve() as url:
        submitted = await exchange(url, submit_bytes(submit_form(format="json")))
        asked = await ask(url, "POST", BALANCE_TARGET, encoded(balance_form(format="json")), FORM)
    assert {"code": 4085, "msg": "未知错误", "voiceid": "0"} == json.loads(submitted.body)
    assert {"code": 4085, "msg": "未知错误", "num": "0"} == json.loads(asked.body)
    assert [(4085, "code", False)] == [(a.code, a.fault, a.placed) for a in gateway.attempts]
    assert ([], 1000) == (gateway.calls, gateway.balance)


async def test_close_after_placing_places_and_answers_nothing() -> None:
    gateway = sandbox(Chaos(close_after_placing=1))
    async with gateway.serve() as url:
        response = await exchange(url, submit_bytes(submit_form()))
        asked = await ask(url, "POST", BALANCE_TARGET, encoded(balance_form()), FORM)
    assert (0, 0) == (response.status, asked.status)
    assert [(2, "close_after_placing")] == [(a.code, a.fault) for a in gateway.attempts]
    assert 1 == len(gateway.calls)


@pytest.mark.parametrize("answer_format", ["xml", "json"])
async def test_truncate_places_and_sends_half(answer_format: str) -> None:
    gateway = sandbox()
    async with gateway.serve() as url:
        whole = await exchange(url, submit_bytes(submit_form(format=answer_format)))
        gateway.chaos = Chaos(truncate=1)
        half = await exchange(url, submit_bytes(submit_form(format=answer_format)))
    assert (200, whole.headers["Content-Length"]) == (half.status, half.headers["Content-Length"])
    assert len(whole.body) // 2 == len(half.body)
    assert whole.body.startswith(half.body)
    assert 2 == len(gateway.calls)


async def test_html_502_places_and_answers_html() -> None:
    gateway = sandbox(Chaos(html_502=1))
    async with gateway.serve() as url:
        response = await exchange(url, submit_bytes(submit_form()))
    assert (502, True) == (response.status, b"Bad Gateway" in response.body)
    assert 1 == len(gateway.calls)


async def test_garbage_places_and_answers_nothing_readable() -> None:
    gateway = sandbox(Chaos(garbage=1, seed=1))
    async with gateway.serve() as url:
        responses = [await exchange(url, submit_bytes(submit_form())) for _ in range(10)]
    assert {200} == {response.status for response in responses}
    assert all(b"code" not in response.body and response.body for response in responses)
    assert 10 == len(gateway.calls)


async def test_a_fault_strikes_a_refusal_too() -> None:
    gateway = sandbox(Chaos(close_after_placing=1))
    async with gateway.serve() as url:
        response = await exchange(url, submit_bytes(submit_form("")))
    assert 0 == response.status
    assert [(403, "close_after_placing")] == [(a.code, a.fault) for a in gateway.attempts]


async def test_latency_delays_the_answer_and_not_the_call() -> None:
    placed: list[float] = []
    gateway = sandbox(Chaos(latency=0.25))
    gateway.on_attempt = lambda _: placed.append(time.monotonic())
    async with gateway.serve() as url:
        assert 200 == (await exchange(url, submit_bytes(submit_form()))).status
        (then,) = placed
        # The timer of a loop may be a millisecond early.
        assert time.monotonic() - then > 0.24


async def test_a_late_answer_arrives() -> None:
    async with sandbox(Chaos(latency=0.01)).serve() as url:
        assert 200 == (await exchange(url, submit_bytes(submit_form()))).status


async def test_no_answer_places_and_holds_the_connection_until_the_caller_leaves() -> None:
    gateway = Watched(Chaos(no_answer=1))
    placed = asyncio.Event()
    gateway.on_attempt = lambda _: placed.set()
    async with gateway.serve() as url:
        async with connected(url) as (_, writer):
            writer.write(submit_bytes(submit_form()))
            task = await gateway.answering()
            await asyncio.wait_for(placed.wait(), DEADLINE)
            assert not task.done()
        await asyncio.wait({task}, timeout=DEADLINE)
        assert task.done()
    assert 1 == len(gateway.calls)


# --- the end ------------------------------------------------------------------


@pytest.mark.parametrize(
    "chaos",
    [Chaos(no_answer=1), Chaos(latency=3600), Chaos(latency=3600, close_before_reading=1)],
)
async def test_stopping_does_not_wait_while_an_answer_hangs(chaos: Chaos) -> None:
    # The gateway must end it, not aiohttp's timeout.
    limits = SandboxLimits(shutdown=3600)
    gateway = Watched(chaos)
    async with AsyncExitStack() as after:
        async with serving(gateway, "127.0.0.1", 0, limits) as url:
            reader, writer = await after.enter_async_context(connected(url))
            writer.write(submit_bytes(submit_form()))
            assert not (await gateway.answering()).done()
        await received(reader)


async def test_stopping_does_not_wait_while_a_body_is_on_its_way() -> None:
    gateway = Watched()
    async with AsyncExitStack() as after:
        async with gateway.serve() as url:
            reader, writer = await after.enter_async_context(connected(url))
            writer.write(submit_bytes(submit_form())[:-5])
            await gateway.answering()
        assert b"" == await received(reader)
    assert [] == gateway.attempts


async def test_a_caller_that_leaves_in_the_middle_of_a_body_is_no_attempt() -> None:
    gateway = Watched()
    async with gateway.serve() as url:
        async with connected(url) as (_, writer):
            writer.write(submit_bytes(submit_form())[:-5])
            task = await gateway.answering()
        await asyncio.wait({task}, timeout=DEADLINE)
        assert task.done()
    assert [] == gateway.attempts


async def test_leaving_the_block_leaves_no_task_and_no_socket() -> None:
    tasks = asyncio.all_tasks()
    async with sandbox().serve() as url, connected(url):
        await exchange(url, submit_bytes(submit_form()))
    assert tasks == asyncio.all_tasks()
    with pytest.raises(ConnectionRefusedError):
        await exchange(url, b"")


async def test_an_exception_leaves_the_block_unwrapped() -> None:
    error = RuntimeError("of the test")
    with pytest.raises(RuntimeError) as caught:
        async with sandbox().serve():
            raise error
    assert error is caught.value


async def test_one_gateway_may_be_served_twice() -> None:
    gateway = sandbox()
    async with gateway.serve() as one, gateway.serve() as other:
        assert one != other
        for url in (one, other):
            await exchange(url, submit_bytes(submit_form()))
    assert 2 == len(gateway.calls)


# --- where it listens ---------------------------------------------------------


async def test_it_listens_on_loopback_by_default(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with sandbox().serve() as url:
        assert "127.0.0.1" == urlsplit(url).hostname
    assert [] == [r for r in caplog.records if r.name == "ihuyi_voice.sandbox"]


async def test_it_warns_when_other_machines_can_reach_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with sandbox().serve(host="0.0.0.0") as url:  # noqa: S104 - the case itself
        response = await exchange(url, submit_bytes(submit_form()))
    assert 200 == response.status
    (record,) = [r for r in caplog.records if r.name == "ihuyi_voice.sandbox"]
    assert logging.WARNING == record.levelno
    assert "listens on 0.0.0.0" in record.message
    assert "NOT only this machine" in record.message


async def test_it_listens_on_the_given_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with sandbox().serve("127.0.0.1", port) as url:
        assert f"http://127.0.0.1:{port}" == url
        with pytest.raises(OSError, match=str(port)):
            await AsyncExitStack().enter_async_context(sandbox().serve("127.0.0.1", port))


@pytest.mark.skipif(not IPV6.exists(), reason="this machine has no IPv6")
async def test_an_ipv6_address_is_written_in_brackets() -> None:
    async with sandbox().serve("::1") as url:
        assert url.startswith("http://[::1]:")
        assert 200 == (await exchange(url, submit_bytes(submit_form()))).status
