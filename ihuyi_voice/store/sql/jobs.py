"""Reads and writes jobs in a database transaction, for the steps of `store/jobs/steps.py`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, delete, func, insert, or_, select, true, update
from sqlalchemy.exc import IntegrityError

from ...models import OutcomeStatus
from ..entry import EntryState
from ..jobs.values import KEPT, JobOutcome, JobRecord, JobState, Mark
from ..writer import bounds
from .tables import calls, job_outcomes, jobs, storable_code, storable_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import sqlalchemy

_j, _o = jobs.c, job_outcomes.c
_READ = select(jobs).where(_j.name == bindparam("its_name"))
_FIND = _READ.with_for_update()
_NAMES = select(_j.name).order_by(_j.created_at, _j.name)
_ADD = insert(jobs)
_CHANGE = update(jobs).where(_j.name == bindparam("its_name"))
_OF_JOB = _o.job == bindparam("its_job")
_IN_RANGE = and_(_OF_JOB, _o.index >= bindparam("first"), _o.index < bindparam("end"))
_IS_ACCEPTED = _o.status == OutcomeStatus.ACCEPTED.value
_COUNTS = and_(
    _o.job == _j.name,
    or_(_o.status.in_([status.value for status in KEPT]), _o.generation == _j.generation),
)
# One statement, because each statement sees what others have committed before it.
_counts = (
    select(_o.status, func.count().label("count"))
    .select_from(jobs.join(job_outcomes, _COUNTS))
    .where(_j.name == bindparam("its_name"))
    .group_by(_o.status)
    .subquery()
)
_STATUS = (
    select(jobs, _counts)
    .select_from(jobs.outerjoin(_counts, true()))
    .where(_j.name == bindparam("its_name"))
)
_ACCEPTED = select(func.count()).where(_OF_JOB, _IS_ACCEPTED)
_MARKS = select(_o.index, _o.status, _o.generation).where(
    _OF_JOB, _o.index.in_(bindparam("indexes", expanding=True))
)
_ENDED = select(_o.index).where(
    _IN_RANGE, or_(_IS_ACCEPTED, _o.generation == bindparam("its_generation"))
)
_OUTCOMES = (
    select(*(column for column in _o if column not in (_o.job, _o.generation)))
    .select_from(jobs.join(job_outcomes, _COUNTS))
    .where(_IN_RANGE)
    .order_by(_o.index)
    .limit(bindparam("most"))
)
_ADD_OUTCOME = insert(job_outcomes)
_CHANGE_OUTCOME = update(job_outcomes).where(_OF_JOB, _o.index == bindparam("its_index"))
_LIVE_UNTIL = select(func.max(calls.c.live_until)).where(
    calls.c.state == EntryState.CLAIMED.value,
    calls.c.key.in_(bindparam("keys", expanding=True)),
)
_OVER = (
    select(_j.name, _j.rows_total)
    .where(_j.finished_at < bindparam("before"))
    .order_by(_j.name)
    .with_for_update()
)


class SqlJobTransaction:
    """See `store.jobs.values.JobTransaction`; `steps.py` adds the clock.

    Args:
        connection: in a transaction, which ends after the step.
    """

    def __init__(self, connection: sqlalchemy.Connection) -> None:
        self._connection = connection

    def read_job(self, name: str) -> JobRecord | None:
        """See `JobTransaction`."""
        return self._job(_READ, name)

    def find_job(self, name: str) -> JobRecord | None:
        """See `JobTransaction`."""
        return self._job(_FIND, name)

    def _job(self, query: sqlalchemy.Select[Any], name: str) -> JobRecord | None:
        row = self._connection.execute(query, {"its_name": name}).mappings().one_or_none()
        return None if row is None else _record_of(row)

    def add_job(self, record: JobRecord) -> bool:
        """See `JobTransaction`."""
        try:
            # Of two at the same moment one waits for the other here.
            with self._connection.begin_nested():
                self._connection.execute(_ADD, _columns_of(record))
        except IntegrityError:
            return False
        return True

    def save_job(self, record: JobRecord) -> None:
        """See `JobTransaction`."""
        self._connection.execute(_CHANGE, {"its_name": record.name, **_columns_of(record)})

    def job_names(self) -> list[str]:
        """See `JobTransaction`."""
        return list(self._connection.execute(_NAMES).scalars())

    def job_counts(self, name: str) -> tuple[JobRecord, dict[OutcomeStatus, int]] | None:
        """See `JobTransaction`."""
        rows = self._connection.execute(_STATUS, {"its_name": name}).mappings().all()
        if not rows:
            return None
        # Without outcomes there is one row, and its status is NULL.
        counts = {OutcomeStatus(row["status"]): row["count"] for row in rows if row["status"]}
        return _record_of({column.name: rows[0][column.name] for column in _j}), counts

    def accepted_count(self, job: str) -> int:
        """See `JobTransaction`."""
        return self._connection.execute(_ACCEPTED, {"its_job": job}).scalar_one()

    def marks(self, job: str, indexes: Sequence[int]) -> dict[int, Mark]:
        """See `JobTransaction`."""
        found = self._connection.execute(_MARKS, {"its_job": job, "indexes": list(indexes)})
        return {index: Mark(OutcomeStatus(status), its) for index, status, its in found}

    def ended(self, job: str, generation: int, first: int, end: int) -> list[int]:
        """See `JobTransaction`."""
        values = {"its_job": job, "its_generation": generation, "first": first, "end": end}
        return list(self._connection.execute(_ENDED, values).scalars())

    def add_outcomes(self, job: str, generation: int, outcomes: Sequence[JobOutcome]) -> None:
        """See `JobTransaction`."""
        rows = [{"job": job, **_fields(outcome, generation)} for outcome in outcomes]
        self._connection.execute(_ADD_OUTCOME, rows)

    def change_outcomes(self, job: str, generation: int, outcomes: Sequence[JobOutcome]) -> None:
        """See `JobTransaction`."""
        rows = [
            {"its_job": job, "its_index": outcome.index, **_fields(outcome, generation)}
            for outcome in outcomes
        ]
        self._connection.execute(_CHANGE_OUTCOME, rows)

    def outcomes(self, job: str, first: int, end: int, most: int) -> list[JobOutcome]:
        """See `JobTransaction`."""
        found = self._connection.execute(
            _OUTCOMES, {"its_job": job, "first": first, "end": end, "most": most}
        )
        return [
            JobOutcome(**{**row, "status": OutcomeStatus(row["status"])})
            for row in found.mappings()
        ]

    def live_until(self, keys: Sequence[str]) -> float:
        """See `JobTransaction`."""
        latest = self._connection.execute(_LIVE_UNTIL, {"keys": list(keys)}).scalar_one()
        return float(latest or 0.0)

    def purge_jobs(self, before: float) -> int:
        """Delete the jobs that ended before a Unix time, with their outcomes; returns how many."""
        most = bounds.DELETED_AT_ONCE
        # Locked, so that none is resumed meanwhile.
        over = self._connection.execute(_OVER, {"before": before}).all()
        for name, rows_total in over:
            for first in range(0, rows_total, most):
                self._connection.execute(
                    delete(job_outcomes).where(_IN_RANGE),
                    {"its_job": name, "first": first, "end": first + most},
                )
            self._connection.execute(delete(jobs).where(_j.name == name))
        return len(over)


def _record_of(row: Mapping[Any, Any]) -> JobRecord:
    fields = dict(row)
    fields["state"] = JobState(fields["state"])
    fields["is_enqueued"] = bool(fields["is_enqueued"])
    return JobRecord(**fields)


def _columns_of(record: JobRecord) -> dict[str, object]:
    fields = asdict(record)
    fields["state"] = record.state.value
    fields["is_enqueued"] = int(record.is_enqueued)
    fields["stopped_by"] = storable_text(record.stopped_by)
    return fields


def _fields(outcome: JobOutcome, generation: int) -> dict[str, object]:
    return {
        **asdict(outcome),
        "status": outcome.status.value,
        "code": storable_code(outcome.code),
        "msg": storable_text(outcome.msg),
        "generation": generation,
    }
