"""`BulkJobs`: enqueues jobs in the program that submits, and sends their chunks in the workers."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from typing import TYPE_CHECKING, NoReturn

from celery.exceptions import Reject, SoftTimeLimitExceeded

from .._limits import JobLimits
from ..bulk.options import BulkOptions
from ..errors import IhuyiVoiceError, InvalidRequestError, StoreError
from ..events import checked_on_event
from ..models import check_count
from ..store.jobs import check_job_name
from ..store.jobs.steps import NO_JOB
from ..store.store import Store
from ..sync.client import VoiceClient
from .chunks import Chunk, ChunkRows, Plan, RowSource, rows_of_chunk
from .run import ChunkRun, in_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from celery import Celery, Task

    from ..bulk.run import Row
    from ..events import OnSubmit
    from ..store.jobs import JobOutcome, Jobs, JobStatus

_log = logging.getLogger("ihuyi_voice")

# Seconds for a chunk to finish what is in flight, once the worker has to end it.
_WIND_UP_SECONDS = 60.0
# A chunk has no deadline of its own: each of its requests has one.
_NO_END = 10_000_000.0
_ATTRIBUTE = "ihuyi_voice_bulk_jobs"


class BulkJobs:
    """Bulk jobs of one Celery application.

    Create it in the module of the application, after the application, so that
    the workers register its task `<name>.chunk`. Each worker process opens the
    store, and a client by `VoiceClient.from_env`, at its first chunk.

    A message holds the numbers and codes of its rows as base64. That keeps them
    out of logs, where Celery writes a message whose task a worker does not have.
    It is no encryption: a reader of the broker can decode them.

    Args:
        app: the Celery application.
        store: the URL of a store in PostgreSQL or MySQL; in SQLite for the
            workers of one machine. It is the same for all of them.
        name: the first part of the task's name; each `BulkJobs` of an application
            has another one.
        on_event: as the client's. The workers call these functions with the
            `SubmitEvent` of each row that they send, when its chunk has ended.
            A worker process that is killed reports nothing of its chunk.

    Raises:
        ValueError: the application has a `BulkJobs` of this name.
        TypeError: `on_event` is no list of functions.
    """

    def __init__(
        self,
        app: Celery,
        *,
        store: str,
        name: str = "ihuyi_voice",
        on_event: Sequence[OnSubmit] = (),
    ) -> None:
        self._url = _Url(store)
        del store
        self._on_event = checked_on_event(on_event)
        self._lock = threading.Lock()
        # One chunk of each process at a time, also in a pool of threads.
        self._sending = threading.Lock()
        self._store: Store | None = None
        self._client: VoiceClient | None = None
        self._name = name
        self._limits = JobLimits()
        # Also for `jobs_of`.
        others: list[BulkJobs] = vars(app).setdefault(_ATTRIBUTE, [])
        if any(other._name == name for other in others):
            msg = (
                f"this application has a BulkJobs with the name {name!r} already, and Celery"
                " would send the rows of both with the store of the first: give this one"
                " another name"
            )
            raise ValueError(msg)
        self._task = self._registered(app, name)
        others.append(self)

    # --- for the program that submits -------------------------------------------

    def submit(
        self,
        rows: Iterable[Row],
        *,
        job: str,
        rate: float | None = None,
        concurrency: int = 50,
        chunk_size: int = 1000,
    ) -> JobStatus:
        """Enqueue a job; returns when its last chunk is in the broker.

        Where this fails midway, the rows that were enqueued are sent, and
        `resume` with all rows completes the job.

        Args:
            rows: `SubmitRequest` without a key, or (mobile, content) pairs,
                pulled chunk by chunk.
            job: names the job, 1-64 printable characters; used once.
            rate: starts per second over all workers; None for no limit.
            concurrency: how many requests each process may have in flight; the
                client's `max_connections`, 100, is the most.
            chunk_size: rows of one message at most; with a rate, at most those
                of a minute. A worker that is shut down warmly finishes its
                chunk first.

        Raises:
            InvalidRequestError: there is such a job, its name is wrong, or a
                row has a key of its own.
            StoreError: the store failed.
            ValueError, TypeError: another argument is wrong.
        """
        source = RowSource(rows)
        # An exception raised below must not find the plain rows in this frame.
        del rows
        check_job_name(job)
        options = BulkOptions(concurrency, concurrency, rate)
        check_count("chunk_size", chunk_size)
        plan = Plan(self._jobs.create(job, rate), options.in_flight, rate)
        return self._enqueue(source, job, plan, chunk_size)

    def resume(
        self, job: str, rows: Iterable[Row], *, concurrency: int = 50, chunk_size: int = 1000
    ) -> JobStatus:
        """Enqueue all rows of a job again: those that were not accepted are sent.

        Accepted rows are skipped, and rows whose outcome is unknown stay
        unknown until a person resolves them: no phone rings twice. What is
        still in the broker of the rows that were enqueued before is dropped.

        Keys are derived from the job and the number of a row. So the rows must
        be the same, in the same order, codes included. Where a number differs
        from that of an accepted row, nothing from its chunk on is enqueued. A
        row with another code than before ends as invalid.

        Args:
            job: its name.
            rows: the same rows in the same order.
            concurrency: as in `submit`.
            chunk_size: as in `submit`; it may differ.

        Raises:
            LookupError: there is no such job.
            InvalidRequestError: the rows are others, or fewer, than before.
            StoreError, ValueError, TypeError: as `submit`.
        """
        source = RowSource(rows)
        # As in `submit`.
        del rows
        check_count("concurrency", concurrency)
        check_count("chunk_size", chunk_size)
        record = self._jobs.reopen(job)
        plan = Plan(record.generation, concurrency, record.rate)
        return self._enqueue(source, job, plan, chunk_size, is_resumed=True)

    def status(self, job: str) -> JobStatus:
        """A job as it is now.

        Raises:
            LookupError: there is no such job.
            StoreError: the store failed.
        """
        return self._jobs.status(job)

    def cancel(self, job: str) -> None:
        """Let no worker start more rows, within one lease; what is in flight finishes.

        Raises:
            LookupError: there is no such job.
            StoreError: the store failed.
        """
        self._jobs.cancel(job)

    def outcomes(self, job: str) -> Iterator[JobOutcome]:
        """The outcomes of a job by row, masked, read page by page.

        Raises:
            StoreError: the store failed.
        """
        return self._jobs.outcomes(job)

    def _enqueue(
        self, source: RowSource, job: str, plan: Plan, chunk_size: int, *, is_resumed: bool = False
    ) -> JobStatus:
        size = rows_of_chunk(chunk_size, plan.rate)
        while True:
            chunk = Chunk(job, plan, source.taken, source.take(size))
            if is_resumed:
                self._check_same(chunk)
            # Before they are sent: a row must not end before it is counted.
            noted = self._note_enqueued(chunk, all_rows=False)
            if noted is not None and len(chunk.rows):
                failure = self._send(chunk)
                if failure is not None:
                    raise failure
            if noted is not None and len(chunk.rows) < size:
                noted = self._note_enqueued(chunk, all_rows=True)
                if noted is not None and noted > chunk.end:
                    msg = (
                        f"job {job!r} has {noted} rows, and these were {chunk.end}: resume it with"
                        " all of its rows in the same order. It waits for the others"
                    )
                    raise InvalidRequestError(msg)
            if noted is None or len(chunk.rows) < size:
                return self.status(job)

    def _note_enqueued(self, chunk: Chunk, *, all_rows: bool) -> int | None:
        generation = chunk.plan.generation
        return self._jobs.note_enqueued(chunk.job, generation, chunk.end, all_rows=all_rows)

    def _check_same(self, chunk: Chunk) -> None:
        """Refuse rows that are not those of the job: a key must not get another row's number."""
        count = len(chunk.rows)
        known = self._jobs.some_outcomes(chunk.job, chunk.first, chunk.end, count) if count else []
        mobiles = chunk.rows.masked()
        for outcome in known:
            if mobiles[outcome.index - chunk.first] != outcome.mobile:
                msg = (
                    f"row {outcome.index} has another number than when job {chunk.job!r} was"
                    f" enqueued ({outcome.mobile}): resume it with the same rows in the same order."
                    f" The rows from {chunk.first} on are not enqueued"
                )
                raise InvalidRequestError(msg)

    def _send(self, chunk: Chunk) -> Exception | None:
        """Put a chunk into the broker; returns why it failed, without frames that hold rows."""
        try:
            self._task.apply_async(chunk.arguments(), argsrepr=chunk.shown())
        except Exception as error:  # noqa: BLE001 - the caller raises it
            error.__context__ = error.__cause__ = None
            return error.with_traceback(None)
        return None

    # --- the worker ---------------------------------------------------------------

    def _registered(self, app: Celery, name: str) -> Task:
        @app.task(
            name=f"{name}.chunk",
            bind=True,
            # By default every application of this process gets it, with the store of this one.
            shared=False,
            acks_late=True,
            # A worker that is lost, or that a hard time limit ends, has not sent all rows.
            reject_on_worker_lost=True,
            acks_on_failure_or_timeout=False,
            ignore_result=True,
            max_retries=None,
        )
        def chunk(  # noqa: PLR0913, PLR0917 - what a message holds
            task: Task,
            job: str,
            generation: int,
            first: int,
            rows: str,
            concurrency: int,
            rate: float | None,
        ) -> None:
            """Send the rows of one chunk."""
            plan = Plan(generation, concurrency, rate)
            work = Chunk(job, plan, first, ChunkRows.unpacked(rows))
            del rows
            self._work(task, work)

        return chunk

    def _work(self, task: Task, chunk: Chunk) -> None:
        """Send a chunk. An exception that is raised to Celery puts it back into the broker.

        No other is raised: Celery would drop the message, and its frames show
        the arguments.
        """
        try:
            failure = self._failure_of(chunk)
            if failure is None:
                return
            seconds = self._limits.retry
            _log.warning("%r: tried again in %d s: %s", chunk, seconds, _shown(failure))
            # Not by a countdown: a message that waits in a worker is delivered to others
            # too, once the broker's visibility timeout has passed.
            time.sleep(seconds)
        except SoftTimeLimitExceeded:
            _log.warning("%r: time limit reached: the other rows go back to the broker", chunk)
            raise _back_to_the_broker(chunk) from None
        self._try_again(task, chunk)

    def _failure_of(self, chunk: Chunk) -> Exception | None:
        """Send a chunk; returns why its rows without outcome are to be tried again."""
        try:
            jobs = self._jobs
            client = self._opened_client()
        except SoftTimeLimitExceeded:
            raise
        except _SettingsError as error:
            # The error is in this worker's environment: every chunk would fail so.
            _log.error("%r: the job is stopped: %s", chunk, error)
            return self._stopped(jobs, chunk, str(error))
        except Exception as error:  # noqa: BLE001 - another worker may open the store
            return error
        run = ChunkRun(jobs, chunk, self._limits)
        with self._sending:
            try:
                client._call("submit_many", run.in_loop, extra_seconds=_NO_END)
            except BaseException as error:
                # The worker ends, or its time limit is reached: requests in flight finish.
                if run.begun:
                    run.ended.wait(_WIND_UP_SECONDS)
                if isinstance(error, SoftTimeLimitExceeded) or not isinstance(error, Exception):
                    raise
                return error
        if run.refusal:
            level = logging.WARNING if run.refusal == NO_JOB else logging.INFO
            _log.log(level, "%r: not sent: %s", chunk, run.refusal)
        if run.fault is not None:
            _log.error("%r: the job is stopped: %s", chunk, _shown(run.fault))
        return run.failure

    def _stopped(self, jobs: Jobs, chunk: Chunk, cause: str) -> StoreError | None:
        try:
            jobs.stop_blocking(chunk.job, chunk.plan.generation, cause)
        except StoreError as error:
            return error
        return None

    def _try_again(self, task: Task, chunk: Chunk) -> NoReturn:
        """Enqueue a chunk once more."""
        try:
            # A message of its own: some brokers drop one that is put back too often.
            raise task.retry(countdown=0, argsrepr=chunk.shown()) from None
        except Reject:
            # The broker did not take it.
            raise _back_to_the_broker(chunk) from None

    def _within(self, limits: JobLimits) -> None:
        """Use other limits, from the next chunk on. For tests."""
        self._limits = limits

    @property
    def _jobs(self) -> Jobs:
        return self._opened_store().jobs

    def _opened_store(self) -> Store:
        with self._lock:
            if self._store is None:
                self._store = Store.open(self._url.reveal())
            return self._store

    def _opened_client(self) -> VoiceClient:
        store = self._opened_store()
        with self._lock:
            if self._client is None:
                try:
                    self._client = VoiceClient.from_env(store=store, on_event=self._on_event)
                except (ValueError, TypeError) as error:
                    msg = f"{type(error).__name__}: {error}"
                    raise _SettingsError(msg) from None
            return self._client


class _SettingsError(Exception):
    """The environment of this worker makes no client."""


def _shown(error: Exception) -> str:
    """An error for the log. Of a foreign error the text is left out: it could show a row."""
    if isinstance(error, IhuyiVoiceError):
        return in_words(error)
    return "\n".join([in_words(error), *traceback.format_tb(error.__traceback__)]).rstrip()


def _back_to_the_broker(chunk: Chunk) -> Reject:
    return Reject(repr(chunk), requeue=True)


def jobs_of(thing: object) -> BulkJobs | None:
    """The `BulkJobs` that this is, or that this Celery application has; None for none.

    Raises:
        ValueError: the application has several.
    """
    if isinstance(thing, BulkJobs):
        return thing
    found: list[BulkJobs] = getattr(thing, _ATTRIBUTE, [])
    if len(found) > 1:
        msg = "this application has several BulkJobs: name one of them"
        raise ValueError(msg)
    return found[0] if found else None


class _Url:
    """The store's URL, which may contain a password and which no repr shows."""

    __slots__ = ("_url",)

    def __init__(self, url: str) -> None:
        self._url = url

    def reveal(self) -> str:
        return self._url
