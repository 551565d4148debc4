"""A program that replaces aiohttp's session by aioresponses gets the right outcome class.

aioresponses patches `ClientSession._request`, so neither our connector nor our response
class is asked: what happened is known from the exception alone.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from aioresponses import aioresponses

from ihuyi_voice import (
    AsyncVoiceClient,
    AuthenticationError,
    NotSentError,
    OutcomeUnknownError,
    UnrecognizedCodeError,
    VoiceClient,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

MOBILE = "13912345678"
SUBMIT = "https://api.voice.ihuyi.com/webservice/voice.php?method=Submit"
BALANCE = "https://api.voice.ihuyi.com/webservice/voice.php?method=GetNum"
ACCEPTED = {"code": 2, "msg": "提交成功", "voiceid": "197362477"}
PEER = ConnectionKey("api.voice.ihuyi.com", 443, True, True, None, None, None)


class Response(aiohttp.ClientResponse):
    """aioresponses 0.7.9 does not pass the `stream_writer` that aiohttp 3.14 requires."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if (
            "stream_writer" in inspect.signature(aiohttp.ClientResponse).parameters
        ):  # pragma: no branch - older ones
            options["stream_writer"] = SimpleNamespace(output_size=0)
        super().__init__(*arguments, **options)


@pytest.fixture
def mocked() -> Iterator[aioresponses]:
    with aioresponses() as mocked:
        yield mocked


def client(**settings: Any) -> AsyncVoiceClient:
    return AsyncVoiceClient("id", "key", **settings)


async def test_an_accepted_call(mocked: aioresponses) -> None:
    mocked.post(SUBMIT, payload=ACCEPTED, response_class=Response)
    async with client() as voice:
        result = await voice.submit(MOBILE, "1125")
    assert ("197362477", "提交成功", False) == (result.voice_id, result.msg, result.replayed)
    ((_, (call,)),) = mocked.requests.items()
    # What a program asserts about the request that it would have sent.
    form = call.kwargs["data"]._value.decode()
    assert re.search("account=id&password=[0-9a-f]{32}&mobile=13912345678&content=1125", form)


async def test_a_balance(mocked: aioresponses) -> None:
    mocked.post(BALANCE, payload={"code": 2, "num": 7}, response_class=Response)
    async with client() as voice:
        assert 7 == (await voice.query_balance()).remaining


@pytest.mark.parametrize(
    ("expected", "code"), [(AuthenticationError, 405), (UnrecognizedCodeError, 4085)]
)
async def test_a_refused_call(mocked: aioresponses, expected: type[Exception], code: int) -> None:
    mocked.post(SUBMIT, payload={"code": code, "msg": "x"}, response_class=Response)
    async with client() as voice:
        with pytest.raises(expected) as caught:
            await voice.submit(MOBILE, "1125")
    assert expected is type(caught.value)


@pytest.mark.parametrize(
    "exception",
    [
        aiohttp.ClientConnectorError(PEER, ConnectionRefusedError(111, "refused")),
        aiohttp.ClientConnectorDNSError(PEER, OSError(-2, "unknown name")),
        aiohttp.ConnectionTimeoutError("connecting"),
    ],
    ids=lambda exception: type(exception).__name__,
)
async def test_a_call_that_could_not_connect_was_not_sent(
    mocked: aioresponses, exception: Exception
) -> None:
    mocked.post(SUBMIT, exception=exception, repeat=True)
    async with client(connect_attempts=1) as voice:
        with pytest.raises(NotSentError) as caught:
            await voice.submit(MOBILE, "1125")
    assert not caught.value.may_have_rung


async def test_a_call_that_could_not_connect_is_tried_again(mocked: aioresponses) -> None:
    mocked.post(SUBMIT, exception=aiohttp.ClientConnectorError(PEER, OSError(111, "refused")))
    mocked.post(SUBMIT, payload=ACCEPTED, response_class=Response)
    async with client(connect_attempts=2) as voice:
        assert "197362477" == (await voice.submit(MOBILE, "1125")).voice_id


@pytest.mark.parametrize(
    "exception",
    [
        asyncio.TimeoutError("as aioresponses' timeout=True"),
        aiohttp.SocketTimeoutError("reading"),
        aiohttp.ServerDisconnectedError,
        aiohttp.ClientOSError(104, "reset by peer"),
        aiohttp.ClientPayloadError("half of it"),
        # Also what aioresponses raises for an URL that it was not given.
        aiohttp.ClientConnectionError("broken"),
    ],
    ids=lambda exception: type(exception).__name__,
)
async def test_a_call_that_broke_off_is_unknown_and_sent_once(
    mocked: aioresponses, exception: Exception
) -> None:
    mocked.post(SUBMIT, exception=exception, repeat=True)
    async with client(connect_attempts=3) as voice:
        with pytest.raises(OutcomeUnknownError) as caught:
            await voice.submit(MOBILE, "1125")
    assert caught.value.may_have_rung
    assert [1] == [len(calls) for calls in mocked.requests.values()]


async def test_a_double_that_never_answers_is_ended_at_the_deadline() -> None:
    async def hang(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    # Also where the double begins after the client was opened.
    async with client(timeout=0.05) as voice:
        with aioresponses() as mocked:
            mocked.post(SUBMIT, callback=hang)
            with pytest.raises(
                OutcomeUnknownError, match=r"no whole answer from \S+ within 0\.05 s"
            ):
                await asyncio.wait_for(voice.submit(MOBILE, "1125"), 20)


async def test_an_answer_that_cannot_be_read_is_unknown(mocked: aioresponses) -> None:
    mocked.post(SUBMIT, status=502, body="<html>", response_class=Response)
    async with client() as voice:
        with pytest.raises(OutcomeUnknownError, match="HTTP status 502"):
            await voice.submit(MOBILE, "1125")


def test_the_blocking_client(mocked: aioresponses) -> None:
    mocked.post(SUBMIT, payload=ACCEPTED, response_class=Response)
    mocked.post(SUBMIT, timeout=True)
    with VoiceClient("id", "key") as voice:
        assert "197362477" == voice.submit(MOBILE, "1125").voice_id
        with pytest.raises(OutcomeUnknownError):
            voice.submit(MOBILE, "1125")
