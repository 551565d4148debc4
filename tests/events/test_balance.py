"""Watches of the balance: one callback per crossing, a cached value, few queries."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from queue import Queue
from typing import TYPE_CHECKING, Any

import pytest

from ihuyi_voice import (
    AsyncBalanceWatch,
    AsyncVoiceClient,
    BalanceReading,
    BalanceWatch,
    VoiceClient,
)
from ihuyi_voice.sandbox import Chaos
from tests.events.kinds import KINDS
from tests.inside import asking

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ihuyi_voice.testing import VoiceGateway
    from tests.events.kinds import Kind

DEADLINE = 60
NAME = "ihuyi-voice-balance"


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


class Watched:
    """A watch of one kind without its thread or task, and what it reported."""

    def __init__(self, kind: Kind, gateway: VoiceGateway, **options: Any) -> None:
        self.clock = Clock()
        self.crossings: list[BalanceReading] = []
        self.queries = 0
        self.gateway = gateway
        self.loop = asyncio.new_event_loop()
        client: Any = AsyncVoiceClient if kind == "asyncio" else VoiceClient
        watch: Any = AsyncBalanceWatch if kind == "asyncio" else BalanceWatch
        settings: dict[str, Any] = {
            "below": 100,
            "every": 60,
            "on_crossing": [self.crossings.append],
            "clock": self.clock,
            **options,
        }
        self.client = client("sandbox", "sandbox-key", base_url=gateway.url, on_event=[self.count])
        self.watch = watch(self.client, **settings)

    def count(self, event: object) -> None:
        self.queries += 1

    def check(self, balance: int | None = None, after: float = 60.0) -> BalanceReading:
        self.clock.time += after
        if balance is not None:
            self.gateway.balance = balance
        checked = self.watch.check()
        if asyncio.iscoroutine(checked):
            checked = self.loop.run_until_complete(checked)
        assert isinstance(checked, BalanceReading)
        return checked

    def close(self) -> None:
        if isinstance(self.client, VoiceClient):
            self.client.close()
        else:
            self.loop.run_until_complete(self.client.aclose())
        self.loop.close()


@pytest.fixture(params=KINDS)
def watched(request: pytest.FixtureRequest, voice_gateway: VoiceGateway) -> Iterator[Watched]:
    watched = Watched(request.param, voice_gateway)
    yield watched
    watched.close()


def watch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def test_nothing_is_known_before_the_first_query(watched: Watched) -> None:
    assert BalanceReading(None, None, is_low=False, error="") == watched.watch.reading


def test_one_callback_for_each_crossing(watched: Watched) -> None:
    """Low below 100, and low until 110."""
    for balance in (500, 100, 99, 40, 105, 99, 109, 110, 100, 99):
        watched.check(balance)
    assert [(99, True), (110, False), (99, True)] == [
        (reading.remaining, reading.is_low) for reading in watched.crossings
    ]


def test_a_balance_that_is_low_from_the_start(watched: Watched) -> None:
    assert watched.check(0).is_low
    assert [0] == [reading.remaining for reading in watched.crossings]


def test_the_gateway_is_asked_at_most_once_in_so_many_seconds(watched: Watched) -> None:
    assert BalanceReading(500, 0.0, is_low=False, error="") == watched.check(500)
    assert BalanceReading(500, 59.0, is_low=False, error="") == watched.check(400, after=59.0)
    for _ in range(100):
        assert 500 == watched.watch.reading.remaining
    assert 1 == watched.queries
    assert BalanceReading(400, 0.0, is_low=False, error="") == watched.check(after=1.0)
    assert 2 == watched.queries


def test_a_failed_query_keeps_the_value_and_says_so(watched: Watched) -> None:
    watched.check(99)
    watched.gateway.chaos = Chaos(code=4050)
    failed = watched.check(500)
    assert (99, 60.0, True) == (failed.remaining, failed.age, failed.is_low)
    assert "4050" in failed.error
    # It is not repeated before its time either.
    watched.check(after=30.0)
    assert 2 == watched.queries
    watched.gateway.chaos = Chaos()
    assert BalanceReading(500, 0.0, is_low=False, error="") == watched.check()


def test_a_function_that_raises_is_logged_and_ignored(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(reading: BalanceReading) -> None:
        raise ValueError(reading)

    watch = type(watched.watch)(
        watched.client,
        below=100,
        every=60,
        on_crossing=[fail, watched.crossings.append],
        clock=watched.clock,
    )
    watched.watch = watch
    assert watched.check(5).is_low
    assert 1 == len(watched.crossings)
    assert ["on_crossing raised ValueError: ignored"] == caplog.messages


def test_a_closed_client_is_a_mistake(watched: Watched) -> None:
    if isinstance(watched.client, VoiceClient):
        watched.client.close()
    else:
        watched.loop.run_until_complete(watched.client.aclose())
    with pytest.raises(RuntimeError, match="this client is closed"):
        watched.check()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "below must be at least 1", {"below": 0}),
        (TypeError, "below must be an int", {"below": 1.5}),
        (ValueError, "every must be a finite number", {"every": 0}),
        (ValueError, "every must be a finite number", {"every": float("inf")}),
        (TypeError, "every is in seconds", {"every": True}),
        (ValueError, "recovers_at must be at least below", {"recovers_at": 99}),
        (TypeError, "recovers_at must be an int", {"recovers_at": "200"}),
    ],
)
def test_wrong_arguments(
    kind: Kind,
    error: type[Exception],
    message: str,
    options: dict[str, Any],
) -> None:
    client: Any = AsyncVoiceClient if kind == "asyncio" else VoiceClient
    watch: Any = AsyncBalanceWatch if kind == "asyncio" else BalanceWatch
    with pytest.raises(error, match=message):
        watch(client("id", "key"), **{"below": 100, "every": 60, **options})


def test_the_other_class_of_client_is_refused() -> None:
    blocking: Any = VoiceClient("id", "key")
    asynchronous: Any = AsyncVoiceClient("id", "key")
    with pytest.raises(TypeError, match="there is BalanceWatch"):
        AsyncBalanceWatch(blocking, below=1, every=1)
    with pytest.raises(TypeError, match="there is AsyncBalanceWatch"):
        BalanceWatch(asynchronous, below=1, every=1)


# --- in the background --------------------------------------------------------


def test_a_thread_asks_and_ends_with_the_watch(voice_gateway: VoiceGateway) -> None:
    readings: Queue[BalanceReading] = Queue()
    voice_gateway.balance = 5
    with VoiceClient("sandbox", "sandbox-key", base_url=voice_gateway.url) as client:
        watch = BalanceWatch(client, below=100, every=0.01, on_crossing=[readings.put])
        with watch:
            assert readings.get(timeout=DEADLINE).is_low
            voice_gateway.balance = 500
            assert not readings.get(timeout=DEADLINE).is_low
            with watch:
                assert 1 == len(watch_threads())
        assert [] == watch_threads()
        watch.close()
        # It can be used again.
        voice_gateway.balance = 5
        with watch:
            assert readings.get(timeout=DEADLINE).is_low


def test_a_function_may_close_its_own_watch(voice_gateway: VoiceGateway) -> None:
    closed = threading.Event()
    threads: list[threading.Thread] = []

    def close(_: BalanceReading) -> None:
        threads.append(threading.current_thread())
        watch.close()
        closed.set()

    voice_gateway.balance = 5
    with VoiceClient("sandbox", "sandbox-key", base_url=voice_gateway.url) as client:
        watch = BalanceWatch(client, below=100, every=60, on_crossing=[close])
        watch.__enter__()
        assert closed.wait(DEADLINE)
        threads[0].join(DEADLINE)
    assert [] == watch_threads()


def test_a_forgotten_watch_leaves_no_thread(voice_gateway: VoiceGateway) -> None:
    asked = threading.Event()
    with VoiceClient(
        "sandbox", "sandbox-key", base_url=voice_gateway.url, on_event=[lambda _: asked.set()]
    ) as client:
        watch = BalanceWatch(client, below=100, every=3600)
        watch.__enter__()
        assert asked.wait(DEADLINE)
        (thread,) = watch_threads()
        del watch
        gc.collect()
        thread.join(DEADLINE)
        assert not thread.is_alive()


def test_the_thread_ends_if_its_client_is_closed(voice_gateway: VoiceGateway) -> None:
    client = VoiceClient("sandbox", "sandbox-key", base_url=voice_gateway.url)
    client.close()
    with BalanceWatch(client, below=100, every=3600) as watch:
        while not watch.reading.error:  # pragma: no cover - its rounds are a race
            time.sleep(0.001)
        while watch_threads():  # pragma: no cover - its rounds are a race
            time.sleep(0.001)
    assert "this client is closed: make a new one" == watch.reading.error


def test_a_thread_that_cannot_be_started_is_said() -> None:
    """In the thread that starts it, when the system has no more."""
    watch = BalanceWatch(VoiceClient("id", "key"), below=100, every=3600)

    def no_thread(run: object, name: str, on_failure: Any) -> None:
        on_failure(RuntimeError("can't start new thread"))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ihuyi_voice.balance.start_thread", no_thread)
        with watch:
            assert "thread could not start: can't start new thread" in watch.reading.error


def test_a_forked_child_starts_its_own_thread(voice_gateway: VoiceGateway) -> None:
    readings: Queue[BalanceReading] = Queue()
    hear = [readings.put]

    def tell(reading: BalanceReading) -> None:
        hear[0](reading)

    voice_gateway.balance = 5
    clock = Clock()
    with (
        VoiceClient("sandbox", "sandbox-key", base_url=voice_gateway.url) as client,
        BalanceWatch(client, below=100, every=0.01, on_crossing=[tell], clock=clock) as watch,
    ):
        assert readings.get(timeout=DEADLINE).is_low
        voice_gateway.balance = 500
        child = os.fork()
        if child == 0:  # pragma: no cover - it ends without a trace
            clock.time += 1.0
            # The value of the parent is there at once.
            known = watch.reading.remaining
            ours = Queue[BalanceReading]()
            hear[0] = ours.put
            ok = known == 5 and not ours.get(timeout=DEADLINE).is_low
            watch.close()
            os._exit(0 if ok and not watch_threads() else 1)
        _, status = os.waitpid(child, 0)
    assert 0 == os.waitstatus_to_exitcode(status)


async def test_a_task_asks_and_ends_with_the_watch(voice_gateway: VoiceGateway) -> None:
    readings: asyncio.Queue[BalanceReading] = asyncio.Queue()
    voice_gateway.balance = 5
    before = asyncio.all_tasks()
    async with AsyncVoiceClient("sandbox", "sandbox-key", base_url=voice_gateway.url) as client:
        watch = AsyncBalanceWatch(client, below=100, every=0.01, on_crossing=[readings.put_nowait])
        async with watch, watch:
            assert (await asyncio.wait_for(readings.get(), DEADLINE)).is_low
            voice_gateway.balance = 500
            assert not (await asyncio.wait_for(readings.get(), DEADLINE)).is_low
        await watch.aclose()
    assert before == asyncio.all_tasks()


async def test_the_task_ends_if_its_client_is_closed(voice_gateway: VoiceGateway) -> None:
    client = AsyncVoiceClient("sandbox", "sandbox-key", base_url=voice_gateway.url)
    await client.aclose()
    before = asyncio.all_tasks()
    async with AsyncBalanceWatch(client, below=100, every=3600) as watch:
        (task,) = asyncio.all_tasks() - before
        await asyncio.wait_for(task, DEADLINE)
        assert "this client is closed: make a new one" == watch.reading.error


async def test_a_watch_that_was_never_used_can_be_closed() -> None:
    client = AsyncVoiceClient("id", "key")
    await AsyncBalanceWatch(client, below=100, every=60).aclose()


def test_two_threads_ask_once() -> None:
    """While one asks, the other gets the cached value and does not wait."""
    watch = BalanceWatch(VoiceClient("id", "key"), below=100, every=60)
    with asking(watch):
        assert BalanceReading(None, None, is_low=False, error="") == watch.check()
