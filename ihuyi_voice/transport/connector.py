"""The connections to the gateway: aiohttp with some of its parts overridden.

An abandoned connection is reset, not closed: after a close the kernel keeps the
unsent bytes, and may deliver them long after the request was reported as
unknown. A pooled connection is reused only if nothing was received on it
since its last answer. A forked child closes its duplicates of the sockets at
once, because a connection lives as long as its last duplicate.

This module overrides, and tests check on the lowest and the newest aiohttp that we allow:
`TCPConnector.connect`, `_get`, `_release`, `_create_connection` and
`_wrap_create_connection`, and `ResponseHandler.close`, `connection_made` and `connection_lost`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohappyeyeballs
import aiohttp
from aiohttp.client_proto import ResponseHandler

from .._threads import unpatched
from .request import LeanRequest
from .sending import EarlyAnswerError, Phase, current_sending

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from aiohttp.client_reqrep import ClientRequest, ConnectionKey
    from aiohttp.connector import AddrInfoType, Connection
    from aiohttp.http_parser import HttpParser
    from aiohttp.tracing import Trace

# Bytes to read at once: the C library asks the system for buffers of 128 KB and more.
_READ_BYTES = 64 * 1024
# On, with a timeout of 0: closing resets the connection and drops the unsent bytes.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
# Linux's option for a socket's memory use; its first number is for received data.
_SO_MEMINFO = 55
_NOTHING = bytes(4)
# Seconds until the next address of a host is tried beside the first.
_HAPPY_EYEBALLS_SECONDS = 0.25


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
        self._may_get_tickets: bool = False
        self._kept_parser: HttpParser[Any] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._is_quiet = _quiet_check(_sockets[transport.get_extra_info("socket").fileno()])
        self._may_get_tickets = transport.get_extra_info("sslcontext") is not None
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
        """Whether nothing was received since the last answer, the end included.

        The system cannot say it of a new TLS connection: the session tickets
        that the server sends after the handshake may not have been read yet.
        """
        if self.should_close or self._is_quiet is None:
            return False
        return self._may_get_tickets or self._is_quiet()

    def keep_unparsed(self) -> None:
        """Keep what is received, without parsing it: then `is_clean` sees each byte of it."""
        self._kept_parser, self._parser = self._parser, None

    def expect_answer(self) -> None:
        """Parse what is received from now on, as the answer to a request."""
        self._parser = self._kept_parser

    def rest(self) -> None:
        """Expect nothing more: the answer was read."""
        self._parser = self._kept_parser = None
        self._may_get_tickets = False


class ResettingConnector(aiohttp.TCPConnector):
    """Provides the connections, and records which one a request has."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - as the base class takes them
        super().__init__(**options)
        self._factory = partial(ResettingProtocol, loop=self._loop)  # type: ignore[assignment]

    async def connect(
        self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        """Return a connection for one request; nothing is written yet.

        Raises:
            EarlyAnswerError: the connection was new and received something.
        """
        sending = current_sending.get()
        sending.connecting = True
        sending.connection = connection = await super().connect(req, traces, timeout)
        sending.protocol = connection.protocol  # type: ignore[assignment] # see `_factory`
        is_new = sending.phase is not None
        if is_new and connection.protocol.should_close:  # type: ignore[union-attr] # always one
            # A part of an answer would disappear in the parser that the connection gets next.
            connection.close()
            raise EarlyAnswerError
        if not isinstance(req, LeanRequest):
            # From a class that replaces aiohttp's session: it writes when it likes.
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
        protocol.rest()  # type: ignore[attr-defined] # see `_factory`

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
