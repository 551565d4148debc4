"""Bulk jobs on Celery workers: one rate, one stop, each row placed at most once.

    app = Celery("calls", broker="redis://...")
    jobs = BulkJobs(app, store="postgresql+psycopg://user@host/database")

    jobs.submit(rows, job="spring")     # in any process
    jobs.status("spring")

A job's rows are enqueued in chunks. A worker sends the rows of a chunk with keys
derived from job and row, so that each row is placed at most once, however often
its chunk is delivered. Starts are leased from the store: all workers together
keep the job's rate, and a stop anywhere ends the leases everywhere.

**The broker holds numbers and codes** until a chunk is done, in plain JSON, and
`celery inspect active` shows them. The store never does. Protect the broker as
you protect the codes.
"""

from ..store.jobs import JobOutcome, JobState, JobStatus
from .jobs import BulkJobs, jobs_of

__all__ = ["BulkJobs", "JobOutcome", "JobState", "JobStatus", "jobs_of"]
