"""The operations that tasks queue for the writer's thread, and how a transaction ends.

No I/O and no threads: `group_commit.py` executes the operations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ..answer import StoredAnswer
from ..entry import EntryState, FailureScope, Settlement
from ..limits import Release, Reservation

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from ...errors import StoreError
    from ...models import Unrecorded
    from ..entry import Entry, NewClaim
    from ..verifications import Transaction


_GIVEN_UP = StoredAnswer(msg="given up before it was sent")

Step: TypeAlias = "Callable[[Transaction], object]"
"""A function of `verifications.py` that runs as one transaction, or as part of one."""


class Work(NamedTuple):
    """What one transaction does, in this order.

    No two settlements and no two claims have the same key.

    Attributes:
        settlements: outcomes of earlier claims.
        releases: reservations to be given back.
        lookups: keys whose entries are wanted.
        claims: keys to be claimed.
        reservations: starts to be reserved. One with the token of a claim is
            reserved only if the claim succeeds, and undoes it if it does not.
        steps: functions, each with a name.
    """

    settlements: list[Settlement]
    releases: list[Release]
    lookups: list[str]
    claims: list[NewClaim]
    reservations: list[Reservation]
    steps: list[tuple[str, Step]] = []  # noqa: RUF012 - never changed in place

    @property
    def only_reads(self) -> bool:
        """Whether it changes nothing."""
        return not (
            self.settlements or self.releases or self.claims or self.reservations or self.steps
        )


@dataclass(frozen=True, slots=True)
class Committed:
    """The results of a transaction, by key or token.

    Attributes:
        overtaken: the settlements that were not written, because another claim
            or a person has settled the key.
        found: the entries that were looked up.
        blocking: the entries that block a new claim.
        waits: by token, the seconds until a number may be called that is over
            its limit. A claim succeeded that is neither in `blocking` nor here.
        results: by name, what the steps returned.
    """

    overtaken: set[str]
    found: dict[str, Entry]
    blocking: dict[str, Entry]
    waits: dict[str, float] = field(default_factory=dict)
    results: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a transaction failed.

    Attributes:
        error: the error that the waiting tasks raise.
        scope: what else the failure affects.
        may_be_committed: the commit was sent, and no answer came.
    """

    error: StoreError
    scope: FailureScope
    may_be_committed: bool = False

    @property
    def concerns_one_key(self) -> bool:
        """Whether transactions without one of the keys may succeed."""
        return self.scope in (FailureScope.KEY, FailureScope.ROW_LOCK)


Result: TypeAlias = Committed | Failed


class Operation:
    """One operation, and the task that waits for it.

    The task and the thread change `waiting` and `result` under the writer's
    lock only.

    Attributes:
        key: the idempotency key.
        future: wakes the task; None where no task ever waits.
        waiting: whether a task waits for the result.
        result: how its last transaction ended; None before the first.
        due: when it is tried next, if it is tried alone (monotonic seconds).
        give_up_at: when it fails, if its row stays locked (monotonic seconds).
    """

    __slots__ = ("due", "future", "give_up_at", "key", "result", "waiting")

    def __init__(self, key: str, future: asyncio.Future[None] | None) -> None:
        self.key: str = key
        self.future: asyncio.Future[None] | None = future
        self.waiting: bool = future is not None
        self.result: Result | None = None
        self.due: float = 0.0
        self.give_up_at: float = math.inf

    @property
    def is_wanted(self) -> bool:
        """Whether it must be executed."""
        return self.waiting


class StepOperation(Operation):
    """Runs a function of `verifications.py`.

    Attributes:
        step: the function.
    """

    __slots__ = ("step",)

    def __init__(self, key: str, step: Step, future: asyncio.Future[None]) -> None:
        super().__init__(key, future)
        self.step: Step = step


class LookupOperation(Operation):
    """Reads the entry of a key."""

    __slots__ = ()


class StartOperation(Operation):
    """Creates a claim or a reservation, which is reverted if its caller stopped waiting."""

    __slots__ = ()

    @property
    def succeeded(self) -> bool:
        """Whether it is in the database, as far as this process knows."""
        raise NotImplementedError  # pragma: no cover - abstract

    @property
    def must_be_reverted(self) -> bool:
        """Whether the database may hold it although no task uses it."""
        if isinstance(self.result, Failed):
            return self.result.may_be_committed
        return self.succeeded and not self.waiting

    def reverting(self, now: float) -> LastingOperation:
        """The operation that undoes it; does nothing where it was never made.

        Args:
            now: wall-clock seconds.
        """
        raise NotImplementedError  # pragma: no cover - abstract


class ClaimOperation(StartOperation):
    """Claims a key, and reserves a start where the client has limits.

    Attributes:
        claim: the claim to write.
        reservation: has the claim's token; None without limits.
    """

    __slots__ = ("claim", "reservation")

    def __init__(
        self,
        claim: NewClaim,
        future: asyncio.Future[None],
        reservation: Reservation | None = None,
    ) -> None:
        super().__init__(claim.key, future)
        self.claim: NewClaim = claim
        self.reservation: Reservation | None = reservation

    @property
    def succeeded(self) -> bool:
        """Whether the claim is in the database, as far as this process knows."""
        result = self.result
        return isinstance(result, Committed) and not (
            self.key in result.blocking or self.claim.token in result.waits
        )

    def reverting(self, now: float) -> SettleOperation:
        """The operation that settles the claim as not sent.

        It does nothing where the claim was never made: its token is unknown then.
        """
        settlement = Settlement(
            key=self.key,
            token=self.claim.token,
            state=EntryState.NOT_SENT,
            answer=_GIVEN_UP,
            changed_at=now,
            live_until=now,
        )
        return SettleOperation(settlement, release=_release_of(self.reservation))


class ReserveOperation(StartOperation):
    """Reserves a start without a key.

    Attributes:
        reservation: what to reserve.
    """

    __slots__ = ("reservation",)

    def __init__(self, reservation: Reservation, future: asyncio.Future[None]) -> None:
        super().__init__(reservation.token, future)
        self.reservation: Reservation = reservation

    @property
    def succeeded(self) -> bool:
        """Whether the reservation is in the database, as far as this process knows."""
        return isinstance(self.result, Committed) and self.key not in self.result.waits

    def reverting(self, now: float) -> ReleaseOperation:  # noqa: ARG002 - as the base class's
        """The operation that gives the reservation back."""
        return ReleaseOperation(Release(self.reservation.number, self.reservation.token))


class LastingOperation(Operation):
    """An operation that is retried until it is recorded, also when no task waits.

    Attributes:
        failures: how often it failed alone.
        dropped: whether it failed and is not retried.
        release: the reservation to be given back, None for none.
    """

    __slots__ = ("dropped", "failures", "release")

    def __init__(
        self, key: str, future: asyncio.Future[None] | None, release: Release | None
    ) -> None:
        super().__init__(key, future)
        self.failures: int = 0
        self.dropped: bool = False
        self.release: Release | None = release

    @property
    def is_wanted(self) -> bool:
        """Always: it is recorded although no task waits."""
        return True

    @property
    def is_recorded(self) -> bool:
        """Whether it is in the database."""
        return isinstance(self.result, Committed)

    def uncount(self) -> None:
        """See `SettleOperation`."""


class ReleaseOperation(LastingOperation):
    """Gives a reservation back that belongs to no claim."""

    __slots__ = ()

    def __init__(self, release: Release, future: asyncio.Future[None] | None = None) -> None:
        super().__init__(release.token, future, release)


class LastingStepOperation(LastingOperation):
    """Runs a function of `verifications.py` for which no task waits.

    Attributes:
        step: the function; a second run of it changes nothing.
    """

    __slots__ = ("step",)

    def __init__(self, key: str, step: Step) -> None:
        super().__init__(key, None, None)
        self.step: Step = step


class SettleOperation(LastingOperation):
    """Settles a claim.

    Attributes:
        settlement: the settlement to write.
        unrecorded: counts the settlements whose callers no longer wait.
        counted: whether `unrecorded` counts this one.
    """

    __slots__ = ("counted", "settlement", "unrecorded")

    def __init__(
        self,
        settlement: Settlement,
        future: asyncio.Future[None] | None = None,
        unrecorded: Unrecorded | None = None,
        release: Release | None = None,
    ) -> None:
        super().__init__(settlement.key, future, release)
        self.settlement: Settlement = settlement
        self.unrecorded: Unrecorded | None = unrecorded
        self.counted: bool = False

    @property
    def is_recorded(self) -> bool:
        """Whether it is in the database."""
        return isinstance(self.result, Committed) and self.key not in self.result.overtaken

    def count(self) -> None:
        """Count it as not recorded yet, unless it is. The caller holds the writer's lock."""
        if self.unrecorded is not None and not self.is_recorded:
            self.counted = True
            self.unrecorded.count += 1

    def uncount(self) -> None:
        """Count it no more. The caller holds the writer's lock."""
        if self.unrecorded is not None and self.counted:
            self.counted = False
            self.unrecorded.count -= 1


def _release_of(reservation: Reservation | None) -> Release | None:
    return None if reservation is None else Release(reservation.number, reservation.token)
