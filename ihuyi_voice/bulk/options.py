"""The options of a bulk run, and the rule by which it stops by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from .._limits import Limits
from ..errors import (
    BlockedMobileError,
    GatewayError,
    InvalidContentError,
    InvalidMobileError,
)
from ..models import Outcome, OutcomeStatus, check_count

StopOn: TypeAlias = Callable[[Outcome], bool]

# Refusals that the vendor's table blames on the number or the content of the row.
_ROW_REFUSALS = (InvalidMobileError, BlockedMobileError, InvalidContentError)
_FAILURES = (OutcomeStatus.UNKNOWN, OutcomeStatus.NOT_SENT)


def is_account_level(outcome: Outcome) -> bool:
    """Whether every further request would be refused the same way."""
    return isinstance(outcome.error, GatewayError) and outcome.error.account_level


@dataclass(frozen=True, slots=True)
class BulkOptions:
    """How to send the rows of a bulk run. The values are checked on creation.

    Attributes:
        max_connections: the client's setting: the default and the maximum of
            `concurrency`.
        concurrency, rate, stop_on, max_failures_in_row, wait_for_quota: see
            `submit_many`.
        limits: the client's.

    Raises:
        ValueError: an argument is wrong; the message says which, and what it takes.
        TypeError: an argument has the wrong type; the message says which.
    """

    max_connections: int
    concurrency: int | None = None
    rate: float | None = None
    stop_on: StopOn | None = is_account_level
    max_failures_in_row: int | None = 20
    wait_for_quota: bool = False
    limits: Limits = field(default_factory=Limits)

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


def _check_concurrency(concurrency: int | None, max_connections: int) -> None:
    if concurrency is None:
        return
    check_count("concurrency", concurrency)
    if concurrency > max_connections:
        msg = (
            f"concurrency is {concurrency}, and the client has max_connections={max_connections}:"
            " lower concurrency or raise max_connections"
        )
        raise ValueError(msg)


class StopRule:
    """Decides after each outcome whether the run stops.

    It stops where `stop_on` says so, and after `max_in_row` failures in a
    row. These outcomes are failures: unknown, not sent, and refused with a
    code that the table does not blame on the row (0, a code outside the
    table, or a code of the account).

    - An accepted row resets both counts.
    - A refusal with another such code resets the count of refusals.
    - A refusal that is blamed on its row shows that the gateway answers, so it
      resets the count of unknown and not-sent rows. It does not reset the
      count of refusals: blacklisted numbers between them change nothing.
    - An outcome for which nothing was sent now changes nothing: invalid,
      limited, replayed, or known from the store.
    """

    def __init__(self, stop_on: StopOn | None, max_in_row: int | None) -> None:
        self._stop_on = stop_on
        self._max_in_row = math.inf if max_in_row is None else max_in_row
        self._unanswered = 0
        self._refused = 0
        self._refusal_code: int | None = None

    def stops_after(self, outcome: Outcome) -> bool:
        """Whether the run stops after this outcome.

        Raises:
            BaseException: what `stop_on` raises.
        """
        if self._stop_on is None:
            return False
        if outcome.status is OutcomeStatus.ACCEPTED:
            self._unanswered = self._refused = 0
        else:
            self._count(outcome)
        return self._unanswered + self._refused >= self._max_in_row or self._stop_on(outcome)

    def _count(self, outcome: Outcome) -> None:
        error = outcome.error
        if outcome.status in _FAILURES:
            # The store knew this outcome from an earlier request: nothing was sent now.
            self._unanswered += not getattr(error, "earlier", False)
        elif isinstance(error, _ROW_REFUSALS):
            self._unanswered = 0
        elif isinstance(error, GatewayError):
            if error.code != self._refusal_code:
                self._refused, self._refusal_code = 0, error.code
            self._refused += 1
