"""How bytes reach the gateway and what is known when they do not.

The one place where aiohttp's exceptions become ours. It sends what it is given
once: no retry, no redirect, no decoding, no signing. The parts of aiohttp that
it replaces are in `connector.py` and `resolver.py`.

Whether something may have been written is known, not guessed: every
connection is handed out by `ResettingConnector.connect`, and nothing can be
written without one. An exception that comes before is a `NotSentError`, one
that comes after is an `OutcomeUnknownError`. The exception's class only gives
the words. aiohttp's frames hold the body, the headers and the proxy, so no
exception that leaves this module carries them.
"""

from __future__ import annotations

import asyncio
import base64
import math
import os
import socket
import ssl
import time
from typing import TYPE_CHECKING, Protocol

import aiohttp
import anyio
from yarl import URL

from ..errors import NotSentError, OutcomeUnknownError
from ..models import Secret
from .base import Exchange
from .connector import (
    Form,
    LeanRequest,
    ResettingConnector,
    WholeResponse,
    current_exchange,
    marking,
    read_answer,
)
from .resolver import DaemonResolver

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from ..errors import IhuyiVoiceError
    from ..models import Answer, Settings, SignedBody

__all__ = ["WORDS", "AiohttpTransport", "Exchange", "Transport"]

# Common servers close an idle connection after 5 s; one that is dropped just
# when it is reused costs an unknown outcome.
_KEEPALIVE_SECONDS = 4.0
# Seconds until a second look at a request that has no connection to cut yet.
_CLOSE_LOOK = 0.01
# Without a wish, a proxy may compress; a small answer could unpack into a large one.
_HEADERS = {"User-Agent": "ihuyi-voice", "Accept-Encoding": "identity"}
# Turns of the loop within which an aborted connection's socket is closed: one,
# and one more with TLS. The rest is to spare.
_CLOSING_TURNS = 4


class Transport(Protocol):
    """The way to the gateway, in one method."""

    async def post(self, target: str, body: SignedBody, exchange: Exchange) -> Answer:
        """POST the form `body` to `target` (path and query) exactly once.

        Raises:
            NotSentError: certainly nothing was written.
            OutcomeUnknownError: something may have been written, and no whole
                answer came by the exchange's deadline.
        """


# Every exception of aiohttp's client by name (some are missing from the older
# releases we allow): the words for it, and whether it can come up only before
# a connection exists. The second matters only where aiohttp's session is
# replaced, as test doubles do, so that our connector is never asked. Where the
# system gave a reason, it follows the words.
_CONNECTING, _ANY_TIME = True, False
WORDS: dict[str, tuple[str, bool]] = {
    "ClientConnectorDNSError": ("the host name could not be resolved ({peer})", _CONNECTING),
    "ClientConnectorCertificateError": (
        "the server's certificate is not valid ({peer})",
        _CONNECTING,
    ),
    "ClientConnectorSSLError": ("the TLS handshake failed ({peer})", _CONNECTING),
    "ClientSSLError": ("the TLS handshake failed", _CONNECTING),
    "ServerFingerprintMismatch": (
        "the server's certificate is not the pinned one ({peer})",
        _CONNECTING,
    ),
    "ClientProxyConnectionError": ("the proxy could not be reached ({peer})", _CONNECTING),
    "ClientHttpProxyError": ("the proxy refused to connect to the gateway", _CONNECTING),
    "UnixClientConnectorError": ("the connection could not be made to {peer}", _CONNECTING),
    "ClientConnectorError": ("the connection could not be made to {peer}", _CONNECTING),
    "ConnectionTimeoutError": ("connecting took too long ({peer})", _CONNECTING),
    "SocketTimeoutError": ("the connection fell silent", _ANY_TIME),
    "ServerTimeoutError": ("the gateway took too long", _ANY_TIME),
    "ServerDisconnectedError": ("the connection was closed without an answer", _ANY_TIME),
    "ServerConnectionError": ("the connection broke", _ANY_TIME),
    "ClientConnectionResetError": ("the connection was reset", _ANY_TIME),
    "ClientOSError": ("the connection broke", _ANY_TIME),
    "ClientConnectionError": ("the connection broke", _ANY_TIME),
    "ClientPayloadError": ("the answer broke off", _ANY_TIME),
    "UploadAbortedError": ("the request broke off", _ANY_TIME),
    "ContentTypeError": ("the answer is not HTTP as it should be", _ANY_TIME),
    "WSServerHandshakeError": ("the answer is not HTTP as it should be", _ANY_TIME),
    "ClientResponseError": ("the answer is not HTTP as it should be", _ANY_TIME),
    "WSMessageTypeError": ("the answer is not HTTP as it should be", _ANY_TIME),
    "TooManyRedirects": ("the gateway redirected", _ANY_TIME),
    "RedirectClientError": ("the gateway redirected", _ANY_TIME),
    "InvalidUrlRedirectClientError": ("the gateway redirected", _ANY_TIME),
    "NonHttpUrlRedirectClientError": ("the gateway redirected", _ANY_TIME),
    "InvalidURL": ("the URL is not one", _CONNECTING),
    "InvalidUrlClientError": ("the URL is not one", _CONNECTING),
    "NonHttpUrlClientError": ("the URL is not one", _CONNECTING),
    "ClientError": ("aiohttp failed", _ANY_TIME),
    # Not aiohttp's: what the system or a caller's trace config may raise.
    "ConnectionError": ("the connection broke", _ANY_TIME),
    "TimeoutError": ("it took too long", _ANY_TIME),
    "OSError": ("the system refused", _ANY_TIME),
    "Exception": ("an unexpected exception", _ANY_TIME),
}


class AiohttpTransport:
    """The `Transport` over one aiohttp session, which belongs to the running loop.

    It never makes a request wait for a connection: whatever calls it limits
    how many it has on the way.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        ssl_context: ssl.SSLContext | None = None,
        trace_configs: Sequence[aiohttp.TraceConfig] = (),
    ) -> None:
        self._base = URL(settings.base_url)
        self._urls: dict[str, URL] = {}
        self._timeout_seconds = settings.timeout
        self._connect_seconds = settings.connect_timeout
        self._timeout = _only_connecting(settings.connect_timeout)
        self._proxy = None if settings.proxy is None else _Proxy(settings.proxy, self._base)
        self._traced = bool(trace_configs)
        self._loop = asyncio.get_running_loop()
        # What is on the way, and when to look at its deadlines next.
        self._under_way: dict[Exchange, None] = {}
        self._next_look = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._session = aiohttp.ClientSession(
            connector=ResettingConnector(
                limit=0,
                keepalive_timeout=_KEEPALIVE_SECONDS,
                ssl=True if ssl_context is None else ssl_context,
                resolver=DaemonResolver(settings.connect_timeout),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS if self._proxy is None else self._proxy.session_headers(),
            request_class=LeanRequest,
            response_class=WholeResponse,
            auto_decompress=False,
            timeout=self._timeout,
            trust_env=False,
            trace_configs=marking(trace_configs),
        )

    async def post(self, target: str, body: SignedBody, exchange: Exchange) -> Answer:
        """See `Transport.post`."""
        remaining = exchange.remaining()
        if exchange.is_late():
            msg = f"the deadline of {self._timeout_seconds:g} s passed before it was its turn"
            raise NotSentError(msg)
        if self._session.closed:
            msg = "the client was closed before it was its turn"
            raise NotSentError(msg)
        url = self._urls.get(target)
        if url is None:
            url = self._urls[target] = self._base.join(URL(target))
        timeout = self._timeout
        if remaining < self._connect_seconds:
            timeout = _only_connecting(remaining)
        # An earlier attempt to connect may have left its traces.
        exchange.connection = exchange.protocol = None
        token = current_exchange.set(exchange)
        self._watch(exchange)
        proxy = self._proxy
        error: BaseException | None = None
        try:
            sending = self._session.post(
                url,
                data=Form(body.reveal()),
                allow_redirects=False,
                timeout=timeout,
                proxy=None if proxy is None else proxy.url,
                proxy_headers=None if proxy is None else proxy.tunnel_headers(),
            )
            response = await (_in_time(sending, exchange) if self._traced else sending)
            if exchange.answer is None:
                # aiohttp's session was replaced, as test doubles do.
                exchange.answer = await read_answer(response)
                response.release()
        except BaseException as exception:  # noqa: BLE001 - translated, or raised again below
            error = self._stated(exception, exchange)
        finally:
            del self._under_way[exchange]
            current_exchange.reset(token)
        if error is None:
            exchange.may_have_been_written = True
            return exchange.answer  # type: ignore[return-value] # read, where there is no error
        # Out here so that aiohttp's exception, whose text may quote the gateway,
        # does not hang on as the context. A task in pure Python resumes this
        # coroutine while it handles it, hence the rest.
        try:
            await self._abandon(exchange, error)
            raise error from error.__cause__
        finally:
            error.__context__ = None
            del error

    async def _abandon(self, exchange: Exchange, error: BaseException) -> None:
        """Reset the connection of a request that was given up, and see that it is."""
        if exchange.connection is None or exchange.protocol is None:
            return
        exchange.connection.close()
        if not isinstance(error, Exception | asyncio.CancelledError):
            # The loop may not turn again.
            return
        with anyio.CancelScope(shield=True):
            for _ in range(_CLOSING_TURNS):
                if exchange.protocol.lost:
                    break
                await asyncio.sleep(0)
        # Behind a proxy, what the proxy has already received is not reset.
        exchange.reset = exchange.protocol.lost and self._proxy is None

    def _watch(self, exchange: Exchange) -> None:
        """See to it that the exchange ends at its deadline.

        One timer serves all: a timer per request costs 1-2 µs, and hardly any
        of them would ever run out.
        """
        self._under_way[exchange] = None
        if exchange.deadline < self._next_look:
            self._look_at(exchange.deadline)

    def _look_at(self, moment: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next_look = moment
        self._timer = self._loop.call_later(moment - time.monotonic(), self._look)

    def _look(self) -> None:
        """Cut off what is past its deadline, and look again at the next one."""
        now = time.monotonic()
        self._next_look, self._timer = math.inf, None
        upcoming = math.inf
        for exchange in self._under_way:
            if exchange.deadline <= now and exchange.cut_off():
                continue
            # One that is past it and has no connection to cut is just about
            # to get or to return one.
            upcoming = min(upcoming, max(exchange.deadline, now + _CLOSE_LOOK))
        if upcoming < math.inf:
            self._look_at(upcoming)

    async def aclose(self) -> None:
        """Reset every connection; requests on the way end as unknown."""
        if self._timer is not None and not self._under_way:
            self._timer.cancel()
        await self._session.close()
        for _ in range(_CLOSING_TURNS):
            await asyncio.sleep(0)

    def _stated(self, exception: BaseException, exchange: Exchange) -> BaseException | None:
        """What to raise instead of an exception, without its frames; None for nothing."""
        if not isinstance(exception, Exception):
            # A cancellation or its like passes as it is.
            exception.__context__ = exception.__cause__ = None
            return exception.with_traceback(None)
        if exchange.answer is not None:
            # A trace config raised after the answer was read.
            return None
        return self._translate(exception, exchange)

    def _translate(self, exception: Exception, exchange: Exchange) -> IhuyiVoiceError:
        names = (cls.__name__ for cls in type(exception).__mro__)
        words, only_connecting = next(WORDS[name] for name in names if name in WORDS)
        words = words.format(peer=self._peer(exception))
        cause = _system_error(exception)
        reason = (
            f"{words} ({type(exception).__name__})" if cause is None else f"{words}: {_why(cause)}"
        )
        if not exchange.may_have_been_written and (exchange.connecting or only_connecting):
            if exchange.expired:
                reason = f"nothing was written within {self._timeout_seconds:g} s"
            error: IhuyiVoiceError = NotSentError(reason)
            error.__cause__ = cause
            return error
        exchange.may_have_been_written = True
        if exchange.failure is not None:
            reason = f"an unexpected exception ({type(exchange.failure).__name__})"
        elif exchange.expired:
            reason = f"no whole answer within {self._timeout_seconds:g} s"
        return OutcomeUnknownError(reason)

    def _peer(self, exception: Exception) -> str:
        """Host and port that an exception is about."""
        nearest = self._base if self._proxy is None else self._proxy.url
        host = getattr(exception, "host", nearest.host)
        port = getattr(exception, "port", nearest.port)
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


class _Proxy:
    """A proxy's URL, which aiohttp shows in its texts, and apart from it the password.

    Attributes:
        url: the URL without user and password.
    """

    def __init__(self, proxy: Secret, base: URL) -> None:
        url = URL(proxy.reveal())
        self.url: URL = url.with_user(None)
        self._tunnel = base.scheme == "https"
        self._authorization: Secret | None = None
        if url.user or url.password:
            self._authorization = Secret(_basic(url.user or "", url.password or ""))

    def session_headers(self) -> dict[str, str]:
        """What each request carries: it goes to the proxy where there is no tunnel."""
        return _HEADERS if self._tunnel else {**_HEADERS, **self._headers()}

    def tunnel_headers(self) -> dict[str, str] | None:
        """What is sent to the proxy alone, to have it make a tunnel."""
        return self._headers() if self._tunnel else None

    def _headers(self) -> dict[str, str]:
        if self._authorization is None:
            return {}
        return {"Proxy-Authorization": self._authorization.reveal()}


def _basic(user: str, password: str) -> str:
    credentials = f"{user}:{password}"
    try:
        encoded = credentials.encode("latin-1")
    except UnicodeEncodeError:
        encoded = credentials.encode()
    return f"Basic {base64.b64encode(encoded).decode()}"


async def _in_time(
    sending: Awaitable[aiohttp.ClientResponse], exchange: Exchange
) -> aiohttp.ClientResponse:
    """Cancel at the deadline what does not end by itself: a trace config may hang."""
    with anyio.move_on_after(exchange.remaining()):
        return await sending
    exchange.expired = True
    raise TimeoutError


def _system_error(exception: Exception) -> OSError | None:
    """What the system said, without the frames it came through.

    aiohttp's own exceptions may hold the request.
    """
    cause = exception.__cause__
    if not isinstance(cause, OSError) or isinstance(cause, aiohttp.ClientError) or not cause.args:
        return None
    cause.__context__ = cause.__cause__ = None
    return cause.with_traceback(None)


def _why(error: OSError) -> str:
    if error.errno is None or isinstance(error, ssl.SSLError | socket.gaierror):
        return error.strerror or str(error)
    # asyncio puts words of its own in place of the system's.
    return os.strerror(error.errno)


def _only_connecting(seconds: float) -> aiohttp.ClientTimeout:
    # aiohttp's timer for the whole request costs 1-2 µs; `_look` does its work.
    # It rounds long timeouts up to whole seconds unless the threshold is out of reach.
    return aiohttp.ClientTimeout(total=None, connect=seconds, ceil_threshold=math.inf)
