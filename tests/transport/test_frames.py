"""No exception carries aiohttp's frames, and no log the proxy's password."""

from __future__ import annotations

import asyncio
import gc
import time
import traceback
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from ihuyi_voice import AsyncVoiceClient, NotSentError, OutcomeUnknownError
from ihuyi_voice.models import SignedBody
from ihuyi_voice.transport.base import Exchange
from tests.inside import connector_of, transport_of
from tests.rogue import ACCEPTED, Connection, Rogue, http_answer
from tests.transport.loops import client, contexts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from types import TracebackType

    from tests.rogue import Behaviour

TLS = contexts("127.0.0.1")
PASSWORD = "pa55-w0rd"
# Base64 of "user:pa55-w0rd".
BASIC = "dXNlcjpwYTU1LXcwcmQ="
BODY = SignedBody(b"account=id&content=1125")


async def answer(connection: Connection) -> None:
    while await connection.read_request():
        await connection.send(http_answer(ACCEPTED))


async def never_answer(connection: Connection) -> None:
    await connection.read_request()
    await connection.until_hung_up()


async def reset(connection: Connection) -> None:
    await connection.read_request()
    connection.reset()


async def refuse_tunnels(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(http_answer(b"", "407 Proxy Authentication Required"))


async def tunnel(connection: Connection) -> None:
    """To a server that speaks no TLS."""
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
    await connection.reader.read(1)
    await connection.send(b"220 mail ready\r\n")


@pytest.fixture(autouse=True)
async def logged() -> AsyncIterator[list[dict[str, Any]]]:
    """What the loop's handler is given, by the end of the test too."""
    contexts_: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts_.append(context))
    # The collector looks only at what the test makes, not at every module.
    gc.freeze()
    yield contexts_
    gc.collect()
    gc.unfreeze()
    await asyncio.sleep(0)
    assert [] == contexts_


def frames_of(error: BaseException) -> Iterator[TracebackType]:
    """The frames of an exception and of all it came from."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        exception = todo.pop()
        if exception is None or id(exception) in seen:
            continue
        seen.add(id(exception))
        todo += [exception.__cause__, exception.__context__]
        following = exception.__traceback__
        while following is not None:
            yield following
            following = following.tb_next


def check(error: BaseException) -> None:
    files = [frame.tb_frame.f_code.co_filename for frame in frames_of(error)]
    assert [] == [file for file in files if "site-packages/aiohttp" in file or "connector" in file]
    shown = "".join(
        traceback.TracebackException.from_exception(error, capture_locals=True).format()
    )
    assert PASSWORD not in shown
    assert BASIC not in shown


async def post(voice: AsyncVoiceClient, exchange: Exchange | None = None) -> BaseException:
    """The exception that one POST ends with."""
    try:
        await transport_of(voice).post("/x", BODY, exchange or Exchange(time.monotonic() + 0.5))
    except BaseException as error:  # noqa: BLE001 - whatever it is
        return error
    pytest.fail("the POST was answered")  # pragma: no cover


def through(proxy: Rogue) -> str:
    return proxy.url.replace("//", f"//user:{PASSWORD}@")


@pytest.mark.parametrize(
    ("url", "behaviour"),
    [
        ("http://127.0.0.1:9", never_answer),
        ("http://127.0.0.1:9", reset),
        ("https://127.0.0.1:9", never_answer),
        ("https://127.0.0.1:9", reset),
        ("https://127.0.0.1:9", refuse_tunnels),
        ("https://127.0.0.1:9", tunnel),
    ],
)
async def test_whatever_breaks_behind_a_proxy(url: str, behaviour: Behaviour) -> None:
    async with (
        Rogue(behaviour).running() as rogue,
        client(url, proxy=through(rogue), connect_timeout=0.3) as voice,
    ):
        exchange = Exchange(time.monotonic() + 0.5)
        error = await post(voice, exchange)
    assert isinstance(error, NotSentError | OutcomeUnknownError)
    check(error)
    # What the proxy has got by then it may still send.
    assert not exchange.reset


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "https://127.0.0.1:1"])
@pytest.mark.parametrize("proxy", [None, f"http://user:{PASSWORD}@127.0.0.1:1"])
async def test_a_connection_that_cannot_be_made(url: str, proxy: str | None) -> None:
    async with client(url, proxy=proxy) as voice:
        error = await post(voice)
    assert isinstance(error, NotSentError)
    assert "127.0.0.1:1" in error.reason
    assert error.reason.endswith("Connection refused")
    assert isinstance(error.__cause__, ConnectionRefusedError)
    check(error)


async def test_a_certificate_that_is_not_trusted() -> None:
    async with Rogue(answer).running(TLS[0]) as rogue, client(rogue.url) as voice:
        error = await post(voice)
    assert "CERTIFICATE_VERIFY_FAILED" in str(error)
    assert rogue.url.removeprefix("https://") in str(error)
    check(error)


@pytest.mark.parametrize("tls", [True, False], ids=["TLS", "plain"])
async def test_a_cancellation(tls: bool) -> None:
    async with (
        Rogue(never_answer).running(TLS[0] if tls else None) as rogue,
        client(rogue.url, ssl_context=TLS[1]) as voice,
    ):
        exchange = Exchange(time.monotonic() + 60.0)
        posting = asyncio.create_task(post(voice, exchange))
        while not rogue.requests:
            await asyncio.sleep(0)
        posting.cancel()
        error = await posting
    assert isinstance(error, asyncio.CancelledError)
    check(error)
    assert exchange.reset


class Stop(BaseException):
    """What a signal handler may raise anywhere."""


async def test_what_passes_as_it_is() -> None:
    async def stop(*_: object) -> None:
        try:
            int(PASSWORD)
        except ValueError:
            raise Stop from None

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(stop)
    trace.on_request_headers_sent.append(stop)
    async with (
        Rogue(answer).running() as rogue,
        client(rogue.url, trace_configs=[trace], proxy=through(rogue)) as voice,
    ):
        error = await post(voice)
    assert isinstance(error, Stop)
    check(error)


class Clock:
    """The store's clock, which fails at its nth look."""

    def __init__(self, fails_at: int) -> None:
        self.looks = 0
        self._fails_at = fails_at

    def __call__(self) -> bool:
        self.looks += 1
        if self.looks == self._fails_at:
            raise LookupError
        return False


@pytest.mark.parametrize("url", ["http://gateway.invalid", "https://127.0.0.1:9"])
async def test_a_stores_clock_that_fails(url: str, logged: list[dict[str, Any]]) -> None:
    """Just before the request is written."""
    async with Rogue(answer).running() as rogue:
        if url.startswith("https"):
            direct = {"ssl_context": TLS[1]}
            gateway = Rogue(answer)
            async with gateway.running(TLS[0]):
                error = await fails(gateway.url, direct)
        else:
            error = await fails(url, {"proxy": through(rogue)})
        assert 0 == rogue.submits
    assert isinstance(error, NotSentError)
    assert "an unexpected exception (LookupError)" in str(error)
    check(error)
    gc.collect()
    assert PASSWORD not in repr(logged)


async def fails(url: str, options: Mapping[str, object]) -> BaseException:
    async with client(url, **options) as voice:
        exchange = Exchange(time.monotonic() + 5.0)
        exchange.outlived = Clock(2)
        error = await post(voice, exchange)
        # The connection that was taken is not left open.
        assert not connector_of(voice)._acquired
        return error


async def test_a_password_beyond_latin_1_is_sent_as_utf_8() -> None:
    async with Rogue(answer).running() as rogue:
        proxy = rogue.url.replace("//", "//用户:密码@")
        async with client("http://gateway.invalid", proxy=proxy) as voice:
            await voice.submit("13912345678", "1125")
    assert b"Proxy-Authorization: Basic 55So5oi3OuWvhueggQ==" in rogue.requests[0]


async def test_a_proxy_without_a_password() -> None:
    async with (
        Rogue(answer).running() as rogue,
        client("http://gateway.invalid", proxy=rogue.url) as voice,
    ):
        await voice.submit("13912345678", "1125")
        await voice.submit("13912345678", "1126")
    assert b"Authorization" not in b"".join(rogue.requests)
    assert 1 == rogue.connections


async def test_a_reused_connection_to_a_proxy_is_authorized_too() -> None:
    async with (
        Rogue(answer).running() as rogue,
        client("http://gateway.invalid", proxy=through(rogue)) as voice,
    ):
        await voice.submit("13912345678", "1125")
        await voice.submit("13912345678", "1126")
    assert 2 == sum(BASIC.encode() in request for request in rogue.requests)
    assert 1 == rogue.connections


async def test_an_ipv6_address_is_shown_in_brackets() -> None:
    async with client("http://[::1]:1", connect_attempts=1) as voice:
        error = await post(voice)
    assert "could not be made to [::1]:1" in str(error)
