"""Sends signed bytes to the gateway over aiohttp, and says what is known when that fails.

This is the only module that translates aiohttp's exceptions. It sends each body
once: no retry, no redirect, no decoding, no signing. The parts of aiohttp that
it replaces are in `connector.py`, `request.py` and `resolver.py`.

Whether something may have been written is known, not guessed: `Sending` writes
every request. An exception before that becomes a `NotSentError`, a later one
an `OutcomeUnknownError`. The class of the exception only selects the text.
aiohttp's frames hold the body, the headers and the proxy, so no exception that
leaves this module carries them.
"""

from __future__ import annotations

import asyncio
import base64
import math
import os
import socket
import ssl
from functools import lru_cache
from typing import TYPE_CHECKING

import aiohttp
import anyio
from yarl import URL

from ..errors import NotSentError, OutcomeUnknownError
from ..models import Secret
from .connector import ResettingConnector
from .request import Form, LeanRequest, WholeResponse, read_answer, recording
from .resolver import DaemonResolver
from .sending import Deadlines, EarlyAnswerError, InheritedError, Sending, current_sending

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ..models import Answer, Settings, SignedBody
    from .base import Exchange

# Without this header a proxy may compress; a small answer could unpack into a large one.
_HEADERS = {"User-Agent": "ihuyi-voice", "Accept-Encoding": "identity"}

# What each exception of aiohttp's client means, by name because the older releases
# that we allow lack some. If the system gave a reason, it follows this text.
WORDS: dict[str, str] = {
    "ClientConnectorDNSError": "the host name could not be resolved ({peer})",
    "ClientConnectorCertificateError": "the server's certificate is not valid ({peer})",
    "ClientConnectorSSLError": "the TLS handshake failed ({peer})",
    "ClientSSLError": "the TLS handshake failed ({peer})",
    "ServerFingerprintMismatch": "the server's certificate is not the pinned one ({peer})",
    "ClientProxyConnectionError": "the proxy could not be reached ({peer})",
    "ClientHttpProxyError": "the proxy refused to connect to the gateway",
    "UnixClientConnectorError": "the connection could not be made to {peer}",
    "ClientConnectorError": "the connection could not be made to {peer}",
    "ConnectionTimeoutError": "connecting took too long ({peer})",
    "SocketTimeoutError": "the connection fell silent",
    "ServerTimeoutError": "the gateway took too long",
    "ServerDisconnectedError": "the connection was closed without an answer",
    "ServerConnectionError": "the connection broke",
    "ClientConnectionResetError": "the connection was reset",
    "ClientOSError": "the connection broke",
    "ClientConnectionError": "the connection broke",
    "ClientPayloadError": "the answer broke off",
    "UploadAbortedError": "the request broke off",
    "ContentTypeError": "the answer is not valid HTTP",
    "WSServerHandshakeError": "the answer is not valid HTTP",
    "ClientResponseError": "the answer is not valid HTTP",
    "WSMessageTypeError": "the answer is not valid HTTP",
    "TooManyRedirects": "the gateway redirected",
    "RedirectClientError": "the gateway redirected",
    "InvalidUrlRedirectClientError": "the gateway redirected",
    "NonHttpUrlRedirectClientError": "the gateway redirected",
    "InvalidURL": "the URL is not valid",
    "InvalidUrlClientError": "the URL is not valid",
    "NonHttpUrlClientError": "the URL is not valid",
    "ClientError": "aiohttp failed",
    # Not from aiohttp: our classes, the system or a caller's trace config raise these.
    "EarlyAnswerError": "the gateway answered or hung up before the request was written",
    "InheritedError": "the process that this one was forked from sends it",
    "ConnectionError": "the connection broke",
    "TimeoutError": "it took too long",
    "OSError": "the system refused",
    "Exception": "an unexpected exception",
}
# aiohttp raises these only before a connection exists. They decide where a test
# double replaces aiohttp's session, because then our connector is not used.
_ONLY_CONNECTING = (
    aiohttp.ClientConnectorError,
    aiohttp.ClientHttpProxyError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.InvalidURL,
    aiohttp.ServerFingerprintMismatch,
)
# What sends a request, which aioresponses and other test doubles replace at any time.
# Then there is no connection that could be cut at the deadline.
_REQUEST = aiohttp.ClientSession._request  # noqa: SLF001 - to see whether it is replaced


class AiohttpTransport:
    """The `Transport` over one aiohttp session, which belongs to the running loop."""

    def __init__(
        self,
        settings: Settings,
        *,
        ssl_context: ssl.SSLContext | None = None,
        trace_configs: Sequence[aiohttp.TraceConfig] = (),
    ) -> None:
        self._base = base = URL(settings.base_url)
        self._url: Callable[[str], URL] = lru_cache(lambda target: base.join(URL(target)))
        self._timeout_seconds = settings.timeout
        self._connect_seconds = settings.connect_timeout
        self._timeout = _only_connecting(settings.connect_timeout)
        self._closing_turns = settings.limits.closing_turns
        self._proxy = None if settings.proxy is None else _Proxy(settings.proxy, self._base)
        headers = {"Host": str(base.host_port_subcomponent), **_HEADERS}
        self._traced = bool(trace_configs)
        self._deadlines = Deadlines()
        self._session = aiohttp.ClientSession(
            connector=ResettingConnector(
                limit=0,
                keepalive_timeout=settings.limits.keepalive,
                ssl=True if ssl_context is None else ssl_context,
                resolver=DaemonResolver(settings.connect_timeout),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers if self._proxy is None else self._proxy.session_headers(headers),
            request_class=LeanRequest,
            response_class=WholeResponse,
            auto_decompress=False,
            timeout=self._timeout,
            trust_env=False,
            trace_configs=recording(trace_configs),
        )

    async def post(self, target: str, body: SignedBody, exchange: Exchange) -> Answer:
        """See `Transport.post`."""
        remaining = self._remaining(exchange)
        sending = Sending(exchange, min(self._connect_seconds, remaining))
        error: BaseException | None = None
        self._deadlines.add(sending)
        token = current_sending.set(sending)
        try:
            answering = self._start(target, body, remaining)
            request = getattr(aiohttp.ClientSession, "_request", None)
            may_hang = self._traced or request is not _REQUEST
            response = await (_in_time(answering, sending) if may_hang else answering)
            if sending.answer is None:
                # A test double replaces aiohttp's session.
                sending.answer = await read_answer(response)
                response.release()
        except BaseException as exception:  # noqa: BLE001 - translated, or raised again below
            error = self._translate(exception, sending)
        finally:
            current_sending.reset(token)
            self._deadlines.remove(sending)
        if error is None:
            return sending.answer  # type: ignore[return-value] # read, because there is no error
        # Raised after the handler, so that aiohttp's exception, whose text may quote
        # the gateway, does not become the context. A task in pure Python resumes
        # this coroutine while it handles that exception, so the context is cleared too.
        try:
            await self._abandon(sending, error)
            raise error from error.__cause__
        finally:
            error.__context__ = None
            del error

    def _remaining(self, exchange: Exchange) -> float:
        """Seconds left for a request that may still be sent.

        Raises:
            OutcomeUnknownError: the process that this one was forked from sends it.
            NotSentError: its deadline has passed, or the client is closed.
        """
        if exchange.is_inherited():
            exchange.may_have_been_written = True
            raise OutcomeUnknownError(WORDS["InheritedError"])
        remaining = exchange.remaining()
        if exchange.is_late():
            msg = (
                f"the deadline of {self._timeout_seconds:g} s passed before a connection to"
                f" {self._gateway()} was tried"
            )
            raise NotSentError(msg)
        if self._session.closed:
            msg = "the client was closed before it was its turn"
            raise NotSentError(msg)
        return remaining

    def _start(
        self, target: str, body: SignedBody, remaining: float
    ) -> Awaitable[aiohttp.ClientResponse]:
        """Hand the form to aiohttp; await the result to send it."""
        proxy, timeout = self._proxy, self._timeout
        if remaining < self._connect_seconds:
            timeout = _only_connecting(remaining)
        return self._session.post(
            self._url(target),
            data=Form(body.reveal()),
            allow_redirects=False,
            timeout=timeout,
            proxy=None if proxy is None else proxy.url,
            proxy_headers=None if proxy is None else proxy.tunnel_headers(),
        )

    async def aclose(self) -> None:
        """Reset every connection; requests in flight end as unknown."""
        await self._session.close()
        for _ in range(self._closing_turns):
            await asyncio.sleep(0)
        self._deadlines.close()

    async def _abandon(self, sending: Sending, error: BaseException) -> None:
        """Reset the connection of a request that was given up, and check that it is reset."""
        if sending.connection is None or sending.protocol is None:
            return
        sending.connection.close()
        if not isinstance(error, Exception | asyncio.CancelledError):
            # The loop may not run again.
            return
        with anyio.CancelScope(shield=True):
            for _ in range(self._closing_turns):
                if sending.protocol.lost:
                    break
                await asyncio.sleep(0)
        # What a proxy has already received is not reset.
        sending.exchange.reset = sending.protocol.lost and self._proxy is None

    def _translate(self, exception: BaseException, sending: Sending) -> BaseException | None:
        """The error to raise for an exception, without its frames; None: the answer counts."""
        sending.withdraw()
        if not isinstance(exception, Exception):
            # A cancellation, KeyboardInterrupt or SystemExit.
            exception.__context__ = exception.__cause__ = None
            return exception.with_traceback(None)
        if sending.answer is not None:
            # A trace config raised after the answer was read.
            return None
        exchange = sending.exchange
        cause = _system_error(exception)
        if exchange.is_inherited():
            exchange.may_have_been_written = True
        if not exchange.may_have_been_written and (
            sending.connecting or isinstance(exception, _ONLY_CONNECTING)
        ):
            error = NotSentError(self._why_not_written(exception, cause, sending))
            error.__cause__ = cause
            return error
        exchange.may_have_been_written = True
        if sending.failure is not None:
            return OutcomeUnknownError(self._failed(sending.failure))
        if sending.expired:
            return OutcomeUnknownError(
                f"no whole answer from {self._gateway()} within {self._timeout_seconds:g} s"
            )
        return OutcomeUnknownError(self._words(exception, cause))

    def _why_not_written(
        self, exception: Exception, cause: OSError | None, sending: Sending
    ) -> str:
        if sending.failure is not None:
            return self._failed(sending.failure)
        if sending.expired and sending.connection is not None:
            return f"it was too late to write the request to {self._gateway()}"
        # aiohttp's limit for connecting may end at the same moment; its error says more.
        is_timeout = isinstance(exception, aiohttp.ConnectionTimeoutError)
        if sending.expired or (is_timeout and sending.phase is not None):
            return self._too_late(sending)
        return self._words(exception, cause)

    def _failed(self, failure: Exception) -> str:
        """What failed just before the write; `outlived` may raise anything."""
        if isinstance(failure, EarlyAnswerError | InheritedError):
            return self._words(failure, None)
        return f"an unexpected exception ({type(failure).__name__})"

    def _too_late(self, sending: Sending) -> str:
        """That no connection came in time, and what connecting did at last."""
        is_last = sending.expired or sending.connect_seconds < self._connect_seconds
        seconds = self._timeout_seconds if is_last else self._connect_seconds
        text = f"no connection to {self._gateway()} within {seconds:g} s"
        return text if sending.phase is None else f"{text}: {sending.phase.value}"

    def _words(self, exception: Exception, cause: OSError | None) -> str:
        """What happened, by the class of the exception and the system's reason."""
        names = (cls.__name__ for cls in type(exception).__mro__)
        text = next(WORDS[name] for name in names if name in WORDS)
        if "{peer}" not in text and text != WORDS["Exception"]:
            text = f"{text} ({self._gateway()})"
        reason = f" ({type(exception).__name__})" if cause is None else f": {_why(cause)}"
        return text.format(peer=self._peer(exception)) + reason

    def _gateway(self) -> str:
        """Host and port of the gateway, and those of the proxy on the way."""
        gateway = _host_and_port(self._base.host, self._base.port)
        if self._proxy is None:
            return gateway
        proxy = self._proxy.url
        return f"{gateway} through the proxy {_host_and_port(proxy.host, proxy.port)}"

    def _peer(self, exception: Exception) -> str:
        """Host and port that an exception is about."""
        nearest = self._base if self._proxy is None else self._proxy.url
        host = getattr(exception, "host", nearest.host)
        return _host_and_port(host, getattr(exception, "port", nearest.port))


class _Proxy:
    """A proxy: its URL, which aiohttp's messages show, and separately its password.

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

    def session_headers(self, headers: dict[str, str]) -> dict[str, str]:
        """The headers of every request; without a tunnel they also reach the proxy."""
        return headers if self._tunnel else {**headers, **self._headers()}

    def tunnel_headers(self) -> dict[str, str] | None:
        """The headers that only the proxy gets, to make a tunnel; None without one."""
        return self._headers() if self._tunnel else None

    def _headers(self) -> dict[str, str]:
        if self._authorization is None:
            return {}
        return {"Proxy-Authorization": self._authorization.reveal()}


def _host_and_port(host: object, port: object) -> str:
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def _basic(user: str, password: str) -> str:
    credentials = f"{user}:{password}"
    try:
        encoded = credentials.encode("latin-1")
    except UnicodeEncodeError:
        encoded = credentials.encode()
    return f"Basic {base64.b64encode(encoded).decode()}"


async def _in_time(
    answering: Awaitable[aiohttp.ClientResponse], sending: Sending
) -> aiohttp.ClientResponse:
    """The response, cancelled at the deadline: a trace config or a test double may hang."""
    with anyio.move_on_after(sending.exchange.remaining()):
        return await answering
    sending.expired = True
    raise TimeoutError


def _system_error(exception: Exception) -> OSError | None:
    """The system's own error, without its frames; aiohttp's exceptions may hold the request."""
    cause = exception.__cause__
    if not isinstance(cause, OSError) or isinstance(cause, aiohttp.ClientError) or not cause.args:
        return None
    cause.__context__ = cause.__cause__ = None
    return cause.with_traceback(None)


def _why(error: OSError) -> str:
    if error.errno is None or isinstance(error, ssl.SSLError | socket.gaierror):
        return error.strerror or str(error)
    # asyncio replaced the system's text: look it up again.
    return os.strerror(error.errno)


def _only_connecting(seconds: float) -> aiohttp.ClientTimeout:
    # `Deadlines` ends the whole request. aiohttp rounds long timeouts up to
    # whole seconds unless the threshold is out of reach.
    return aiohttp.ClientTimeout(total=None, connect=seconds, ceil_threshold=math.inf)
