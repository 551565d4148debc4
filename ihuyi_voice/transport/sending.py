"""One POST on its way: how far it got, when it ends, and when it is written.

This module knows connections as little as it can: `connector.py` makes them, and
`request.py` hands the bytes over.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextvars import ContextVar
from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from aiohttp.connector import Connection

    from ..models import Answer
    from .base import Exchange

# The coarsest clock of an event loop: uvloop counts milliseconds.
_TIMER_SECONDS = 0.001
# After this, the second timer of a deadline follows.
_SPARE_SECONDS = 0.5

# Carries the state of one POST from `AiohttpTransport.post` through aiohttp.
current_sending: ContextVar[Sending] = ContextVar("ihuyi_voice_sending")


class Phase(Enum):
    """What connecting does, as the end of a message about a timeout."""

    LOOK_UP = "the look-up of the host name did not end"
    CONNECT = "the connection was not accepted"
    HANDSHAKE = "the TLS handshake did not end"
    PROXY = "the proxy did not open the connection"


class EarlyAnswerError(Exception):
    """The gateway answered or closed the connection before the request was written."""


class InheritedError(Exception):
    """The process that this one was forked from sends the request."""


class Wire(Protocol):
    """The protocol of a connection, as far as a request needs it.

    Attributes:
        lost: the connection is over and its socket closed.
    """

    lost: bool

    def is_clean(self) -> bool:
        """Whether nothing was received that no request has asked for, the end included."""

    def expect_answer(self) -> None:
        """Take what is received from now on as the answer."""


class Sending:
    """One POST: its connection, and how far it got.

    Attributes:
        exchange: the request that is sent.
        connect_seconds: how long it may take to connect.
        connecting: aiohttp has begun to get a connection.
        phase: what connecting does now; None before it begins.
        connection: the connection; None before there is one.
        protocol: what reads and writes on that connection.
        expired: the deadline has passed, or something failed just before the write.
        failure: what failed there, such as `exchange.outlived`.
        is_written: the request was written, which happens once.
        answer: the whole answer, once it is read.
    """

    __slots__ = (
        "_data",
        "answer",
        "connect_seconds",
        "connecting",
        "connection",
        "exchange",
        "expired",
        "failure",
        "is_written",
        "phase",
        "protocol",
    )

    def __init__(self, exchange: Exchange, connect_seconds: float = math.inf) -> None:
        self._data: bytes | None = None
        self.exchange: Exchange = exchange
        self.connect_seconds: float = connect_seconds
        self.connecting: bool = False
        self.phase: Phase | None = None
        self.connection: Connection | None = None
        self.protocol: Wire | None = None
        self.expired: bool = False
        self.failure: Exception | None = None
        self.is_written: bool = False
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

    def write_soon(self, data: bytes) -> None:
        """Write the request, head and body, in the next turn of the loop.

        A write to a process of the same machine, such as a proxy, has to wake it up,
        which costs up to 10 us: a tenth of a send. After a write just before, that
        process is still awake, and the requests of one turn are written in a row.
        """
        self._data = data
        asyncio.get_running_loop().call_soon(self._write)

    def withdraw(self) -> None:
        """Never write the request, if it still waits."""
        self._data = None

    def _write(self) -> None:
        """Write the request, unless something has happened to it or to its connection.

        If nothing is written, the connection is cut, so that the request ends. No variable
        here holds the request, and no traceback that leaves has a frame that does.
        """
        # A connection that was returned to the pool has no transport here.
        transport = None if self.connection is None else self.connection.transport
        if transport is None or self._data is None:
            return
        try:
            if transport.is_closing():
                return
            if not self._may_write():
                self.expire()
                return
            self.is_written = self.exchange.may_have_been_written = True
            transport.write(self._data)
        except BaseException as failure:  # noqa: BLE001 - see the next line
            # From `outlived`, or from a signal handler, whose exception is for the loop.
            self.expire()
            if not isinstance(failure, Exception):
                raise failure.with_traceback(None)  # noqa: B904 - the same exception
            self.failure = failure.with_traceback(None)
        finally:
            self._data = None

    def _may_write(self) -> bool:
        """Look at the last moment, because a process may be stopped for hours between two lines."""
        if self.exchange.is_inherited():
            # Only the parent knows how far it gets.
            self.exchange.may_have_been_written = True
            raise InheritedError
        # A timer may fire some microseconds before its time. Something between
        # us and aiohttp, such as a middleware, may send a request again.
        if self.expired or self.is_written or self.exchange.is_late():
            return False
        if self.protocol is not None:  # pragma: no branch - for type checkers
            if not self.protocol.is_clean():
                raise EarlyAnswerError
            self.protocol.expect_answer()
        return True


class Deadlines:
    """Ends every POST in flight at its deadline, with one timer for all of them.

    A timer for each POST would be simpler, but its creation and cancellation
    cost 4 us, one twentieth of what a send costs. Almost no request reaches its
    deadline, so the timer fires about once per `timeout`. A second one follows,
    for the case that a signal handler raises just as the first one fires.
    """

    def __init__(self) -> None:
        self._sendings: dict[Sending, None] = {}
        self._timers: list[asyncio.TimerHandle] = []
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
        """End the timers once every connection is closed: there is nothing left to cut."""
        self._cancel_timers()

    def _wait_until(self, due: float) -> None:
        self._cancel_timers()
        self._due = due
        seconds = max(due - time.monotonic(), _TIMER_SECONDS)
        loop = asyncio.get_running_loop()
        self._timers = [
            loop.call_later(after, self._look) for after in (seconds, seconds + _SPARE_SECONDS)
        ]

    def _cancel_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

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
        self._cancel_timers()
        if due < math.inf:
            self._wait_until(due)
