"""Between the moment a request gets its connection and its write, one turn of the loop later."""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from typing import TYPE_CHECKING, Any

import aiohttp
import anyio
import pytest

from ihuyi_voice import NotSentError, OutcomeUnknownError, SubmitResult
from ihuyi_voice._pipeline import Admitted
from ihuyi_voice.models import SignedBody
from ihuyi_voice.transport.base import Exchange
from ihuyi_voice.transport.sending import current_sending
from tests.inside import pipeline_of, transport_of
from tests.rogue import ACCEPTED, Connection, Rogue, http_answer
from tests.transport.loops import MOBILE, client, contexts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

RESULT = SubmitResult("197362477", "ok", MOBILE)
STRAY = b'{"code":2,"msg":"ok","voiceid":"999"}'


async def answer(connection: Connection) -> None:
    while await connection.read_request():
        await connection.send(http_answer(ACCEPTED))


def just_before_the_write(call: Callable[[], Awaitable[None]]) -> aiohttp.TraceConfig:
    """A trace config that calls this once, when the first request has its connection."""
    calls = [call]

    async def once(*_: object) -> None:
        if calls:
            await calls.pop()()

    trace = aiohttp.TraceConfig()
    trace.on_request_chunk_sent.append(once)
    return trace


async def some_turns() -> None:
    """Let the loop see what is already in its sockets."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("is_tls", [False, True], ids=["http", "https"])
async def test_a_connection_that_was_cut_before_the_write_is_replaced(is_tls: bool) -> None:
    async def cut() -> None:
        connection = current_sending.get().connection
        assert connection is not None
        assert connection.transport is not None
        # Its protocol does not know it yet when the request is to be written.
        asyncio.get_running_loop().call_soon(connection.transport.abort)

    server, trusting, _ = contexts("127.0.0.1")
    async with Rogue(answer).running(server if is_tls else None) as rogue:
        options = {"ssl_context": trusting} if is_tls else {}
        traces = [just_before_the_write(cut)]
        async with client(rogue.url, trace_configs=traces, **options) as voice:
            assert RESULT == await voice.submit(MOBILE, "1125")
    assert (1, 2) == (rogue.submits, rogue.connections)


@pytest.mark.parametrize("how", ["closes", "resets"])
async def test_a_connection_that_the_gateway_ended_before_the_write_is_replaced(how: str) -> None:
    connections: list[Connection] = []
    may_end, has_ended = asyncio.Event(), asyncio.Event()

    async def end_the_first(connection: Connection) -> None:
        connections.append(connection)
        if len(connections) > 1:
            await answer(connection)
            return
        await may_end.wait()
        if how == "resets":
            connection.reset()
        else:
            connection.writer.close()
        has_ended.set()

    async def let_it_end() -> None:
        may_end.set()
        await has_ended.wait()
        await some_turns()

    traces = [just_before_the_write(let_it_end)]
    async with (
        Rogue(end_the_first).running() as rogue,
        client(rogue.url, trace_configs=traces) as voice,
    ):
        assert RESULT == await voice.submit(MOBILE, "1125")
    assert (1, 2) == (rogue.submits, rogue.connections)


# What a gateway does, before the request is written, on a connection that is not in use.
EARLY: dict[str, Callable[[asyncio.WriteTransport], object]] = {
    "answers": lambda writer: writer.write(http_answer(STRAY)),
    "begins to answer": lambda writer: writer.write(http_answer(STRAY)[:30]),
    "hangs up": lambda writer: writer.write_eof(),
}


@pytest.mark.parametrize("is_seen", [True, False], ids=["seen by the loop", "in the system"])
@pytest.mark.parametrize("is_reused", [True, False], ids=["reused", "new"])
@pytest.mark.parametrize("does", EARLY)
async def test_what_comes_before_the_request_is_not_its_answer(
    does: str, is_reused: bool, is_seen: bool
) -> None:
    """The gateway does it after the last look at the pooled connection."""
    connections: list[Connection] = []
    has_connected = asyncio.Event()

    async def behave(connection: Connection) -> None:
        connections.append(connection)
        has_connected.set()
        await answer(connection)

    async def come_early(*_: object) -> None:
        if len(rogue.requests) < is_reused:
            return
        await has_connected.wait()
        EARLY[does](connections[0].writer.transport)
        if is_seen:
            await some_turns()

    async with Rogue(behave).running() as rogue:
        trace = aiohttp.TraceConfig()
        trace.on_request_chunk_sent.append(come_early)
        async with client(rogue.url, trace_configs=[trace], connect_attempts=1) as voice:
            if is_reused:
                assert RESULT == await voice.submit(MOBILE, "1125")
            with pytest.raises(NotSentError) as caught:
                await voice.submit(MOBILE, "1126")
            # Not on a connection that the rogue still believes to be open.
            while rogue.open_connections:
                await asyncio.sleep(0)
    if not is_seen:
        assert "answered or hung up before the request was written" in caught.value.reason
    assert int(is_reused) == rogue.submits


async def test_a_new_tls_connection_takes_no_answer_that_comes_before_the_request() -> None:
    has_answered = asyncio.Event()

    async def answer_at_once(connection: Connection) -> None:
        await connection.send(http_answer(STRAY))
        has_answered.set()
        await answer(connection)

    async def wait_for_it() -> None:
        await has_answered.wait()
        await some_turns()

    server, trusting, _ = contexts("127.0.0.1")
    async with Rogue(answer_at_once).running(server) as rogue:
        options = {"trace_configs": [just_before_the_write(wait_for_it)], "connect_attempts": 1}
        async with client(rogue.url, ssl_context=trusting, **options) as voice:
            with pytest.raises(NotSentError, match="answered or hung up before the request"):
                await voice.submit(MOBILE, "1125")
    assert 0 == rogue.submits


async def test_a_new_connection_that_got_a_part_of_an_answer_is_not_used() -> None:
    has_begun = asyncio.Event()

    async def begin_to_answer(connection: Connection) -> None:
        await connection.send(http_answer(STRAY)[:30])
        has_begun.set()
        await answer(connection)

    async def wait_for_it(*_: object) -> None:
        await has_begun.wait()
        await some_turns()

    # Before aiohttp gives the connection its parser.
    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(wait_for_it)
    async with (
        Rogue(begin_to_answer).running() as rogue,
        client(rogue.url, trace_configs=[trace], connect_attempts=1) as voice,
    ):
        with pytest.raises(NotSentError, match="answered or hung up before the request"):
            await voice.submit(MOBILE, "1125")
    assert 0 == rogue.submits


def test_a_signal_handler_that_raises_stops_no_other_write() -> None:
    """During one of three writes of the same turn of the loop; then the loop runs again."""
    loop = asyncio.new_event_loop()
    looks = 0

    def interrupt_the_write() -> bool:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise KeyboardInterrupt
        return False

    async def submit_three() -> list[object]:
        exchanges = [Exchange(time.monotonic() + 60.0) for _ in range(3)]
        # The first look is before the request connects.
        exchanges[1].outlived = interrupt_the_write
        options = {"connect_attempts": 1, "timeout": 60.0}
        async with Rogue(answer).running() as rogue, client(rogue.url, **options) as voice:
            pipeline = pipeline_of(voice)
            sends = (pipeline.send(Admitted(MOBILE, "1125"), it) for it in exchanges)
            ends = await asyncio.wait_for(asyncio.gather(*sends, return_exceptions=True), 30)
            assert [True, False, True] == [it.may_have_been_written for it in exchanges]
            assert 2 == rogue.submits
        return [type(end) for end in ends]

    submitting = loop.create_task(submit_three())
    with pytest.raises(KeyboardInterrupt) as caught:
        loop.run_until_complete(submitting)
    ends = loop.run_until_complete(submitting)
    loop.close()
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert MOBILE not in "".join(shown.format())
    assert [SubmitResult, NotSentError, SubmitResult] == ends


async def test_a_write_that_fails_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    async def break_the_transport() -> None:
        connection = current_sending.get().connection
        assert connection is not None
        monkeypatch.setattr(type(connection.transport), "write", fail)

    def fail(*_: object) -> None:
        raise LookupError

    async with Rogue(answer).running() as rogue:
        traces = [just_before_the_write(break_the_transport)]
        async with client(rogue.url, trace_configs=traces) as voice:
            with pytest.raises(OutcomeUnknownError, match=r"exception \(LookupError\)"):
                await voice.submit(MOBILE, "1125")
    assert 0 == rogue.submits


def test_a_signal_handler_that_raises_before_a_write_stops_no_later_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the callback that writes is entered, where no line of it can catch anything."""
    loop = asyncio.new_event_loop()
    call_soon = loop.call_soon
    interrupts = [KeyboardInterrupt()]

    def interrupt() -> None:
        raise interrupts.pop()

    def schedule(callback: Any, *arguments: Any, **options: Any) -> asyncio.Handle:
        if interrupts and "Sending." in repr(callback):
            return call_soon(interrupt)
        return call_soon(callback, *arguments, **options)

    async def submit_two() -> list[object]:
        ends: list[object] = []
        async with Rogue(answer).running() as rogue, client(rogue.url) as voice:
            for timeout in (0.5, 60.0):
                exchange = Exchange(time.monotonic() + timeout)
                send = pipeline_of(voice).send(Admitted(MOBILE, "1125"), exchange)
                ends += await asyncio.gather(send, return_exceptions=True)
        assert 1 == rogue.submits
        return [type(end) for end in ends]

    monkeypatch.setattr(loop, "call_soon", schedule)
    submitting = loop.create_task(submit_two())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(submitting)
    assert [NotSentError, SubmitResult] == loop.run_until_complete(submitting)
    loop.close()


def test_a_signal_handler_that_raises_at_a_deadline_lets_every_request_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the timer of the deadlines fires, where no line of its callback can catch anything."""
    loop = asyncio.new_event_loop()
    call_later = loop.call_later
    interrupts = [KeyboardInterrupt()]

    def interrupt() -> None:
        raise interrupts.pop()

    def schedule(seconds: float, callback: Any) -> asyncio.TimerHandle:
        """For the first timer, which is that of the deadlines."""
        assert "Deadlines." in repr(callback)
        monkeypatch.undo()
        return call_later(seconds, interrupt)

    async def never_answer(connection: Connection) -> None:
        await connection.read_request()
        await connection.until_hung_up()

    async def submit() -> None:
        async with Rogue(never_answer).running() as rogue, client(rogue.url, timeout=0.2) as voice:
            with pytest.raises(OutcomeUnknownError, match="no whole answer"):
                # Unlike `asyncio.wait_for` it does not use `call_later`.
                with anyio.fail_after(30):
                    await voice.submit(MOBILE, "1125")

    monkeypatch.setattr(loop, "call_later", schedule)
    submitting = loop.create_task(submit())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(submitting)
    loop.run_until_complete(submitting)
    loop.close()


# --- classes that replace aiohttp's session -----------------------------------------


async def test_what_another_request_class_writes_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = aiohttp.ClientSession

    def own_session(**options: Any) -> aiohttp.ClientSession:
        return session(connector=options["connector"], timeout=options["timeout"])

    async def hang_up(connection: Connection) -> None:
        await connection.read_request()

    monkeypatch.setattr(aiohttp, "ClientSession", own_session)
    async with Rogue(hang_up).running() as rogue, client(rogue.url) as voice:
        with pytest.raises(OutcomeUnknownError, match="closed without an answer"):
            await voice.submit(MOBILE, "1125")
    assert 1 == rogue.submits


async def test_what_sends_a_request_twice_writes_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a retry around aiohttp's session, or a middleware of aiohttp 3.12 and newer."""
    request = aiohttp.ClientSession._request

    async def request_twice(*arguments: Any, **options: Any) -> aiohttp.ClientResponse:
        await request(*arguments, **options)
        return await request(*arguments, **options)

    monkeypatch.setattr(aiohttp.ClientSession, "_request", request_twice)
    async with Rogue(answer).running() as rogue, client(rogue.url) as voice:
        assert RESULT == await voice.submit(MOBILE, "1125")
    assert 1 == rogue.submits


async def test_a_session_without_aiohttps_own_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused:
        closed = False

        def __init__(self, **options: Any) -> None:
            self._connector = options["connector"]

        async def post(self, *_: object, **__: object) -> None:
            raise aiohttp.ConnectionTimeoutError

        async def close(self) -> None:
            await self._connector.close()

    monkeypatch.setattr(aiohttp, "ClientSession", Refused)
    async with client("http://127.0.0.1:9", connect_attempts=1) as voice:
        with pytest.raises(NotSentError, match="connecting took too long"):
            await voice.submit(MOBILE, "1125")


# --- a fork --------------------------------------------------------------------------


@pytest.mark.parametrize("is_handed_over", [True, False])
async def test_a_forked_child_sends_no_request_of_its_parent(is_handed_over: bool) -> None:
    """A child that goes on with the loop of its parent, seen by the process ids of both."""
    pid = os.getpid
    trace = aiohttp.TraceConfig()

    async def fork(*_: object) -> None:
        monkeypatch.setattr(os, "getpid", lambda: pid() + 1)

    signal = trace.on_request_chunk_sent if is_handed_over else trace.on_connection_create_start
    signal.append(fork)
    if not is_handed_over:
        signal.append(fail)
    with pytest.MonkeyPatch.context() as monkeypatch:
        async with Rogue(answer).running() as rogue, client(rogue.url, trace_configs=[trace]) as v:
            with pytest.raises(OutcomeUnknownError):
                await v.submit(MOBILE, "1125")
    assert 0 == rogue.submits


async def fail(*_: object) -> None:
    raise LookupError


async def test_a_request_that_waits_in_a_forked_child_is_unknown() -> None:
    exchange = Exchange(time.monotonic() + 60.0)
    async with Rogue(answer).running() as rogue, client(rogue.url) as voice:
        with pytest.MonkeyPatch.context() as monkeypatch:
            pid = os.getpid()
            monkeypatch.setattr(os, "getpid", lambda: pid + 1)
            with pytest.raises(OutcomeUnknownError, match="forked"):
                await transport_of(voice).post("/x", SignedBody(b"a=b"), exchange)
    assert exchange.may_have_been_written
    assert not rogue.requests
