"""The connections to the gateway: aiohttp with some of its parts overridden.

An abandoned connection is reset, not closed: after a close the kernel keeps the
unsent bytes, and may deliver them long after the request was reported as
unknown. A pooled connection is reused only if nothing was received on it
since its last answer. A forked child closes its duplicates of the sockets at
once, because a connection lives as long as its last duplicate.

This module overrides, and tests check on the lowest and the newest aiohttp that we allow:
`TCPConnector.connect`, `_get`, `_release` and `_wrap_create_connection`,
`ResponseHandler.close`, `connection_made` and `connection_lost`,
`ClientRequest.update_body_from_data` and `write_bytes`, and `ClientResponse.start`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import struct
import time
import weakref
from contextvars import ContextVar
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohappyeyeballs
import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.payload import BytesPayload
from multidict import CIMultiDict

from .._threads import unpatched
from ..models import Answer
from ..wire import CONTENT_TYPE, MAX_ANSWER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiohttp.client_reqrep import ClientRequest, ConnectionKey
    from aiohttp.connector import AddrInfoType, Connection
    from aiohttp.tracing import Trace
    from typing_extensions import Self

    from .base import Exchange

# Bytes to read at once: the C library asks the system for buffers of 128 KB and more.
_READ_BYTES = 64 * 1024
# On, with a timeout of 0: closing resets the connection and drops the unsent bytes.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
# Linux's option for a socket's memory use; its first number is for received data.
_SO_MEMINFO = 55
_NOTHING = bytes(4)
# Seconds until the next address of a host is tried beside the first.
_HAPPY_EYEBALLS_SECONDS = 0.25
# Where a request keeps its body: a plain attribute in the older aiohttp we allow.
_BODY = "_body" if hasattr(aiohttp.ClientRequest, "update_body") else "body"

# The coarsest clock of an event loop: uvloop counts milliseconds.
_TIMER_SECONDS = 0.001

# Carries the state of one POST from `AiohttpTransport.post` to here, through aiohttp.
current_sending: ContextVar[Sending] = ContextVar("ihuyi_voice_sending")


class Phase(Enum):
    """What connecting does, as the end of a message about a timeout."""

    LOOK_UP = "the look-up of the host name did not end"
    CONNECT = "the connection was not accepted"
    HANDSHAKE = "the TLS handshake did not end"
    PROXY = "the proxy did not open the connection"


class Sending:
    """One POST in flight: its connection, and how far it got.

    Attributes:
        exchange: the request that is sent.
        connect_seconds: how long it may take to connect.
        connecting: aiohttp has begun to get a connection.
        phase: what connecting does now; None before it begins.
        connection: the connection; None before there is one.
        protocol: what reads and writes on that connection.
        expired: the deadline has passed.
        failure: what `exchange.outlived` raised just before the write.
        answer: the whole answer, once it is read.
    """

    __slots__ = (
        "answer",
        "connect_seconds",
        "connecting",
        "connection",
        "exchange",
        "expired",
        "failure",
        "phase",
        "protocol",
    )

    def __init__(self, exchange: Exchange, connect_seconds: float = math.inf) -> None:
        self.exchange: Exchange = exchange
        self.connect_seconds: float = connect_seconds
        self.connecting: bool = False
        self.phase: Phase | None = None
        self.connection: Connection | None = None
        self.protocol: ResettingProtocol | None = None
        self.expired: bool = False
        self.failure: Exception | None = None
        self.answer: Answer | None = None

    def expire(self) -> None:
        """Cut the connection at the deadline; the request then ends by itself.

        Nothing is cancelled, so a deadline and a cancellation cannot be
        mistaken for each other. Before there is a connection, `connect` sees
        that the deadline has passed. A connection that was returned to the pool
        has no transport here any more and is not touched.
        """
        self.expired = True
        if self.connection is not None and self.connection.transport is not None:
            self.connection.transport.abort()

    def is_late(self) -> bool:
        """Whether nothing may be written any more."""
        # A timer may fire some microseconds before its time.
        return self.expired or self.exchange.is_late()

    def may_write(self) -> bool:
        """Whether the body may be written now; if not, cut the connection.

        The body may not be written if `outlived` raises.
        """
        try:
            late = self.expired or self.exchange.is_late()
        except Exception as failure:  # noqa: BLE001 - `outlived` may raise anything
            self.failure = failure
            late = True
        if late:
            self.expire()
        return not late


class Deadlines:
    """Ends every POST in flight at its deadline, with one timer for all of them.

    A timer for each POST would be simpler, but its creation and cancellation
    cost 4 us, one twentieth of what a send costs. Almost no request reaches its
    deadline, so the timer fires about once per `timeout`.
    """

    def __init__(self) -> None:
        self._sendings: dict[Sending, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf

    def add(self, sending: Sending) -> None:
        """Let this POST expire at its deadline, unless `remove` comes first."""
        self._sendings[sending] = None
        if sending.exchange.deadline < self._due:
            self._wait_until(sending.exchange.deadline)

    def remove(self, sending: Sending) -> None:
        """Forget a POST that has ended."""
        del self._sendings[sending]

    def close(self) -> None:
        """End the timer once every POST has ended."""
        if self._timer is not None and not self._sendings:
            self._timer.cancel()

    def _wait_until(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        seconds = max(due - time.monotonic(), _TIMER_SECONDS)
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        """Expire each POST that has reached its deadline, and wait for the next deadline."""
        # A timer may fire early, by one step of the loop's clock.
        now = time.monotonic() + _TIMER_SECONDS
        due = math.inf
        for sending in self._sendings:
            if sending.expired:
                continue
            if sending.exchange.deadline <= now:
                sending.expire()
            else:
                due = min(due, sending.exchange.deadline)
        self._due = due
        if due < math.inf:
            self._wait_until(due)


# --- sockets -------------------------------------------------------------------

# By their number.
_sockets: weakref.WeakValueDictionary[int, socket.socket] = weakref.WeakValueDictionary()


def _resetting_socket(address: AddrInfoType) -> socket.socket:
    """A socket that resets its connection when it is closed, even by the end of the process."""
    family, kind, protocol, _, _ = address
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    _sockets[sock.fileno()] = sock
    return sock


def _give_up_duplicates() -> None:
    """Close a forked child's duplicates of its parent's sockets.

    The descriptors stay in use: the transports that the child inherited close
    them when they are collected, and must not close another file.
    """
    for sock in tuple(_sockets.values()):
        number = sock.fileno()
        if number < 0:
            continue
        # First, so that the next line finds a free descriptor even at the limit.
        os.close(number)
        nothing = os.open(os.devnull, os.O_RDWR)
        if nothing != number:
            os.dup2(nothing, number, inheritable=False)
            os.close(nothing)
    _sockets.clear()


if hasattr(os, "register_at_fork"):  # pragma: no branch - absent on Windows alone
    os.register_at_fork(after_in_child=_give_up_duplicates)


def _quiet_check(sock: socket.socket) -> Callable[[], bool]:
    """A function that checks that the socket has no unread bytes and no end of stream.

    It asks the system, because a busy loop has not read yet. On Linux it uses a
    call that keeps the interpreter's lock: a `poll` releases it, which costs a
    bulk run whose rows or outcomes another thread reads 13 us per send.
    """

    def is_quiet() -> bool:
        # The memory of received segments, an end of stream included; then a reset.
        return sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4) == _NOTHING and not (
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        )

    with contextlib.suppress(OSError):
        if len(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4)) == len(_NOTHING):
            return is_quiet
    # Not a Linux, or one before 4.12.
    try:
        poll = unpatched("select", "poll")()
    except AttributeError:
        # Windows has only select, whose third list is for errors.
        wait = unpatched("select", "select")
        return lambda: sock.fileno() >= 0 and not any(wait((sock,), (), (sock,), 0))
    # Errors are always included, and the end is something to read.
    poll.register(sock.fileno(), unpatched("select", "POLLIN"))
    return lambda: not poll.poll(0)


# --- one connection --------------------------------------------------------------


class ResettingProtocol(ResponseHandler):
    """aiohttp's protocol of one connection, closed by a reset.

    Attributes:
        lost: the connection is over and its socket closed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.lost: bool = False
        self._is_quiet: Callable[[], bool] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._is_quiet = _quiet_check(_sockets[transport.get_extra_info("socket").fileno()])
        # asyncio's transport allocates a buffer of `max_size` for every read. The
        # system provides its 256 KB newly each time: a fifth of the cost of a send.
        if getattr(transport, "max_size", 0) > _READ_BYTES:
            transport.max_size = _READ_BYTES  # type: ignore[attr-defined]

    def connection_lost(self, exc: BaseException | None) -> None:
        """See `asyncio.Protocol`."""
        self.lost = True
        super().connection_lost(exc)

    def close(self) -> None:
        """Reset the connection: bytes that are not sent yet are never sent."""
        transport = self.transport
        self.transport: asyncio.Transport | None = None
        if transport is not None:
            transport.abort()
        super().close()

    def is_clean(self) -> bool:
        """Whether nothing was received since the last answer, the end included."""
        return not self.should_close and self._is_quiet is not None and self._is_quiet()


class ResettingConnector(aiohttp.TCPConnector):
    """Provides connections, and records it: before that, nothing was written."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - as the base class takes them
        super().__init__(**options)
        self._factory = partial(ResettingProtocol, loop=self._loop)  # type: ignore[assignment]

    async def connect(
        self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        """Return a connection for one request; nothing is written yet."""
        sending = current_sending.get()
        sending.connecting = True
        connection = await super().connect(req, traces=traces, timeout=timeout)
        try:
            late = sending.is_late()
        except BaseException:
            connection.close()
            raise
        if late:
            connection.release()
            msg = "the deadline passed while the connection was made"
            raise TimeoutError(msg)
        sending.connection = connection
        sending.protocol = connection.protocol  # type: ignore[assignment]
        if not traces:
            # With traces, the last of them sets it: see `marking`.
            sending.exchange.may_have_been_written = True
        return connection

    async def _get(self, key: ConnectionKey, traces: list[Trace]) -> Connection | None:
        while (connection := await super()._get(key, [])) is not None:
            try:
                for trace in traces:
                    await trace.send_connection_reuseconn()
                clean = connection.protocol.is_clean()  # type: ignore[union-attr]
            except BaseException:
                connection.close()
                raise
            if clean:
                return connection
            connection.close()
        return None

    def _release(
        self, key: ConnectionKey, protocol: ResponseHandler, *, should_close: bool = False
    ) -> None:
        super()._release(key, protocol, should_close=should_close)
        # Without a parser the protocol keeps later bytes, and `should_close` sees them. At
        # once: a moment later another request may have the connection, and a parser on it.
        protocol._parser = None  # noqa: SLF001 - ours

    async def _create_connection(
        self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        # Not for a connection that is used again.
        current_sending.get().phase = Phase.LOOK_UP
        return await super()._create_connection(req, traces, timeout)

    async def _wrap_create_connection(
        self,
        *arguments: Any,  # noqa: ANN401 - passed on
        addr_infos: list[AddrInfoType],
        req: ClientRequest,
        timeout: aiohttp.ClientTimeout,
        client_error: type[Exception] = aiohttp.ClientConnectorError,
        **options: Any,  # noqa: ANN401 - passed on
    ) -> tuple[asyncio.Transport, ResponseHandler]:
        sending = current_sending.get()
        sending.phase = Phase.CONNECT
        # Only aiohttp 3.12 and newer take a socket factory.
        try:
            sock = await aiohappyeyeballs.start_connection(
                addr_infos,
                happy_eyeballs_delay=_HAPPY_EYEBALLS_SECONDS,
                loop=self._loop,
                socket_factory=_resetting_socket,
            )
        except OSError as error:
            raise client_error(req.connection_key, error) from error
        is_proxy = client_error is aiohttp.ClientProxyConnectionError
        sending.phase = Phase.PROXY if is_proxy else Phase.HANDSHAKE
        return await super()._wrap_existing_connection(
            *arguments, sock=sock, req=req, timeout=timeout, client_error=client_error, **options
        )


# --- one request and its answer ----------------------------------------------------


class Form(BytesPayload):
    """The body of one request, which no repr shows.

    All bodies share one headers object; the base class makes one for each.
    """

    _encoding = None
    _filename = None
    _headers = CIMultiDict({"Content-Type": CONTENT_TYPE})

    def __init__(self, body: bytes) -> None:
        self._value = body
        self._size = len(body)


class LeanRequest(aiohttp.ClientRequest):
    """A `Form` with the session's headers and no other.

    It accepts no compression, so a small answer cannot unpack into a large
    one. The session's `skip_auto_headers` would do the same with three copies
    of the headers per request. The body is never compressed, chunked or held
    back until a "100 Continue", so the methods for that do nothing.
    """

    def update_auto_headers(self, skip_auto_headers: object) -> None:
        """Add no header: the session has a User-Agent."""

    def update_content_encoding(self, data: object) -> None:
        """Send the body as it is."""

    def update_transfer_encoding(self) -> None:
        """Send the body in one piece."""

    def update_expect_continue(self, expect: bool = False) -> None:  # noqa: FBT001, FBT002 - aiohttp's
        """Send the body at once."""

    def update_body_from_data(self, body: Form) -> None:  # type: ignore[override] # bodies are forms
        """Take a `Form` as it is; aiohttp's own method also takes all other kinds of body."""
        setattr(self, _BODY, body)
        self.headers["Content-Type"] = CONTENT_TYPE
        self.headers["Content-Length"] = str(body.size)

    # Any arguments: aiohttp 3.11 passes one argument less.
    async def write_bytes(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - see above
        """Write the body, unless it is too late for that."""
        sending = current_sending.get()
        sending.exchange.may_have_been_written = True
        # Up to Python 3.11 this runs in its own task, which other tasks may delay.
        if sending.may_write():
            await super().write_bytes(*arguments, **options)


class WholeResponse(aiohttp.ClientResponse):
    """A response that is read completely before a trace config sees it."""

    async def start(self, connection: Connection) -> Self:
        """Read head and body."""
        await super().start(connection)
        answer = current_sending.get().answer = await read_answer(self)
        # For trace configs that read it.
        self._body = answer.body
        return self


async def read_answer(response: aiohttp.ClientResponse) -> Answer:
    """Read the answer, up to the size that is accepted."""
    content = response.content
    body = await content.readany()
    while not content.at_eof() and len(body) <= MAX_ANSWER_BYTES:
        body += await content.readany()
    if len(body) > MAX_ANSWER_BYTES:
        # The rest is not read, so the connection cannot be reused.
        response.close()
        body = body[: MAX_ANSWER_BYTES + 1]
    return Answer(response.status, body, response.headers.get("Date"))


def marking(trace_configs: Sequence[aiohttp.TraceConfig]) -> list[aiohttp.TraceConfig]:
    """The caller's trace configs between two that record how far the request got.

    A caller's callback may raise or wait for ever. Before the first config's signal
    nothing was done, and before the last config's headers signal nothing was written.
    """
    if not trace_configs:
        return []

    async def begin(*_: object) -> None:
        current_sending.get().connecting = True

    async def write(*_: object) -> None:
        current_sending.get().exchange.may_have_been_written = True

    first, last = aiohttp.TraceConfig(), aiohttp.TraceConfig()
    first.on_request_start.append(begin)
    last.on_request_headers_sent.append(write)
    return [first, *trace_configs, last]
