"""How bytes reach the gateway and what is known when they do not.

The only module that knows aiohttp, and the one place where its exceptions
become ours. It sends what it is given once: no retry, no redirect, no
decoding, no signing.

Whether something may have been written is known, not guessed: every
connection is handed out by `_Connector.connect`, and nothing can be written
without one. An exception that comes before is a `NotSentError`, one that
comes after is an `OutcomeUnknownError`. The exception's class only gives the
words.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp
from aiohttp.payload import BytesPayload
from yarl import URL

from .errors import NotSentError, OutcomeUnknownError
from .models import Answer
from .wire import CONTENT_TYPE, MAX_ANSWER_BYTES

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

    from .errors import IhuyiVoiceError
    from .models import Settings, SignedBody

# Common servers close an idle connection after 5 s; one that is dropped just
# when it is reused costs an unknown outcome.
_KEEPALIVE_SECONDS = 4.0
# Bytes to read at once: below the 128 KB from which a C library asks the system.
_READ_BYTES = 64 * 1024
# Seconds until a second look at a request that has no connection to cut yet.
_CLOSE_LOOK = 0.01


class Exchange:
    """One request on its way: how long it may take and how far it got.

    Attributes:
        deadline: the moment, on `time.monotonic`, by which the answer's last
            byte must have come.
        may_have_been_written: False while it is certain that no byte was
            written to the gateway.
        connecting: the transport has asked for a connection.
        connection: the connection it got.
        expired: the deadline came first, and the connection was cut.
        outlived: tells when it must not be written any more, whatever the
            deadline says; None where nothing but the deadline counts.
    """

    __slots__ = (
        "connecting",
        "connection",
        "deadline",
        "expired",
        "may_have_been_written",
        "outlived",
    )

    def __init__(self, deadline: float) -> None:
        self.deadline: float = deadline
        self.may_have_been_written: bool = False
        self.connecting: bool = False
        self.connection: Connection | None = None
        self.expired: bool = False
        self.outlived: Callable[[], bool] | None = None

    def is_late(self) -> bool:
        """Whether it must not be written any more.

        Asked just before the bytes go out as well: a process may have been
        stopped for hours between two lines.
        """
        return self.remaining() <= 0.0 or (self.outlived is not None and self.outlived())

    def remaining(self) -> float:
        """Seconds left until the deadline; negative when it has passed."""
        return self.deadline - time.monotonic()

    def cut_off_late(self) -> bool:
        """Cut the connection if it is late, and say whether it was."""
        return self.is_late() and self.cut_off()

    def cut_off(self) -> bool:
        """Cut the connection at the deadline; the request then ends by itself.

        Nothing is cancelled, so that a deadline and a cancellation cannot be
        mistaken for each other. A connection that has been given back to the
        pool has no transport here any more, and is left alone.

        Returns:
            Whether there was a connection to cut.
        """
        if self.connection is None or self.connection.transport is None:
            return False
        self.expired = True
        self.connection.transport.abort()
        return True


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
# replaced, as test doubles do, so that our connector is never asked.
_CONNECTING, _ANY_TIME = True, False
WORDS: dict[str, tuple[str, bool]] = {
    "ClientConnectorDNSError": ("the host name could not be resolved", _CONNECTING),
    "ClientConnectorCertificateError": ("the server's certificate is not valid", _CONNECTING),
    "ClientConnectorSSLError": ("the TLS handshake failed", _CONNECTING),
    "ClientSSLError": ("the TLS handshake failed", _CONNECTING),
    "ServerFingerprintMismatch": ("the server's certificate is not the pinned one", _CONNECTING),
    "ClientProxyConnectionError": ("the proxy could not be reached", _CONNECTING),
    "ClientHttpProxyError": ("the proxy refused to connect", _CONNECTING),
    "UnixClientConnectorError": ("the connection could not be made", _CONNECTING),
    "ClientConnectorError": ("the connection could not be made", _CONNECTING),
    "ConnectionTimeoutError": ("connecting took too long", _CONNECTING),
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

# Carries the exchange from `post` into the connector, through aiohttp.
_current_exchange: ContextVar[Exchange] = ContextVar("ihuyi_voice_exchange")


class _Connector(aiohttp.TCPConnector):
    """Hands out connections and notes that it did: the line between the phases."""

    async def connect(
        self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        exchange = _current_exchange.get()
        exchange.connecting = True
        connection = await super().connect(req, traces=traces, timeout=timeout)
        if exchange.is_late():
            connection.release()
            msg = "the deadline passed while the connection was made"
            raise TimeoutError(msg)
        exchange.connection = connection
        exchange.may_have_been_written = True
        # asyncio's transport says how much it reads at once, and takes a buffer
        # of that size for every read. One of its 256 KB comes fresh from the
        # system each time, which is a fifth of what a send costs.
        transport = connection.transport
        if getattr(transport, "max_size", 0) > _READ_BYTES:
            transport.max_size = _READ_BYTES  # type: ignore[union-attr]
        return connection


class _Request(aiohttp.ClientRequest):
    """A request without the headers that aiohttp adds to every one.

    Nothing compressed is asked for, so a small answer cannot unpack into a
    large one. The session's own `skip_auto_headers` does the same at three
    copies of the headers a request.
    """

    DEFAULT_HEADERS = {}  # noqa: RUF012 - as the base class declares it

    # Whatever it takes: aiohttp 3.11 hands over one argument less.
    async def write_bytes(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - see above
        """Write the body, unless it is too late for that."""
        # Up to Python 3.11 this is a task of its own, before which others had their turn.
        if _current_exchange.get().cut_off_late():
            return
        await super().write_bytes(*arguments, **options)


class AiohttpTransport:
    """The `Transport` over one aiohttp session, which belongs to the running loop.

    It never makes a request wait for a connection: whoever calls it limits
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
        self._proxy = settings.proxy
        self._loop = asyncio.get_running_loop()
        # What is on the way, and when to look at its deadlines next.
        self._under_way: dict[Exchange, None] = {}
        self._next_look = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._session = aiohttp.ClientSession(
            connector=_Connector(
                limit=0,
                keepalive_timeout=_KEEPALIVE_SECONDS,
                ssl=True if ssl_context is None else ssl_context,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "ihuyi-voice"},
            request_class=_Request,
            auto_decompress=False,
            timeout=self._timeout,
            trust_env=False,
            trace_configs=list(trace_configs),
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
        token = _current_exchange.set(exchange)
        self._watch(exchange)
        try:
            response = await self._session.post(
                url,
                data=BytesPayload(body.reveal(), content_type=CONTENT_TYPE),
                allow_redirects=False,
                timeout=timeout,
                proxy=None if self._proxy is None else self._proxy.reveal(),
            )
            try:
                received = await response.content.readany()
                if not response.content.at_eof():
                    received = await _read_on(response, received)
                answer = Answer(response.status, received, response.headers.get("Date"))
            finally:
                response.release()
        except Exception as exception:  # noqa: BLE001 - translated, whatever it is
            error = self._translate(exception, exchange)
            # What is raised below must not find half an answer in this frame.
            received = b""
        else:
            exchange.may_have_been_written = True
            return answer
        finally:
            del self._under_way[exchange]
            _current_exchange.reset(token)
        # Raised out here so that aiohttp's exception, whose text may quote
        # the gateway, does not hang on as the context. A task in pure Python
        # resumes this coroutine while it handles it, hence the rest.
        try:
            raise error from error.__cause__
        finally:
            error.__context__ = None

    def _watch(self, exchange: Exchange) -> None:
        """See to it that the exchange ends at its deadline.

        One timer serves all: a timer for each request is dear, and hardly
        any of them would ever run out.
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
        """Close every connection; requests on the way end as unknown."""
        if self._timer is not None:
            self._timer.cancel()
        await self._session.close()

    def _translate(self, exception: Exception, exchange: Exchange) -> IhuyiVoiceError:
        names = (cls.__name__ for cls in type(exception).__mro__)
        words, only_connecting = next(WORDS[name] for name in names if name in WORDS)
        reason = f"{words} ({type(exception).__name__})"
        if not exchange.may_have_been_written and (exchange.connecting or only_connecting):
            error: IhuyiVoiceError = NotSentError(reason)
            # The system's own words: aiohttp's exceptions may hold the proxy's password.
            if isinstance(exception.__cause__, OSError):
                error.__cause__ = exception.__cause__
            return error
        exchange.may_have_been_written = True
        if exchange.expired:
            reason = f"no whole answer within {self._timeout_seconds:g} s"
        return OutcomeUnknownError(reason)


def _only_connecting(seconds: float) -> aiohttp.ClientTimeout:
    # aiohttp's timer for the whole request is dear; `_look` does its work.
    # It rounds long timeouts up to whole seconds unless the threshold is out of reach.
    return aiohttp.ClientTimeout(total=None, connect=seconds, ceil_threshold=math.inf)


async def _read_on(response: aiohttp.ClientResponse, body: bytes) -> bytes:
    """The rest of an answer that did not come in one piece, up to what is wanted of it."""
    content = response.content
    while not content.at_eof() and len(body) <= MAX_ANSWER_BYTES:
        body += await content.readany()
    if len(body) > MAX_ANSWER_BYTES:
        # The rest is not wanted, and the connection cannot be reused without it.
        response.close()
        body = body[: MAX_ANSWER_BYTES + 1]
    return body
