"""What a client reports to the functions of its `on_event`. Never a code, never a whole number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from .models import OutcomeStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    OnSubmit: TypeAlias = "Callable[[SubmitEvent], object]"

SUCCESSES: tuple[OutcomeStatus, ...] = (OutcomeStatus.ACCEPTED, OutcomeStatus.REPLAYED)
"""How a request ends that did not fail."""


@dataclass(frozen=True, slots=True)
class SubmitEvent:
    """The end of one request, for metrics, traces and alarms. There is one for each outcome.

    Attributes:
        operation: "submit"; "submit_many" for a row of a bulk run; or
            "query_balance".
        mobile: masked; `****` where there is no valid number.
        status: how it ended. A balance query ends as accepted, refused,
            not sent or unknown.
        code: the gateway's code, 2 for accepted; None without an answer.
        voice_id: the gateway's id of the call; of a replayed request, the id
            of the earlier call.
        seconds: how long it took, from the wait for a slot to its outcome. 0.0
            for a row that was refused before it was sent.
        attempts: how often the client tried to connect and send; 0 where it
            did not try.
        key: the idempotency key, with the number and the code masked if it
            contains them; None without one.
        error: the class of the error, such as "OutcomeUnknownError"; "" for
            none.
        reason: what happened; "" where it did not fail.
        host: host and port of the gateway.
        url: the gateway's URL without its query.
        http_status: of the answer; None without one.
        ended_at: when it ended, in seconds since 1970.
    """

    operation: str
    mobile: str
    status: OutcomeStatus
    code: int | None
    voice_id: str | None
    seconds: float
    attempts: int
    key: str | None
    error: str
    reason: str
    host: str
    url: str
    http_status: int | None
    ended_at: float

    @property
    def failed(self) -> bool:
        """Whether it ended in another way than accepted or replayed."""
        return self.status not in SUCCESSES


def checked_on_event(on_event: Sequence[OnSubmit]) -> tuple[OnSubmit, ...]:
    """The functions to call.

    Raises:
        TypeError: it is no sequence of functions.
    """
    functions = () if callable(on_event) else tuple(on_event)
    if callable(on_event) or not all(map(callable, functions)):
        msg = "on_event takes a list of functions: on_event=[function]"
        raise TypeError(msg)
    return functions
