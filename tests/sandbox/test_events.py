"""`/_sandbox/events`: what the page is told, as a stream and without one."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from ihuyi_voice.sandbox import ReceiptPush, SandboxGateway, events, server
from ihuyi_voice.sandbox.events import Feed
from tests.sandbox.forms import MOBILE, NOW, submit_form
from tests.sandbox.http import DEADLINE, connected, received, request_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

EVENTS = "/_sandbox/events"


@pytest.fixture(autouse=True)
def no_errors_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [] == [record for record in caplog.records if record.levelno >= logging.ERROR]


def sandbox(**settings: Any) -> SandboxGateway:
    return SandboxGateway(clock=lambda: NOW, **settings)


def submit(gateway: SandboxGateway, mobile: str = MOBILE, content: str = "1125") -> None:
    gateway.answer("Submit", submit_form(mobile, content), "127.0.0.1", gateway.roll())


def parsed(event: bytes) -> tuple[str, dict[str, Any]]:
    """The event's id and what it tells."""
    lines = dict(line.split(": ", 1) for line in event.decode().strip().split("\n"))
    return lines["id"], json.loads(lines["data"])


def numbers(told: dict[str, Any]) -> list[int]:
    return [attempt["number"] for attempt in told.get("attempts", [])]


def test_the_first_event_tells_everything_and_then_nothing_until_something_changes() -> None:
    gateway = sandbox()
    submit(gateway)
    reader = Feed(gateway)
    _, told = parsed(reader.event())
    assert (True, 999, [1]) == (told["anew"], told["settings"]["balance"], numbers(told))
    assert {
        "number": 1, "time": NOW, "mobile": MOBILE, "content": "1125", "code": 2,
        "msg": "提交成功", "voice_id": "100000001", "fault": None,
    } == told["attempts"][0]  # fmt: skip
    assert b"" == reader.event()
    gateway.frozen = True
    _, told = parsed(reader.event())
    assert {"settings": {"frozen": True, "frozen_with": 4050}} == told
    gateway.frozen = False
    reader.event()
    submit(gateway)
    _, told = parsed(reader.event())
    assert {"balance": 998} == told["settings"]
    assert [2] == numbers(told)


def test_what_does_not_fit_into_the_first_event_is_no_news_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "MOST_ATTEMPTS", 2)
    gateway = sandbox()
    for _ in range(5):
        submit(gateway)
    reader = Feed(gateway)
    told = [parsed(reader.event())[1] for _ in range(3)]
    submit(gateway)
    told.append(parsed(reader.event())[1])
    assert [(True, False), (False, True), (False, True), (False, False)] == [
        ("anew" in one, "catching_up" in one) for one in told
    ]


def test_who_comes_back_is_told_the_rest() -> None:
    gateway = sandbox()
    submit(gateway)
    event_id, _ = parsed(Feed(gateway).event())
    submit(gateway)
    _, told = parsed(Feed(gateway, event_id).event())
    assert (False, [2]) == ("anew" in told, numbers(told))
    gateway.clear()
    _, told = parsed(Feed(gateway, event_id).event())
    assert (True, []) == (told["anew"], numbers(told))


@pytest.mark.parametrize(
    "event_id", ["", "x", "a.b.c", "e.1", "e.1.2.3", "e.٣.1", f"e.{'9' * 50}.0"]
)
def test_an_id_that_is_none_begins_anew(event_id: str) -> None:
    gateway = sandbox()
    submit(gateway)
    _, told = parsed(Feed(gateway, event_id).event())
    assert (True, [1]) == (told["anew"], numbers(told))


def test_many_come_in_several_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_ATTEMPTS", 2)
    gateway = sandbox()
    for _ in range(5):
        submit(gateway)
    reader = Feed(gateway)
    seen: list[list[int]] = []
    while not seen or reader.more:
        seen.append(numbers(parsed(reader.event())[1]))
    assert [[1, 2], [3, 4], [5]] == seen


def test_a_long_text_is_cut_and_a_key_in_the_wrong_place_is_masked() -> None:
    gateway = sandbox(api_key="my-own-key")
    submit(gateway, "9" * 1000, "my-own-key")
    event = Feed(gateway).event()
    _, told = parsed(event)
    assert ("9" * 64 + "…", "********") == tuple(
        told["attempts"][0][name] for name in ("mobile", "content")
    )
    assert not told["settings"]["has_default_key"]
    assert b"my-own-key" not in event


def test_what_no_feed_can_tell_is_an_error() -> None:
    with pytest.raises(TypeError):
        events.records_json(object())


async def read_event(reader: asyncio.StreamReader) -> bytes:
    """The next event, without the chunk's size before it."""
    data = await asyncio.wait_for(reader.readuntil(b"\n\n"), DEADLINE)
    await asyncio.wait_for(reader.readuntil(b"\r\n"), DEADLINE)
    return data.partition(b"\r\n")[2]


async def test_the_stream_tells_what_happens() -> None:
    gateway = sandbox()
    async with gateway.serve() as url, connected(url) as (reader, writer):
        writer.write(request_bytes("GET", EVENTS))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE)
        assert b"Content-Type: text/event-stream" in head
        assert b"retry: 1000\n\n" == await read_event(reader)
        event_id, told = parsed(await read_event(reader))
        assert told["anew"]
        submit(gateway)
        _, told = parsed(await read_event(reader))
        assert [1] == numbers(told)
        submit(gateway)
        for target, headers in (
            (EVENTS, {"Last-Event-ID": event_id}),
            (f"{EVENTS}?after={event_id}", {}),
            (f"{EVENTS}?after=x", {"Last-Event-ID": event_id}),
        ):
            async with connected(url) as (again, asking):
                asking.write(request_bytes("GET", target, headers=headers))
                await asyncio.wait_for(again.readuntil(b"\r\n\r\n"), DEADLINE)
                await read_event(again)
                _, told = parsed(await read_event(again))
                assert (False, [1, 2]) == ("anew" in told, numbers(told))


async def test_a_quiet_stream_shows_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_TURN_SECONDS", 0.001)
    monkeypatch.setattr(server, "_TURNS_UNTIL_A_SIGN", 3)
    async with sandbox().serve() as url, connected(url) as (reader, writer):
        writer.write(request_bytes("GET", EVENTS))
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE)
        for _ in range(2):
            await read_event(reader)
        assert [b":\n\n"] * 3 == [await read_event(reader) for _ in range(3)]


async def test_a_full_record_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_TURN_SECONDS", 3600)
    monkeypatch.setattr(events, "MOST_ATTEMPTS", 10)
    gateway = sandbox()
    for _ in range(100):
        submit(gateway)
    async with gateway.serve() as url, connected(url) as (reader, writer):
        writer.write(request_bytes("GET", EVENTS))
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE)
        await read_event(reader)
        seen = [numbers(parsed(await read_event(reader))[1]) for _ in range(10)]
    assert list(range(1, 101)) == [number for part in seen for number in part]


async def test_a_reader_that_leaves_is_nothing_to_complain_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "_TURN_SECONDS", 0.001)
    gateway = sandbox()
    tasks = asyncio.all_tasks()
    async with gateway.serve() as url:
        for _ in range(5):
            async with connected(url) as (reader, writer):
                writer.write(request_bytes("GET", EVENTS))
                await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE)
                submit(gateway)
    assert tasks == asyncio.all_tasks()


async def test_a_reader_that_reads_nothing_holds_nobody_up() -> None:
    gateway = sandbox(keep=10)
    async with gateway.serve() as url, connected(url) as (reader, writer):
        writer.write(request_bytes("GET", EVENTS))
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE)
        gateway.banned_contents = {"x" * 50 + str(n) for n in range(50_000)}
        for n in range(5):
            gateway.balance = n
            submit(gateway)
            # A turn in which the stream may stall.
            await asyncio.sleep(0.11)
    assert 10 >= len(gateway.attempts)


async def test_stopping_ends_the_stream_in_good_order() -> None:
    async with AsyncExitStack() as after:
        async with sandbox().serve() as url:
            reader, writer = await after.enter_async_context(connected(url))
            writer.write(request_bytes("GET", EVENTS))
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE)
            await read_event(reader)
            await read_event(reader)
        assert b"0\r\n\r\n" == await received(reader)


def test_a_receipt_is_told_as_it_stands() -> None:
    gateway = sandbox()
    submit(gateway)
    reader = Feed(gateway)
    reader.event()
    push = ReceiptPush(1, "100000001", MOBILE, 2, "已接听", NOW)
    assert gateway.put_receipt(gateway.epoch, push)
    _, told = parsed(reader.event())
    assert {"receipts": [{
        "number": 1, "code": 2, "msg": "已接听", "accepted": False, "ended": False, "tries": [],
    }]} == told  # fmt: skip
    assert not gateway.put_receipt("another", push)
