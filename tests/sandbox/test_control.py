"""`/_sandbox/`: the record, the chaos and the reset over HTTP."""

from __future__ import annotations

import json

import pytest

from ihuyi_voice.sandbox import Chaos, SandboxGateway
from ihuyi_voice.sandbox.server import MAX_BODY_BYTES
from tests.sandbox.forms import CONTENT, MOBILE, NOW, submit_form
from tests.sandbox.http import ask, exchange, submit_bytes

CHAOS = "/_sandbox/chaos"


def sandbox() -> SandboxGateway:
    return SandboxGateway(clock=lambda: NOW)


async def test_the_calls_and_the_attempts_can_be_read() -> None:
    call = {"mobile": MOBILE, "content": CONTENT, "voice_id": "100000001", "time": NOW}
    async with sandbox().serve() as url:
        await exchange(url, submit_bytes(submit_form()))
        await exchange(url, submit_bytes(submit_form("")))
        calls = await ask(url, "GET", "/_sandbox/calls")
        attempts = await ask(url, "GET", "/_sandbox/attempts")
    assert [call] == json.loads(calls.body)
    assert "application/json; charset=utf-8" == calls.headers["Content-Type"]
    placed, refused = json.loads(attempts.body)
    assert call == {name: placed[name] for name in call}
    assert (2, "127.0.0.1", None) == (placed["code"], placed["ip"], placed["fault"])
    assert (403, "手机号码不能为空", None) == tuple(refused[n] for n in ("code", "msg", "voice_id"))
    assert ["account", "password", "mobile", "content", "time"] == refused["fields"]


async def test_reset() -> None:
    gateway = sandbox()
    async with gateway.serve() as url:
        await exchange(url, submit_bytes(submit_form()))
        gateway.chaos = Chaos(no_answer=1)
        response = await ask(url, "POST", "/_sandbox/reset")
    assert (200, b'{"reset":true}') == (response.status, response.body)
    assert ([], [], 1000, Chaos()) == (
        gateway.calls,
        gateway.attempts,
        gateway.balance,
        gateway.chaos,
    )


async def test_chaos_is_set_read_and_ended() -> None:
    gateway = sandbox()
    async with gateway.serve() as url:
        put = await ask(url, "PUT", CHAOS, b'{"garbage":0.5,"code":4085,"seed":3}')
        assert Chaos(garbage=0.5, code=4085, seed=3) == gateway.chaos
        got = await ask(url, "GET", CHAOS)
        ended = await ask(url, "DELETE", CHAOS)
    assert (200, 200, 200) == (put.status, got.status, ended.status)
    assert put.body == got.body
    assert (0.5, 4085, 0.0, 3) == tuple(
        json.loads(got.body)[name] for name in ("garbage", "code", "no_answer", "seed")
    )
    assert Chaos() == gateway.chaos == Chaos.from_json(ended.body)


async def test_a_put_replaces_the_whole_chaos() -> None:
    gateway = sandbox()
    gateway.chaos = Chaos(no_answer=1)
    async with gateway.serve() as url:
        await ask(url, "PUT", CHAOS, b'{"garbage":1}')
    assert Chaos(garbage=1) == gateway.chaos


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("unknown: lag; there are latency, ", b'{"lag":1}'),
        ("garbage must be a probability between 0 and 1, not 2", b'{"garbage":2}'),
        ("the body is not JSON", b"garbage=1"),
        ("the body is not JSON", b""),
        ("the body must be a JSON object", b"[]"),
    ],
)
async def test_a_wrong_chaos_is_400_and_changes_nothing(text: str, body: bytes) -> None:
    gateway = sandbox()
    gateway.chaos = before = Chaos(truncate=0.5)
    async with gateway.serve() as url:
        response = await ask(url, "PUT", CHAOS, body)
    assert 400 == response.status
    assert text in json.loads(response.body)["error"]
    assert before is gateway.chaos


@pytest.mark.parametrize(
    ("status", "text", "method", "name"),
    [
        (404, "there is no /_sandbox/inbox", "GET", "inbox"),
        (405, "use GET or PUT or DELETE", "POST", "chaos"),
        (405, "use POST", "GET", "reset"),
        (405, "use GET", "DELETE", "calls"),
    ],
)
async def test_what_it_does_not_know(status: int, text: str, method: str, name: str) -> None:
    async with sandbox().serve() as url:
        response = await ask(url, method, f"/_sandbox/{name}")
    assert (status, {"error": text}) == (response.status, json.loads(response.body))
    assert (status == 405) == ("Allow" in response.headers)


async def test_a_body_has_a_bound() -> None:
    async with sandbox().serve() as url:
        response = await ask(url, "PUT", CHAOS, b" " * (MAX_BODY_BYTES + 1))
    assert 413 == response.status


@pytest.mark.parametrize("origin", ["http://evil.test", "null", "http://127.0.0.1:1"])
@pytest.mark.parametrize(
    ("method", "name"), [("PUT", "chaos"), ("DELETE", "chaos"), ("POST", "reset")]
)
async def test_a_page_of_another_site_changes_nothing(method: str, name: str, origin: str) -> None:
    gateway = sandbox()
    gateway.chaos = before = Chaos(garbage=1)
    async with gateway.serve() as url:
        response = await ask(url, method, f"/_sandbox/{name}", b"{}", {"Origin": origin})
        assert 200 == (await ask(url, "GET", CHAOS, headers={"Origin": origin})).status
    assert 403 == response.status
    assert "another site" in json.loads(response.body)["error"]
    assert before is gateway.chaos


async def test_a_page_of_its_own_may() -> None:
    gateway = sandbox()
    gateway.chaos = Chaos(garbage=1)
    async with gateway.serve() as url:
        host = url.removeprefix("http://")
        headers = {"Origin": url, "Host": host}
        assert 200 == (await ask(url, "DELETE", CHAOS, headers=headers)).status
    assert Chaos() == gateway.chaos
