"""The operations that tasks queue for the writer's thread, and how a transaction ends.

No I/O and no threads: `group_commit.py` executes the operations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ..entry import EntryState, FailureScope, Settlement

if TYPE_CHECKING:
    import asyncio

    from ...errors import LedgerError
    from ...models import Unrecorded
    from ..entry import Entry, NewClaim


@dataclass(frozen=True, slots=True)
class Committed:
    """The results of a transaction, by key.

    Attributes:
        overtaken: the settlements that were not written, because another claim
            or a person has settled the key.
        found: the entries that were looked up.
        blocking: the entries that block a new claim. A claim without one succeeded.
    """

    overtaken: set[str]
    found: dict[str, Entry]
    blocking: dict[str, Entry]


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a transaction failed.

    Attributes:
        error: the error that the waiting tasks raise.
        scope: what else the failure affects.
        may_be_committed: the commit was sent, and no answer came.
    """

    error: LedgerError
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


class LookupOperation(Operation):
    """Reads the entry of a key."""

    __slots__ = ()


class ClaimOperation(Operation):
    """Claims a key.

    Attributes:
        claim: the claim to write.
    """

    __slots__ = ("claim",)

    def __init__(self, claim: NewClaim, future: asyncio.Future[None]) -> None:
        super().__init__(claim.key, future)
        self.claim: NewClaim = claim

    @property
    def succeeded(self) -> bool:
        """Whether the claim is in the database, as far as this process knows."""
        return isinstance(self.result, Committed) and self.key not in self.result.blocking

    @property
    def must_be_reverted(self) -> bool:
        """Whether the database may hold the claim although no task uses it."""
        if isinstance(self.result, Failed):
            return self.result.may_be_committed
        return self.succeeded and not self.waiting

    def reverting(self, now: float) -> SettleOperation:
        """The operation that settles the claim as not sent.

        It does nothing where the claim was never made: its token is unknown then.
        """
        return SettleOperation(
            Settlement(
                key=self.key,
                token=self.claim.token,
                state=EntryState.NOT_SENT,
                code=None,
                msg="given up before it was sent",
                voice_id=None,
                changed_at=now,
                live_until=now,
            )
        )


class SettleOperation(Operation):
    """Settles a claim, and is retried until it is recorded.

    Attributes:
        settlement: the settlement to write.
        unrecorded: counts the settlements whose callers no longer wait.
        counted: whether `unrecorded` counts this one.
        failures: how often it failed alone.
        dropped: whether it failed and is not retried.
    """

    __slots__ = ("counted", "dropped", "failures", "settlement", "unrecorded")

    def __init__(
        self,
        settlement: Settlement,
        future: asyncio.Future[None] | None = None,
        unrecorded: Unrecorded | None = None,
    ) -> None:
        super().__init__(settlement.key, future)
        self.settlement: Settlement = settlement
        self.unrecorded: Unrecorded | None = unrecorded
        self.counted: bool = False
        self.failures: int = 0
        self.dropped: bool = False

    @property
    def is_wanted(self) -> bool:
        """Always: it is recorded although no task waits."""
        return True

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
