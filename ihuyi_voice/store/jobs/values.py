"""The values of jobs of several machines, and what a store does for their steps.

A job is one bulk run whose rows many worker processes send; `ihuyi_voice.celery`
starts it. The store has its state, its rate and one masked outcome for each row
that ended. It never has a code or a whole number.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from ...errors import InvalidRequestError
from ...models import OutcomeStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..verifications import Transaction

T = TypeVar("T")

KEPT = (OutcomeStatus.ACCEPTED, OutcomeStatus.UNKNOWN)
"""Outcomes that count in every generation of a job: their phones may have rung."""


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
        generation: drawn at random each time its rows are enqueued. Messages of
            an earlier generation, or of an earlier job of this name, start no rows.
        rate: starts per second over all processes; None for no limit.
        next_start: when the next lease may begin.
        rows_total: how many rows it has, as far as they were enqueued in any
            generation: no row beyond has an outcome.
        rows_done: how many of them were accepted, or have an outcome of this
            generation.
        is_enqueued: whether all rows were enqueued in this generation.
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


class Mark(NamedTuple):
    """What a store knows of a row that has an outcome.

    Attributes:
        status: how the row ended.
        generation: in which generation of its job that was recorded.
    """

    status: OutcomeStatus
    generation: int

    def is_final(self, generation: int) -> bool:
        """Whether the row is not looked at again in this generation."""
        return self.status is OutcomeStatus.ACCEPTED or self.generation == generation


class Opening(NamedTuple):
    """What a worker needs to know before it sends the rows of a message.

    Attributes:
        refusal: why none may start; "" where they may.
        ended: the rows of the message that were accepted, or have an outcome of
            this generation.
    """

    refusal: str
    ended: frozenset[int] = frozenset()


class JobTransaction(Protocol):
    """One transaction of a store, for jobs.

    An outcome counts if its row was kept (`KEPT`) or recorded in the job's
    present generation. The others are as if they were not there.
    """

    def now(self) -> float:
        """The store's clock, Unix time in seconds."""

    def read_job(self, name: str) -> JobRecord | None:
        """A job, without a lock."""

    def find_job(self, name: str) -> JobRecord | None:
        """A job, which no other transaction changes until this one ends."""

    def add_job(self, record: JobRecord) -> bool:
        """Write a new job; False where there is one of its name."""

    def save_job(self, record: JobRecord) -> None:
        """Write a job that was found."""

    def job_names(self) -> list[str]:
        """The names of all jobs, the oldest first."""

    def job_counts(self, name: str) -> tuple[JobRecord, dict[OutcomeStatus, int]] | None:
        """A job and how many rows have each outcome that counts, of one moment."""

    def accepted_count(self, job: str) -> int:
        """How many rows were accepted."""

    def marks(self, job: str, indexes: Sequence[int]) -> dict[int, Mark]:
        """What is known of those rows that have an outcome, counting or not."""

    def ended(self, job: str, generation: int, first: int, end: int) -> list[int]:
        """The rows from `first` to before `end` whose mark is final."""

    def add_outcomes(self, job: str, generation: int, outcomes: Sequence[JobOutcome]) -> None:
        """Write outcomes of rows without one."""

    def change_outcomes(self, job: str, generation: int, outcomes: Sequence[JobOutcome]) -> None:
        """Replace outcomes."""

    def outcomes(self, job: str, first: int, end: int, most: int) -> list[JobOutcome]:
        """At most `most` outcomes that count of the rows from `first` to before `end`."""

    def live_until(self, keys: Sequence[str]) -> float:
        """Until when a claim of these keys may be sent or settled; 0.0 where none is claimed."""


class JobRunner(Protocol):
    """A store that runs a step as one transaction: awaited, or blocking."""

    async def run(self, step: Callable[[Transaction], T], deadline: float) -> T:
        """Run `step`, which may run twice where a commit seemed to fail."""

    def run_aside(self, step: Callable[[Transaction], T], *, writing: bool = True) -> T:
        """Run `step` with a connection of its own."""
