"""When and where a function of `on_event` runs: interrupts, threads, forks."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

from ihuyi_voice import AsyncVoiceClient, OutcomeStatus, Store, SubmitEvent, VoiceClient
from ihuyi_voice._reservations import NO_MORE_THREADS
from ihuyi_voice.request_log import DeferredLog, Entry
from ihuyi_voice.sandbox import Chaos
from tests.events.kinds import CODE, MOBILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ihuyi_voice.testing import VoiceGateway

S = OutcomeStatus


def client(gateway: VoiceGateway, *on_event: Callable[[SubmitEvent], object]) -> VoiceClient:
    return VoiceClient(
        "sandbox", "sandbox-key", base_url=gateway.url, quota=None, on_event=on_event
    )


def entry(*on_event: Callable[[Any], object]) -> Entry:
    event: Any = "event"
    return Entry(None, event, on_event)


def test_a_blocking_client_calls_in_the_callers_thread(voice_gateway: VoiceGateway) -> None:
    threads: list[int] = []
    with client(voice_gateway, lambda _: threads.append(threading.get_ident())) as voice:
        voice.submit(MOBILE, CODE)
        assert [threading.get_ident()] == threads
        with voice.submit_many([(MOBILE, CODE)] * 3) as run:
            run.finish()
    assert [threading.get_ident()] * 4 == threads


def test_an_event_comes_before_its_outcome_is_returned(voice_gateway: VoiceGateway) -> None:
    events: list[SubmitEvent] = []
    rows = [(f"139{n:08d}", "1125") for n in range(50)]
    with client(voice_gateway, events.append) as voice, voice.submit_many(rows) as run:
        for count, _ in enumerate(run, 1):
            assert len(events) >= count
    assert 50 == len(events)


def test_the_exit_waits_for_what_another_thread_delivers() -> None:
    log = DeferredLog()
    begun, goes_on = threading.Event(), threading.Event()
    done: list[str] = []

    def slow(_: object) -> None:
        begun.set()
        goes_on.wait(20)
        done.append("delivered")

    def leave() -> None:
        log.write_at_exit()
        done.append("exited")

    log.add(entry(slow))
    threads = [threading.Thread(target=log.write), threading.Thread(target=leave)]
    threads[0].start()
    assert begun.wait(20)
    threads[1].start()
    # Without its wait it would have ended.
    threads[1].join(0.2)
    goes_on.set()
    for thread in threads:
        thread.join()
    assert ["delivered", "exited"] == done


async def test_a_cancelled_submit_is_unknown_once(voice_gateway: VoiceGateway) -> None:
    voice_gateway.chaos = Chaos(no_answer=1.0)
    events: list[SubmitEvent] = []
    async with AsyncVoiceClient(
        "sandbox", "sandbox-key", base_url=voice_gateway.url, on_event=[events.append]
    ) as voice:
        task = asyncio.create_task(voice.submit(MOBILE, CODE))
        await voice_gateway.wait_for_call_async(MOBILE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    (event,) = events
    assert (S.UNKNOWN, "CancelledError", 1) == (event.status, event.error, event.attempts)


async def test_a_cancellation_after_the_answer_changes_no_event(
    voice_gateway: VoiceGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while the store records the outcome."""
    events: list[SubmitEvent] = []
    with Store.open(tmp_path / "calls.db") as store:
        claims: Any = store.claims
        record, recorded = claims.settle, asyncio.Event()

        async def settle(*args: Any, **more: Any) -> None:
            await record(*args, **more)
            recorded.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(type(claims), "settle", staticmethod(settle))
        async with AsyncVoiceClient(
            "sandbox",
            "sandbox-key",
            base_url=voice_gateway.url,
            store=store,
            on_event=[events.append],
        ) as voice:
            task = asyncio.create_task(voice.submit(MOBILE, CODE, idempotency_key="key"))
            await recorded.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert 1 == store.summary()["accepted"]
    (call,) = voice_gateway.calls
    assert [(S.ACCEPTED, call.voice_id)] == [(event.status, event.voice_id) for event in events]


async def test_an_aborted_run_reports_each_row_once(voice_gateway: VoiceGateway) -> None:
    voice_gateway.chaos = Chaos(no_answer=1.0)
    events: list[SubmitEvent] = []
    rows = [(f"139{n:08d}", "1125") for n in range(50)]
    async with AsyncVoiceClient(
        "sandbox", "sandbox-key", base_url=voice_gateway.url, on_event=[events.append]
    ) as voice:
        async with voice.submit_many(rows, concurrency=3) as run:
            await voice_gateway.wait_for_call_async(rows[2][0])
            run.abort()
        report = run.report
    assert {S.UNKNOWN: 3, S.NOT_SENT: report.total - 3} == {
        status: sum(event.status is status for event in events)
        for status in (S.UNKNOWN, S.NOT_SENT)
    }
    assert report.total == len(events)


def test_ctrl_c_loses_no_event(voice_gateway: VoiceGateway) -> None:
    """The request ends after the interrupted call has returned; closing reports it."""
    voice_gateway.chaos = Chaos(no_answer=1.0)
    events: list[SubmitEvent] = []
    voice = client(voice_gateway, events.append)
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        voice_gateway.wait_for_call(MOBILE)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        voice.submit(MOBILE, CODE)
    thread.join()
    voice.close()
    assert [S.UNKNOWN] == [event.status for event in events]


def test_a_signal_handler_inside_a_function_runs_none_of_them(
    voice_gateway: VoiceGateway,
) -> None:
    """A lock that is not reentrant, such as a metric's, would wait for itself."""
    lock = threading.Lock()
    events: list[SubmitEvent] = []

    def count(event: SubmitEvent) -> None:
        assert lock.acquire(blocking=False)
        events.append(event)
        if len(events) == 1:
            signal.raise_signal(signal.SIGUSR1)
        lock.release()

    before = signal.signal(signal.SIGUSR1, lambda *_: voice.query_balance())
    try:
        with client(voice_gateway, count) as voice:
            voice.submit(MOBILE, CODE)
            assert ["submit", "query_balance"] == [event.operation for event in events]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_an_interrupt_before_the_first_function_loses_no_event() -> None:
    seen: list[object] = []

    class Interrupted(Entry):
        """As if a signal handler raised at the first line of the delivery."""

        __slots__ = ("tries",)

        def deliver(self) -> None:
            self.tries = getattr(self, "tries", 0) + 1
            if self.tries == 1:
                raise KeyboardInterrupt
            super().deliver()

    log = DeferredLog()
    event: Any = "first"
    log.add(Interrupted(None, event, (seen.append,)))
    log.add(entry(seen.append))
    with pytest.raises(KeyboardInterrupt):
        log.write()
    assert [] == seen
    log.write()
    assert ["first", "event"] == seen


def test_an_interrupted_function_is_not_called_again() -> None:
    calls: list[str] = []

    def interrupted(event: object) -> None:
        calls.append("interrupted")
        raise KeyboardInterrupt

    log = DeferredLog()
    log.add(entry(interrupted, calls.append))
    with pytest.raises(KeyboardInterrupt):
        log.write()
    log.write()
    assert ["interrupted", "event"] == calls


def test_a_forked_child_does_not_report_its_parents_events() -> None:
    seen: list[object] = []
    log = DeferredLog()
    log.add(entry(seen.append))
    child = os.fork()
    if child == 0:  # pragma: no cover - it ends without a trace
        log.add(entry(seen.append))
        log.write()
        os._exit(len(seen))
    _, status = os.waitpid(child, 0)
    assert 1 == os.waitstatus_to_exitcode(status)
    log.write()
    assert ["event"] == seen


def test_a_call_that_never_began_has_its_event(
    voice_gateway: VoiceGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(*_: object) -> None:
        raise RuntimeError(*NO_MORE_THREADS)

    events: list[SubmitEvent] = []
    monkeypatch.setattr("ihuyi_voice.sync.loop_thread.start_thread", no_thread)
    with (
        client(voice_gateway, events.append) as voice,
        pytest.raises(Exception, match="could not start"),
    ):
        voice.submit(MOBILE, CODE)
    assert [(S.NOT_SENT, 0)] == [(event.status, event.attempts) for event in events]
