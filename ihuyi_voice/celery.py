"""`BulkJobs`: one bulk run on many Celery workers, with one rate and one stop.

    app = Celery("calls", broker="redis://...")
    jobs = BulkJobs(app, store="postgresql+psycopg://user@host/database")

    jobs.submit(rows, job="spring")     # in any process
    jobs.status("spring")

A job's rows are enqueued in chunks. A worker sends the rows of a chunk with keys
derived from job and row, so that each row is placed at most once, however often
its chunk is delivered. Starts are leased from the store: all workers together
keep the job's rate, and a stop anywhere ends the leases everywhere.

**The broker holds numbers and codes** until a chunk is done, in plain JSON. The
store never does. Protect the broker as you protect the codes.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import anyio

from .bulk.options import BulkOptions, is_account_level
from .bulk.pacing import Pace
from .bulk.run import NOT_STARTED, BulkRun
from .errors import BulkStoppedError, GatewayError, InvalidRequestError, NotSentError, StoreError
from .models import Outcome, OutcomeStatus, SubmitRequest, check_count, exact_text, mask_mobile
from .store.jobs import JobOutcome, JobState, JobStatus, check_job_name
from .store.store import Store
from .sync.client import VoiceClient
from .wire import read_mobile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from celery import Celery, Task

    from .bulk.run import Row
    from .client import AsyncVoiceClient
    from .store.jobs import Jobs

__all__ = ["BulkJobs", "JobOutcome", "JobState", "JobStatus", "jobs_of"]

_log = logging.getLogger("ihuyi_voice")

# Starts of one lease: at most so many, and at most this part of a second of the rate.
_LEASE, _LEASE_SECONDS = 10, 0.1
# Outcomes that are recorded together, and seconds after which fewer are.
_BATCH, _LINGER = 100, 0.5
# Seconds for one step of the store, and for the last outcomes of a chunk.
_STEP_SECONDS, _LAST_SECONDS = 15.0, 10.0
# Seconds beyond a request's own for which a canary may be out.
_CANARY_GRACE = 5.0
# Seconds until a chunk is tried again that the store's failure ended.
_RETRY_SECONDS = 5
# A chunk has no deadline of its own: each of its requests has one.
_NO_END = 10_000_000.0
_ATTRIBUTE = "ihuyi_voice_bulk_jobs"
_PLAIN = (str, int, float, bool, type(None))


class BulkJobs:
    """Bulk jobs of one Celery application.

    Create it in the module of the application, after the application, so that
    the workers register its task `<name>.chunk`. Each worker process opens the
    store, and a client by `VoiceClient.from_env`, at its first chunk.

    Args:
        app: the Celery application.
        store: the URL of a store in PostgreSQL or MySQL; in SQLite for the
            workers of one machine. It is the same for all of them.
        name: the first part of the task's name.
    """

    def __init__(self, app: Celery, *, store: str, name: str = "ihuyi_voice") -> None:
        self._url = _Url(store)
        del store
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._client: VoiceClient | None = None
        self._task = self._registered(app, name)
        # For `jobs_of`.
        vars(app).setdefault(_ATTRIBUTE, []).append(self)

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
            chunk_size: rows of one message.

        Raises:
            InvalidRequestError: there is such a job, its name is wrong, or a
                row has a key of its own.
            StoreError: the store failed.
            ValueError, TypeError: another argument is wrong.
        """
        check_job_name(job)
        options = BulkOptions(concurrency, concurrency, rate)
        check_count("chunk_size", chunk_size)
        self._jobs.create(job, rate)
        return self._enqueue(rows, job, _Plan(1, options.in_flight, rate), chunk_size)

    def resume(
        self, job: str, rows: Iterable[Row], *, concurrency: int = 50, chunk_size: int = 1000
    ) -> JobStatus:
        """Enqueue all rows of a job again: those that were not accepted are sent.

        Accepted rows are skipped, and rows whose outcome is unknown stay
        unknown until a person resolves them: no phone rings twice.

        Args:
            job: its name.
            rows: the same rows in the same order.
            concurrency: as in `submit`.
            chunk_size: as in `submit`; it may differ.

        Raises:
            LookupError: there is no such job.
            InvalidRequestError, StoreError, ValueError, TypeError: as `submit`.
        """
        check_count("concurrency", concurrency)
        check_count("chunk_size", chunk_size)
        record = self._jobs.reopen(job)
        plan = _Plan(record.generation, concurrency, record.rate)
        return self._enqueue(rows, job, plan, chunk_size)

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

    def _enqueue(self, rows: Iterable[Row], job: str, plan: _Plan, chunk_size: int) -> JobStatus:
        first, numbered = 0, iter(rows)
        goes_on = True
        while goes_on:
            chunk = _Rows.taken(numbered, chunk_size, first)
            if isinstance(chunk, Exception):
                raise chunk
            first += len(chunk)
            is_last = len(chunk) < chunk_size
            # Before they are sent: a row must not end before it is counted.
            goes_on = self._jobs.note_enqueued(job, plan.generation, first, all_rows=False)
            if goes_on and len(chunk):
                failure = self._send(job, plan, first - len(chunk), chunk)
                if failure is not None:
                    raise failure
            if goes_on and is_last:
                self._jobs.note_enqueued(job, plan.generation, first, all_rows=True)
                break
        return self.status(job)

    def _send(self, job: str, plan: _Plan, first: int, chunk: _Rows) -> Exception | None:
        """Put a chunk into the broker; returns why it failed, without frames that hold rows."""
        try:
            self._task.apply_async(
                (job, plan.generation, first, chunk.plain, plan.concurrency, plan.rate),
                argsrepr=_shown(job, first, len(chunk)),
            )
        except Exception as error:  # noqa: BLE001 - the caller raises it
            error.__context__ = error.__cause__ = None
            return error.with_traceback(None)
        return None

    # --- the worker ---------------------------------------------------------------

    def _registered(self, app: Celery, name: str) -> Task:
        @app.task(
            name=f"{name}.chunk",
            bind=True,
            acks_late=True,
            reject_on_worker_lost=True,
            ignore_result=True,
            max_retries=None,
        )
        def chunk(  # noqa: PLR0913, PLR0917 - what a message holds
            task: Task,
            job: str,
            generation: int,
            first: int,
            rows: Sequence[Any],
            concurrency: int,
            rate: float | None,
        ) -> None:
            """Send the rows of one chunk."""
            work = _Chunk(job, _Plan(generation, concurrency, rate), first, _Rows(list(rows)))
            del rows
            self._work(task, work)

        return chunk

    def _work(self, task: Task, chunk: _Chunk) -> None:
        try:
            client = self._opened_client()
        except (ValueError, TypeError) as error:
            # This worker's environment: every chunk would end so.
            self._jobs.stop_blocking(chunk.job, chunk.plan.generation, _in_words(error))
            raise
        except StoreError as error:
            self._try_again(task, chunk, error)
        try:
            client._call(
                "submit_many",
                lambda client: _ChunkRun(client, self._jobs, chunk).run(),
                extra_seconds=_NO_END,
            )
        except NotSentError as error:
            # The store, or the client's thread: the rows without outcome are tried again.
            self._try_again(task, chunk, error)

    def _try_again(self, task: Task, chunk: _Chunk, error: NotSentError) -> NoReturn:
        """Enqueue a chunk once more, after a pause."""
        _log.warning("%r: tried again in %d s: %s", chunk, _RETRY_SECONDS, error)
        # Not by a countdown: a message that waits in a worker is delivered to others too,
        # once the broker's visibility timeout has passed.
        time.sleep(_RETRY_SECONDS)
        raise task.retry(
            exc=error,
            countdown=0,
            argsrepr=_shown(chunk.job, chunk.first, len(chunk.rows)),
        ) from None

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
                self._client = VoiceClient.from_env(store=store)
            return self._client


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


class _Plan(NamedTuple):
    """How the rows of one generation of a job are sent."""

    generation: int
    concurrency: int
    rate: float | None


class _Rows:
    """The rows of one chunk as JSON values; no repr shows them.

    Attributes:
        plain: [mobile, content] each; None for what is not a row.
    """

    __slots__ = ("plain",)

    def __init__(self, plain: list[Any]) -> None:
        self.plain: list[Any] = plain

    def __len__(self) -> int:
        return len(self.plain)

    @classmethod
    def taken(cls, rows: Iterator[Row], count: int, first: int) -> _Rows | InvalidRequestError:
        """The next rows, or the error to raise."""
        plain: list[Any] = []
        for row in islice(rows, count):
            if isinstance(row, SubmitRequest):
                if row.idempotency_key is not None:
                    return InvalidRequestError(
                        f"row {first + len(plain)} has an idempotency_key; a job derives the keys"
                        " of its rows. The rows before this chunk are enqueued"
                    )
                pair: tuple[object, ...] = (row.mobile, row.content)
            else:
                pair = tuple(row) if isinstance(row, tuple | list) else ()
            plain.append(_plain(pair))
        return cls(plain)


def _plain(pair: tuple[object, ...]) -> list[object] | None:
    """A row that JSON can hold. A value of a wrong type stays, so that its error can name it."""
    texts = [exact_text(value) if isinstance(value, str) else value for value in pair]
    if len(texts) == 2 and all(isinstance(value, _PLAIN) for value in texts):
        return texts
    return None


def _shown(job: str, first: int, count: int) -> str:
    """What Celery shows instead of a message's arguments."""
    return f"(job {job!r}, rows {first}-{first + count - 1})"


class _Chunk:
    """One message: some rows of a job."""

    __slots__ = ("first", "job", "plan", "rows")

    def __init__(self, job: str, plan: _Plan, first: int, rows: _Rows) -> None:
        self.job: str = job
        self.plan: _Plan = plan
        self.first: int = first
        self.rows: _Rows = rows

    def __repr__(self) -> str:
        return f"job {self.job!r}, rows {self.first}-{self.first + len(self.rows) - 1}"

    def requests(self) -> Iterator[tuple[int, SubmitRequest | None]]:
        """The rows with their numbers in the job."""
        for index, row in enumerate(self.rows.plain, self.first):
            request = None
            if row is not None:
                request = SubmitRequest(row[0], row[1], f"job:{self.job}:{index}")
            yield index, request


class _LeasedPace(Pace):
    """Lets rows start that the store has leased to this process.

    Attributes:
        canary: the token of the lease whose row goes out before all others;
            None where this run has none out.
    """

    def __init__(self, client: AsyncVoiceClient, jobs: Jobs, chunk: _Chunk) -> None:
        settings = client._settings
        super().__init__(chunk.plan.rate, settings.limits)
        self.canary: str | None = None
        self._jobs = jobs
        self._chunk = chunk
        self._canary_seconds = settings.timeout + _CANARY_GRACE
        self._left = 0
        self._next = 0.0
        rate = chunk.plan.rate
        if rate is None:
            self._starts = max(_LEASE, chunk.plan.concurrency)
        else:
            self._starts = max(1, min(_LEASE, int(rate * _LEASE_SECONDS)))

    def take_start(self) -> bool:
        """See `Pace`."""
        if self.is_limited or not self._left:
            return False
        self._left -= 1
        return True

    async def wait_for_start(self) -> bool:
        """See `Pace`."""
        while not self._left:
            if not await self._lease():
                return False
        self._left -= 1
        now = time.monotonic()
        wait, self._next = self._next - now, self._next + self._interval
        if wait > 0.0:
            await self.pause.wait(wait)
        return True

    async def _lease(self) -> bool:
        """Ask for starts; False where there will be no more."""
        token = secrets.token_hex(8)
        lease = await self._jobs.lease(
            self._chunk.job,
            self._chunk.plan.generation,
            self._starts,
            token,
            self._canary_seconds,
            _deadline(),
        )
        if lease is None:
            return False
        if lease.is_canary:
            self.canary = token
        if not lease.starts:
            await self.pause.wait(lease.wait)
        self._left, self._interval = lease.starts, lease.interval
        self._next = time.monotonic() + lease.wait
        return True


class _ChunkRun:
    """Sends the rows of one chunk, in the loop thread of the worker's client."""

    def __init__(self, client: AsyncVoiceClient, jobs: Jobs, chunk: _Chunk) -> None:
        self._client = client
        self._jobs = jobs
        self._chunk = chunk
        self._pace = _LeasedPace(client, jobs, chunk)
        self._outcomes: list[JobOutcome] = []
        self._stopped_by: BaseException | None = None
        self._news = anyio.Event()

    async def run(self) -> None:
        """Send what was not accepted before, and record each outcome.

        Raises:
            StoreError: the store failed; the rows without outcome are to be tried again.
        """
        todo = await self._rows_to_send()
        error: Exception | None = None
        async with anyio.create_task_group() as recording:
            recording.start_soon(self._record_now_and_then)
            try:
                await self._send(todo)
            except Exception as raised:  # noqa: BLE001 - raised below, once all is recorded
                error = raised
            recording.cancel_scope.cancel()
        await self._record_the_rest(error)
        if error is not None:
            raise error

    async def _rows_to_send(self) -> list[tuple[int, SubmitRequest | None]]:
        """The rows that were not accepted in an earlier delivery."""
        chunk = self._chunk
        end = chunk.first + len(chunk.rows)
        accepted = await self._jobs.accepted(chunk.job, chunk.first, end, _deadline())
        return [
            (index, request)
            for index, request in chunk.requests()
            # With another number it is sent, and the store refuses its key.
            if index not in accepted or accepted[index].mobile != _masked(request)
        ]

    async def _send(self, todo: list[tuple[int, SubmitRequest | None]]) -> None:
        settings = self._client._settings
        run = BulkRun(
            self._client._opened,
            # Not a request: `None` becomes an invalid row.
            [request for _, request in todo],  # type: ignore[misc]
            BulkOptions(
                max_connections=settings.max_connections,
                concurrency=min(self._chunk.plan.concurrency, settings.max_connections),
                rate=self._chunk.plan.rate,
                stop_on=self._stops,
                limits=settings.limits,
            ),
            pace=self._pace,
        )
        try:
            async with run:
                async for outcome in run:
                    await self._note(todo[outcome.index][0], outcome)
        except BulkStoppedError as stopped:
            cause = stopped.cause
            if isinstance(cause, StoreError):
                raise cause from None
            self._stopped_by = cause

    def _stops(self, outcome: Outcome) -> bool:
        if is_account_level(outcome):
            # At once: what is in flight here may take seconds to finish.
            self._stopped_by = outcome.error
            self._news.set()
            return True
        return isinstance(outcome.error, StoreError)

    async def _note(self, index: int, outcome: Outcome) -> None:
        """Keep an outcome until it is recorded; a row that was not tried stays pending."""
        error = outcome.error
        if isinstance(error, StoreError):
            return
        if isinstance(error, NotSentError) and error.reason == NOT_STARTED:
            return
        self._outcomes.append(_job_outcome(index, outcome))
        if len(self._outcomes) >= _BATCH:
            self._news.set()
        token = self._pace.canary
        if token is not None and outcome.status is not OutcomeStatus.INVALID:
            self._pace.canary = None
            was_sent = not getattr(error, "earlier", False) and outcome.status not in _NOT_SENT_NOW
            if self._stopped_by is None:
                await self._jobs.note_canary(self._chunk.job, token, _deadline(), was_sent=was_sent)

    # --- recording ------------------------------------------------------------------

    async def _record_now_and_then(self) -> None:
        while True:
            with anyio.move_on_after(_LINGER):
                await self._news.wait()
            self._news = anyio.Event()
            try:
                await self._record()
            except StoreError:
                # The outcomes are kept, and the end of the chunk tries again for longer.
                await anyio.sleep(_LINGER)

    async def _record(self) -> None:
        job, generation = self._chunk.job, self._chunk.plan.generation
        if self._stopped_by is not None:
            cause = _in_words(self._stopped_by)
            await self._jobs.stop(job, generation, cause, _deadline())
        count = len(self._outcomes)
        if count:
            await self._jobs.record(job, self._outcomes[:count], _deadline())
            del self._outcomes[:count]

    async def _record_the_rest(self, error: Exception | None) -> None:
        """Record all there is before the message is acknowledged."""
        if error is not None and not isinstance(error, NotSentError):
            # A fault of the program: it would come back with each delivery.
            self._stopped_by = error
        end = time.monotonic() + _LAST_SECONDS
        while not await self._recorded_all(end):  # noqa: ASYNC110 - it waits for the store
            await anyio.sleep(_LINGER)

    async def _recorded_all(self, end: float) -> bool:
        """Record all; False where that fails before `end`."""
        token = self._pace.canary
        try:
            await self._record()
            if token is not None:
                await self._jobs.note_canary(self._chunk.job, token, _deadline(), was_sent=False)
        except StoreError:
            if time.monotonic() >= end:
                raise
            return False
        return True


_NOT_SENT_NOW = (OutcomeStatus.REPLAYED, OutcomeStatus.LIMITED)


def _deadline() -> float:
    return time.monotonic() + _STEP_SECONDS


def _masked(request: SubmitRequest | None) -> str:
    if request is None:
        return ""
    number = read_mobile(request.mobile)
    return mask_mobile(number if isinstance(number, str) else "")


def _in_words(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}"


def _job_outcome(index: int, outcome: Outcome) -> JobOutcome:
    status = outcome.status
    if status is OutcomeStatus.REPLAYED:
        status = OutcomeStatus.ACCEPTED
    mobile, result, error = _masked(outcome.request), outcome.result, outcome.error
    if result is not None:
        return JobOutcome(index, status, mobile, 2, result.msg, result.voice_id)
    if isinstance(error, GatewayError):
        return JobOutcome(index, status, mobile, error.code, error.msg)
    # The run has numbered the row within its chunk.
    text = getattr(error, "reason", None) or str(error).removeprefix(f"row {outcome.index}: ")
    return JobOutcome(index, status, mobile, None, text)
