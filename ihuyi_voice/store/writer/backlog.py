"""Which operations form the next batch, and which are retried.

Only the writer's thread uses it. No I/O and no waiting.
"""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING

from . import bounds
from .operations import LastingOperation, LastingStepOperation, LookupOperation, StepOperation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .operations import Operation


class Backlog:
    """The operations that are still to be executed.

    Attributes:
        new: in the order of their arrival.
        retries: settlements to be retried together with the next batch.
        singles: operations to be tried one by one, because their batch failed
            because of one key.
    """

    def __init__(self) -> None:
        self.new: deque[Operation] = deque()
        self.retries: deque[LastingOperation] = deque()
        self.singles: deque[Operation] = deque()

    def next_batch(self) -> list[Operation]:
        """Take the operations of the next transaction; the others stay.

        No two of its settlements and no two of its claims have the same key.
        """
        self._put_retries_first()
        suspects = {operation.key for operation in self.singles}
        batch: list[Operation] = []
        later: deque[Operation] = deque()
        taken: set[tuple[type[Operation], str]] = set()
        for operation in self.new:
            kind = type(operation)
            if not operation.is_wanted:
                continue
            if len(batch) >= bounds.MAX_BATCH or (kind, operation.key) in taken:
                later.append(operation)
            elif kind is LookupOperation:
                batch.append(operation)
            elif operation.key in suspects:
                self.isolate(operation)
            else:
                taken.add((kind, operation.key))
                batch.append(operation)
        self.new = later
        return batch

    def _put_retries_first(self) -> None:
        # First, so that a claim of the same key finds the settlement recorded.
        count = min(len(self.retries), bounds.MAX_RETRIES_PER_BATCH)
        self.new.extendleft(reversed([self.retries.popleft() for _ in range(count)]))

    def isolate(self, operation: Operation) -> None:
        """Try it in a transaction of its own, at once."""
        operation.due = 0.0
        limit_wait_for_row(operation)
        self.singles.append(operation)

    def next_single(self, now: float) -> Operation | None:
        """Take an operation that is due at `now` to be tried alone; None where none is."""
        for _ in range(len(self.singles)):
            operation = self.singles.popleft()
            if not operation.is_wanted:
                continue
            if operation.due <= now:
                return operation
            self.singles.append(operation)
        return None

    def postpone(self, operation: Operation) -> bool:
        """Try it again soon, because another transaction locks its row; False if it waited long."""
        limit_wait_for_row(operation)
        now = time.monotonic()
        if now >= operation.give_up_at:
            return False
        operation.due = now + bounds.CLAIM_RETRY_PAUSE
        self.singles.append(operation)
        return True

    def keep(self, operation: LastingOperation) -> None:
        """Retry a settlement that failed: alone, where it failed alone before."""
        if len(self.retries) + len(self.singles) >= bounds.MAX_KEPT:
            operation.dropped = True
        elif operation.failures:
            self.singles.append(operation)
        else:
            self.retries.append(operation)

    def take_new_settlements(self) -> list[LastingOperation]:
        """Take the settlements among the new operations."""
        settlements, others = split(self.new)
        self.new = deque(others)
        return settlements

    def make_singles_due(self) -> None:
        """Try all singles at once."""
        for operation in self.singles:
            operation.due = 0.0

    def next_due(self) -> float:
        """When there is something to retry, in monotonic seconds; infinity for never."""
        if self.retries:
            return 0.0
        return min((operation.due for operation in self.singles), default=math.inf)


def limit_wait_for_row(operation: Operation) -> None:
    """Let it fail if its row stays locked from now on."""
    latest = time.monotonic() + bounds.CLAIM_ROW_TIMEOUT
    operation.give_up_at = min(operation.give_up_at, latest)


def split(operations: Iterable[Operation]) -> tuple[list[LastingOperation], list[Operation]]:
    """The settlements, and the other operations."""
    settlements: list[LastingOperation] = []
    others: list[Operation] = []
    for operation in operations:
        if isinstance(operation, LastingOperation):
            settlements.append(operation)
        else:
            others.append(operation)
    return settlements, others


def divide(batch: Iterable[Operation]) -> list[list[Operation]]:
    """The settlements of a batch, its steps, and the others: each one transaction."""
    settlements: list[Operation] = []
    steps: list[Operation] = []
    rest: list[Operation] = []
    for operation in batch:
        if isinstance(operation, StepOperation | LastingStepOperation):
            steps.append(operation)
        elif isinstance(operation, LastingOperation):
            settlements.append(operation)
        else:
            rest.append(operation)
    return [settlements, rest, steps]
