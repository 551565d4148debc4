"""`ChunkRun`: one delivery of a chunk, in the loop thread of the worker's client.

It sends what has not ended, and records each outcome before the message is
acknowledged. Where it ends early, for whatever reason, the rows without outcome
are pending: the chunk is delivered again, or the job resumed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import anyio

from .._threads import Event
from ..bulk.options import BulkOptions, is_account_level
from ..bulk.run import NOT_STARTED, BulkRun
from ..errors import BulkStoppedError, GatewayError, IhuyiVoiceError, NotSentError, StoreError
from ..models import OutcomeStatus
from ..store.jobs import JobOutcome
from .chunks import masked
from .pace import LeasedPace, step_deadline
from .recording import Recording

if TYPE_CHECKING:
    from .._limits import JobLimits
    from ..client import AsyncVoiceClient
    from ..models import Outcome
    from ..store.jobs import Jobs
    from .chunks import Chunk, NumberedRow

# Keys of one look at the store.
_MOST_KEYS = 500
# Seconds between two looks at requests that other processes have under way.
_OTHERS_PAUSE = 1.0

_NOT_SENT_NOW = (
    OutcomeStatus.NOT_SENT,
    OutcomeStatus.REPLAYED,
    OutcomeStatus.LIMITED,
    OutcomeStatus.INVALID,
)


class _Earlier(NamedTuple):
    """A row of which the store knows an earlier request without outcome."""

    row: NumberedRow
    outcome: JobOutcome


class ChunkRun:
    """Sends the rows of one chunk.

    Attributes:
        begun: whether it has begun: a call may fail before.
        ended: whether it has ended, for the thread that waits.
        refusal: why no row may start; "" where they may.
        failure: why the rows without outcome are to be tried again; None where
            they are not.
        fault: an error of the program, which has stopped the job.
    """

    def __init__(self, jobs: Jobs, chunk: Chunk, limits: JobLimits) -> None:
        self.begun: bool = False
        self.ended: Event = Event()
        self.refusal: str = ""
        self.failure: Exception | None = None
        self.fault: Exception | None = None
        self._jobs = jobs
        self._chunk = chunk
        self._limits = limits
        self._run: BulkRun | None = None
        self._is_stopping = False
        self._earlier: list[_Earlier] = []
        # The rows that were sent once more, by their numbers in the job; and for each row
        # of another process what is recorded where the row gets no other outcome.
        self._sent_again: set[int] = set()
        self._unknown: dict[int, JobOutcome] = {}

    async def in_loop(self, client: AsyncVoiceClient) -> None:
        """Run to the end. A cancellation starts no more rows; what is in flight finishes."""
        self.begun = True
        work = asyncio.ensure_future(self._to_the_end(client))
        work.add_done_callback(lambda _: self.ended.set())
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            self._is_stopping = True
            if self._run is not None:
                self._run.stop()
            try:
                await asyncio.wait([work])
            finally:
                # The loop ends: a second cancellation.
                work.cancel()
            raise

    async def _to_the_end(self, client: AsyncVoiceClient) -> None:
        self._client = client
        self._recording = Recording(self._jobs, self._chunk, self._limits)
        try:
            todo = await self._rows_to_send()
        except Exception as error:  # noqa: BLE001 - the thread that waits looks at it
            self.failure = error
            return
        self._pace = LeasedPace(client, self._jobs, self._chunk)
        async with anyio.create_task_group() as beside:
            beside.start_soon(self._recording.run)
            try:
                await self._send_all(todo)
            except NotSentError as error:
                self.failure = error
            except Exception as error:  # noqa: BLE001 - it would come back with each delivery
                self.fault = error
                self._recording.stop_job(f"a fault of the program ({type(error).__name__})")
            beside.cancel_scope.cancel()
        try:
            await self._recording.finish(self._pace)
        except Exception as error:  # noqa: BLE001 - as above
            self.failure = error

    async def _rows_to_send(self) -> list[NumberedRow]:
        """The rows that have not ended in an earlier delivery."""
        chunk = self._chunk
        opening = await self._jobs.opening(
            chunk.job, chunk.plan.generation, chunk.first, chunk.end, step_deadline()
        )
        self.refusal = opening.refusal
        return [] if opening.refusal else chunk.requests(opening.ended)

    # --- sending --------------------------------------------------------------------

    async def _send_all(self, todo: list[NumberedRow]) -> None:
        while todo and not self._is_stopping:
            await self._send(todo)
            todo = await self._rows_of_others()
        if not self._is_stopping:
            self._recording.add(*self._unknown.values())

    async def _rows_of_others(self) -> list[NumberedRow]:
        """Wait until other processes have ended their requests of rows of this chunk.

        The chunk was delivered again while the first worker was sending, or was
        killed. Until its requests have ended, nothing can be said of them.

        Returns:
            The rows to be sent once more: the other process may have settled a request
            after its row came back here. Where its outcome is still unknown, the
            store sends nothing.
        """
        earlier, self._earlier = self._earlier, []
        keys = [self._chunk.key(one.row[0]) for one in earlier]
        has_waited = False
        while (seconds := await self._seconds_under_way(keys)) > 0.0:
            if self._is_stopping or self._recording.cause is not None:
                return []
            has_waited = True
            await anyio.sleep(min(seconds, _OTHERS_PAUSE))
        again = [one.row for one in earlier if has_waited or one.row[0] not in self._sent_again]
        self._sent_again.update(index for index, _ in again)
        self._unknown.update((one.row[0], one.outcome) for one in earlier)
        return again if self._recording.cause is None else []

    async def _seconds_under_way(self, keys: list[str]) -> float:
        seconds = 0.0
        for first in range(0, len(keys), _MOST_KEYS):
            some = keys[first : first + _MOST_KEYS]
            seconds = max(seconds, await self._jobs.seconds_under_way(some, step_deadline()))
        return seconds

    async def _send(self, todo: list[NumberedRow]) -> None:
        settings = self._client._settings
        self._pace.begin(len(todo))
        self._run = run = BulkRun(
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
                    await self._note(todo[outcome.index], outcome)
        except BulkStoppedError as stopped:
            cause = stopped.cause
            if isinstance(cause, StoreError):
                raise cause from None
            self._recording.stop_job(in_words(cause))

    def _stops(self, outcome: Outcome) -> bool:
        if is_account_level(outcome):
            self._recording.stop_job(in_words(outcome.error))
            return True
        return isinstance(outcome.error, StoreError)

    async def _note(self, row: NumberedRow, outcome: Outcome) -> None:
        """Keep an outcome until it is recorded; a row that was not tried stays pending."""
        error = outcome.error
        if isinstance(error, StoreError):
            return
        if isinstance(error, NotSentError) and error.reason == NOT_STARTED:
            return
        self._unknown.pop(row[0], None)
        is_earlier = bool(getattr(error, "earlier", False))
        if is_earlier:
            self._earlier.append(_Earlier(row, _job_outcome(row[0], outcome)))
        else:
            self._recording.add(_job_outcome(row[0], outcome))
        canary = self._pace.canary
        if canary is not None and canary.index == outcome.index and self._recording.cause is None:
            self._pace.canary = None
            was_sent = not is_earlier and outcome.status not in _NOT_SENT_NOW
            await self._jobs.note_canary(
                self._chunk.job, canary.token, step_deadline(), was_sent=was_sent
            )


def in_words(error: BaseException | None) -> str:
    """Why a job was stopped. The text of a foreign error could show a row.

    That of an ImportError names a module.
    """
    name = type(error).__name__
    return f"{name}: {error}" if isinstance(error, IhuyiVoiceError | ImportError) else name


def _job_outcome(index: int, outcome: Outcome) -> JobOutcome:
    status = outcome.status
    if status is OutcomeStatus.REPLAYED:
        status = OutcomeStatus.ACCEPTED
    mobile = "" if outcome.request is None else masked(outcome.request.mobile)
    result, error = outcome.result, outcome.error
    if result is not None:
        return JobOutcome(index, status, mobile, 2, result.msg, result.voice_id)
    if isinstance(error, GatewayError):
        return JobOutcome(index, status, mobile, error.code, error.msg)
    # The run has numbered the row within its chunk.
    text = getattr(error, "reason", None) or str(error).removeprefix(f"row {outcome.index}: ")
    return JobOutcome(index, status, mobile, None, text)
