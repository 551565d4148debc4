"""Jobs where two programs meet, clocks jump, or a message comes late."""

from __future__ import annotations

import asyncio
import math
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice.errors import InvalidRequestError
from ihuyi_voice.models import OutcomeStatus
from ihuyi_voice.store.entry import EntryState
from ihuyi_voice.store.jobs import JobOutcome, JobState, Lease

from .support import LIVE, MASKED, Clock, claimed, open_store

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ihuyi_voice.store.sql.store import SqlStore

JOB = "spring"
CANARY_SECONDS = 20.0
ACCEPTED, REFUSED = OutcomeStatus.ACCEPTED, OutcomeStatus.REFUSED
UNKNOWN = OutcomeStatus.UNKNOWN


async def lease(store: SqlStore, generation: int, starts: int = 10) -> Lease | None:
    return await store.jobs.lease(JOB, generation, starts, "token", CANARY_SECONDS, math.inf)


async def record(
    store: SqlStore,
    generation: int,
    indexes: Iterable[int],
    status: OutcomeStatus = ACCEPTED,
    msg: str = "",
) -> None:
    outcomes = [JobOutcome(index, status, MASKED, None, msg) for index in indexes]
    await store.jobs.record(JOB, generation, outcomes, math.inf)


async def with_canary_back(store: SqlStore, rate: float | None) -> int:
    """A job whose leases need no canary; returns its generation."""
    generation = store.jobs.create(JOB, rate)
    assert Lease(1, is_canary=True) == await lease(store, generation)
    await store.jobs.note_canary(JOB, "token", math.inf, was_sent=True)
    return generation


def test_of_two_programs_that_create_a_job_at_once_one_does(place: str) -> None:
    both_are_here = threading.Barrier(2)
    results: list[object] = []

    def create() -> None:
        with open_store(place) as store:
            both_are_here.wait(60)
            try:
                results.append(store.jobs.create(JOB, None))
            except InvalidRequestError as error:
                results.append(error)

    open_store(place).close()
    threads = [threading.Thread(target=create) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {int, InvalidRequestError} == {type(result) for result in results}, results


async def test_status_is_of_one_moment(place: str) -> None:
    """Rows are enqueued and end while it is asked."""
    ended = threading.Event()

    async def work(store: SqlStore, generation: int) -> None:
        for first in range(0, 300, 10):
            store.jobs.note_enqueued(JOB, generation, first + 10, all_rows=first == 290)
            await record(store, generation, range(first, first + 10))

    def in_thread(generation: int) -> None:
        try:
            with open_store(place) as store:
                asyncio.run(work(store, generation))
        finally:
            ended.set()

    with open_store(place) as store:
        thread = threading.Thread(target=in_thread, args=[store.jobs.create(JOB, None)])
        thread.start()
        while not ended.is_set():
            status = store.jobs.status(JOB)
            assert status.done <= status.total
            assert (status.state is JobState.COMPLETED) == (status.done == 300)
        thread.join()
        assert JobState.COMPLETED is store.jobs.status(JOB).state


async def test_a_resumed_job_has_no_fewer_rows_than_outcomes(store: SqlStore) -> None:
    generation = store.jobs.create(JOB, None)
    assert 9 == store.jobs.note_enqueued(JOB, generation, 9, all_rows=True)
    await record(store, generation, range(5))
    generation = store.jobs.reopen(JOB).generation
    status = store.jobs.status(JOB)
    assert (9, 5, 4, False) == (status.total, status.done, status.pending, status.is_enqueued)
    assert 9 == store.jobs.note_enqueued(JOB, generation, 4, all_rows=False)
    # Fewer rows than before: the job waits for the others.
    assert 9 == store.jobs.note_enqueued(JOB, generation, 6, all_rows=True)
    await record(store, generation, [5])
    status = store.jobs.status(JOB)
    assert (JobState.SCHEDULED, 9, False) == (status.state, status.total, status.is_enqueued)


async def test_outcomes_that_come_after_a_resume(store: SqlStore) -> None:
    """A worker was still sending rows of the first generation."""
    first = store.jobs.create(JOB, None)
    assert store.jobs.note_enqueued(JOB, first, 6, all_rows=True)
    await record(store, first, [0], UNKNOWN, "first")
    await record(store, first, [5], REFUSED)
    second = store.jobs.reopen(JOB).generation
    assert store.jobs.note_enqueued(JOB, second, 6, all_rows=True)
    await record(store, second, [1, 4], REFUSED)
    await record(store, first, [2], ACCEPTED)
    await record(store, first, [0, 1, 3], UNKNOWN, "late")
    # Refused then: the new generation sends it once more.
    await record(store, first, [5], REFUSED)
    await record(store, first, [4], ACCEPTED)
    outcomes = {outcome.index: outcome for outcome in store.jobs.outcomes(JOB)}
    assert {0: UNKNOWN, 1: UNKNOWN, 2: ACCEPTED, 3: UNKNOWN, 4: ACCEPTED} == {
        index: outcome.status for index, outcome in outcomes.items()
    }
    # Its phone may have rung after the refusal.
    assert ("late", "late") == (outcomes[0].msg, outcomes[1].msg)
    assert frozenset({1, 2, 4}) == (await store.jobs.opening(JOB, second, 0, 6, math.inf)).ended
    await record(store, second, [3, 5], REFUSED)
    status = store.jobs.status(JOB)
    # Row 0 is not looked at yet in this generation.
    assert (JobState.SCHEDULED, 0) == (status.state, status.pending)
    await record(store, second, [0], UNKNOWN)
    assert JobState.COMPLETED is store.jobs.status(JOB).state


@pytest.mark.parametrize(
    "other",
    [REFUSED, OutcomeStatus.NOT_SENT, OutcomeStatus.LIMITED, OutcomeStatus.INVALID],
)
async def test_of_two_workers_that_sent_a_row_the_one_that_may_have_rung_counts(
    store: SqlStore, other: OutcomeStatus
) -> None:
    generation = store.jobs.create(JOB, None)
    assert store.jobs.note_enqueued(JOB, generation, 2, all_rows=True)
    await record(store, generation, [0], UNKNOWN)
    await record(store, generation, [0, 1], other)
    await record(store, generation, [1], UNKNOWN)
    status = store.jobs.status(JOB)
    assert (JobState.COMPLETED, 2) == (status.state, status.counts[UNKNOWN])
    generation = store.jobs.reopen(JOB).generation
    # It was found as not placed, and sent once more.
    await record(store, generation, [0], other)
    await record(store, generation, [1], ACCEPTED)
    assert [other, ACCEPTED] == [outcome.status for outcome in store.jobs.outcomes(JOB)]


@pytest.mark.parametrize("rate", [0.01, 0.5, 4.0])
async def test_no_start_is_leased_for_later_than_a_second(
    in_file: SqlStore, clock: Clock, rate: float
) -> None:
    """So a stop is seen soon, however slow the rate is."""
    generation = await with_canary_back(in_file, rate)
    began, waited, starts = clock.time, 0.0, 1
    while starts < 5:
        one = await lease(in_file, generation, 1)
        assert one is not None
        assert one.wait <= 1.0
        waited = one.wait
        starts += one.starts
        clock.time += waited
    assert (starts - 1) / rate - 1.0 <= clock.time - began
    assert JobState.PROCESSING is in_file.jobs.status(JOB).state


async def test_a_clock_that_is_set_back_stops_no_job(in_file: SqlStore, clock: Clock) -> None:
    generation = await with_canary_back(in_file, 100.0)
    clock.time -= 3600
    assert Lease(10, 0.0, 0.01) == await lease(in_file, generation)
    generation = in_file.jobs.reopen(JOB).generation
    assert Lease(1, is_canary=True) == await lease(in_file, generation)
    clock.time -= 3600
    # Its process died.
    jobs = in_file.jobs
    other = await jobs.lease(JOB, generation, 10, "another", CANARY_SECONDS, math.inf)
    assert Lease(1, is_canary=True) == other


async def test_a_stop_between_two_looks_at_a_job(
    in_file: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`lease` reads the job without a lock, and then with one."""
    generation = await with_canary_back(in_file, 100.0)
    record = in_file.jobs.reopen(JOB)
    monkeypatch.setattr(
        "ihuyi_voice.store.sql.jobs.SqlJobTransaction.read_job",
        lambda *_: record,
    )
    in_file.jobs.cancel(JOB)
    assert generation != record.generation
    assert await lease(in_file, record.generation) is None


async def test_what_a_gateway_says_is_recorded_whatever_it_is(store: SqlStore) -> None:
    generation = store.jobs.create(JOB, None)
    assert store.jobs.note_enqueued(JOB, generation, 1, all_rows=True)
    outcome = JobOutcome(0, REFUSED, MASKED, 10**30, "a\0b\ud800")
    await store.jobs.record(JOB, generation, [outcome], math.inf)
    (found,) = store.jobs.outcomes(JOB)
    assert (None, "a\\0b\\ud800") == (found.code, found.msg)
    generation = store.jobs.reopen(JOB).generation
    await store.jobs.stop(JOB, generation, "a\0b\ud800", math.inf)
    assert "a\\0b\\ud800" == store.jobs.status(JOB).stopped_by


async def test_the_time_until_the_requests_of_others_have_ended(
    store: SqlStore, clock: Clock
) -> None:
    assert 0.0 == await store.jobs.seconds_under_way(["a", "b"], math.inf)
    token = await claimed(store, "a")
    clock.time += 10
    await claimed(store, "b")
    assert LIVE - 10 == await store.jobs.seconds_under_way(["a"], math.inf)
    assert LIVE == await store.jobs.seconds_under_way(["a", "b", "c"], math.inf)
    await store.settle("a", token, EntryState.ACCEPTED)
    assert 0.0 == await store.jobs.seconds_under_way(["a"], math.inf)
    clock.time += LIVE
    assert 0.0 == await store.jobs.seconds_under_way(["b"], math.inf)


async def test_purge_deletes_jobs_that_ended_long_ago(
    store: SqlStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ihuyi_voice.store.writer.bounds.DELETED_AT_ONCE", 2)
    generation = store.jobs.create(JOB, None)
    assert store.jobs.note_enqueued(JOB, generation, 5, all_rows=True)
    await record(store, generation, range(5))
    store.jobs.create("canceled", None)
    store.jobs.cancel("canceled")
    store.jobs.create("runs", None)
    clock.time += 100
    store.jobs.create("later", None)
    store.jobs.cancel("later")
    assert 0 == store.purge(timedelta(seconds=100))
    clock.time += 1
    assert 2 == store.purge(timedelta(seconds=100))
    assert ["runs", "later"] == store.jobs.names()
    assert [] == store.jobs.some_outcomes(JOB, 0, 100, 100)
    with pytest.raises(LookupError):
        store.jobs.reopen(JOB)
    # A message of the purged job that is still in the broker starts no row of a new one.
    assert generation != store.jobs.create(JOB, None)
    assert store.jobs.status(JOB).done == 0
    assert await lease(store, generation) is None
    opening = await store.jobs.opening(JOB, generation, 0, 5, math.inf)
    assert "another one of the same name" in opening.refusal
