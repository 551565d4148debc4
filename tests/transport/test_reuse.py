"""A connection is reused only when nothing has come in on it since its last answer."""

from __future__ import annotations

import asyncio
import random
import ssl
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest

from ihuyi_voice import NotSentError
from tests.inside import without_meminfo
from tests.rogue import http_answer
from tests.transport.blocking_server import BlockingServer, accepted, serving
from tests.transport.loops import LOOPS, MOBILE, client, contexts, run

if TYPE_CHECKING:
    from collections.abc import Iterator

TLS = contexts("127.0.0.1")


@pytest.fixture(params=["plain", "TLS"])
def server(request: pytest.FixtureRequest) -> Iterator[BlockingServer]:
    with serving(TLS[0] if request.param == "TLS" else None) as serving_:
        yield serving_


@pytest.fixture(autouse=True, params=["Linux", "another system"])
def _system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux says what a socket's memory is used for; elsewhere it is polled."""
    if request.param != "Linux":
        without_meminfo(monkeypatch)


REFUSED = http_answer(b'{"code":4050,"msg":"frozen"}')
UNASKED = {
    "a duplicate": accepted("1125"),
    "a refusal": REFUSED,
    "half an answer": REFUSED[:20],
    "one byte": b"H",
    "two answers": REFUSED + accepted("1125"),
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("seen", [True, False], ids=["seen by the loop", "unseen"])
@pytest.mark.parametrize("unasked", UNASKED.values(), ids=UNASKED.keys())
def test_what_comes_on_an_idle_connection_answers_nothing(
    server: BlockingServer, loop: str, unasked: bytes, seen: bool
) -> None:
    async def submit_twice() -> tuple[str | None, str | None]:
        async with client(server.url, ssl_context=TLS[1]) as voice:
            first = await voice.submit(MOBILE, "1125")
            server.send_unasked()
            if seen:
                for _ in range(10):
                    await asyncio.sleep(0)
            second = await voice.submit(MOBILE, "1126")
        return first.voice_id, second.voice_id

    server.unasked = unasked
    assert ("971125", "971126") == run(loop, submit_twice)
    assert ["1125", "1126"] == server.contents
    assert 2 == len(server.connections)


@pytest.mark.parametrize("loop", LOOPS)
def test_connections_that_end_while_the_loop_is_busy(server: BlockingServer, loop: str) -> None:
    async def submit_in_turns() -> list[str | None]:
        ids = []
        async with client(server.url, ssl_context=TLS[1]) as voice:
            for content in ("1125", "1126", "1127", "1128"):
                ids.append((await voice.submit(MOBILE, content)).voice_id)
                # The loop is blocked meanwhile, and has not read since.
                server.close_idle()
        return ids

    assert ["971125", "971126", "971127", "971128"] == run(loop, submit_in_turns)
    assert 4 == len(server.connections)


@pytest.mark.parametrize("loop", LOOPS)
def test_connections_that_are_reset_while_the_loop_is_busy(
    server: BlockingServer, loop: str
) -> None:
    async def submit_in_turns() -> list[str | None]:
        ids = []
        async with client(server.url, ssl_context=TLS[1]) as voice:
            for content in ("1125", "1126", "1127"):
                ids.append((await voice.submit(MOBILE, content)).voice_id)
                # The loop is blocked meanwhile, and does not see the reset.
                server.arrived.acquire()
        return ids

    server.resetting = True
    assert ["971125", "971126", "971127"] == run(loop, submit_in_turns)
    assert 3 == len(server.connections)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_clean_connection_is_reused(server: BlockingServer, loop: str) -> None:
    """With TLS 1.3 too, whose session tickets come after the handshake."""

    async def submit_five() -> None:
        async with client(server.url, ssl_context=TLS[1]) as voice:
            for _ in range(5):
                await voice.submit(MOBILE, "1125")

    run(loop, submit_five)
    assert (5, 1) == (len(server.contents), len(server.connections))
    if isinstance(server.connections[0], ssl.SSLSocket):
        assert "TLSv1.3" == server.connections[0].version()


def test_a_connection_is_kept_for_four_seconds(
    server: BlockingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def submit_at(*moments: float) -> list[int]:
        connections = []
        async with client(server.url, ssl_context=TLS[1]) as voice:
            for moment in moments:
                monkeypatch.setattr("aiohttp.connector.monotonic", lambda now=moment: now)
                await voice.submit(MOBILE, "1125")
                connections.append(len(server.connections))
        return connections

    assert [1, 1, 1, 2] == run("asyncio", partial(submit_at, 100.0, 103.9, 107.9, 112.0))


async def test_back_off_doubles_from_a_tenth_of_a_second_to_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []

    async def record(seconds: float) -> None:
        waits.append(seconds)

    # The longest that chance allows.
    monkeypatch.setattr(random, "uniform", lambda _, most: most)
    monkeypatch.setattr(anyio, "sleep", record)
    with serving(None) as server:
        url = server.url
    async with client(url, connect_attempts=8) as voice:
        with pytest.raises(NotSentError):
            await voice.submit(MOBILE, "1125")
    assert [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0] == waits
