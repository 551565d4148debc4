"""`Jobs`: the jobs of a store, for the workers and for the program that submits."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, TypeVar, cast

from ...errors import InvalidRequestError
from . import steps
from .values import JobState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..verifications import Transaction
    from .values import (
        JobOutcome,
        JobRecord,
        JobRunner,
        JobStatus,
        JobTransaction,
        Lease,
        Opening,
    )

T = TypeVar("T")

# Outcomes that `Jobs.outcomes` reads at once.
_PAGE = 1000
_NO_END = 2**62


class Jobs:
    """The jobs of a store.

    Workers await `opening`, `lease`, `record`, `stop`, `note_canary` and
    `seconds_under_way`; the deadline is in monotonic seconds. The other methods
    block. Every method raises `StoreError` where the store failed, and
    RuntimeError once it is closed.
    """

    def __init__(self, runner: JobRunner) -> None:
        self._runner = runner

    # --- for workers --------------------------------------------------------------

    async def opening(
        self, job: str, generation: int, first: int, end: int, deadline: float
    ) -> Opening:
        """Which rows of a message are to be sent, of those from `first` to before `end`."""
        return await self._run(lambda tx: steps.opening(tx, job, generation, first, end), deadline)

    async def lease(  # noqa: PLR0913, PLR0917 - the job, its generation, and how much
        self,
        job: str,
        generation: int,
        starts: int,
        token: str,
        canary_seconds: float,
        deadline: float,
    ) -> Lease | None:
        """Take some starts of a job.

        Args:
            job: its name.
            generation: of the message.
            starts: how many are wanted; `steps.MOST_STARTS` at most where the
                job has a rate.
            token: names this lease.
            canary_seconds: how long a canary may be out.
            deadline: monotonic seconds.

        Returns:
            The starts; None where the job starts no more rows of this generation.
        """
        return await self._run(
            lambda tx: steps.lease(tx, job, generation, starts, token, canary_seconds), deadline
        )

    async def note_canary(self, job: str, token: str, deadline: float, *, was_sent: bool) -> None:
        """Note that the canary's row has ended; where it was not sent, another one goes first."""
        await self._run(lambda tx: steps.note_canary(tx, job, token, was_sent=was_sent), deadline)

    async def record(
        self, job: str, generation: int, outcomes: Sequence[JobOutcome], deadline: float
    ) -> None:
        """Record outcomes. One that is recorded twice counts once; accepted stays accepted.

        Args:
            job: its name.
            generation: of the message that the rows came with.
            outcomes: some hundreds at most.
            deadline: monotonic seconds.
        """
        await self._run(lambda tx: steps.record(tx, job, generation, outcomes), deadline)

    async def stop(self, job: str, generation: int, cause: str, deadline: float) -> None:
        """Let no process start more rows of a job."""
        await self._run(
            lambda tx: steps.end(tx, job, JobState.STOPPED, cause, generation), deadline
        )

    async def seconds_under_way(self, keys: Sequence[str], deadline: float) -> float:
        """Seconds until no request of these keys can be sent or settled; 0.0 where none can."""
        return await self._run(lambda tx: steps.seconds_under_way(tx, keys), deadline)

    # --- for the program that submits -----------------------------------------------

    def create(self, job: str, rate: float | None) -> int:
        """Create a job; returns its generation.

        Raises:
            InvalidRequestError: there is one of this name.
        """
        generation = _new_generation()
        if not self._aside(lambda tx: steps.create(tx, job, rate, generation)):
            msg = (
                f"there is a job {job!r} already: resume it, or choose another name. Nothing was"
                " enqueued, no phone rang"
            )
            raise InvalidRequestError(msg)
        return generation

    def reopen(self, job: str) -> JobRecord:
        """Let a job be enqueued again; all but its accepted and unknown rows are pending then.

        Raises:
            LookupError: there is no such job.
        """
        generation = _new_generation()
        return _existing(job, self._aside(lambda tx: steps.reopen(tx, job, generation)))

    def note_enqueued(self, job: str, generation: int, total: int, *, all_rows: bool) -> int | None:
        """Note how many rows are enqueued so far, and whether these are all.

        Returns:
            How many rows the job has; None where it takes no more rows. Where it
            had more rows before, it waits for the rest.
        """
        return self._aside(
            lambda tx: steps.note_enqueued(tx, job, generation, total, all_rows=all_rows)
        )

    def cancel(self, job: str) -> None:
        """Let no process start more rows of a job; one that has ended is left as it is.

        Raises:
            LookupError: there is no such job.
        """
        _existing(job, self._aside(lambda tx: steps.end(tx, job, JobState.CANCELED, "", None)))

    def stop_blocking(self, job: str, generation: int, cause: str) -> None:
        """As `stop`, for a worker that could not begin."""
        self._aside(lambda tx: steps.end(tx, job, JobState.STOPPED, cause, generation))

    def status(self, job: str) -> JobStatus:
        """A job as it is now.

        Raises:
            LookupError: there is no such job.
        """
        return _existing(job, self._aside(lambda tx: steps.status(tx, job), writing=False))

    def names(self) -> list[str]:
        """The names of all jobs, the oldest first."""
        return self._aside(lambda tx: tx.job_names(), writing=False)

    def outcomes(self, job: str) -> Iterator[JobOutcome]:
        """The outcomes of a job by row, read page by page."""
        first = 0
        while True:
            page = self.some_outcomes(job, first, _NO_END, _PAGE)
            yield from page
            if len(page) < _PAGE:
                return
            first = page[-1].index + 1

    def some_outcomes(self, job: str, first: int, end: int, most: int) -> list[JobOutcome]:
        """At most `most` outcomes of the rows from `first` to before `end`, in their order."""
        return self._aside(lambda tx: tx.outcomes(job, first, end, most), writing=False)

    async def _run(self, step: Callable[[JobTransaction], T], deadline: float) -> T:
        # The transaction of a store that has jobs is a `JobTransaction` too.
        return await self._runner.run(cast("Callable[[Transaction], T]", step), deadline)

    def _aside(self, step: Callable[[JobTransaction], T], *, writing: bool = True) -> T:
        return self._runner.run_aside(cast("Callable[[Transaction], T]", step), writing=writing)


def _existing(job: str, found: T | None) -> T:
    if found is None:
        msg = f"the store has no job {job!r}"
        raise LookupError(msg)
    return found


def _new_generation() -> int:
    """Never the generation of a message that is still in the broker, also of a purged job."""
    return 1 + secrets.randbelow(2**31 - 1)
