"""The loop thread of a blocking client, when user code or the system makes it fail."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from ihuyi_voice import (
    NotSentError,
    OutcomeUnknownError,
    QuotaExceededError,
    RecipientQuota,
    VoiceClient,
    _loops,
    _threads,
)
from ihuyi_voice._limits import Limits
from ihuyi_voice._threads import Event, start_thread
from ihuyi_voice.sandbox import Chaos
from ihuyi_voice.sync import loop_thread
from ihuyi_voice.sync.calls import Call
from ihuyi_voice.sync.life_cycle import State, Stop
from tests.inside import exit_interpreter, not_closed, running_thread_of, thread_of, waiters, within
from tests.sync.processes import gateway_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ihuyi_voice.sandbox import SandboxGateway

USUAL = Limits()
ENDS = [SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit, RuntimeError]


@pytest.fixture
def make(gateway: SandboxGateway) -> Iterator[Callable[..., VoiceClient]]:
    """Creates clients of the gateway, and closes them after the test."""
    with contextlib.ExitStack() as opened:

        def make(limits: Limits = USUAL, **options: Any) -> VoiceClient:
            options = {"base_url": gateway_url[gateway], "quota": None, **options}
            voice = VoiceClient("sandbox", "sandbox-key", **options)
            return opened.enter_context(within(voice, limits))

        yield make


@pytest.fixture(params=["uvloop", "asyncio"])
def _loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "asyncio":
        monkeypatch.setattr(loop_thread, "fast_loop_factory", lambda: asyncio.new_event_loop)


class Raising:
    """A clock that raises each given error once."""

    def __init__(self) -> None:
        self.errors: list[type[BaseException]] = []

    def __call__(self) -> float:
        if self.errors:
            raise self.errors.pop()
        return time.time()


@pytest.mark.parametrize("error", ENDS)
@pytest.mark.usefixtures("_loop")
def test_an_exception_of_a_clock_reaches_only_its_own_caller(
    make: Callable[..., VoiceClient], gateway: SandboxGateway, error: type[BaseException]
) -> None:
    gateway.chaos = Chaos(latency=0.3)
    clock = Raising()
    voice = make(clock=clock)
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(voice.submit, "13900000001", "1125")
        while not gateway.attempts:
            assert not other.done()
        thread = running_thread_of(voice)
        clock.errors.append(error)
        # A failure becomes an outcome, and so does a cancellation that the caller did not ask for.
        stated = {RuntimeError: NotSentError, asyncio.CancelledError: OutcomeUnknownError}
        with pytest.raises(stated.get(error, error)):
            voice.submit("13900000002", "1125")
        assert "提交成功" == other.result().msg
    assert "提交成功" == voice.submit("13900000003", "1125").msg
    assert thread is running_thread_of(voice)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
@pytest.mark.usefixtures("_loop")
def test_a_callback_that_exits_does_not_end_the_thread(
    make: Callable[..., VoiceClient], error: type[BaseException]
) -> None:
    """For example in a task or a timer of a trace config, which belongs to no call."""

    def exits() -> None:
        raise error

    voice = make()
    voice.query_balance()
    thread = running_thread_of(voice)
    assert thread is not None
    for _ in range(3):
        thread.calls.loop.call_soon_threadsafe(exits)
        assert "提交成功" == voice.submit("13900000003", "1125").msg
    assert thread is running_thread_of(voice)


def test_a_task_that_user_code_left_behind_ends_with_the_thread(
    make: Callable[..., VoiceClient],
) -> None:
    ended = threading.Event()

    async def left_behind() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    tasks = []

    async def started(*_: object) -> None:
        tasks.append(asyncio.ensure_future(left_behind()))
        await asyncio.sleep(0)

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(started)
    voice = make(trace_configs=[trace])
    voice.submit("13900000001", "1125")
    voice.close()
    assert ended.wait(10)
    assert len(tasks) == 1


def test_no_call_waits_for_ever_for_a_thread_that_user_code_blocks(
    make: Callable[..., VoiceClient],
) -> None:
    """The call that blocks is unknown, later calls are not sent, and `close` returns."""
    go_on, blocked = threading.Event(), threading.Event()

    def clock() -> float:
        blocked.set()
        go_on.wait(60)
        return time.time()

    voice = make(Limits(grace=0.2, exit=0.1), clock=clock, timeout=0.5)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(voice.submit, "13900000001", "1125")
        assert blocked.wait(10)
        with pytest.raises(NotSentError, match="did not answer in time before the request began"):
            voice.submit("13900000002", "1125")
        with pytest.raises(OutcomeUnknownError, match="while the request was on its way"):
            first.result()
        voice.close()
        go_on.set()
    thread = thread_of(voice)
    assert thread.life.ended.wait(20)


def test_the_error_for_a_blocked_balance_query_says_that_no_phone_rang(
    make: Callable[..., VoiceClient],
) -> None:
    go_on = threading.Event()
    voice = make(Limits(grace=0.1), clock=lambda: float(go_on.wait(60)), timeout=0.1)
    with pytest.raises(OutcomeUnknownError) as caught:
        voice.query_balance()
    assert caught.value.may_have_rung is False
    go_on.set()


@pytest.mark.parametrize("where", ["at_once", "later", "loop"])
def test_a_thread_that_cannot_be_started_means_not_sent(
    make: Callable[..., VoiceClient],
    gateway: SandboxGateway,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """The system's limit becomes an outcome, and a later call works."""
    voice, limit = make(), "can't start new thread"

    def fail(*_: object, **__: object) -> Any:
        raise RuntimeError(limit)

    def no_files() -> Any:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as limited:
        words = limit
        if where == "at_once":
            limited.setattr(loop_thread, "start_thread", fail)
        elif where == "later":
            limited.setattr(threading.Thread, "start", fail)
        else:
            words = "Too many open files"
            limited.setattr(loop_thread, "fast_loop_factory", lambda: no_files)
        for _ in range(2):
            with pytest.raises(NotSentError, match=rf"could not start \(\w+: {words}\)"):
                voice.submit("13900000001", "1125")
    assert [] == gateway.attempts
    assert "提交成功" == voice.submit("13900000001", "1125").msg


def test_a_wrong_setting_that_fails_in_the_thread_is_raised_unchanged(
    make: Callable[..., VoiceClient],
) -> None:
    voice = make(ssl_context="none")
    with pytest.raises(TypeError, match="ssl should be"):
        voice.query_balance()


def test_the_text_of_a_foreign_exception_at_the_start_is_not_shown(
    make: Callable[..., VoiceClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Any:
        raise LookupError("secret")  # noqa: EM101 - not to be shown

    monkeypatch.setattr(loop_thread, "fast_loop_factory", lambda: fail)
    with pytest.raises(NotSentError, match=r"could not start \(LookupError\)"):
        make().query_balance()


def test_a_start_that_takes_too_long_means_not_sent(
    make: Callable[..., VoiceClient],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    go_on = threading.Event()

    def slow() -> asyncio.AbstractEventLoop:
        go_on.wait(60)
        return asyncio.new_event_loop()

    voice = make(Limits(grace=0.1), timeout=0.2)
    with monkeypatch.context() as patched, caplog.at_level("INFO", logger="ihuyi_voice"):
        patched.setattr(loop_thread, "fast_loop_factory", lambda: slow)
        with pytest.raises(NotSentError, match=r"did not start within 0\.3 s"):
            voice.submit("13900000001", "1125")
    # It is logged like any other call.
    (line,) = [record.getMessage() for record in caplog.records if record.name == "ihuyi_voice"]
    assert line.startswith("submit 139****0001 not_sent ")
    abandoned = thread_of(voice)
    go_on.set()
    assert abandoned.life.ended.wait(10)
    assert 1000 == voice.query_balance().remaining


def test_many_first_uses_share_one_thread(
    make: Callable[..., VoiceClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    start_thread = _threads.start_thread

    def counting(*arguments: Any) -> Any:
        started.append(1)
        time.sleep(0.01)
        return start_thread(*arguments)

    monkeypatch.setattr(loop_thread, "start_thread", counting)
    voice = make()
    with ThreadPoolExecutor(20) as pool:
        assert 20 == len(list(pool.map(lambda _: voice.query_balance(), range(20))))
    assert [1] == started


def test_an_interrupted_start_in_another_thread_does_not_block_a_call(
    make: Callable[..., VoiceClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    voice = make(timeout=30.0)
    first = thread_of(voice)
    waits, given_up = threading.Event(), []

    def interrupted(run: Any, name: str, fail: Any) -> object:
        if fail.__self__ is not first:
            return start_thread(run, name, fail)
        assert waits.wait(10)
        given_up.append(first)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop_thread, "start_thread", interrupted)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(voice.query_balance)
        while first.life.state is State.NEW:  # pragma: no cover - its rounds are a race
            pass
        two = pool.submit(voice.query_balance)
        while not waiters(first.life.started):  # pragma: no cover - its rounds are a race
            pass
        waits.set()
        with pytest.raises(KeyboardInterrupt):
            one.result()
        assert 1000 == two.result().remaining
    assert [first] == given_up


def test_close_during_the_start_ends_the_thread(
    make: Callable[..., VoiceClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = loop_thread.LoopThread.start
    voice = make()

    def closing(self: Any, seconds: float) -> bool:
        started = start(self, seconds)
        voice.close()
        return started

    with monkeypatch.context() as patched:
        patched.setattr(loop_thread.LoopThread, "start", closing)
        with pytest.raises(RuntimeError, match="this client is closed"):
            voice.query_balance()
    assert not thread_of(voice).is_usable()


def test_all_loop_threads_of_a_client_share_one_quota(make: Callable[..., VoiceClient]) -> None:
    voice = make(quota=RecipientQuota(per_minute=1))
    voice.submit("13900000001", "1125")
    exit_interpreter(voice)
    with pytest.raises(QuotaExceededError):
        voice.submit("13900000001", "1125")


async def test_refused_inside_a_running_loop() -> None:
    voice = VoiceClient("id", "key", base_url="http://127.0.0.1:9")
    for use, instead in (
        (lambda: voice.submit("13900000001", "1125"), r"`await client\.submit\(\.\.\.\)`"),
        (voice.query_balance, r"`await asyncio\.to_thread\(client\.query_balance, \.\.\.\)`"),
        (lambda: voice.submit_many([]), r"`async with client\.submit_many\(\.\.\.\) as run:`"),
    ):
        with pytest.raises(RuntimeError, match=instead):
            use()


# --- the parts --------------------------------------------------------------------


def test_an_event_is_set_cleared_and_waited_for() -> None:
    event = Event()
    assert not event.is_set()
    assert not event.wait(0.01)
    assert not waiters(event)
    with ThreadPoolExecutor(3) as pool:
        waits = [pool.submit(event.wait) for _ in range(3)]
        while waiters(event) < 3:  # pragma: no cover - its rounds are a race
            pass
        event.set()
        assert [True] * 3 == [wait.result() for wait in waits]
    assert event.is_set()
    assert event.wait(0)
    event.clear()
    assert not event.wait(-1)


def test_a_call_ends_once() -> None:
    call: Call[object] = Call(lambda client: client.query_balance())
    seen: list[object] = []
    call.add_done_callback(seen.append)
    assert not call.done()
    call.set_result(7)
    call.set_result(8)
    call.set_exception(ValueError())
    assert not call.cancel()
    call.add_done_callback(seen.append)
    assert (7, True, False, [call, call]) == (call.result(), call.done(), call.cancelled(), seen)


def test_a_call_cannot_begin_in_a_thread_that_has_ended(make: Callable[..., VoiceClient]) -> None:
    voice = make()
    voice.query_balance()
    thread = running_thread_of(voice)
    assert thread is not None
    assert thread.stop(Stop.AFTER_CALLS, 10)
    assert thread.stop(Stop.AFTER_CALLS, 10)
    call: Call[None] = Call(lambda _: asyncio.sleep(0))
    with pytest.raises(RuntimeError, match="this client is closed"):
        thread.calls.begin(call)
    with not_closed(thread), pytest.raises(RuntimeError, match="this client is closed"):
        thread.calls.begin(call)
    # A new use gets a new thread.
    assert 1000 == voice.query_balance().remaining


def test_the_loop_for_greenlets_works_in_an_unpatched_process() -> None:
    loop = _loops.new_selector_loop()
    assert 1 == loop.run_until_complete(asyncio.sleep(0, 1))
    loop.close()
    assert _loops.fast_loop_factory() is not _loops.new_selector_loop
