"""A connection may be used again before the request that had it has noticed its own end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.inside import connector_of
from tests.rogue import ACCEPTED, Rogue, http_answer
from tests.transport.loops import MOBILE, client

if TYPE_CHECKING:
    import pytest
    from aiohttp.client_proto import ResponseHandler

    from tests.rogue import Connection


async def answer_in_two_parts(connection: Connection) -> None:
    """Send the body once the client has read the head, so that the client waits for it."""
    await connection.read_request()
    head, blank, body = http_answer(ACCEPTED).partition(b"\r\n\r\n")
    await connection.send(head + blank)
    for _ in range(50):
        await asyncio.sleep(0)
    await connection.send(body)
    await connection.until_hung_up()


async def test_the_next_request_keeps_its_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, no answer would be read: a call would be unknown at its deadline."""
    taken: list[ResponseHandler] = []
    rogue = Rogue(answer_in_two_parts)
    async with rogue.running(), client(rogue.url) as voice:
        connector = connector_of(voice)
        release = connector._release

        def release_to_the_next(key: Any, protocol: ResponseHandler, **options: Any) -> None:
            release(key, protocol, **options)
            # As the next request does when it gets the connection.
            protocol.set_response_params(read_until_eof=True)
            taken.append(protocol)

        monkeypatch.setattr(connector, "_release", release_to_the_next)
        await voice.submit(MOBILE, "1125")
        (protocol,) = taken
        assert protocol._parser is not None
