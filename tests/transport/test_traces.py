"""A trace config that raises or hangs changes no outcome for the worse."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import aiohttp
import pytest

from ihuyi_voice import NotSentError, OutcomeUnknownError, SubmitResult
from tests.rogue import ACCEPTED, Connection, Rogue, http_answer
from tests.transport.loops import MOBILE, client

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.rogue import Behaviour

    Callback = Callable[..., Awaitable[None]]


async def answer(connection: Connection) -> None:
    while await connection.read_request():
        await connection.send(http_answer(ACCEPTED))


async def close_after_reading(connection: Connection) -> None:
    await connection.read_request()


async def fail(*_: object) -> None:
    raise LookupError


async def hang(*_: object) -> None:
    await asyncio.Event().wait()


ACCEPTED_RESULT = SubmitResult("197362477", "ok", MOBILE)

# Signal: (what the server does, what the submit ends with, submits the server sees).
# Before the write it is certain that nothing was written, and once the answer
# was read, the answer counts.
SIGNALS: dict[str, tuple[Behaviour, type[Exception] | SubmitResult, int]] = {
    "on_request_start": (answer, NotSentError, 0),
    "on_connection_create_start": (answer, NotSentError, 0),
    "on_connection_create_end": (answer, NotSentError, 0),
    "on_dns_resolvehost_start": (answer, NotSentError, 0),
    "on_dns_cache_miss": (answer, NotSentError, 0),
    "on_request_headers_sent": (answer, NotSentError, 0),
    "on_request_chunk_sent": (answer, NotSentError, 0),
    "on_request_end": (answer, ACCEPTED_RESULT, 1),
    "on_request_exception": (close_after_reading, OutcomeUnknownError, 1),
    # Never sent here: it is for those who read the body later.
    "on_response_chunk_received": (answer, ACCEPTED_RESULT, 1),
}


async def outcome(url: str, signal: str, callback: Callback) -> object:
    trace = aiohttp.TraceConfig()
    getattr(trace, signal).append(callback)
    async with client(
        url.replace("127.0.0.1", "localhost"), trace_configs=[trace], timeout=1.0
    ) as voice:
        try:
            return await voice.submit(MOBILE, "1125")
        except (NotSentError, OutcomeUnknownError) as error:
            return type(error)


@pytest.mark.parametrize("callback", [fail, hang])
@pytest.mark.parametrize(
    ("signal", "behaviour", "expected", "submits"),
    [(signal, *row) for signal, row in SIGNALS.items()],
    ids=SIGNALS,
)
async def test_a_trace_config_that_raises_or_hangs(
    signal: str, callback: Callback, behaviour: Behaviour, expected: object, submits: int
) -> None:
    began = time.monotonic()
    async with Rogue(behaviour).running() as rogue:
        assert expected == await outcome(rogue.url, signal, callback)
        assert submits == rogue.submits
    assert time.monotonic() - began < 30.0


@pytest.mark.parametrize("callback", [fail, hang])
async def test_a_reused_connection_is_closed_when_its_trace_fails(callback: Callback) -> None:
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(callback)
    async with Rogue(answer).running() as rogue:
        options = {"trace_configs": [trace], "timeout": 1.0, "connect_attempts": 1}
        async with client(rogue.url, **options) as voice:
            assert ACCEPTED_RESULT == await voice.submit(MOBILE, "1125")
            with pytest.raises(NotSentError) as caught:
                await voice.submit(MOBILE, "1125")
            # The connection is not leaked.
            while rogue.open_connections:
                await asyncio.sleep(0)
    # No look-up of a name: the connection was there.
    expected = "LookupError" if callback is fail else "within 1 s"
    assert expected in caught.value.reason
    assert "look-up" not in caught.value.reason
    assert 1 == rogue.submits


async def test_what_a_trace_config_raises_is_the_reason() -> None:
    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(fail)
    async with client("http://127.0.0.1:1", trace_configs=[trace]) as voice:
        with pytest.raises(NotSentError, match=r"an unexpected exception \(LookupError\)"):
            await voice.submit(MOBILE, "1125")


async def test_a_trace_config_may_read_the_answer() -> None:
    bodies = []

    async def read(_: object, __: object, params: aiohttp.TraceRequestEndParams) -> None:
        bodies.append(await params.response.read())

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(read)
    async with Rogue(answer).running() as rogue, client(rogue.url, trace_configs=[trace]) as voice:
        assert ACCEPTED_RESULT == await voice.submit(MOBILE, "1125")
    assert [ACCEPTED] == bodies


async def test_a_request_that_hangs_while_its_client_is_closed_ends_at_its_deadline() -> None:
    has_begun = asyncio.Event()

    async def begin_and_hang(*_: object) -> None:
        has_begun.set()
        await asyncio.Event().wait()

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(begin_and_hang)
    voice = client("http://127.0.0.1:1", trace_configs=[trace], timeout=1.0)
    async with voice:
        submit = asyncio.create_task(voice.submit(MOBILE, "1125"))
        await has_begun.wait()
    with pytest.raises(NotSentError, match="within 1 s"):
        await asyncio.wait_for(submit, 30)


async def test_a_cancellation_passes_a_trace_config_that_hangs() -> None:
    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(hang)
    async with Rogue(answer).running() as rogue, client(rogue.url, trace_configs=[trace]) as voice:
        submit = asyncio.create_task(voice.submit(MOBILE, "1125"))
        while not rogue.submits:
            await asyncio.sleep(0)
        submit.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submit
