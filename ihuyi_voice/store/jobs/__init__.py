"""Jobs of several machines, as a store keeps them: their values, and each change of them."""

from .jobs import Jobs
from .values import JobOutcome, JobRecord, JobState, JobStatus, Lease, check_job_name

__all__ = ["JobOutcome", "JobRecord", "JobState", "JobStatus", "Jobs", "Lease", "check_job_name"]
