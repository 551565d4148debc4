"""`/_sandbox/others` and `/_sandbox/counts`: the requests that are no submits, as JSON."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

from ihuyi_voice.sandbox import Chaos, SandboxGateway
from ihuyi_voice.sandbox.events import Events
from ihuyi_voice.wire import BALANCE_TARGET, SUBMIT_TARGET
from tests.sandbox.forms import KEY, NOW, balance_form, md5, submit_form
from tests.sandbox.http import FORM, ask, exchange, request_bytes, submit_bytes


def sandbox(**settings: Any) -> SandboxGateway:
    return SandboxGateway(clock=lambda: NOW, **settings)


def form_bytes(target: str, form: dict[str, str]) -> bytes:
    return request_bytes("POST", target, urlencode(form).encode(), FORM)


def event(events: Events) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(events.next().removeprefix(b"data: "))
    return said


def test_an_event_holds_the_other_requests_once() -> None:
    gateway = sandbox()
    events = Events(gateway)
    gateway.answer("GetNum", balance_form(), "127.0.0.1", gateway.roll())
    (other,) = event(events)["others"]
    assert (1, 0, "balance", 2, None) == tuple(
        other[name] for name in ("number", "after", "kind", "code", "fault")
    )
    gateway.answer("Submit", submit_form(), "", gateway.roll())
    gateway.answer("GetNum", balance_form(password=md5("x")), "", gateway.roll())
    (other,) = event(events)["others"]
    assert (2, 1, 405) == tuple(other[name] for name in ("number", "after", "code"))
    assert "digest" == other["why"]["kind"]
    assert other["why"]["facts"]["expected"] == balance_form()["password"]
    assert "IHUYI_VOICE_API_KEY" in other["why"]["text"]
    assert b"" == events.next()


async def test_the_other_requests_are_listed_and_found_by_number() -> None:
    gateway = sandbox()
    async with gateway.serve() as url:
        await exchange(url, submit_bytes(submit_form(password=KEY)))
        await exchange(url, form_bytes(BALANCE_TARGET, balance_form(password=KEY)))
        gateway.chaos = Chaos(close_before_reading=1)
        await exchange(url, form_bytes(SUBMIT_TARGET, submit_form(password=KEY)))
        gateway.chaos = Chaos()
        balance, closed = json.loads((await ask(url, "GET", "/_sandbox/others")).body)
        assert ("balance", "closed") == (balance["kind"], closed["kind"])
        assert ("close_before_reading", 0, "") == (
            closed["fault"],
            closed["status"],
            closed["request"]["body"],
        )
        details = json.loads((await ask(url, "GET", "/_sandbox/others/1")).body)
        assert ("POST", "method=GetNum") == (
            details["request"]["method"],
            details["request"]["query"],
        )
        assert "password=********" in details["request"]["body"]
        assert ["password", "********"] in details["form"]
        for number in ("0", "3", "x", "9" * 20):
            assert 404 == (await ask(url, "GET", f"/_sandbox/others/{number}")).status
        attempt = json.loads((await ask(url, "GET", "/_sandbox/attempts/1")).body)
        assert "password=********" in attempt["request"]["body"]
        counts = json.loads((await ask(url, "GET", "/_sandbox/counts")).body)
    assert {"taken": 1, "others_taken": 2} == counts


async def test_the_body_of_an_unknown_request_is_shown_if_it_can_be_read() -> None:
    gateway = sandbox()
    async with gateway.serve() as url:
        await exchange(url, form_bytes("/another", {"mobile": "1", "password": "secret"}))
        await exchange(url, form_bytes("/another", {"x": "y" * 70_000}))
    small, large = gateway.others
    assert small.request is not None
    assert "mobile=1&password=********" == small.request.body
    assert large.request is not None
    assert "" == large.request.body
