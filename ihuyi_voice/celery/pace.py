"""When the next row of a chunk may start: the store leases starts to each process."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..bulk.pacing import Pace
from ..store.jobs.steps import MOST_STARTS

if TYPE_CHECKING:
    from ..client import AsyncVoiceClient
    from ..store.jobs import Jobs
    from .chunks import Chunk

# Seconds for one step of the store.
STEP_SECONDS = 15.0
# The starts of one lease are at most this part of a second of the rate.
_LEASE_SECONDS = 0.1
# Seconds beyond a request's own for which a canary may be out.
_CANARY_GRACE = 5.0


@dataclass(frozen=True, slots=True)
class CanaryRow:
    """A row of this run that goes out before all others of the job.

    Attributes:
        token: of its lease.
        index: its number in the run.
    """

    token: str
    index: int


class LeasedPace(Pace):
    """Lets rows start that the store has leased to this process.

    A chunk has one for all its runs, which begin with `begin`.

    Attributes:
        canary: the row of this run that is the canary and has not ended; None
            where there is none.
    """

    def __init__(self, client: AsyncVoiceClient, jobs: Jobs, chunk: Chunk) -> None:
        settings = client._settings
        rate = chunk.plan.rate
        super().__init__(rate, settings.limits)
        # The chunk has left out the rows that ended. A look-up of each other row would keep
        # the workers from reaching the rate.
        self.looks_up = False
        self.canary: CanaryRow | None = None
        self._jobs = jobs
        self._chunk = chunk
        self._canary_seconds = settings.timeout + _CANARY_GRACE
        self._next = 0.0
        self._most = max(MOST_STARTS, chunk.plan.concurrency)
        if rate is not None:
            self._most = max(1, min(MOST_STARTS, int(rate * _LEASE_SECONDS)))

    def begin(self, rows: int) -> None:
        """Begin a run of so many rows. What is left of an earlier run's lease is not used."""
        self._is_stopped = False
        self._left = 0
        # A start that no row uses is lost to the other processes.
        self._starts = min(self._most, rows)

    def stop(self) -> None:
        """See `Pace`."""
        self._is_stopped = True
        super().stop()

    def take_start(self) -> bool:
        """See `Pace`."""
        if self.is_limited or not self._left:
            return False
        self._left -= 1
        return True

    async def wait_for_start(self, index: int) -> bool:
        """See `Pace`."""
        while not self._left:
            if self._is_stopped or not await self._lease(index):
                return False
        self._left -= 1
        now = time.monotonic()
        wait, self._next = self._next - now, self._next + self._interval
        if wait > 0.0:
            await self._wait(wait)
        return True

    async def _wait(self, seconds: float) -> None:
        """Wait, or until `stop`, which may have been called during the step of the store."""
        if not self._is_stopped:
            await self.pause.wait(seconds)

    async def _lease(self, index: int) -> bool:
        """Ask for starts; False where there will be no more."""
        token = secrets.token_hex(8)
        lease = await self._jobs.lease(
            self._chunk.job,
            self._chunk.plan.generation,
            self._starts,
            token,
            self._canary_seconds,
            step_deadline(),
        )
        if lease is None:
            return False
        if lease.is_canary:
            self.canary = CanaryRow(token, index)
        if not lease.starts:
            await self._wait(lease.wait)
        self._left, self._interval = lease.starts, lease.interval
        self._next = time.monotonic() + lease.wait
        return True


def step_deadline() -> float:
    """Until when a step of the store may take, in monotonic seconds."""
    return time.monotonic() + STEP_SECONDS
