"""Between the moment a request gets its connection and its write, one turn of the loop later."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import aiohttp
import pytest

from ihuyi_voice import NotSentError, OutcomeUnknownError, SubmitResult
from ihuyi_voice._pipeline import Admitted
from ihuyi_voice.transport.base import Exchange
from ihuyi_voice.transport.sending import current_sending
from tests.inside import pipeline_of
from tests.rogue import ACCEPTED, Connection, Rogue, http_answer
from tests.transport.loops import MOBILE, client, contexts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

RESULT = SubmitResult("197362477", "ok", MOBILE)


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


async def test_an_answer_that_comes_before_the_request_is_not_its_answer() -> None:
    has_answered = asyncio.Event()

    async def answer_at_once(connection: Connection) -> None:
        await connection.send(http_answer(ACCEPTED))
        has_answered.set()
        await answer(connection)

    async def wait_for_it() -> None:
        await has_answered.wait()
        await some_turns()

    async with Rogue(answer_at_once).running() as rogue:
        traces = [just_before_the_write(wait_for_it)]
        async with client(rogue.url, trace_configs=traces, connect_attempts=1) as voice:
            with pytest.raises(NotSentError, match="an answer came before the request"):
                await voice.submit(MOBILE, "1125")
            # Not on a connection that the rogue still believes to be open.
            while rogue.open_connections:
                await asyncio.sleep(0)
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
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(submitting)
    ends = loop.run_until_complete(submitting)
    loop.close()
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
