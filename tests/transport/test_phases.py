"""Each phase in which a request can end: class, `may_have_rung`, submits the server saw."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import time
from typing import TYPE_CHECKING, ClassVar

import aiohttp
import anyio
import pytest
import trustme

from ihuyi_voice import (
    AsyncVoiceClient,
    AuthenticationError,
    NotSentError,
    OutcomeUnknownError,
    QuotaExceededError,
    RecipientQuota,
    SubmitFailedError,
    SubmitResult,
)
from ihuyi_voice._limits import Limits
from ihuyi_voice._pipeline import Admitted
from ihuyi_voice.models import SignedBody
from ihuyi_voice.transport.aiohttp import WORDS
from ihuyi_voice.transport.base import Exchange
from ihuyi_voice.transport.sending import Sending
from tests.inside import (
    QUICK,
    connector_of,
    pipeline_of,
    slots_of,
    submit_that_waits_for_a_slot,
    transport_of,
    within,
)
from tests.rogue import ACCEPTED, Connection, Rogue, http_answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.rogue import Behaviour

MOBILE = "13912345678"
KEY = "k3y-that-is-never-shown"


class CountingClock:
    """Counts how often a request is signed; each is a second later."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> float:
        self.asked += 1
        return 1_700_000_000.0 + self.asked


def client(url: str, limits: Limits = QUICK, **options: object) -> AsyncVoiceClient:
    voice = AsyncVoiceClient("id", KEY, **{"base_url": url, "timeout": 5.0, **options})  # type: ignore[arg-type]
    return within(voice, limits)


# --- nothing was written -----------------------------------------------------


async def not_sent(url: str, limits: Limits = QUICK, **options: object) -> tuple[NotSentError, int]:
    """The error of one submit, and how often it was signed."""
    clock = CountingClock()
    quota = RecipientQuota(per_minute=1, per_day=1)
    async with client(url, limits, clock=clock, quota=quota, **options) as voice:
        with pytest.raises(NotSentError) as caught:
            await voice.submit(MOBILE, "1125")
        assert not caught.value.may_have_rung
        # Nothing was sent, so the one slot of the quota is free again.
        await quota.reserve(MOBILE)
    return caught.value, clock.asked


@pytest.fixture
def refused_url() -> Iterator[str]:
    """A port that is bound, so that no other process gets it, and not listened on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.mark.parametrize("attempts", [1, 2, 3])
async def test_a_refused_connection_is_tried_again_and_signed_each_time(
    refused_url: str, attempts: int
) -> None:
    error, signed = await not_sent(refused_url, connect_attempts=attempts)
    assert signed == attempts
    address = refused_url.removeprefix("http://")
    assert f"the connection could not be made to {address}: Connection refused;" in str(error)
    assert isinstance(error.__cause__, OSError)


async def test_back_off_stays_within_the_deadline(refused_url: str) -> None:
    began = time.monotonic()
    patient = Limits(first_backoff=1e9, longest_backoff=1e9)
    _, signed = await not_sent(refused_url, patient, connect_attempts=9)
    assert signed == 1
    assert time.monotonic() - began < 5.0


async def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    # A real look-up would leave the machine.
    def fail(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    error, signed = await not_sent("http://no-such-host.invalid")
    assert signed == 3
    what = "the host name could not be resolved (no-such-host.invalid:80): Name or service"
    assert what in str(error)
    assert isinstance(error.__cause__, socket.gaierror)


@pytest.fixture
async def full_backlog_url() -> AsyncIterator[str]:
    """A listening socket that completes no further handshake."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        address = server.getsockname()
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(address)
        yield f"http://127.0.0.1:{address[1]}"


async def test_the_connect_deadline(full_backlog_url: str) -> None:
    error, signed = await not_sent(full_backlog_url, connect_timeout=0.05)
    assert signed == 3
    address = full_backlog_url.removeprefix("http://")
    reason = f"no connection to {address} within 0.05 s: the connection was not accepted"
    assert f"not sent: {reason}; nothing was written, no phone rang, repeating is safe" == str(
        error
    )


async def test_the_request_deadline_ends_connecting_too(full_backlog_url: str) -> None:
    began = time.monotonic()
    error, signed = await not_sent(full_backlog_url, timeout=0.1, connect_timeout=60.0)
    assert "within 0.1 s: the connection was not accepted" in str(error)
    assert signed == 1
    assert time.monotonic() - began < 5.0


def tls_server(*names: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context with a certificate for `names`, and a client's that trusts it."""
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(server)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return server, trusting


async def answer_accepted(connection: Connection) -> None:
    while await connection.read_request():
        await connection.send(http_answer(ACCEPTED))


async def test_a_certificate_that_is_not_trusted() -> None:
    tls, _ = tls_server("127.0.0.1")
    rogue = Rogue(answer_accepted)
    async with rogue.running(tls):
        error, signed = await not_sent(rogue.url)
    assert (0, 3) == (rogue.submits, signed)
    assert "the server's certificate is not valid" in str(error)


async def test_a_certificate_for_another_host() -> None:
    tls, trusting = tls_server("elsewhere.example")
    rogue = Rogue(answer_accepted)
    async with rogue.running(tls):
        await not_sent(rogue.url, ssl_context=trusting)
    assert rogue.submits == 0


async def test_a_trusted_certificate() -> None:
    tls, trusting = tls_server("127.0.0.1")
    rogue = Rogue(answer_accepted)
    async with rogue.running(tls), client(rogue.url, ssl_context=trusting) as voice:
        assert SubmitResult("197362477", "ok", MOBILE) == await voice.submit(MOBILE, "1125")
    assert rogue.submits == 1


async def test_a_handshake_with_a_server_that_speaks_no_tls() -> None:
    async def babble(connection: Connection) -> None:
        await connection.reader.read(1)
        await connection.send(b"220 mail ready\r\n")

    rogue = Rogue(babble)
    async with rogue.running():
        error, _ = await not_sent(rogue.url.replace("http:", "https:"))
    assert (0, 3) == (rogue.submits, rogue.connections)
    assert "TLS handshake failed" in str(error)


async def test_a_handshake_that_is_closed_or_never_answered() -> None:
    async def close(connection: Connection) -> None:
        await connection.reader.read(1)

    async def ignore(connection: Connection) -> None:
        await connection.until_hung_up()

    reasons = ("the connection could not be made", "0.1 s: the TLS handshake did not end")
    for behaviour, reason in zip((close, ignore), reasons, strict=True):
        rogue = Rogue(behaviour)
        async with rogue.running():
            url = rogue.url.replace("http:", "https:")
            error, _ = await not_sent(url, connect_timeout=0.1)
            assert rogue.url.removeprefix("http://") in str(error)
            assert reason in str(error)
        assert (0, 3) == (rogue.submits, rogue.connections)


async def test_a_proxy_that_does_not_answer_is_named_with_the_gateway() -> None:
    async def ignore(connection: Connection) -> None:
        await connection.until_hung_up()

    rogue = Rogue(ignore)
    async with rogue.running():
        error, _ = await not_sent("https://127.0.0.1:1", proxy=rogue.url, connect_timeout=0.1)
    way = f"127.0.0.1:1 through the proxy {rogue.url.removeprefix('http://')}"
    what = "the proxy did not open the connection"
    assert f"no connection to {way} within 0.1 s: {what};" in str(error)


async def test_a_proxy_that_is_not_there(refused_url: str) -> None:
    proxy = refused_url.replace("//", "//user:pa55@")
    for url in ("http://127.0.0.1:1", "https://127.0.0.1:1"):
        error, signed = await not_sent(url, proxy=proxy)
        assert signed == 3
        assert "the proxy could not be reached" in str(error)
        assert "pa55" not in repr(error) + repr(error.__cause__)


async def test_a_proxy_that_refuses_to_connect() -> None:
    async def refuse(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(http_answer(b"", "407 Proxy Authentication Required"))

    rogue = Rogue(refuse)
    async with rogue.running():
        error, _ = await not_sent("https://127.0.0.1:1", proxy=rogue.url)
    assert (0, 3) == (rogue.submits, len(rogue.requests))
    assert all(request.startswith(b"CONNECT ") for request in rogue.requests)
    assert "the proxy refused to connect" in str(error)


async def test_a_proxy_is_used_and_given_its_password() -> None:
    rogue = Rogue(answer_accepted)
    async with rogue.running():
        proxy = rogue.url.replace("//", "//user:pa55@")
        async with client("http://gateway.invalid", proxy=proxy) as voice:
            await voice.submit(MOBILE, "1125")
    assert rogue.submits == 1
    assert b"POST http://gateway.invalid/" in rogue.requests[0]
    assert b"Proxy-Authorization: Basic dXNlcjpwYTU1" in rogue.requests[0]


async def test_waiting_for_a_slot_until_the_deadline() -> None:
    rogue = Rogue(answer_accepted)
    quota = RecipientQuota(per_minute=1, per_day=1)
    async with (
        rogue.running(),
        client(rogue.url, max_connections=1, timeout=0.05, quota=quota) as voice,
    ):
        slots_of(voice).acquire_nowait()
        with pytest.raises(NotSentError, match=r"no slot came free within 0\.05 s") as caught:
            await voice.submit(MOBILE, "1125")
        assert not caught.value.may_have_rung
        await quota.reserve(MOBILE)
    assert rogue.connections == 0


async def test_cancelled_while_waiting_for_a_slot() -> None:
    quota = RecipientQuota(per_minute=1, per_day=1)
    rogue = Rogue(answer_accepted)
    async with rogue.running(), client(rogue.url, max_connections=1, quota=quota) as voice:
        waiting = await submit_that_waits_for_a_slot(voice, MOBILE, "1125")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await quota.reserve(MOBILE)
        slots_of(voice).release()
        assert slots_of(voice).value == 1
    assert rogue.connections == 0


async def test_closed_while_waiting_for_a_slot() -> None:
    rogue = Rogue(answer_accepted)
    async with rogue.running(), client(rogue.url, max_connections=1) as voice:
        slots = slots_of(voice)
        waiting = await submit_that_waits_for_a_slot(voice, MOBILE, "1125")
        await voice.aclose()
        slots.release()
        with pytest.raises(NotSentError, match="the client was closed"):
            await waiting
    assert rogue.connections == 0


async def test_a_slot_that_comes_with_the_deadline_sends_nothing() -> None:
    rogue = Rogue(answer_accepted)
    async with rogue.running(), client(rogue.url, timeout=1e-9) as voice:
        with pytest.raises(NotSentError, match="passed before a connection"):
            await voice.submit(MOBILE, "1125")
    assert rogue.connections == 0


# --- something may have been written -----------------------------------------


async def never_answer(connection: Connection) -> None:
    await connection.read_request()
    await connection.until_hung_up()


async def close_at_once(connection: Connection) -> None:
    pass


async def close_after_reading(connection: Connection) -> None:
    await connection.read_request()


async def reset_at_once(connection: Connection) -> None:
    connection.reset()


async def reset_after_reading(connection: Connection) -> None:
    await connection.read_request()
    connection.reset()


def cut(answer: bytes, *, then_hang: bool) -> Behaviour:
    async def behave(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(answer)
        if then_hang:
            await connection.until_hung_up()

    return behave


async def drip(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 600\r\n\r\n")
    while True:
        await connection.send(b" ")
        await asyncio.sleep(1)


async def drip_headers(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await connection.send(b"X: y\r\n")
        await asyncio.sleep(1)


def answering(body: bytes, status: str = "200 OK", *headers: str) -> Behaviour:
    return cut(http_answer(body, status, *headers), then_hang=False)


HTML = b"<html><body><h1>It works!</h1></body></html>"
HALF_HEADER = b"HTTP/1.1 200 OK\r\nContent-Le"
HALF_BODY = http_answer(ACCEPTED)[:-10]
NO_LENGTH = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + ACCEPTED[:-10]
SECRETIVE = KEY.encode()

UNKNOWN: dict[str, tuple[Behaviour, int, str]] = {
    # name: (what the server does, submits it sees, words in the error)
    "never answers": (never_answer, 1, " within 1 s"),
    "closes after reading": (close_after_reading, 1, "closed without an answer"),
    "resets after reading": (reset_after_reading, 1, "connection"),
    "half a header, closed": (cut(HALF_HEADER, then_hang=False), 1, "closed without an answer"),
    "half a header, silence": (cut(HALF_HEADER, then_hang=True), 1, " within"),
    "half a body, closed": (cut(HALF_BODY, then_hang=False), 1, "the answer broke off"),
    "half a body, silence": (cut(HALF_BODY, then_hang=True), 1, " within"),
    "half a body without length": (cut(NO_LENGTH, then_hang=False), 1, "not valid JSON"),
    "without length, silence": (cut(NO_LENGTH, then_hang=True), 1, "outcome unknown"),
    "one byte a second": (drip, 1, " within 1 s"),
    "one header a second": (drip_headers, 1, " within 1 s"),
    "not HTTP": (cut(SECRETIVE + b"\r\n\r\n", then_hang=False), 1, "not valid HTTP"),
    "a header that is none": (
        cut(b"HTTP/1.1 200 OK\r\n" + SECRETIVE + b"\r\n\r\n", then_hang=False),
        1,
        "not valid HTTP",
    ),
    "200 with HTML": (answering(HTML), 1, "HTTP status 200, no readable answer"),
    "200 with nothing": (answering(b""), 1, "it is empty"),
    "200 compressed": (
        answering(b"\x1f\x8b\x08" + bytes(20), "200 OK", "Content-Encoding: gzip"),
        1,
        "neither JSON nor XML",
    ),
    "204": (cut(b"HTTP/1.1 204 No Content\r\n\r\n", then_hang=False), 1, "status 204"),
    "404": (answering(HTML, "404 Not Found"), 1, "HTTP status 404"),
    "429": (answering(b"slow down", "429 Too Many Requests"), 1, "HTTP status 429"),
    "500": (answering(b"", "500 Internal Server Error"), 1, "HTTP status 500"),
    "502": (answering(HTML, "502 Bad Gateway"), 1, "HTTP status 502"),
    "over 64 KiB": (answering(b" " * 65536 + ACCEPTED), 1, "longer than 65536 bytes"),
}


@pytest.mark.parametrize(("behaviour", "submits", "words"), UNKNOWN.values(), ids=UNKNOWN.keys())
async def test_the_outcome_is_unknown_and_nothing_is_sent_again(
    behaviour: Behaviour, submits: int, words: str
) -> None:
    quota = RecipientQuota(per_minute=1, per_day=1)
    rogue = Rogue(behaviour)
    async with rogue.running(), client(rogue.url, timeout=1.0, quota=quota) as voice:
        with pytest.raises(OutcomeUnknownError, match=re.escape(words)) as caught:
            await voice.submit(MOBILE, "1125")
        assert caught.value.may_have_rung
        assert (submits, 1) == (rogue.submits, rogue.connections)
        # The gateway may have counted it, so the quota does.
        with pytest.raises(QuotaExceededError):
            await quota.reserve(MOBILE)


@pytest.mark.parametrize("behaviour", [close_at_once, reset_at_once])
async def test_a_connection_that_ends_at_once_takes_no_submit(behaviour: Behaviour) -> None:
    """Whether its end is seen before or after the write depends on the system."""
    rogue = Rogue(behaviour)
    async with rogue.running(), client(rogue.url) as voice:
        with pytest.raises((NotSentError, OutcomeUnknownError), match=r"hung up|connection"):
            await voice.submit(MOBILE, "1125")
    assert 0 == rogue.submits


@pytest.mark.parametrize(
    "status", ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"]
)
async def test_a_redirect_is_not_followed_even_with_a_readable_answer(status: str) -> None:
    target = Rogue(answer_accepted)
    async with target.running():
        rogue = Rogue(answering(ACCEPTED, status, f"Location: {target.url}/elsewhere"))
        async with rogue.running(), client(rogue.url) as voice:
            with pytest.raises(OutcomeUnknownError, match="a redirect is not an answer") as caught:
                await voice.submit(MOBILE, "1125")
    assert caught.value.may_have_rung
    assert (1, 0) == (rogue.submits, target.connections)


async def test_a_gigabyte_is_not_read() -> None:
    sent = 0

    async def flood(connection: Connection) -> None:
        nonlocal sent
        await connection.read_request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            await connection.send(bytes(65536))
            sent += 65536

    rogue = Rogue(flood)
    async with rogue.running(), client(rogue.url) as voice:
        with pytest.raises(OutcomeUnknownError, match="longer than 65536 bytes"):
            await voice.submit(MOBILE, "1125")
        # The connection is closed at once, and not with the client.
        with anyio.fail_after(30):
            while rogue.open_connections:
                await asyncio.sleep(0)
    assert rogue.submits == 1
    # What the sockets' buffers took, and no more.
    assert sent < 50_000_000


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops", "502 Bad Gateway"])
async def test_a_readable_answer_counts_whatever_its_status(status: str) -> None:
    refusal = Rogue(answering(b'{"code":0,"msg":"no"}', status))
    async with refusal.running(), client(refusal.url) as voice:
        with pytest.raises(SubmitFailedError) as caught:
            await voice.submit(MOBILE, "1125")
    assert not caught.value.may_have_rung
    success = Rogue(answering(ACCEPTED, status))
    async with success.running(), client(success.url) as voice:
        assert SubmitResult("197362477", "ok", MOBILE) == await voice.submit(MOBILE, "1125")
    assert (1, 1) == (refusal.submits, success.submits)


@pytest.mark.parametrize("reset", [False, True])
async def test_a_kept_alive_connection_dropped_exactly_when_it_is_reused(reset: bool) -> None:
    async def drop_the_second(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(http_answer(ACCEPTED))
        await connection.read_request()
        if reset:
            connection.reset()

    rogue = Rogue(drop_the_second)
    async with rogue.running(), client(rogue.url) as voice:
        await voice.submit(MOBILE, "1125")
        with pytest.raises(OutcomeUnknownError):
            await voice.submit(MOBILE, "1126")
    # Two requests, each seen once, over one connection: nothing was repeated.
    assert (2, 1) == (rogue.submits, rogue.connections)
    assert b"content=1125" in rogue.requests[0]
    assert b"content=1126" in rogue.requests[1]


async def test_cancelled_while_waiting_for_the_answer() -> None:
    async def hang(connection: Connection) -> None:
        await connection.read_request()
        arrived.set()
        await connection.until_hung_up()

    arrived = asyncio.Event()
    quota = RecipientQuota(per_minute=1, per_day=1)
    rogue = Rogue(hang)
    async with rogue.running(), client(rogue.url, max_connections=1, quota=quota) as voice:
        waiting = asyncio.create_task(voice.submit(MOBILE, "1125"))
        await arrived.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert slots_of(voice).value == 1
        with pytest.raises(QuotaExceededError):
            await quota.reserve(MOBILE)
    assert rogue.submits == 1


async def test_closed_while_waiting_for_the_answer() -> None:
    async def hang(connection: Connection) -> None:
        await connection.read_request()
        arrived.set()
        await connection.until_hung_up()

    arrived = asyncio.Event()
    rogue = Rogue(hang)
    async with rogue.running(), client(rogue.url) as voice:
        waiting = asyncio.create_task(voice.submit(MOBILE, "1125"))
        await arrived.wait()
        await voice.aclose()
        with pytest.raises(OutcomeUnknownError):
            await waiting
    assert rogue.submits == 1


async def test_a_late_deadline_does_not_touch_the_next_user_of_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Recorded(Sending):
        def __init__(self, exchange: Exchange, connect_seconds: float) -> None:
            super().__init__(exchange, connect_seconds)
            sendings.append(self)

    async def expire_the_first_during_the_second(connection: Connection) -> None:
        while await connection.read_request():
            if len(sendings) == 2:
                sendings[0].expire()
            await connection.send(http_answer(ACCEPTED))

    sendings: list[Sending] = []
    monkeypatch.setattr("ihuyi_voice.transport.aiohttp.Sending", Recorded)
    rogue = Rogue(expire_the_first_during_the_second)
    async with rogue.running(), client(rogue.url) as voice:
        await voice.submit(MOBILE, "1125")
        assert SubmitResult("197362477", "ok", MOBILE) == await voice.submit(MOBILE, "1126")
    assert (2, 1) == (rogue.submits, rogue.connections)
    assert [True, False] == [sending.expired for sending in sendings]


async def test_each_request_has_its_own_deadline() -> None:
    rogue = Rogue(never_answer)
    async with rogue.running(), client(rogue.url, timeout=60.0) as voice:
        patient = asyncio.create_task(voice.submit(MOBILE, "1125"))
        while rogue.submits < 1:
            await asyncio.sleep(0)
        soon = Exchange(time.monotonic() + 1.0)
        with anyio.fail_after(30), pytest.raises(OutcomeUnknownError, match="no whole answer"):
            await pipeline_of(voice).send(Admitted(MOBILE, "1126"), soon)
        assert not patient.done()
        patient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await patient
    assert rogue.submits == 2


async def test_a_later_request_does_not_postpone_a_deadline() -> None:
    rogue = Rogue(never_answer)
    async with rogue.running(), client(rogue.url, timeout=60.0) as voice:
        soon = Exchange(time.monotonic() + 1.0)
        first = asyncio.create_task(pipeline_of(voice).send(Admitted(MOBILE, "1125"), soon))
        while rogue.submits < 1:
            await asyncio.sleep(0)
        patient = asyncio.create_task(voice.submit(MOBILE, "1126"))
        with anyio.fail_after(30), pytest.raises(OutcomeUnknownError, match="no whole answer"):
            await first
        assert not patient.done()
        patient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await patient


async def test_a_request_after_all_others_have_expired_has_a_deadline_too() -> None:
    async with Rogue(never_answer).running() as rogue, client(rogue.url, timeout=60.0) as voice:
        for content in ("1125", "1126"):
            exchange = Exchange(time.monotonic() + 0.3)
            with anyio.fail_after(30), pytest.raises(OutcomeUnknownError, match="no whole answer"):
                await pipeline_of(voice).send(Admitted(MOBILE, content), exchange)


async def test_a_timer_that_fires_before_there_is_a_connection_prevents_the_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A timer of a loop may fire some microseconds before its time."""

    class Expired(Sending):
        def __init__(self, exchange: Exchange, connect_seconds: float) -> None:
            super().__init__(exchange, connect_seconds)
            self.expire()

    monkeypatch.setattr("ihuyi_voice.transport.aiohttp.Sending", Expired)
    rogue = Rogue(answer_accepted)
    async with rogue.running():
        error, _ = await not_sent(rogue.url)
    assert "too late to write the request to 127.0.0.1:" in str(error)
    assert 0 == rogue.submits


# --- the line itself ----------------------------------------------------------


def test_every_exception_of_aiohttps_client_has_its_words() -> None:
    raised = {
        name
        for name, value in vars(aiohttp.client_exceptions).items()
        if isinstance(value, type)
        and issubclass(value, Exception)
        and value.__module__.startswith("aiohttp")
    }
    assert len(raised) > 20
    assert set() == raised - set(WORDS)


async def test_the_class_of_an_exception_does_not_decide() -> None:
    """An exception that sounds like connecting, raised after the write, is unknown."""

    async def lie(*_: object) -> None:
        raise aiohttp.ConnectionTimeoutError

    trace = aiohttp.TraceConfig()
    trace.on_request_exception.append(lie)
    rogue = Rogue(close_after_reading)
    async with rogue.running(), client(rogue.url, trace_configs=[trace]) as voice:
        with pytest.raises(OutcomeUnknownError, match="connecting took too long"):
            await voice.submit(MOBILE, "1125")
    assert (1, 1) == (rogue.submits, rogue.connections)


async def test_what_a_trace_config_raises_while_connecting_is_not_sent() -> None:
    async def fail(*_: object) -> None:
        raise LookupError

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_start.append(fail)
    rogue = Rogue(answer_accepted)
    async with rogue.running():
        error, signed = await not_sent(rogue.url, trace_configs=[trace])
    assert signed == 3
    assert "an unexpected exception (LookupError)" in str(error)
    assert rogue.submits == 0


class Canned:
    """An answer of a test double that replaces aiohttp's session."""

    status = 200
    headers: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        self.content = self
        self._rest = [ACCEPTED[:9], ACCEPTED[9:]]

    async def readany(self) -> bytes:
        return self._rest.pop(0)

    def at_eof(self) -> bool:
        return not self._rest

    def release(self) -> None:
        assert self.at_eof()


async def test_a_double_in_place_of_aiohttps_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers are read, and its exceptions decided on by their words."""

    async def respond(*_: object, **__: object) -> object:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    results = [Canned(), aiohttp.ServerDisconnectedError(), aiohttp.ConnectionTimeoutError()]
    monkeypatch.setattr(aiohttp.ClientSession, "_request", respond)
    async with client("http://gateway.invalid", quota=None, connect_attempts=1) as voice:
        assert SubmitResult("197362477", "ok", MOBILE) == await voice.submit(MOBILE, "1125")
        with pytest.raises(OutcomeUnknownError):
            await voice.submit(MOBILE, "1125")
        with pytest.raises(NotSentError):
            await voice.submit(MOBILE, "1125")


async def test_a_connection_that_is_not_closed_in_time_is_not_known_to_be_reset() -> None:
    hasty = Limits(closing_turns=0)
    async with Rogue(never_answer).running() as rogue, client(rogue.url, hasty) as voice:
        exchange = Exchange(time.monotonic() + 5.0)
        submit = asyncio.create_task(transport_of(voice).post("/x", SignedBody(b"body"), exchange))
        while not rogue.requests:
            await asyncio.sleep(0)
        submit.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submit
    assert not exchange.reset


# --- the balance is a read ----------------------------------------------------


async def test_a_balance_query_is_tried_again_whatever_broke() -> None:
    async def drop_twice(connection: Connection) -> None:
        await connection.read_request()
        if rogue.connections == 3:
            await connection.send(http_answer(b'{"code":2,"msg":"ok","num":"20023.0"}'))

    rogue = Rogue(drop_twice)
    async with rogue.running(), client(rogue.url, clock=CountingClock()) as voice:
        assert (await voice.query_balance()).remaining == 20023
    assert len(rogue.requests) == 3
    signatures = {re.search(rb"password=(\w+)", request)[1] for request in rogue.requests}  # type: ignore[index]
    assert len(signatures) == 3


async def test_a_balance_query_without_an_answer_rings_no_phone() -> None:
    rogue = Rogue(close_after_reading)
    async with rogue.running(), client(rogue.url) as voice:
        with pytest.raises(OutcomeUnknownError, match="no phone was involved") as caught:
            await voice.query_balance()
    assert not caught.value.may_have_rung
    assert len(rogue.requests) == 3


async def test_a_balance_query_that_cannot_be_sent(refused_url: str) -> None:
    async with client(refused_url) as voice:
        with pytest.raises(NotSentError):
            await voice.query_balance()


async def test_a_refused_balance_query_says_that_the_clock_is_wrong() -> None:
    rogue = Rogue(
        answering(b'{"code":405,"msg":"no"}', "200 OK", "Date: Tue, 14 Nov 2023 22:13:20 GMT")
    )
    async with rogue.running():
        async with client(rogue.url, clock=lambda: 1_700_000_090.0) as voice:
            with pytest.raises(AuthenticationError, match="90 s ahead of"):
                await voice.query_balance()
        async with client(rogue.url, clock=lambda: 1_700_000_059.0) as voice:
            with pytest.raises(AuthenticationError) as caught:
                await voice.query_balance()
    assert "clock is" not in str(caught.value)


# --- slots and signatures -----------------------------------------------------


async def test_no_signature_is_older_than_its_own_requests_start() -> None:
    """One slot, a slow gateway, ten requests: each signs after its wait."""
    now = 1_700_000_000

    async def slow(connection: Connection) -> None:
        nonlocal now
        while await connection.read_request():
            now += 30
            started.append(now)
            await connection.send(http_answer(ACCEPTED))

    started = [now]
    rogue = Rogue(slow)
    async with (
        rogue.running(),
        client(rogue.url, max_connections=1, quota=None, clock=lambda: now) as voice,
        anyio.create_task_group() as group,
    ):
        for _ in range(10):
            group.start_soon(voice.submit, MOBILE, "1125")
    signed = [int(re.search(rb"&time=(\d{10})$", r)[1]) for r in rogue.requests]  # type: ignore[index]
    assert started[:10] == signed
    assert rogue.connections == 1


@pytest.mark.parametrize("limit", [1, 2, 7])
async def test_never_more_on_the_way_than_max_connections(limit: int) -> None:
    running = 0
    seen: list[int] = []

    async def count(connection: Connection) -> None:
        nonlocal running
        while await connection.read_request():
            running += 1
            seen.append(running)
            await asyncio.sleep(0)
            running -= 1
            await connection.send(http_answer(ACCEPTED))

    rogue = Rogue(count)
    async with (
        rogue.running(),
        client(rogue.url, max_connections=limit, quota=None) as voice,
        anyio.create_task_group() as group,
    ):
        for _ in range(40):
            group.start_soon(voice.submit, MOBILE, "1125")
    assert len(seen) == 40
    assert max(seen) <= limit
    assert rogue.connections == limit


async def test_what_goes_over_the_wire() -> None:
    rogue = Rogue(answer_accepted)
    async with rogue.running(), client(rogue.url, clock=lambda: 1_700_000_000.9) as voice:
        await voice.submit("+86 139-1234-5678", "0042")
    head, _, body = rogue.requests[0].decode().partition("\r\n\r\n")
    lines = head.split("\r\n")
    assert lines[0] == "POST /webservice/voice.php?method=Submit HTTP/1.1"
    assert {line.partition(":")[0] for line in lines[1:]} == {
        "Host", "Content-Type", "Content-Length", "User-Agent", "Accept-Encoding",
    }  # fmt: skip
    assert "Accept-Encoding: identity" in lines
    assert "Content-Type: application/x-www-form-urlencoded" in lines
    assert re.fullmatch(
        r"account=id&password=[0-9a-f]{32}&mobile=13912345678&content=0042&format=json"
        r"&time=1700000000",
        body,
    )


# --- what is written ----------------------------------------------------------


async def test_no_read_takes_a_buffer_from_the_system() -> None:
    async with Rogue(answer_accepted).running() as rogue, client(rogue.url) as voice:
        await voice.submit(MOBILE, "1125")
        ((pooled, _),) = next(iter(connector_of(voice)._conns.values()))
        assert pooled.transport is not None
        # asyncio's own; other loops have transports of another kind.
        assert 65_536 == pooled.transport.max_size  # type: ignore[attr-defined]


# --- too late to write --------------------------------------------------------


async def test_nothing_is_written_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may be stopped for hours between two lines."""
    looks = 0

    def is_late(exchange: Exchange) -> bool:
        nonlocal looks
        looks += 1
        return looks >= 2

    monkeypatch.setattr(Exchange, "is_late", is_late)
    async with (
        Rogue(answer_accepted).running() as rogue,
        client(rogue.url, connect_attempts=1) as voice,
    ):
        with pytest.raises(NotSentError, match="too late to write"):
            await voice.submit(MOBILE, "1125")
        assert 0 == rogue.submits
