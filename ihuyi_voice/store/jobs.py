"""What a store keeps of a job of several machines, and each change of it.

A job is one bulk run whose rows many worker processes send; `ihuyi_voice.celery`
starts it. The store has its state, its rate and one masked outcome for each row
that ended. It never has a code or a whole number.

The rules are here: each step reads and writes through a `JobTransaction`, runs
whole or not at all, and may run twice where a commit seemed to fail. A step
locks the row of its job first, so that steps of one job run one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from ..errors import InvalidRequestError
from ..models import OutcomeStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeGuard

    from .verifications import Transaction

T = TypeVar("T")

# Seconds after which a process asks again while the canary is out.
_CANARY_PAUSE = 0.05
# Starts that a delay of the store may catch up, in seconds of the rate.
_CATCH_UP = 0.02
# Outcomes that `Jobs.outcomes` reads at once.
_PAGE = 1000
_NO_END = 2**62


def check_job_name(name: object) -> None:
    """Check the name of a job.

    Raises:
        InvalidRequestError: it is not a str of 1-64 printable characters, or
            begins or ends with a blank.
    """
    is_name = (
        isinstance(name, str)
        and 1 <= len(name) <= 64
        and name.isprintable()
        and name == name.strip()
    )
    if not is_name:
        msg = "a job is named by a str of 1-64 printable characters without blanks around them"
        raise InvalidRequestError(msg)


class JobState(Enum):
    """The life cycle of a job."""

    SCHEDULED = "scheduled"
    PROCESSING = "processing"
    STOPPED = "stopped"
    CANCELED = "canceled"
    COMPLETED = "completed"


class Canary:
    """What became of the one row that goes out before the others."""

    NEEDED = "needed"
    OUT = "out"
    BACK = "back"


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job as it is stored; times are by the store's clock, Unix time in seconds.

    Attributes:
        name: names it, 1-64 characters.
        state: where in its life cycle it is.
        generation: counts how often its rows were enqueued, from 1. Messages of
            an earlier generation start no rows.
        rate: starts per second over all processes; None for no limit.
        next_start: when the next lease may begin.
        rows_total: how many rows were enqueued so far.
        rows_done: how many of them have an outcome.
        is_enqueued: whether all rows were enqueued.
        created_at: when it was submitted.
        started_at: when its first row was allowed to start; None before.
        finished_at: when it was stopped, canceled or completed; None before.
        stopped_by: why it was stopped, "" where it was not.
        canary: one of `Canary`.
        canary_until: when another row becomes the canary.
        canary_token: the lease that has the canary.
    """

    name: str
    state: JobState
    generation: int
    rate: float | None
    next_start: float
    rows_total: int
    rows_done: int
    is_enqueued: bool
    created_at: float
    started_at: float | None
    finished_at: float | None
    stopped_by: str
    canary: str
    canary_until: float
    canary_token: str


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """How one row of a job ended.

    Attributes:
        index: its number in the job, from 0.
        status: how it ended; a replayed row counts as accepted.
        mobile: masked; "" where the row has none.
        code: the gateway's code; None where it gave none.
        msg: the gateway's message, or why the row was not sent.
        voice_id: the gateway's id of the call.
        at: when it was recorded, Unix time in seconds.
    """

    index: int
    status: OutcomeStatus
    mobile: str
    code: int | None = None
    msg: str = ""
    voice_id: str | None = None
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job at one moment.

    Attributes:
        job: its name.
        state: where in its life cycle it is.
        counts: how many rows have each outcome.
        total: how many rows were enqueued so far.
        is_enqueued: whether these are all.
        rate: starts per second over all processes; None for no limit.
        started: when its first row was allowed to start, Unix time; None before.
        finished: when it was stopped, canceled or completed; None before.
        stopped_by: why it was stopped; None where it was not.
    """

    job: str
    state: JobState
    counts: dict[OutcomeStatus, int]
    total: int
    is_enqueued: bool
    rate: float | None
    started: float | None
    finished: float | None
    stopped_by: str | None

    @property
    def done(self) -> int:
        """How many rows have an outcome."""
        return sum(self.counts.values())

    @property
    def pending(self) -> int:
        """How many enqueued rows have no outcome."""
        return max(0, self.total - self.done)


@dataclass(frozen=True, slots=True)
class Lease:
    """Starts that one process may use.

    Attributes:
        starts: how many; 0 to ask again after `wait`.
        wait: seconds from the answer to the first start.
        interval: seconds between two starts.
        is_canary: whether its row goes out before all others.
    """

    starts: int
    wait: float = 0.0
    interval: float = 0.0
    is_canary: bool = False


class JobTransaction(Protocol):
    """One transaction of a store, for jobs."""

    def now(self) -> float:
        """The store's clock, Unix time in seconds."""

    def read_job(self, name: str) -> JobRecord | None:
        """A job, without a lock."""

    def find_job(self, name: str) -> JobRecord | None:
        """A job, which no other transaction changes until this one ends."""

    def save_job(self, record: JobRecord, *, is_new: bool = False) -> None:
        """Write a job that was found, or a new one."""

    def job_names(self) -> list[str]:
        """The names of all jobs, the oldest first."""

    def statuses(self, job: str, indexes: Sequence[int]) -> dict[int, OutcomeStatus]:
        """The statuses of those rows that have an outcome."""

    def add_outcomes(self, job: str, outcomes: Sequence[JobOutcome]) -> None:
        """Write outcomes of rows without one."""

    def change_outcomes(self, job: str, outcomes: Sequence[JobOutcome]) -> None:
        """Replace outcomes."""

    def drop_outcomes(self, job: str, statuses: Sequence[OutcomeStatus]) -> int:
        """Delete the outcomes with these statuses; returns how many."""

    def count_job(self, name: str) -> tuple[JobRecord, dict[OutcomeStatus, int]] | None:
        """A job and how many rows have each outcome, both of one moment; without a lock."""

    def outcomes(self, job: str, first: int, end: int, most: int) -> list[JobOutcome]:
        """The outcomes from a row on, before another, by row; at most so many."""


class JobRunner(Protocol):
    """A store that runs a step as one transaction: awaited, or blocking."""

    async def run(self, step: Callable[[Transaction], T], deadline: float) -> T:
        """Run `step`, which may run twice where a commit seemed to fail."""

    def run_aside(self, step: Callable[[Transaction], T], *, writing: bool = True) -> T:
        """Run `step` with a connection of its own."""


class Jobs:
    """The jobs of a store.

    Workers await `lease`, `record`, `stop` and `note_canary`; the deadline is in
    monotonic seconds. The other methods block. Every method raises `StoreError`
    where the store failed, and RuntimeError once it is closed.
    """

    def __init__(self, runner: JobRunner) -> None:
        self._runner = runner

    # --- for workers --------------------------------------------------------------

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
            starts: how many are wanted.
            token: names this lease.
            canary_seconds: how long a canary may be out.
            deadline: monotonic seconds.

        Returns:
            The starts; None where the job starts no more rows of this generation.
        """
        return await self._run(
            lambda tx: _lease(tx, job, generation, starts, token, canary_seconds), deadline
        )

    async def note_canary(self, job: str, token: str, deadline: float, *, was_sent: bool) -> None:
        """Note that the canary's row has ended; where it was not sent, another one goes first."""
        await self._run(lambda tx: _note_canary(tx, job, token, was_sent=was_sent), deadline)

    async def record(self, job: str, outcomes: Sequence[JobOutcome], deadline: float) -> None:
        """Record outcomes. One that is recorded twice counts once; accepted stays accepted."""
        await self._run(lambda tx: _record(tx, job, outcomes), deadline)

    async def accepted(
        self, job: str, first: int, end: int, deadline: float
    ) -> dict[int, JobOutcome]:
        """The accepted rows from one on, before another, by index."""

        def step(tx: JobTransaction) -> dict[int, JobOutcome]:
            return {
                outcome.index: outcome
                for outcome in tx.outcomes(job, first, end, end - first)
                if outcome.status is OutcomeStatus.ACCEPTED
            }

        return await self._run(step, deadline)

    async def stop(self, job: str, generation: int, cause: str, deadline: float) -> None:
        """Let no process start more rows of a job."""
        await self._run(lambda tx: _end(tx, job, JobState.STOPPED, cause, generation), deadline)

    # --- for the program that submits -----------------------------------------------

    def create(self, job: str, rate: float | None) -> None:
        """Create a job.

        Raises:
            InvalidRequestError: there is one of this name.
        """
        if not self._aside(lambda tx: _create(tx, job, rate)):
            msg = (
                f"there is a job {job!r} already: resume it, or choose another name. Nothing was"
                " enqueued, no phone rang"
            )
            raise InvalidRequestError(msg)

    def reopen(self, job: str) -> JobRecord:
        """Let a job be enqueued again; all but its accepted and unknown rows are pending then.

        Raises:
            LookupError: there is no such job.
        """
        return _existing(job, self._aside(lambda tx: _reopen(tx, job)))

    def note_enqueued(self, job: str, generation: int, total: int, *, all_rows: bool) -> bool:
        """Note how many rows are enqueued so far; False where the job takes no more rows."""
        return self._aside(lambda tx: _note_enqueued(tx, job, generation, total, all_rows=all_rows))

    def cancel(self, job: str) -> None:
        """Let no process start more rows of a job; one that has ended is left as it is.

        Raises:
            LookupError: there is no such job.
        """
        _existing(job, self._aside(lambda tx: _end(tx, job, JobState.CANCELED, "", None)))

    def stop_blocking(self, job: str, generation: int, cause: str) -> None:
        """As `stop`, for a worker that could not begin."""
        self._aside(lambda tx: _end(tx, job, JobState.STOPPED, cause, generation))

    def status(self, job: str) -> JobStatus:
        """A job as it is now.

        Raises:
            LookupError: there is no such job.
        """
        return _existing(job, self._aside(lambda tx: _status(tx, job), writing=False))

    def names(self) -> list[str]:
        """The names of all jobs, the oldest first."""
        return self._aside(lambda tx: tx.job_names(), writing=False)

    def outcomes(self, job: str) -> Iterator[JobOutcome]:
        """The outcomes of a job by row, read page by page."""
        first = 0
        while True:
            page = self._page(job, first)
            yield from page
            if len(page) < _PAGE:
                return
            first = page[-1].index + 1

    def _page(self, job: str, first: int) -> list[JobOutcome]:
        return self._aside(lambda tx: tx.outcomes(job, first, _NO_END, _PAGE), writing=False)

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


# --- the steps ------------------------------------------------------------------

_RUNNING = (JobState.SCHEDULED, JobState.PROCESSING)
# A row that was redelivered, or found resolved, may start although all rows have an outcome.
_MAY_START = (*_RUNNING, JobState.COMPLETED)
# Outcomes that a resumed job keeps: no phone may ring twice.
_KEPT = (OutcomeStatus.ACCEPTED, OutcomeStatus.UNKNOWN)


def _create(tx: JobTransaction, job: str, rate: float | None) -> bool:
    if tx.find_job(job) is not None:
        return False
    record = JobRecord(
        name=job,
        state=JobState.SCHEDULED,
        generation=1,
        rate=rate,
        next_start=0.0,
        rows_total=0,
        rows_done=0,
        is_enqueued=False,
        created_at=tx.now(),
        started_at=None,
        finished_at=None,
        stopped_by="",
        canary=Canary.NEEDED,
        canary_until=0.0,
        canary_token="",
    )
    tx.save_job(record, is_new=True)
    return True


def _reopen(tx: JobTransaction, job: str) -> JobRecord | None:
    record = tx.find_job(job)
    if record is None:
        return None
    dropped = tx.drop_outcomes(job, [status for status in OutcomeStatus if status not in _KEPT])
    record = replace(
        record,
        state=JobState.SCHEDULED,
        generation=record.generation + 1,
        rows_done=record.rows_done - dropped,
        is_enqueued=False,
        finished_at=None,
        stopped_by="",
        canary=Canary.NEEDED,
    )
    tx.save_job(record)
    return record


def _note_enqueued(
    tx: JobTransaction, job: str, generation: int, total: int, *, all_rows: bool
) -> bool:
    record = tx.find_job(job)
    if record is None or record.generation != generation or record.state not in _RUNNING:
        return False
    # Where the job is resumed, all its rows are counted already.
    rows_total = total if all_rows else max(total, record.rows_total)
    record = replace(record, rows_total=rows_total, is_enqueued=all_rows)
    tx.save_job(_completed(record, tx.now()))
    return True


def _completed(record: JobRecord, now: float) -> JobRecord:
    """The job, completed if all its rows have an outcome."""
    is_over = record.is_enqueued and record.rows_done >= record.rows_total
    if not is_over or record.state not in _RUNNING:
        return record
    return replace(record, state=JobState.COMPLETED, finished_at=now)


def _lease(  # noqa: PLR0913, PLR0917 - as `Jobs.lease`
    tx: JobTransaction,
    job: str,
    generation: int,
    starts: int,
    token: str,
    canary_seconds: float,
) -> Lease | None:
    record = tx.read_job(job)
    if not _may_start(record, generation):
        return None
    if record.canary == Canary.BACK and record.rate is None:
        # Without a lock, so that no process waits for another.
        return Lease(starts)
    record = tx.find_job(job)
    if not _may_start(record, generation):
        return None
    now = tx.now()
    if record.canary == Canary.BACK:
        return _timed_lease(tx, record, starts, now)
    is_out = record.canary == Canary.OUT and now < record.canary_until
    if is_out and record.canary_token != token:
        return Lease(0, _CANARY_PAUSE)
    if record.state is JobState.SCHEDULED:
        record = replace(record, state=JobState.PROCESSING)
    tx.save_job(
        replace(
            record,
            canary=Canary.OUT,
            canary_until=now + canary_seconds,
            canary_token=token,
            started_at=now if record.started_at is None else record.started_at,
            next_start=now + (1.0 / record.rate if record.rate else 0.0),
        )
    )
    return Lease(1, is_canary=True)


def _may_start(record: JobRecord | None, generation: int) -> TypeGuard[JobRecord]:
    return record is not None and record.generation == generation and record.state in _MAY_START


def _timed_lease(tx: JobTransaction, record: JobRecord, starts: int, now: float) -> Lease:
    """Starts at the job's rate, after all that were leased before."""
    interval = 1.0 / (record.rate or 1.0)
    start = max(record.next_start, now - _CATCH_UP)
    tx.save_job(replace(record, next_start=start + starts * interval))
    return Lease(starts, max(0.0, start - now), interval)


def _note_canary(tx: JobTransaction, job: str, token: str, *, was_sent: bool) -> None:
    record = tx.find_job(job)
    if record is None or record.canary != Canary.OUT or record.canary_token != token:
        return
    tx.save_job(replace(record, canary=Canary.BACK if was_sent else Canary.NEEDED))


def _record(tx: JobTransaction, job: str, outcomes: Sequence[JobOutcome]) -> None:
    record = tx.find_job(job)
    if record is None:
        return
    now = tx.now()
    latest = {outcome.index: replace(outcome, at=now) for outcome in outcomes}
    known = tx.statuses(job, sorted(latest))
    new = [outcome for index, outcome in sorted(latest.items()) if index not in known]
    changed = [
        outcome
        for index, outcome in sorted(latest.items())
        # A call that was accepted stays accepted.
        if known.get(index, OutcomeStatus.ACCEPTED) is not OutcomeStatus.ACCEPTED
    ]
    if new:
        tx.add_outcomes(job, new)
    if changed:
        tx.change_outcomes(job, changed)
    record = replace(record, rows_done=record.rows_done + len(new))
    tx.save_job(_completed(record, now))


def _end(
    tx: JobTransaction, job: str, state: JobState, cause: str, generation: int | None
) -> JobRecord | None:
    """Stop or cancel a job that runs; another generation's stop changes nothing."""
    record = tx.find_job(job)
    if record is None or generation not in (None, record.generation):
        return record
    # The last row may be the one that is refused: a completed job can be stopped, not canceled.
    if record.state in _RUNNING or (
        record.state is JobState.COMPLETED and state is JobState.STOPPED
    ):
        record = replace(record, state=state, stopped_by=cause, finished_at=tx.now())
        tx.save_job(record)
    return record


def _status(tx: JobTransaction, job: str) -> JobStatus | None:
    found = tx.count_job(job)
    if found is None:
        return None
    record, counts = found
    return JobStatus(
        job=job,
        state=record.state,
        counts={status: counts.get(status, 0) for status in OutcomeStatus},
        total=record.rows_total,
        is_enqueued=record.is_enqueued,
        rate=record.rate,
        started=record.started_at,
        finished=record.finished_at,
        stopped_by=record.stopped_by or None,
    )
