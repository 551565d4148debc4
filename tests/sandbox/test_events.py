"""`/_sandbox/events`: what the page reads, as a stream and without one."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from ihuyi_voice._limits import SandboxLimits
from ihuyi_voice.sandbox import PushTry, ReceiptPush, SandboxGateway
from ihuyi_voice.sandbox import events as events_module
from ihuyi_voice.sandbox.events import Events
from ihuyi_voice.sandbox.history import History
from ihuyi_voice.sandbox.server import serving
from tests.sandbox.forms import MOBILE, NOW, submit_form
from tests.sandbox.http import (
    DEADLINE,
    connected,
    exchange,
    received,
    request_bytes,
    submit_bytes,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from ihuyi_voice.sandbox.history import Snapshot

EVENTS = "/_sandbox/events"


@pytest.fixture(autouse=True)
def no_errors_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [] == [record for record in caplog.records if record.levelno >= logging.ERROR]


def sandbox(**settings: Any) -> SandboxGateway:
    return SandboxGateway(clock=lambda: NOW, **settings)


def submit(gateway: SandboxGateway, mobile: str = MOBILE, content: str = "1125") -> None:
    gateway.answer("Submit", submit_form(mobile, content), "127.0.0.1", gateway.roll())


def parsed(event: bytes) -> dict[str, Any]:
    """What the event says."""
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    said: dict[str, Any] = json.loads(event.removeprefix(b"data: "))
    return said


def numbers(said: dict[str, Any]) -> list[int]:
    return [attempt["number"] for attempt in said.get("attempts", [])]


def test_the_first_event_is_a_snapshot_and_each_later_one_holds_what_changed() -> None:
    gateway = sandbox()
    submit(gateway)
    events = Events(gateway)
    said = parsed(events.next())
    assert (True, 999, [1]) == (said["snapshot"], said["settings"]["balance"], numbers(said))
    assert {
        "number": 1, "time": NOW, "mobile": MOBILE, "content": "1125", "code": 2,
        "msg": "提交成功", "voice_id": "100000001", "fault": None,
    } == said["attempts"][0]  # fmt: skip
    assert b"" == events.next()
    gateway.frozen = True
    assert {"settings": {"frozen": True, "frozen_with": 4050}} == parsed(events.next())
    gateway.frozen = False
    events.next()
    submit(gateway)
    said = parsed(events.next())
    assert {"balance": 998} == said["settings"]
    assert [2] == numbers(said)
    assert "snapshot" not in said


def test_a_snapshot_holds_the_last_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "MOST_ATTEMPTS", 2)
    gateway = sandbox()
    for _ in range(5):
        submit(gateway)
    assert [4, 5] == numbers(parsed(Events(gateway).next()))


def test_a_page_that_reconnects_gets_a_snapshot() -> None:
    gateway = sandbox()
    submit(gateway)
    Events(gateway).next()
    submit(gateway)
    said = parsed(Events(gateway).next())
    assert (True, [1, 2]) == (said["snapshot"], numbers(said))


@pytest.mark.parametrize(("expected", "forget"), [(3, "clear"), (1, "reset")])
def test_a_history_that_was_cleared_begins_with_a_snapshot(expected: int, forget: str) -> None:
    gateway = sandbox()
    events = Events(gateway)
    submit(gateway)
    submit(gateway)
    events.next()
    getattr(gateway, forget)()
    said = parsed(events.next())
    assert (True, []) == (said["snapshot"], numbers(said))
    submit(gateway)
    said = parsed(events.next())
    assert (False, [expected]) == ("snapshot" in said, numbers(said))


def test_a_long_text_is_cut_and_a_key_in_the_wrong_place_is_masked() -> None:
    gateway = sandbox(api_key="my-own-key")
    submit(gateway, "9" * 1000, "my-own-key")
    event = Events(gateway).next()
    said = parsed(event)
    assert ("9" * 64 + "…", "********") == tuple(
        said["attempts"][0][name] for name in ("mobile", "content")
    )
    assert not said["settings"]["has_default_key"]
    assert b"my-own-key" not in event


def test_a_value_that_json_cannot_hold_is_an_error() -> None:
    with pytest.raises(TypeError):
        events_module.records_json(object())


def test_a_receipt_is_sent_again_whenever_it_changes() -> None:
    gateway = sandbox()
    submit(gateway)
    reader = Events(gateway)
    reader.next()
    push = ReceiptPush(1, "100000001", MOBILE, 2, "已接听", NOW)
    assert gateway.put_receipt(gateway.history, push)
    shown = {"number": 1, "code": 2, "msg": "已接听", "accepted": False, "ended": False}
    assert {"receipts": [shown | {"tries": []}]} == parsed(reader.next())
    assert b"" == reader.next()
    tried = push.tried(PushTry(NOW, accepted=True, result="success"), ended=True)
    assert gateway.put_receipt(gateway.history, tried)
    assert [(True, True)] == [
        (r["accepted"], r["ended"]) for r in parsed(reader.next())["receipts"]
    ]
    assert not gateway.put_receipt(History(), push)


async def read_event(reader: asyncio.StreamReader) -> bytes:
    """The next event, without the chunk's size before it."""
    data = await asyncio.wait_for(reader.readuntil(b"\n\n"), DEADLINE)
    await asyncio.wait_for(reader.readuntil(b"\r\n"), DEADLINE)
    return data.partition(b"\r\n")[2]


@asynccontextmanager
async def stream(url: str) -> AsyncIterator[asyncio.StreamReader]:
    """The stream of one page, after its head and its first line."""
    async with connected(url) as (reader, writer):
        writer.write(request_bytes("GET", EVENTS))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE)
        assert b"Content-Type: text/event-stream" in head
        assert b"retry: 1000\n\n" == await read_event(reader)
        yield reader


async def test_the_stream_says_what_happens() -> None:
    gateway = sandbox()
    async with gateway.serve() as url, stream(url) as reader:
        assert parsed(await read_event(reader))["snapshot"]
        submit(gateway)
        assert [1] == numbers(parsed(await read_event(reader)))
        async with stream(url) as another:
            said = parsed(await read_event(another))
        assert (True, [1]) == (said["snapshot"], numbers(said))


async def test_a_quiet_stream_sends_a_sign_of_life() -> None:
    limits = SandboxLimits(turn=0.001, quiet_turns=3)
    async with serving(sandbox(), "127.0.0.1", 0, limits) as url, stream(url) as reader:
        await read_event(reader)
        assert [b":\n\n"] * 3 == [await read_event(reader) for _ in range(3)]


async def test_a_page_that_leaves_is_no_error() -> None:
    gateway = sandbox()
    tasks = asyncio.all_tasks()
    async with serving(gateway, "127.0.0.1", 0, SandboxLimits(turn=0.001)) as url:
        for _ in range(5):
            async with stream(url):
                submit(gateway)
    assert tasks == asyncio.all_tasks()


class Watched(SandboxGateway):
    """Counts how often each stream asked for what is new."""

    def __init__(self) -> None:
        super().__init__(clock=lambda: NOW)
        self.asked: Counter[asyncio.Task[Any] | None] = Counter()
        self.first_asked = asyncio.Event()

    def snapshot(
        self, history: History | None, number: int, limit: int, other_number: int = 0
    ) -> Snapshot:
        self.asked[asyncio.current_task()] += 1
        self.first_asked.set()
        return super().snapshot(history, number, limit, other_number)


async def test_a_page_that_does_not_read_delays_no_other_and_later_gets_everything() -> None:
    gateway = Watched()
    # More than a socket's buffers hold: the write of the first event does not end.
    gateway.banned_contents = {"x" * 500 + str(n) for n in range(50_000)}
    async with gateway.serve() as url, connected(url) as (stalled, writer):
        writer.write(request_bytes("GET", EVENTS))
        await asyncio.wait_for(gateway.first_asked.wait(), DEADLINE)
        (task,) = gateway.asked
        gateway.banned_contents = ()
        for _ in range(5):
            await exchange(url, submit_bytes(submit_form()))
        async with stream(url) as reader:
            assert [1, 2, 3, 4, 5] == numbers(parsed(await read_event(reader)))
            submit(gateway)
            assert [6] == numbers(parsed(await read_event(reader)))
        assert 1 == gateway.asked[task]
        got = b""
        while b'"attempts":' not in got:
            got = got[-20:] + await asyncio.wait_for(stalled.read(2**20), DEADLINE)
        rest = await asyncio.wait_for(stalled.readuntil(b"\n\n"), DEADLINE)
        said = (got + rest).partition(b'"attempts":')[2]
        assert [1, 2, 3, 4, 5, 6] == [n["number"] for n in json.loads(said.partition(b"}\n\n")[0])]


async def test_stopping_ends_the_stream_cleanly() -> None:
    async with AsyncExitStack() as after:
        async with sandbox().serve() as url:
            reader = await after.enter_async_context(stream(url))
            await read_event(reader)
        assert b"0\r\n\r\n" == await received(reader)
