"""`Recording`: writes the outcomes of a chunk into the store while the chunk is being sent.

It does not send. What it could not write is pending: the chunk is delivered again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio

from ..errors import StoreError
from .pace import step_deadline

if TYPE_CHECKING:
    from .._limits import JobLimits
    from ..store.jobs import JobOutcome, Jobs
    from .chunks import Chunk
    from .pace import LeasedPace

# Outcomes of one step.
_MOST_OUTCOMES = 500


class Recording:
    """The outcomes of one delivery of a chunk, and why it stops its job.

    Attributes:
        cause: why the job is stopped; None where it is not.
    """

    def __init__(self, jobs: Jobs, chunk: Chunk, limits: JobLimits) -> None:
        self.cause: str | None = None
        self._jobs = jobs
        self._chunk = chunk
        self._limits = limits
        self._outcomes: list[JobOutcome] = []
        self._news = anyio.Event()

    def add(self, *outcomes: JobOutcome) -> None:
        """Keep outcomes until `run` or `finish` writes them; a full batch wakes `run`."""
        self._outcomes += outcomes
        if len(self._outcomes) >= self._limits.batch:
            self._news.set()

    def stop_job(self, cause: str) -> None:
        """Write at once why the job is stopped: what is in flight may take seconds to finish."""
        self.cause = cause
        self._news.set()

    async def run(self) -> None:
        """Write what there is now and then, until it is cancelled."""
        while True:
            with anyio.move_on_after(self._limits.linger):
                await self._news.wait()
            self._news = anyio.Event()
            try:
                await self._write()
            except Exception:  # noqa: BLE001 - the end of the chunk tries again, and says it
                await anyio.sleep(self._limits.linger)

    async def finish(self, pace: LeasedPace) -> None:
        """Write all there is before the message is acknowledged.

        Raises:
            StoreError: the store still failed after `JobLimits.last` seconds.
        """
        end = time.monotonic() + self._limits.last
        while not await self._try_to_write_all(pace, end):  # noqa: ASYNC110 - it waits for the store
            await anyio.sleep(self._limits.linger)

    async def _try_to_write_all(self, pace: LeasedPace, end: float) -> bool:
        """Write all that there is; False where the store fails.

        Args:
            pace: says whether the canary has not ended.
            end: until when a failure is not raised, in monotonic seconds.

        Raises:
            StoreError: the store failed after `end`.
        """
        canary = pace.canary
        try:
            await self._write()
            if canary is not None:
                await self._jobs.note_canary(
                    self._chunk.job, canary.token, step_deadline(), was_sent=False
                )
        except StoreError:
            if time.monotonic() >= end:
                raise
            return False
        return True

    async def _write(self) -> None:
        chunk, generation = self._chunk, self._chunk.plan.generation
        if self.cause is not None:
            # Before the outcomes: a job with a refused account must not become completed.
            await self._jobs.stop(chunk.job, generation, self.cause, step_deadline())
        while self._outcomes:
            some = self._outcomes[:_MOST_OUTCOMES]
            await self._jobs.record(chunk.job, generation, some, step_deadline())
            del self._outcomes[: len(some)]
