"""`/_sandbox/`: the record, the chaos and the reset over HTTP."""

from __future__ import annotations

import json
import re
from urllib.parse import urlencode

import pytest

from ihuyi_voice.sandbox import Chaos, SandboxGateway
from ihuyi_voice.sandbox.page_files import FILES
from ihuyi_voice.sandbox.server import MAX_BODY_BYTES
from ihuyi_voice.wire import CONTENT_TYPE, SUBMIT_TARGET
from tests.sandbox.forms import CONTENT, MOBILE, NOW, submit_form
from tests.sandbox.http import ask, exchange, submit_bytes

CHAOS = "/_sandbox/chaos"
SETTINGS = "/_sandbox/settings"


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


async def test_reset_clears_the_history_and_restores_the_settings() -> None:
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


async def test_a_patch_changes_what_it_names_and_leaves_the_rest() -> None:
    gateway = sandbox()
    gateway.chaos = Chaos(no_answer=1, seed=3)
    async with gateway.serve() as url:
        patched = await ask(url, "PATCH", CHAOS, b'{"garbage":1,"no_answer":0}')
        assert 400 == (await ask(url, "PATCH", CHAOS, b'{"lag":1}')).status
        assert 400 == (await ask(url, "PATCH", CHAOS, b"[]")).status
    assert Chaos(garbage=1, no_answer=0, seed=3) == gateway.chaos
    assert Chaos.from_json(patched.body) == gateway.chaos


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
        (404, "there is no such path", "GET", "inbox"),
        (405, "use DELETE or GET or PATCH or PUT", "POST", "chaos"),
        (405, "use POST", "GET", "reset"),
        (405, "use GET", "DELETE", "calls"),
        (405, "use DELETE or GET", "POST", "attempts"),
        (405, "use GET", "POST", "attempts/1"),
        (405, "use GET", "POST", "events"),
        (405, "use GET", "POST", "page/main.js"),
        (404, "there is no such path", "GET", "page/"),
        (404, "there is no such path", "GET", "page/main.py"),
        (404, "there is no such path", "GET", "page/../events.py"),
    ],
)
async def test_an_unknown_path_or_method_is_refused(
    status: int, text: str, method: str, name: str
) -> None:
    async with sandbox().serve() as url:
        response = await ask(url, method, f"/_sandbox/{name}")
    assert (status, {"error": text}) == (response.status, json.loads(response.body))
    assert (status == 405) == ("Allow" in response.headers)


async def test_a_body_above_64_kib_is_refused() -> None:
    async with sandbox().serve() as url:
        response = await ask(url, "PUT", CHAOS, b" " * (MAX_BODY_BYTES + 1))
    assert 413 == response.status
    assert {"error": "Content Too Large: more than 65536 bytes"} == json.loads(response.body)


@pytest.mark.parametrize("origin", ["http://evil.test", "null", "http://127.0.0.1:1"])
@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("PUT", "chaos"),
        ("DELETE", "chaos"),
        ("POST", "reset"),
        ("PATCH", "settings"),
        ("DELETE", "attempts"),
    ],
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


async def test_its_own_page_may_change_everything() -> None:
    gateway = sandbox()
    gateway.chaos = Chaos(garbage=1)
    async with gateway.serve() as url:
        host = url.removeprefix("http://")
        headers = {"Origin": url, "Host": host}
        assert 200 == (await ask(url, "DELETE", CHAOS, headers=headers)).status
    assert Chaos() == gateway.chaos


async def test_a_foreign_host_name_is_refused_except_for_programs_that_submit() -> None:
    gateway = sandbox()
    headers = {"Host": "evil.example", "Content-Type": CONTENT_TYPE}
    async with gateway.serve() as url:
        for target in ("/", "/_sandbox/calls", "/_sandbox/events", "/_sandbox/page/main.js"):
            assert 403 == (await ask(url, "GET", target, headers=headers)).status
        body = urlencode(submit_form()).encode()
        assert b"<code>2</code>" in (await ask(url, "POST", SUBMIT_TARGET, body, headers)).body
        assert 200 == (await ask(url, "GET", "/_sandbox/calls")).status


async def test_settings_are_read_and_changed() -> None:
    gateway = sandbox()
    async with gateway.serve() as url:
        changed = b'{"balance":5,"blacklist":["+86 139-1234-5678"],"allowed_ips":["::1"]}'
        patched = await ask(url, "PATCH", SETTINGS, changed)
        got = await ask(url, "GET", SETTINGS)
    assert (200, got.body) == (patched.status, patched.body)
    settings = json.loads(got.body)
    assert (5, [MOBILE], ["::1"]) == tuple(
        settings[name] for name in ("balance", "blacklist", "allowed_ips")
    )
    assert ("sandbox", True) == (settings["api_id"], settings["has_default_key"])
    assert b"sandbox-key" not in got.body
    assert (5, frozenset({MOBILE})) == (gateway.balance, gateway.blacklist)
    assert frozenset({"::1"}) == gateway.allowed_ips


async def test_a_number_that_json_cannot_hold_is_cut() -> None:
    gateway = sandbox()
    gateway.balance = 10**30
    async with gateway.serve() as url:
        assert 2**53 - 1 == json.loads((await ask(url, "GET", SETTINGS)).body)["balance"]


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("the body is not JSON", b"balance=1"),
        ("the body must be a JSON object", b"[]"),
        ("unknown: api_key; there are frozen, ", b'{"api_key":"x"}'),
        ("balance must be an int of at least 0, not -1", b'{"frozen":true,"balance":-1}'),
        ("keep must be an int of at most", b'{"balance":1,"keep":18446744073709551615}'),
        ("receipt_timeout must be more than 0", b'{"receipt_timeout":0}'),
        ("receipt_url must be a URL", b'{"receipt_url":"file:///etc/passwd"}'),
    ],
)
async def test_a_wrong_setting_is_400_and_changes_nothing(text: str, body: bytes) -> None:
    gateway = sandbox()
    async with gateway.serve() as url:
        response = await ask(url, "PATCH", SETTINGS, body)
    assert (400, True) == (response.status, text in json.loads(response.body)["error"])
    assert (1000, False, None) == (gateway.balance, gateway.frozen, gateway.receipt_url)


async def test_delete_clears_the_history() -> None:
    gateway = sandbox()
    async with gateway.serve() as url:
        await exchange(url, submit_bytes(submit_form()))
        response = await ask(url, "DELETE", "/_sandbox/attempts")
    assert (200, b'{"cleared":true}') == (response.status, response.body)
    assert ([], [], 999) == (gateway.calls, gateway.attempts, gateway.balance)


async def test_the_details_of_an_attempt() -> None:
    gateway = sandbox()
    async with gateway.serve() as url:
        answer = await exchange(url, submit_bytes(submit_form(mobile="", format="json")))
        details = json.loads((await ask(url, "GET", "/_sandbox/attempts/1")).body)
        for number in ("2", "0", "x", "-1", "9" * 40):
            assert 404 == (await ask(url, "GET", f"/_sandbox/attempts/{number}")).status
    assert answer.body.decode() == details["answer"]
    assert ["password", "********"] in details["form"]
    assert (403, "手机号码不能为空", 200, None) == tuple(
        details[name] for name in ("code", "msg", "status", "receipt")
    )


async def test_no_answer_shows_the_password_or_the_key() -> None:
    form = submit_form(password="theirs", mobile="sandbox-key", rd="a sandbox-key")
    async with sandbox().serve() as url:
        await exchange(url, submit_bytes(form | {"sandbox-key": ""}))
        shown = b"".join(
            [
                (await ask(url, "GET", f"/_sandbox/{name}")).body
                for name in ("attempts", "attempts/1")
            ]
        )
    assert 0 == shown.count(b"sandbox-key") + shown.count(b"theirs")
    assert 0 < shown.count(b"********")


async def test_the_page_and_its_files_and_the_headers_that_guard_them() -> None:
    async with sandbox().serve() as url:
        page = await ask(url, "GET", "/")
        assert 405 == (await ask(url, "POST", "/")).status
        files = re.findall(r'(?:href|src)="(/_sandbox/page/[^"]+)"', page.body.decode())
        types = {}
        for name in set(files):
            file = await ask(url, "GET", name)
            assert ("nosniff", 200) == (file.headers["X-Content-Type-Options"], file.status)
            types[name.rpartition(".")[2]] = file.headers["Content-Type"]
        control = await ask(url, "GET", "/_sandbox/calls")
    assert {
        "css": "text/css; charset=utf-8",
        "js": "text/javascript; charset=utf-8",
        "svg": "image/svg+xml",
    } == types
    policy = page.headers["Content-Security-Policy"].split("; ")
    assert {
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'",
        "img-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
    } <= set(policy)  # fmt: skip
    assert "text/html; charset=utf-8" == page.headers["Content-Type"]
    for answer in (page, control):
        assert "nosniff" == answer.headers["X-Content-Type-Options"]
        assert "no-store" == answer.headers["Cache-Control"]
        assert not any(name.lower().startswith("access-control") for name in answer.headers)


def test_the_page_has_nothing_inline_and_names_no_other_host() -> None:
    for name, (_, body) in FILES.items():
        text = body.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://(?!127\.0\.0\.1)[^\s\"]", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
    page = FILES["index.html"][1].decode()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)", page)
