"""The changes of a job, each as one transaction.

Each step reads and writes through a `JobTransaction`, runs whole or not at all,
and may run twice where a commit seemed to fail. A step that changes a job locks
its row first, so that the steps of one job run one after the other.

So these are true at every moment: no row from `rows_total` on has an outcome,
and a job is completed only when each of its rows is accepted or has an outcome
of its present generation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ...models import OutcomeStatus
from .values import KEPT, Canary, JobRecord, JobState, JobStatus, Lease, Mark, Opening

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeGuard

    from .values import JobOutcome, JobTransaction

NO_JOB = "the store has no such job"
"""The refusal of a message whose job was purged, or is in another store."""

MOST_STARTS = 10
"""The starts of one lease of a job that has a rate, at most."""

# Seconds after which a process asks again while the canary is out.
_CANARY_PAUSE = 0.05
# Starts that a delay of the store may catch up, in seconds of the rate.
_CATCH_UP = 0.02
# Seconds from now in which a lease begins, at the latest: so soon every process sees a
# stop, however slow the rate is.
_AHEAD = 1.0

_RUNNING = (JobState.SCHEDULED, JobState.PROCESSING)


def create(tx: JobTransaction, job: str, rate: float | None, generation: int) -> bool:
    """Write a new job; False where there is one of this name."""
    return tx.add_job(
        JobRecord(
            name=job,
            state=JobState.SCHEDULED,
            generation=generation,
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
    )


def reopen(tx: JobTransaction, job: str, generation: int) -> JobRecord | None:
    """Begin another generation; None where there is no such job."""
    record = tx.find_job(job)
    if record is None:
        return None
    record = replace(
        record,
        state=JobState.SCHEDULED,
        generation=generation,
        rows_done=tx.accepted_count(job),
        is_enqueued=False,
        finished_at=None,
        stopped_by="",
        canary=Canary.NEEDED,
    )
    tx.save_job(record)
    return record


def note_enqueued(
    tx: JobTransaction, job: str, generation: int, total: int, *, all_rows: bool
) -> int | None:
    """Note how many rows were enqueued.

    Returns:
        How many rows the job has. Where these are more than `all_rows`, the job
        waits for the rest. None where it takes no more rows.
    """
    record = tx.find_job(job)
    if not may_start(record, generation):
        return None
    # Never less than before: a row that was enqueued earlier may have an outcome.
    rows_total = max(record.rows_total, total)
    is_enqueued = all_rows and total == rows_total
    record = replace(record, rows_total=rows_total, is_enqueued=is_enqueued)
    tx.save_job(_completed(record, tx.now()))
    return rows_total


def _completed(record: JobRecord, now: float) -> JobRecord:
    """The job, completed if all its rows have an outcome."""
    is_over = record.is_enqueued and record.rows_done >= record.rows_total
    if not is_over or record.state not in _RUNNING:
        return record
    return replace(record, state=JobState.COMPLETED, finished_at=now)


def may_start(record: JobRecord | None, generation: int) -> TypeGuard[JobRecord]:
    """Whether rows of this generation may start."""
    return record is not None and record.generation == generation and record.state in _RUNNING


def opening(tx: JobTransaction, job: str, generation: int, first: int, end: int) -> Opening:
    """What a worker needs to know before it sends the rows of a message."""
    record = tx.read_job(job)
    if record is None:
        return Opening(NO_JOB)
    if record.generation != generation:
        return Opening("the job was resumed, or is another one of the same name")
    if not may_start(record, generation):
        return Opening(f"the job is {record.state.value}")
    return Opening("", frozenset(tx.ended(job, generation, first, end)))


def lease(  # noqa: PLR0913, PLR0917 - as `Jobs.lease`
    tx: JobTransaction,
    job: str,
    generation: int,
    starts: int,
    token: str,
    canary_seconds: float,
) -> Lease | None:
    """Take some starts; None where no more rows of this generation start."""
    record = tx.read_job(job)
    if not may_start(record, generation):
        return None
    if record.canary == Canary.BACK and record.rate is None:
        # Without a lock, so that no process waits for another.
        return Lease(starts)
    record = tx.find_job(job)
    if not may_start(record, generation):
        return None
    now = tx.now()
    if record.canary == Canary.BACK:
        return _timed_lease(tx, record, starts, now)
    # Not where the clock was set back.
    is_out = record.canary == Canary.OUT and 0.0 < record.canary_until - now <= canary_seconds
    if is_out and record.canary_token != token:
        return Lease(0, _CANARY_PAUSE)
    tx.save_job(
        replace(
            record,
            state=JobState.PROCESSING,
            canary=Canary.OUT,
            canary_until=now + canary_seconds,
            canary_token=token,
            started_at=now if record.started_at is None else record.started_at,
            next_start=now + (1.0 / record.rate if record.rate else 0.0),
        )
    )
    return Lease(1, is_canary=True)


def _timed_lease(tx: JobTransaction, record: JobRecord, starts: int, now: float) -> Lease:
    """Starts at the job's rate, after all that were leased before."""
    interval = 1.0 / (record.rate or 1.0)
    start = max(record.next_start, now - _CATCH_UP)
    ahead = start - now
    if ahead > _AHEAD + MOST_STARTS * interval:
        # No lease ends so late: the clock was set back.
        start, ahead = now, 0.0
    elif ahead > _AHEAD:
        return Lease(0, min(ahead - _AHEAD, _AHEAD))
    tx.save_job(replace(record, next_start=start + starts * interval))
    return Lease(starts, max(0.0, ahead), interval)


def note_canary(tx: JobTransaction, job: str, token: str, *, was_sent: bool) -> None:
    """Note that the canary's row has ended."""
    record = tx.find_job(job)
    if record is None or record.canary != Canary.OUT or record.canary_token != token:
        return
    tx.save_job(replace(record, canary=Canary.BACK if was_sent else Canary.NEEDED))


def record(tx: JobTransaction, job: str, generation: int, outcomes: Sequence[JobOutcome]) -> None:
    """Record the outcomes of rows that a message of this generation has sent."""
    found = tx.find_job(job)
    if found is None:
        return
    now = tx.now()
    latest = {outcome.index: replace(outcome, at=now) for outcome in outcomes}
    marks = tx.marks(job, sorted(latest))
    counts = [
        outcome
        for index, outcome in sorted(latest.items())
        if _is_news(found, generation, outcome.status, marks.get(index))
    ]
    new = [outcome for outcome in counts if outcome.index not in marks]
    changed = [outcome for outcome in counts if outcome.index in marks]
    if new:
        tx.add_outcomes(job, generation, new)
    # A row that was looked at in the present generation stays so: it has ended in it.
    present = [one for one in changed if marks[one.index].generation == found.generation]
    earlier = [one for one in changed if marks[one.index].generation != found.generation]
    if present:
        tx.change_outcomes(job, found.generation, present)
    if earlier:
        tx.change_outcomes(job, generation, earlier)
    done = found.rows_done
    for outcome in counts:
        mark = marks.get(outcome.index)
        was_final = mark is not None and mark.is_final(found.generation)
        is_final = Mark(outcome.status, generation).is_final(found.generation)
        done += is_final and not was_final
    tx.save_job(_completed(replace(found, rows_done=done), now))


def _is_news(found: JobRecord, generation: int, status: OutcomeStatus, known: Mark | None) -> bool:
    """Whether an outcome is recorded.

    Two workers may have sent a row one after the other, and record in any order.
    What may have rung a phone counts: accepted replaces all others, and unknown all
    but accepted. Unknown is replaced by another outcome in a later generation only,
    whose worker has asked the store first: it sends where the key is settled.
    """
    if known is not None and known.status is OutcomeStatus.ACCEPTED:
        return False
    if status in KEPT:
        return True
    if generation != found.generation:
        # Of a worker that was still sending when the job was resumed: the row is sent
        # once more.
        return False
    return known is None or known != Mark(OutcomeStatus.UNKNOWN, generation)


def end(
    tx: JobTransaction, job: str, state: JobState, cause: str, generation: int | None
) -> JobRecord | None:
    """Stop or cancel a job that runs; another generation's stop changes nothing."""
    found = tx.find_job(job)
    if found is None or generation not in (None, found.generation):
        return found
    if found.state in _RUNNING:
        found = replace(found, state=state, stopped_by=cause, finished_at=tx.now())
        tx.save_job(found)
    return found


def status(tx: JobTransaction, job: str) -> JobStatus | None:
    """A job at one moment; None where there is no such job."""
    found = tx.job_counts(job)
    if found is None:
        return None
    its, counts = found
    return JobStatus(
        job=job,
        state=its.state,
        counts={one: counts.get(one, 0) for one in OutcomeStatus},
        total=its.rows_total,
        is_enqueued=its.is_enqueued,
        rate=its.rate,
        started=its.started_at,
        finished=its.finished_at,
        stopped_by=its.stopped_by or None,
    )


def seconds_under_way(tx: JobTransaction, keys: Sequence[str]) -> float:
    """Seconds until no request of these keys can be sent or settled any more; 0.0 for none."""
    return max(0.0, tx.live_until(keys) - tx.now())
