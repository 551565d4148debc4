"""Reads and writes jobs in a database transaction, for the steps of `store/jobs.py`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, func, insert, select, true, update

from ...models import OutcomeStatus
from ..jobs import JobOutcome, JobRecord, JobState
from .tables import job_outcomes, jobs

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
_STATUSES = select(_o.index, _o.status).where(
    _OF_JOB, _o.index.in_(bindparam("indexes", expanding=True))
)
_COUNTS = (
    select(_o.status, func.count().label("count")).where(_OF_JOB).group_by(_o.status).subquery()
)
# One statement sees one moment; two of one transaction see two, where it reads what is committed.
_COUNT = (
    select(_COUNTS.c.status.label("its_status"), _COUNTS.c["count"].label("its_count"), *_j)
    .select_from(jobs.outerjoin(_COUNTS, true()))
    .where(_j.name == bindparam("its_job"))
)
_OUTCOMES = (
    select(*(column for column in _o if column is not _o.job))
    .where(_OF_JOB, _o.index >= bindparam("first"), _o.index < bindparam("end"))
    .order_by(_o.index)
    .limit(bindparam("most"))
)
_ADD_OUTCOME = insert(job_outcomes)
_CHANGE_OUTCOME = update(job_outcomes).where(_OF_JOB, _o.index == bindparam("its_index"))
_DROP = delete(job_outcomes).where(_OF_JOB, _o.status.in_(bindparam("statuses", expanding=True)))


class SqlJobTransaction:
    """See `store.jobs.JobTransaction`; `steps.py` adds the clock.

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
        return None if row is None else _record(dict(row))

    def save_job(self, record: JobRecord, *, is_new: bool = False) -> None:
        """See `JobTransaction`."""
        fields = asdict(record)
        fields["state"] = record.state.value
        fields["is_enqueued"] = int(record.is_enqueued)
        if is_new:
            self._connection.execute(_ADD, fields)
        else:
            self._connection.execute(_CHANGE, {"its_name": record.name, **fields})

    def job_names(self) -> list[str]:
        """See `JobTransaction`."""
        return list(self._connection.execute(_NAMES).scalars())

    def statuses(self, job: str, indexes: Sequence[int]) -> dict[int, OutcomeStatus]:
        """See `JobTransaction`."""
        found = self._connection.execute(_STATUSES, {"its_job": job, "indexes": list(indexes)})
        return {index: OutcomeStatus(status) for index, status in found}

    def add_outcomes(self, job: str, outcomes: Sequence[JobOutcome]) -> None:
        """See `JobTransaction`."""
        rows = [{"job": job, **_fields(outcome)} for outcome in outcomes]
        self._connection.execute(_ADD_OUTCOME, rows)

    def change_outcomes(self, job: str, outcomes: Sequence[JobOutcome]) -> None:
        """See `JobTransaction`."""
        rows = [
            {"its_job": job, "its_index": outcome.index, **_fields(outcome)} for outcome in outcomes
        ]
        self._connection.execute(_CHANGE_OUTCOME, rows)

    def drop_outcomes(self, job: str, statuses: Sequence[OutcomeStatus]) -> int:
        """See `JobTransaction`."""
        values = [status.value for status in statuses]
        return self._connection.execute(_DROP, {"its_job": job, "statuses": values}).rowcount

    def count_job(self, name: str) -> tuple[JobRecord, dict[OutcomeStatus, int]] | None:
        """See `JobTransaction`."""
        rows = self._connection.execute(_COUNT, {"its_job": name}).mappings().all()
        counts: dict[OutcomeStatus, int] = {}
        record = None
        for row in map(dict, rows):
            status, count = row.pop("its_status"), row.pop("its_count")
            record = _record(row)
            # A job without outcomes has one row without a status.
            if status is not None:
                counts[OutcomeStatus(status)] = count
        return None if record is None else (record, counts)

    def outcomes(self, job: str, first: int, end: int, most: int) -> list[JobOutcome]:
        """See `JobTransaction`."""
        found = self._connection.execute(
            _OUTCOMES, {"its_job": job, "first": first, "end": end, "most": most}
        )
        return [
            JobOutcome(**{**row, "status": OutcomeStatus(row["status"])})
            for row in found.mappings()
        ]


def _record(fields: dict[str, Any]) -> JobRecord:
    fields["state"] = JobState(fields["state"])
    fields["is_enqueued"] = bool(fields["is_enqueued"])
    return JobRecord(**fields)


def _fields(outcome: JobOutcome) -> Mapping[str, object]:
    return {**asdict(outcome), "status": outcome.status.value}
