"""When a bulk run may start its next row, and when it stops by itself.

Decisions alone: the workers are `bulk.py`'s.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import (
    BlockedMobileError,
    GatewayError,
    InvalidContentError,
    InvalidMobileError,
)
from ..models import Outcome, OutcomeStatus, check_count

StopOn: TypeAlias = Callable[[Outcome], bool]

# How far, in seconds, starts may catch up with the rate after a hold-up.
_CATCH_UP = 0.1

# Refusals that the vendor's table blames on the number or the content of the row.
_OF_THE_ROW = (InvalidMobileError, BlockedMobileError, InvalidContentError)
_FAILURES = (OutcomeStatus.UNKNOWN, OutcomeStatus.NOT_SENT)


def is_account_level(outcome: Outcome) -> bool:
    """Whether every further request would be refused the same way."""
    return isinstance(outcome.error, GatewayError) and outcome.error.account_level


@dataclass(frozen=True, slots=True)
class BulkOptions:
    """How to send the rows of a bulk run; checked when it is made.

    Attributes:
        max_connections: the client's; what `concurrency` is by default and at most.
        concurrency, rate, stop_on, max_failures_in_row, wait_for_quota: see
            `submit_many`.

    Raises:
        ValueError: naming the argument that is wrong and what it takes.
        TypeError: naming the argument that is of the wrong type.
    """

    max_connections: int
    concurrency: int | None = None
    rate: float | None = None
    stop_on: StopOn | None = is_account_level
    max_failures_in_row: int | None = 20
    wait_for_quota: bool = False

    def __post_init__(self) -> None:
        _check_concurrency(self.concurrency, self.max_connections)
        if self.rate is not None and (
            isinstance(self.rate, bool)
            or not isinstance(self.rate, int | float)
            or not 0 < self.rate < math.inf
        ):
            msg = f"rate is in starts per second, a number above 0 or None, not {self.rate!r}"
            raise ValueError(msg)
        if self.max_failures_in_row is not None:
            check_count("max_failures_in_row", self.max_failures_in_row)

    @property
    def in_flight(self) -> int:
        """How many requests may be in flight at once."""
        return self.max_connections if self.concurrency is None else self.concurrency


def _check_concurrency(concurrency: int | None, most: int) -> None:
    if concurrency is None:
        return
    check_count("concurrency", concurrency)
    if concurrency > most:
        msg = (
            f"concurrency is {concurrency}, and the client has max_connections={most}:"
            " raise the one or lower the other"
        )
        raise ValueError(msg)


class StopRule:
    """Whether a run stops after an outcome.

    It stops where `stop_on` says so, and after `max_in_row` failures in a
    row. A failure is an outcome that is unknown, not sent, or refused with a
    code that the table does not blame on the row: 0, one outside the table,
    or one of the account. An accepted row ends every row of failures. A
    refusal with another such code ends the refusals before it. A refusal that
    is blamed on its row shows that the gateway answers, so it ends the
    failures to answer; but it says nothing about the refusals, so blacklisted
    numbers between them change nothing. Outcomes in which nothing was sent
    now count for nothing: invalid, limited, replayed, or known from the
    ledger.
    """

    def __init__(self, stop_on: StopOn | None, max_in_row: int | None) -> None:
        self._stop_on = stop_on
        self._most = math.inf if max_in_row is None else max_in_row
        self._unanswered = 0
        self._refused = 0
        self._code: int | None = None

    def stops_after(self, outcome: Outcome) -> bool:
        """Whether the run stops after this one.

        Raises:
            BaseException: what `stop_on` raises.
        """
        if self._stop_on is None:
            return False
        if outcome.status is OutcomeStatus.ACCEPTED:
            self._unanswered = self._refused = 0
        else:
            self._count(outcome)
        return self._unanswered + self._refused >= self._most or self._stop_on(outcome)

    def _count(self, outcome: Outcome) -> None:
        error = outcome.error
        if outcome.status in _FAILURES:
            # Nothing was sent now where the ledger knows it of an earlier request.
            self._unanswered += not getattr(error, "earlier", False)
        elif isinstance(error, _OF_THE_ROW):
            self._unanswered = 0
        elif isinstance(error, GatewayError):
            if error.code != self._code:
                self._refused, self._code = 0, error.code
            self._refused += 1


class Pace:
    """When the next row may start, so that no more than `rate` start in a second.

    Attributes:
        is_limited: whether there is a rate to keep to.
    """

    def __init__(self, rate: float | None) -> None:
        self.is_limited: bool = rate is not None
        self._interval = 0.0 if rate is None else 1.0 / rate
        self._next_start: float | None = None

    def seconds_until_next(self) -> float:
        """Take the next start, and say how long it is until then; below 0 for now."""
        now = time.monotonic()
        start = now if self._next_start is None else max(self._next_start, now - _CATCH_UP)
        self._next_start = start + self._interval
        return start - now


class Turn:
    """A lock that costs next to nothing while no task waits for it.

    A cancellation is one of all workers, so no wake-up is ever lost.

    Attributes:
        waiting: one for each task that waits for it.
    """

    def __init__(self) -> None:
        self._is_taken = False
        # Bare futures: an event costs five times as much.
        self.waiting: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Take it if it is free, and say whether it was."""
        if self._is_taken:
            return False
        self._is_taken = True
        return True

    async def wait(self) -> None:
        """Wait until it may be free."""
        free: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(free)
        await free

    def pass_on(self, rows: int) -> None:
        """Give it up, to the task that has waited longest.

        Args:
            rows: how many rows are there to be taken at once: so many tasks
                are woken together, as none of them will hold the turn for long.
        """
        self._is_taken = False
        for _ in range(min(max(rows, 1), len(self.waiting))):
            free = self.waiting.popleft()
            if not free.done():
                free.set_result(None)
