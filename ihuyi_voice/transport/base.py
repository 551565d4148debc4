"""One request on its way: its deadline, how far it got, and what is left of it.

What the transport and the steps around it share about a request. Nothing here
sends, and nothing here needs aiohttp.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.connector import Connection

    from ..models import Answer, Unrecorded
    from .connector import ResettingProtocol


class Exchange:
    """One request on its way: how long it may take and how far it got.

    Attributes:
        deadline: the moment, on `time.monotonic`, by which the answer's last
            byte must have come.
        may_have_been_written: False while it is certain that no byte was
            written to the gateway.
        connecting: the transport has begun with it, and asks for a connection.
        connection: the connection it got.
        protocol: what reads and writes on that connection.
        expired: the deadline came first, and the connection was cut.
        outlived: says when it must not be written any more, whatever the
            deadline says; None where nothing but the deadline counts.
        failure: what `outlived` raised just before the write.
        answer: the whole answer, once it was read.
        reset: its connection is closed and the kernel's send buffer dropped,
            so that nothing of it can reach the gateway later. False where
            that is not known: behind a proxy, after an answer, or without a
            connection.
        unrecorded: counts its outcome while the ledger has not recorded it;
            None where no one asks.
    """

    __slots__ = (
        "answer",
        "connecting",
        "connection",
        "deadline",
        "expired",
        "failure",
        "may_have_been_written",
        "outlived",
        "protocol",
        "reset",
        "unrecorded",
    )

    def __init__(self, deadline: float) -> None:
        self.deadline: float = deadline
        self.may_have_been_written: bool = False
        self.connecting: bool = False
        self.connection: Connection | None = None
        self.protocol: ResettingProtocol | None = None
        self.expired: bool = False
        self.outlived: Callable[[], bool] | None = None
        self.failure: Exception | None = None
        self.answer: Answer | None = None
        self.reset: bool = False
        self.unrecorded: Unrecorded | None = None

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
        """Cut the connection if it is late, and say whether it was.

        One of which that cannot be said is not written either.
        """
        try:
            late = self.is_late()
        except Exception as failure:  # noqa: BLE001 - `outlived` is asked, whatever it raises
            self.failure = failure
            late = True
        return late and self.cut_off()

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
