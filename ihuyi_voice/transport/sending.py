"""One POST on its way: how far it got, when it ends, and when it is written.

This module knows connections as little as it can: `connector.py` makes them, and
`request.py` hands the bytes over.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from contextvars import ContextVar
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from aiohttp.connector import Connection

    from ..models import Answer
    from .base import Exchange

# The coarsest clock of an event loop: uvloop counts milliseconds.
_TIMER_SECONDS = 0.001

# Carries the state of one POST from `AiohttpTransport.post` through aiohttp.
current_sending: ContextVar[Sending] = ContextVar("ihuyi_voice_sending")


class Phase(Enum):
    """What connecting does, as the end of a message about a timeout."""

    LOOK_UP = "the look-up of the host name did not end"
    CONNECT = "the connection was not accepted"
    HANDSHAKE = "the TLS handshake did not end"
    PROXY = "the proxy did not open the connection"


class Wire(Protocol):
    """The protocol of a connection, as far as a request needs it.

    Attributes:
        transport: None once the connection is closed.
        lost: the connection is over and its socket closed.
    """

    transport: asyncio.Transport | None
    lost: bool

    def close(self) -> None:
        """Reset the connection."""


class Sending:
    """One POST: its connection, and how far it got.

    Attributes:
        exchange: the request that is sent.
        writes: writes it, with those of other requests.
        connect_seconds: how long it may take to connect.
        connecting: aiohttp has begun to get a connection.
        phase: what connecting does now; None before it begins.
        connection: the connection; None before there is one.
        protocol: what reads and writes on that connection.
        expired: the deadline has passed, or something failed just before the write.
        failure: what failed there, such as `exchange.outlived`.
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
        "writes",
    )

    def __init__(
        self, exchange: Exchange, writes: Writes, connect_seconds: float = math.inf
    ) -> None:
        self.exchange: Exchange = exchange
        self.writes: Writes = writes
        self.connect_seconds: float = connect_seconds
        self.connecting: bool = False
        self.phase: Phase | None = None
        self.connection: Connection | None = None
        self.protocol: Wire | None = None
        self.expired: bool = False
        self.failure: Exception | None = None
        self.answer: Answer | None = None

    def expire(self) -> None:
        """Cut the connection at the deadline; the request then ends by itself.

        Nothing is cancelled, so a deadline and a cancellation cannot be
        mistaken for each other. Before there is a connection, the write sees
        that the deadline has passed. A connection that was returned to the pool
        has no transport here any more and is not touched.
        """
        self.expired = True
        if self.connection is not None and self.connection.transport is not None:
            self.connection.transport.abort()

    def write(self, data: bytes) -> None:
        """Write the request, unless it is too late or the connection is lost.

        If nothing is written, the connection is cut, so that the request ends.
        """
        transport = None if self.protocol is None else self.protocol.transport
        if transport is None:
            return
        try:
            if transport.is_closing():
                return
            # A timer may fire some microseconds before its time.
            if self.expired or self.exchange.is_late():
                self.expire()
                return
            self.exchange.may_have_been_written = True
            transport.write(data)
        except BaseException as failure:
            # From `outlived`, or from a signal handler, whose exception is for the loop.
            self.expire()
            if not isinstance(failure, Exception):
                raise
            self.failure = failure


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


class _Write(NamedTuple):
    """The bytes of one request, head and body."""

    sending: Sending
    data: bytes


class Writes:
    """Writes the requests of one turn of the loop together, in the next turn.

    A write to a process of the same machine, such as a proxy, has to wake it up,
    which costs up to 10 us: a tenth of a send. After a write just before, that
    process is still awake. Each write is checked at the last moment: see `Sending.write`.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Write] = deque()

    def add(self, sending: Sending, data: bytes) -> None:
        """Let a request be written in the next turn, unless its connection is closed before."""
        if not self._waiting:
            self._loop.call_soon(self._write_all)
        self._waiting.append(_Write(sending, data))

    def _write_all(self) -> None:
        waiting = self._waiting
        try:
            while waiting:
                write = waiting.popleft()
                write.sending.write(write.data)
        finally:
            if waiting:
                # A signal handler raised. If the loop runs again, it writes the others.
                self._loop.call_soon(self._write_all)
