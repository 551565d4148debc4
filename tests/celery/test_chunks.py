"""What one delivery of a chunk does; the test is the broker."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import threading
import time
import traceback
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.exceptions import Reject, SoftTimeLimitExceeded

from ihuyi_voice import (
    InvalidRequestError,
    OutcomeStatus,
    Store,
    StoreError,
    SubmitRequest,
    VoiceClient,
)
from ihuyi_voice._limits import JobLimits, Limits
from ihuyi_voice._threads import Event
from ihuyi_voice.celery import BulkJobs, JobState
from ihuyi_voice.celery.chunks import Chunk, ChunkRows, Plan
from ihuyi_voice.celery.jobs import jobs_of
from ihuyi_voice.celery.pace import LeasedPace
from ihuyi_voice.celery.run import ChunkRun
from ihuyi_voice.sandbox import Chaos, SandboxGateway
from ihuyi_voice.store.answer import StoredAnswer
from ihuyi_voice.store.entry import EntryState, Fingerprints
from ihuyi_voice.store.jobs import Jobs, Lease
from ihuyi_voice.store.jobs.values import Opening
from tests.inside import after_sending, close_jobs, within
from tests.store.support import claim, open_store

from .desk import open_desk
from .site import CODE, row, rows, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

    from ihuyi_voice.store.entry import Claim
    from ihuyi_voice.store.sql.store import SqlStore

    from .desk import Desk

ACCEPTED, REFUSED = OutcomeStatus.ACCEPTED, OutcomeStatus.REFUSED
UNKNOWN, INVALID = OutcomeStatus.UNKNOWN, OutcomeStatus.INVALID
OF_THE_ACCOUNT = Fingerprints("sandbox-key")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    gateway = SandboxGateway()
    with gateway.serve_in_thread() as url:
        monkeypatch.setenv("IHUYI_VOICE_API_ID", "sandbox")
        monkeypatch.setenv("IHUYI_VOICE_API_KEY", "sandbox-key")
        monkeypatch.setenv("IHUYI_VOICE_BASE_URL", url)
        monkeypatch.delenv("IHUYI_VOICE_STORE", raising=False)
        opened = open_desk(str(tmp_path / "calls.db"), gateway, monkeypatch)
        within(opened.jobs, JobLimits(retry=0))
        with opened.store:
            yield opened
            close_jobs(opened.jobs)


def calls(desk: Desk) -> list[str]:
    return [attempt.mobile for attempt in desk.gateway.attempts]


def counts(desk: Desk, job: str = "spring") -> dict[OutcomeStatus, int]:
    return {one: count for one, count in desk.jobs.status(job).counts.items() if count}


async def claim_row(store: SqlStore, index: int, live: float) -> Claim:
    """As the worker that got the message first does."""
    return await claim(
        store, f"job:spring:{index}", *row(index), live=live, fingerprints=OF_THE_ACCOUNT
    )


def test_a_row_is_placed_once_however_often_its_message_is_delivered(desk: Desk) -> None:
    desk.gateway.blacklist = [row(3)[0]]
    desk.jobs.submit(rows(6), job="spring", chunk_size=4)
    messages = list(desk.messages)
    desk.deliver_all()
    keys = [f"job:spring:{index}" for index in range(6)]
    assert set(keys) == set(desk.store.entries(keys))
    before = list(desk.jobs.outcomes("spring"))
    assert {ACCEPTED: 5, REFUSED: 1} == counts(desk)
    desk.messages = messages
    desk.deliver_all()
    # The refused row too: it has its outcome.
    assert sorted(row(index)[0] for index in range(6)) == sorted(calls(desk))
    assert before == list(desk.jobs.outcomes("spring"))
    assert JobState.COMPLETED is desk.jobs.status("spring").state


def note_looks_at_others(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """An event that is set once a chunk knows that another worker has a request under way."""
    waits = threading.Event()
    seconds_under_way = Jobs.seconds_under_way

    async def noted(self: Jobs, *arguments: Any) -> float:
        seconds = await seconds_under_way(self, *arguments)
        if seconds > 0.0:
            waits.set()
        return seconds

    monkeypatch.setattr(Jobs, "seconds_under_way", noted)
    return waits


def test_nothing_is_said_of_a_row_that_another_worker_is_sending(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message was delivered again while its first worker goes on."""
    asked = note_looks_at_others(monkeypatch)
    desk.jobs.submit(rows(4), job="spring")
    claimed = asyncio.run(claim_row(desk.store, 2, live=60.0))
    thread = threading.Thread(target=desk.deliver)
    thread.start()
    until(lambda: 3 == desk.jobs.status("spring").done)
    # The store has waited a while for the other request.
    assert asked.wait(60)
    status = desk.jobs.status("spring")
    assert (JobState.PROCESSING, 1) == (status.state, status.pending)
    answer = StoredAnswer(voice_id="7")
    settled = desk.store.settle("job:spring:2", claimed.token, EntryState.ACCEPTED, answer)
    asyncio.run(settled)
    thread.join(60)
    assert {ACCEPTED: 4} == counts(desk)
    assert JobState.COMPLETED is desk.jobs.status("spring").state
    assert row(2)[0] not in calls(desk)
    assert "7" == list(desk.jobs.outcomes("spring"))[2].voice_id


@pytest.mark.parametrize("state", [EntryState.REFUSED, EntryState.NOT_SENT, EntryState.ACCEPTED])
def test_a_request_is_settled_after_its_row_came_back_and_before_the_end_of_the_pass(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, state: EntryState
) -> None:
    desk.jobs.submit(rows(4), job="spring")
    claimed = asyncio.run(claim_row(desk.store, 2, live=60.0))

    async def then_settle(_: ChunkRun) -> None:
        answer = StoredAnswer(voice_id="7")
        await desk.store.settle("job:spring:2", claimed.token, state, answer)

    after_sending(monkeypatch, then_settle)
    desk.deliver()
    assert {ACCEPTED: 4} == counts(desk)
    is_placed_here = row(2)[0] in calls(desk)
    assert is_placed_here is (state is not EntryState.ACCEPTED)


@pytest.mark.parametrize("ended_by", ["a stop of the job", "a shutdown of the worker"])
def test_a_row_that_cannot_be_asked_about_once_more(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, ended_by: str
) -> None:
    desk.jobs.submit(rows(4), job="spring")
    asyncio.run(claim_row(desk.store, 2, live=0.01))

    async def then_end(self: ChunkRun) -> None:
        if ended_by == "a stop of the job":
            self._recording.stop_job("the account is empty")
        else:
            self._is_stopping = True

    after_sending(monkeypatch, then_end)
    desk.deliver()
    # A worker that is shut down gives the row back to the broker.
    unknown = {UNKNOWN: 1} if ended_by == "a stop of the job" else {}
    assert {ACCEPTED: 3, **unknown} == counts(desk)


def test_the_row_of_a_worker_that_was_killed_is_unknown(desk: Desk) -> None:
    desk.jobs.submit(rows(4), job="spring", rate=1000)
    asyncio.run(claim_row(desk.store, 2, live=3.0))
    desk.deliver()
    assert {ACCEPTED: 3, UNKNOWN: 1} == counts(desk)
    assert JobState.COMPLETED is desk.jobs.status("spring").state
    # Found as not placed on the account's page.
    (unknown,) = desk.store.unknown()
    later = open_store(desk.store.place, clock=lambda: time.time() + 100)
    with later:
        later.resolve(unknown.key, placed=False)
    desk.jobs.resume("spring", rows(4))
    assert (JobState.SCHEDULED, 0) == (
        desk.jobs.status("spring").state,
        desk.jobs.status("spring").pending,
    )
    desk.deliver()
    assert {ACCEPTED: 4} == counts(desk)
    assert 1 == calls(desk).count(row(2)[0])


def test_messages_of_before_a_resume_send_nothing(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ihuyi_voice")
    desk.jobs.submit(rows(4), job="spring", chunk_size=2)
    desk.jobs.cancel("spring")
    desk.deliver()
    assert "job 'spring', rows 0-1: not sent: the job is canceled" in caplog.text
    late = desk.messages.pop()
    desk.jobs.resume("spring", rows(4), chunk_size=3)
    desk.deliver(late)
    assert [] == calls(desk)
    assert "not sent: the job was resumed" in caplog.text
    desk.deliver_all()
    assert {ACCEPTED: 4} == counts(desk)
    # Of a job that another store has.
    desk.deliver(("other", *late[1:]))
    assert "job 'other', rows 2-3: not sent: the store has no such job" in caplog.text
    assert 4 == len(calls(desk))


def test_a_cancel_between_two_submits_of_rows(desk: Desk) -> None:
    def some() -> Iterator[tuple[str, str]]:
        yield from rows(4)
        desk.jobs.cancel("spring")
        yield from rows(2)

    status = desk.jobs.submit(some(), job="spring", chunk_size=2)
    assert (JobState.CANCELED, 4, False) == (status.state, status.total, status.is_enqueued)
    assert 2 == len(desk.messages)


def test_a_resume_with_other_rows_is_refused(desk: Desk) -> None:
    desk.jobs.submit(rows(6), job="spring", chunk_size=2)
    desk.messages.pop()
    desk.deliver_all()
    # One row was inserted: each key would get the number of the row before.
    shifted = [("13800000000", CODE), *rows(6)]
    with pytest.raises(InvalidRequestError, match="row 0 has another number than when job"):
        desk.jobs.resume("spring", shifted)
    assert [] == desk.messages
    with pytest.raises(InvalidRequestError, match="job 'spring' has 6 rows, and these were 5"):
        desk.jobs.resume("spring", rows(5), chunk_size=10)
    desk.deliver_all()
    status = desk.jobs.status("spring")
    assert (JobState.PROCESSING, 1, False) == (status.state, status.pending, status.is_enqueued)
    desk.jobs.resume("spring", rows(6), chunk_size=3)
    desk.deliver_all()
    assert {ACCEPTED: 6} == counts(desk)
    assert 6 == len(calls(desk))


def test_a_resumed_row_with_another_code_ends_as_invalid_and_holds_no_row_up(desk: Desk) -> None:
    """The key is that of the first code; its row goes out as the canary."""
    desk.gateway.balance = 0
    desk.jobs.submit(rows(3), job="spring")
    desk.deliver()
    assert JobState.STOPPED is desk.jobs.status("spring").state
    desk.gateway.balance = 10
    desk.jobs.resume("spring", [(row(0)[0], "9999"), row(1), row(2)])
    began = time.monotonic()
    desk.deliver()
    assert {ACCEPTED: 2, INVALID: 1} == counts(desk)
    assert "used for another mobile or content" in next(desk.jobs.outcomes("spring")).msg
    # Not the time after which a canary counts as lost.
    assert time.monotonic() - began < 20


def test_a_canary_that_could_not_be_sent_is_followed_by_another(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    note_canary = Jobs.note_canary
    were_sent: list[bool] = []

    async def noted(self: Jobs, *arguments: Any, was_sent: bool) -> None:
        were_sent.append(was_sent)
        await note_canary(self, *arguments, was_sent=was_sent)

    monkeypatch.setattr(Jobs, "note_canary", noted)
    # No gateway has this address.
    monkeypatch.setenv("IHUYI_VOICE_BASE_URL", "http://127.0.0.1:1")
    desk.jobs.submit(rows(2), job="spring")
    desk.deliver()
    assert {OutcomeStatus.NOT_SENT: 2} == counts(desk)
    assert [False, False] == were_sent


def test_the_reason_of_an_invalid_row_does_not_name_its_place_in_the_chunk(desk: Desk) -> None:
    desk.jobs.submit([row(0), ("123", CODE)], job="spring")
    desk.deliver()
    _, invalid = desk.jobs.outcomes("spring")
    assert INVALID is invalid.status
    assert invalid.msg.startswith("mobile must be a mainland number")


def test_a_job_with_a_slow_rate_has_small_chunks(desk: Desk) -> None:
    desk.jobs.submit(rows(25), job="spring", rate=0.2)
    assert [12, 12, 1] == [len(ChunkRows.unpacked(message[3])) for message in desk.messages]


@pytest.mark.parametrize("code_probability", [1.0])
def test_equal_failures_in_a_row_stop_a_job(desk: Desk, code_probability: float) -> None:
    desk.gateway.chaos = Chaos(code=0, code_probability=code_probability)
    desk.jobs.submit(rows(100), job="spring", concurrency=1)
    desk.deliver()
    status = desk.jobs.status("spring")
    assert (JobState.STOPPED, 20) == (status.state, status.counts[REFUSED])
    assert "SubmitFailedError" in str(status.stopped_by)


# --- failures ---------------------------------------------------------------------------


def test_the_store_fails_in_the_middle_of_a_chunk(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lease = Jobs.lease
    left = iter(range(3))

    async def failing(self: Jobs, *arguments: Any) -> Any:
        if next(left, None) is not None:
            return await lease(self, *arguments)
        monkeypatch.setattr(Jobs, "lease", lease)
        msg = "calls.db: the disk is full"
        raise StoreError(msg)

    monkeypatch.setattr(Jobs, "lease", failing)
    desk.jobs.submit(rows(40), job="spring", rate=1000)
    # Celery tries again at once where a task runs in the program itself.
    desk.deliver()
    assert "job 'spring', rows 0-39: tried again in 0 s" in caplog.text
    assert {ACCEPTED: 40} == counts(desk)
    assert 40 == len(calls(desk))


def test_the_store_fails_before_a_chunk_begins(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opening = Jobs.opening

    async def failing(*_: object) -> None:
        monkeypatch.setattr(Jobs, "opening", opening)
        msg = "it did not answer in time"
        raise StoreError(msg)

    monkeypatch.setattr(Jobs, "opening", failing)
    desk.jobs.submit(rows(3), job="spring")
    desk.deliver()
    assert "tried again in 0 s: StoreError: the store could not be used" in caplog.text
    assert {ACCEPTED: 3} == counts(desk)


def test_outcomes_are_recorded_once_the_store_works_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Jobs.record
    failures = iter(range(3))

    async def failing(self: Jobs, *arguments: Any) -> None:
        if next(failures, None) is not None:
            msg = "it did not answer in time"
            raise StoreError(msg)
        await record(self, *arguments)

    monkeypatch.setattr(Jobs, "record", failing)
    within(desk.jobs, JobLimits(retry=0, linger=0.01))
    desk.gateway.chaos = Chaos(latency=0.1)
    desk.jobs.submit(rows(6), job="spring", concurrency=2)
    assert "SUCCESS" == desk.deliver()
    assert {ACCEPTED: 6} == counts(desk)


def test_many_outcomes_are_recorded_at_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    record = Jobs.record

    async def noted(self: Jobs, job: str, generation: int, some: Any, deadline: float) -> None:
        sizes.append(len(some))
        await record(self, job, generation, some, deadline)

    monkeypatch.setattr(Jobs, "record", noted)
    within(desk.jobs, JobLimits(retry=0, batch=2, linger=1000.0))
    desk.gateway.chaos = Chaos(latency=0.1)
    desk.jobs.submit(rows(6), job="spring", concurrency=1)
    assert "SUCCESS" == desk.deliver()
    # Without a full batch there is one record, at the end of the chunk.
    assert len(sizes) > 1
    assert {ACCEPTED: 6} == counts(desk)


def test_outcomes_that_cannot_be_recorded_are_found_by_the_next_delivery(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*_: object) -> None:
        msg = "it did not answer in time"
        raise StoreError(msg)

    let_the_broker_take_nothing(desk, monkeypatch)
    within(desk.jobs, JobLimits(retry=0, last=0.0))
    desk.jobs.submit(rows(3), job="spring")
    (message,) = desk.messages
    with monkeypatch.context() as failure:
        failure.setattr(Jobs, "record", failing)
        assert "REJECTED" == desk.deliver()
    assert {} == counts(desk)
    assert "SUCCESS" == desk.deliver(message)
    assert {ACCEPTED: 3} == counts(desk)
    assert 3 == len(calls(desk))


def let_the_broker_take_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Task.retry` reports it so; Celery would drop the message then."""

    def retry(**_: object) -> None:
        msg = "the broker is away"
        raise Reject(msg, requeue=False)

    monkeypatch.setattr(desk.task, "retry", retry)


def test_a_store_that_cannot_be_opened_loses_no_row(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    desk.jobs.submit(rows(3), job="spring")
    close_jobs(desk.jobs)
    opened = Store.open

    def failing(*_: object) -> None:
        monkeypatch.setattr(Store, "open", opened)
        msg = "this store needs sqlalchemy"
        raise ModuleNotFoundError(msg)

    monkeypatch.setattr(Store, "open", failing)
    desk.deliver()
    assert "tried again in 0 s: ModuleNotFoundError: this store needs sqlalchemy" in caplog.text
    assert {ACCEPTED: 3} == counts(desk)


def test_a_fault_of_the_program_stops_the_job_and_shows_no_row(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def faulty(*_: object) -> None:
        raise ValueError(row(0)[0])

    monkeypatch.setattr("ihuyi_voice.celery.run.masked", faulty)
    desk.jobs.submit(rows(3), job="spring")
    assert "SUCCESS" == desk.deliver()
    status = desk.jobs.status("spring")
    assert (JobState.STOPPED, "a fault of the program (ValueError)") == (
        status.state,
        status.stopped_by,
    )
    assert "rows 0-2: the job is stopped: ValueError\n" in caplog.text
    # Where it happened.
    assert "in faulty" in caplog.text
    assert row(0)[0] not in caplog.text


def test_a_foreign_failure_is_logged_without_its_text(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opening = Jobs.opening

    async def failing(*_: object) -> None:
        monkeypatch.setattr(Jobs, "opening", opening)
        raise OSError(row(0)[0])

    monkeypatch.setattr(Jobs, "opening", failing)
    desk.jobs.submit(rows(3), job="spring")
    desk.deliver()
    assert "rows 0-2: tried again in 0 s: OSError\n" in caplog.text
    assert row(0)[0] not in caplog.text


@pytest.mark.parametrize("with_failure", [False, True])
def test_a_worker_without_credentials(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, *, with_failure: bool
) -> None:
    monkeypatch.delenv("IHUYI_VOICE_API_KEY")
    desk.jobs.submit(rows(3), job="spring")
    if with_failure:
        stop = Jobs.stop_blocking

        def failing(*_: object) -> None:
            monkeypatch.setattr(Jobs, "stop_blocking", stop)
            msg = "it did not answer in time"
            raise StoreError(msg)

        monkeypatch.setattr(Jobs, "stop_blocking", failing)
    desk.deliver()
    status = desk.jobs.status("spring")
    assert (JobState.STOPPED, 3) == (status.state, status.pending)
    assert "IHUYI_VOICE_API_KEY" in str(status.stopped_by)


@pytest.mark.parametrize("when", ["sending", "waiting for another worker"])
def test_a_soft_time_limit_ends_a_chunk_and_puts_it_back(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Celery raises it in the main thread; here a signal does."""
    asked = note_looks_at_others(monkeypatch)
    desk.gateway.chaos = Chaos(latency=0.2)
    desk.jobs.submit(rows(8), job="spring", concurrency=2)
    (message,) = desk.messages
    if when != "sending":
        asyncio.run(claim_row(desk.store, 7, live=60.0))
    is_time = asked.is_set if when != "sending" else lambda: desk.gateway.taken >= 3
    began = time.monotonic()
    with AlarmOnce(is_time):
        assert "REJECTED" == desk.deliver()
    # Not as long as the other worker's request may take.
    assert time.monotonic() - began < 50
    status = desk.jobs.status("spring")
    # What was in flight has ended, and the rest is pending.
    assert status.done == desk.gateway.taken == status.counts[ACCEPTED]
    assert status.pending
    if when == "sending":
        assert "SUCCESS" == desk.deliver(message)
        assert {ACCEPTED: 8} == counts(desk)
        assert 8 == len(calls(desk))


@pytest.mark.parametrize("when", ["during a lease", "between two leases"])
def test_a_run_that_is_stopped_takes_no_more_leases(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The canary is out in another process."""
    leases: list[bool] = []
    waiting, stopped = threading.Event(), threading.Event()
    stop = LeasedPace.stop

    def noted(self: LeasedPace) -> None:
        stop(self)
        stopped.set()

    async def leased(*_: object) -> Lease | None:
        leases.append(stopped.is_set())
        waiting.set()
        if when == "during a lease":
            await asyncio.to_thread(stopped.wait, 60)
        # The first one is the last one.
        return Lease(0, 60.0) if len(leases) == 1 else None

    monkeypatch.setattr(LeasedPace, "stop", noted)
    monkeypatch.setattr(Jobs, "lease", leased)
    desk.jobs.submit(rows(3), job="spring")
    began = time.monotonic()
    with AlarmOnce(waiting.is_set):
        assert "REJECTED" == desk.deliver()
    assert [False] == leases
    # Not the wait of the lease.
    assert time.monotonic() - began < 50
    assert 3 == desk.jobs.status("spring").pending


async def test_a_run_uses_no_lease_of_the_run_before() -> None:
    leases = iter([Lease(5), Lease(5)])

    async def lease(*_: object) -> Lease:
        return next(leases)

    settings = SimpleNamespace(limits=Limits(), timeout=1.0)
    client: Any = SimpleNamespace(_settings=settings)
    jobs: Any = SimpleNamespace(lease=lease)
    chunk = Chunk("spring", Plan(1, 5, None), 0, ChunkRows())
    pace = LeasedPace(client, jobs, chunk)
    pace.begin(5)
    assert not pace.take_start()
    assert await pace.wait_for_start(0)
    assert pace.take_start()
    pace.stop()
    pace.begin(5)
    assert not pace.take_start()
    assert await pace.wait_for_start(0)


async def test_a_run_that_is_cancelled_before_its_first_row_starts_none() -> None:
    """While it asks the store which rows have ended."""
    asked, answered = asyncio.Event(), asyncio.Event()

    async def opening(*_: object) -> Opening:
        asked.set()
        await answered.wait()
        return Opening("", frozenset())

    # No row can be leased, and no request made.
    jobs: Any = SimpleNamespace(opening=opening)
    client: Any = SimpleNamespace(_settings=SimpleNamespace(limits=Limits(), timeout=1.0))
    run = ChunkRun(jobs, Chunk("spring", Plan(1, 5, None), 0, ChunkRows([[*row(0)]])), JobLimits())
    running = asyncio.create_task(run.in_loop(client))
    await asked.wait()
    running.cancel()
    # Until the cancellation has reached the run, which waits for the store.
    for _ in range(10):
        await asyncio.sleep(0)
    assert not running.done()
    answered.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert run.ended.is_set()
    assert (None, None) == (run.failure, run.fault)


@pytest.mark.parametrize("when", ["opening", "pausing"])
def test_a_soft_time_limit_before_a_chunk_begins(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def limit(*_: object, **__: object) -> None:
        raise SoftTimeLimitExceeded

    def fail(*_: object, **__: object) -> None:
        msg = "it did not answer in time"
        raise StoreError(msg)

    desk.jobs.submit(rows(3), job="spring")
    monkeypatch.setattr(VoiceClient, "from_env", limit if when == "opening" else fail)
    monkeypatch.setattr("ihuyi_voice.celery.jobs.time", SimpleNamespace(sleep=limit))
    assert "REJECTED" == desk.deliver()
    assert (3, JobState.SCHEDULED) == (
        desk.jobs.status("spring").pending,
        desk.jobs.status("spring").state,
    )


class AlarmOnce:
    """Raise `SoftTimeLimitExceeded` in the main thread once a condition is true."""

    def __init__(self, is_time: Callable[[], bool]) -> None:
        self._is_time = is_time

    def __enter__(self) -> None:
        signal.signal(signal.SIGUSR1, self._limit)
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)

    def _watch(self) -> None:
        until(self._is_time)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def _limit(self, _number: int, _frame: FrameType | None) -> None:
        raise SoftTimeLimitExceeded


def test_a_client_that_was_closed_loses_no_row(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    let_the_broker_take_nothing(desk, monkeypatch)
    waited: list[object] = []
    desk.jobs.submit(rows(3), job="spring")
    client = VoiceClient.from_env(store=desk.store)
    client.close()
    monkeypatch.setattr(VoiceClient, "from_env", lambda **_: client)
    with monkeypatch.context() as spied:
        spied.setattr(Event, "wait", lambda *arguments: waited.append(arguments))
        assert "REJECTED" == desk.deliver()
    # Not for a run that has not begun.
    assert [] == waited
    assert 3 == desk.jobs.status("spring").pending


# --- secrets ------------------------------------------------------------------------------


def frames_of(error: BaseException) -> str:
    """The variables of the frames of this package, as tools that report exceptions show them."""
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    ours = [frame for frame in shown.stack if "/ihuyi_voice/" in frame.filename]
    assert ours
    return str([frame.locals for frame in ours])


def raising_rows() -> Iterator[tuple[str, str]]:
    yield from rows(3)
    msg = "the customer's file ended in the middle"
    raise OSError(msg)


def with_a_key() -> Iterator[SubmitRequest | tuple[str, str]]:
    yield row(0)
    yield SubmitRequest(*row(1), "mine")


@pytest.mark.parametrize(
    ("error", "some"),
    [
        (OSError, raising_rows()),
        (InvalidRequestError, with_a_key()),
        (InvalidRequestError, [SubmitRequest(*row(0)), SubmitRequest(*row(1), "mine")]),
    ],
)
def test_no_frame_shows_the_rows_that_were_taken(
    desk: Desk, error: type[Exception], some: Any
) -> None:
    with pytest.raises(error) as raised:
        desk.jobs.submit(some, job="spring", chunk_size=100)
    shown = frames_of(raised.value)
    assert CODE not in shown
    assert row(0)[0] not in shown
    status = desk.jobs.status("spring")
    assert (0, False, []) == (status.total, status.is_enqueued, desk.messages)
    desk.jobs.resume("spring", rows(3))
    desk.deliver_all()
    assert {ACCEPTED: 3} == counts(desk)


def test_no_message_shows_its_rows(desk: Desk) -> None:
    """Celery logs a whole message that has reached a worker without its task."""
    desk.jobs.submit(rows(2), job="spring")
    # Without the generation, whose digits are random.
    shown = json.dumps([message[2:] for message in desk.messages])
    assert CODE not in shown
    assert row(0)[0] not in shown
    desk.deliver()
    assert {ACCEPTED: 2} == counts(desk)


def test_the_rows_after_those_that_were_enqueued_are_resumed(desk: Desk) -> None:
    with pytest.raises(OSError, match="in the middle"):
        desk.jobs.submit(raising_rows(), job="spring", chunk_size=2)
    assert 1 == len(desk.messages)
    desk.deliver_all()
    status = desk.jobs.status("spring")
    assert (JobState.PROCESSING, 2, 2) == (status.state, status.total, status.done)
    desk.jobs.resume("spring", rows(3), chunk_size=2)
    desk.deliver_all()
    assert {ACCEPTED: 3} == counts(desk)
    assert JobState.COMPLETED is desk.jobs.status("spring").state


def test_no_variable_of_a_bulk_jobs_shows_the_password_of_its_store() -> None:
    app = Celery("desk", broker="memory://")
    jobs = BulkJobs(app, store="mysql://a:password@h/d", name="one")
    assert "password" not in repr(vars(jobs))
    assert "one.chunk" in app.tasks


def test_events_of_rows_need_a_list_of_functions() -> None:
    app = Celery("desk", broker="memory://")
    with pytest.raises(TypeError, match="on_event takes a list of functions"):
        BulkJobs(app, store="sqlite:///one.db", on_event=print)  # type: ignore[arg-type]
    assert jobs_of(app) is None


def test_two_bulk_jobs_of_an_application_have_two_names() -> None:
    app = Celery("desk", broker="memory://")
    first = BulkJobs(app, store="sqlite:///one.db", name="one")
    with pytest.raises(ValueError, match="this application has a BulkJobs with the name 'one'"):
        BulkJobs(app, store="sqlite:///two.db", name="one")
    assert first is jobs_of(app)
    BulkJobs(app, store="sqlite:///two.db", name="two")
    assert {"one.chunk", "two.chunk"} <= set(app.tasks)
