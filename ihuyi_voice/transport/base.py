"""What a transport is, and what it shares with the pipeline about one request.

To send over another HTTP library, write a class with the two methods of
`Transport`, and pass it to a client: `AsyncVoiceClient(..., transport=Mine)`.
Nothing here sends, and nothing here knows an HTTP library.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..errors import IhuyiVoiceError
    from ..models import Answer, SignedBody, SubmitResult, Unrecorded


class Transport(Protocol):
    """The way to the gateway: one POST at a time, each at most once.

    It belongs to one event loop. It does not sign, decode or retry, and it
    follows no redirect. The pipeline limits how many posts run at once.
    """

    async def post(self, target: str, body: SignedBody, exchange: Exchange) -> Answer:
        """POST the form `body` to `target` (path and query) at most once.

        Set `exchange.may_have_been_written` before the first byte may leave.
        Write nothing once `exchange.is_late()`. Return or raise by the
        exchange's deadline.

        Raises:
            NotSentError: it is certain that nothing was written.
            OutcomeUnknownError: something may have been written, and no whole
                answer came by the exchange's deadline.
        """

    async def aclose(self) -> None:
        """Close every connection; posts in flight end as unknown."""


class Exchange:
    """One request in flight: how long it may take and how far it got.

    Attributes:
        began: the moment, on `time.monotonic`, at which it began.
        attempts: how often the client has tried to connect and send.
        http_status: of the answer; None without one.
        end: what the answer or the failure means, once that is known. A
            cancellation may come after that.
        deadline: the moment, on `time.monotonic`, by which the last byte of
            the answer must arrive.
        may_have_been_written: False while it is certain that no byte was
            written to the gateway.
        outlived: returns True once the request must not be written any more,
            even before the deadline; None if only the deadline counts.
        reset: the connection is closed and the kernel's send buffer dropped,
            so that no byte can reach the gateway later. False if this is
            not known: behind a proxy, after an answer, or without a connection.
        unrecorded: counts the outcome while the store has not recorded it;
            None where nothing counts it.
    """

    __slots__ = (
        "_pid",
        "attempts",
        "began",
        "deadline",
        "end",
        "http_status",
        "may_have_been_written",
        "outlived",
        "reset",
        "unrecorded",
    )

    def __init__(self, deadline: float, began: float | None = None) -> None:
        self._pid = os.getpid()
        self.began: float = time.monotonic() if began is None else began
        self.attempts: int = 0
        self.http_status: int | None = None
        self.end: SubmitResult | IhuyiVoiceError | None = None
        self.deadline: float = deadline
        self.may_have_been_written: bool = False
        self.outlived: Callable[[], bool] | None = None
        self.reset: bool = False
        self.unrecorded: Unrecorded | None = None

    def remaining(self) -> float:
        """Seconds left until the deadline; negative when it has passed."""
        return self.deadline - time.monotonic()

    def is_inherited(self) -> bool:
        """Whether it began in the process that this one was forked from, which sends it."""
        return self._pid != os.getpid()

    def is_late(self) -> bool:
        """Whether the request must not be written any more.

        A transport also asks just before it writes: a process may be stopped
        for hours between two lines.
        """
        return self.deadline <= time.monotonic() or (self.outlived is not None and self.outlived())
