"""Jobs of several machines: their life cycle, leases of starts, and outcomes."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice.errors import InvalidRequestError
from ihuyi_voice.models import OutcomeStatus
from ihuyi_voice.store.jobs import JobOutcome, JobState, Lease
from ihuyi_voice.store.jobs.values import Opening

from .support import MASKED, Clock, open_store, start

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ihuyi_voice.store.sql.store import SqlStore

JOB = "spring"
CANARY_SECONDS = 20.0
ACCEPTED, REFUSED = OutcomeStatus.ACCEPTED, OutcomeStatus.REFUSED
UNKNOWN = OutcomeStatus.UNKNOWN
tokens = map("token {}".format, itertools.count())


@pytest.fixture(autouse=True)
def _numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generations of the jobs of a test are 1, 2, ... instead of random."""
    numbers = itertools.count(1)
    monkeypatch.setattr("ihuyi_voice.store.jobs.jobs._new_generation", lambda: next(numbers))


async def lease(
    store: SqlStore, starts: int = 10, generation: int = 1, *, token: str | None = None
) -> Lease | None:
    name = next(tokens) if token is None else token
    deadline = time.monotonic() + 20
    return await store.jobs.lease(JOB, generation, starts, name, CANARY_SECONDS, deadline)


async def canary_is_back(store: SqlStore, *, was_sent: bool = True) -> None:
    """Send the canary."""
    token = next(tokens)
    assert Lease(1, is_canary=True) == await lease(store, token=token)
    await note_canary(store, token, was_sent=was_sent)


async def note_canary(store: SqlStore, token: str, *, was_sent: bool) -> None:
    await store.jobs.note_canary(JOB, token, math.inf, was_sent=was_sent)


async def record(
    store: SqlStore,
    indexes: Iterable[int],
    status: OutcomeStatus = ACCEPTED,
    msg: str = "",
    generation: int = 1,
) -> None:
    outcomes = [JobOutcome(index, status, MASKED, 2, msg, f"id {index}") for index in indexes]
    await store.jobs.record(JOB, generation, outcomes, math.inf)


async def stop(store: SqlStore, cause: str = "no balance", generation: int = 1) -> None:
    await store.jobs.stop(JOB, generation, cause, math.inf)


def enqueued(store: SqlStore, total: int, generation: int = 1, *, all_rows: bool = True) -> bool:
    return store.jobs.note_enqueued(JOB, generation, total, all_rows=all_rows) is not None


async def test_the_life_of_a_job(store: SqlStore, clock: Clock) -> None:
    began = clock.time
    store.jobs.create(JOB, None)
    status = store.jobs.status(JOB)
    assert (JobState.SCHEDULED, 0, False) == (status.state, status.total, status.is_enqueued)
    assert (None, None, None) == (status.started, status.finished, status.stopped_by)
    assert enqueued(store, 2, all_rows=False)
    assert (2, False) == (store.jobs.status(JOB).pending, store.jobs.status(JOB).is_enqueued)
    clock.time += 1
    await canary_is_back(store)
    await record(store, [0, 1])
    status = store.jobs.status(JOB)
    # Not all rows are enqueued yet.
    assert (JobState.PROCESSING, began + 1) == (status.state, status.started)
    assert enqueued(store, 3)
    clock.time += 1
    await record(store, [2], REFUSED)
    status = store.jobs.status(JOB)
    assert (JobState.COMPLETED, began + 2) == (status.state, status.finished)
    assert {ACCEPTED: 2, REFUSED: 1} == {s: count for s, count in status.counts.items() if count}
    assert (3, 0, 3) == (status.total, status.pending, status.done)
    assert [JOB] == store.jobs.names()


async def test_a_job_without_rows_is_completed_at_once(store: SqlStore) -> None:
    store.jobs.create(JOB, None)
    assert enqueued(store, 0)
    assert JobState.COMPLETED is store.jobs.status(JOB).state


async def test_all_rows_may_have_ended_before_the_last_is_noted_as_enqueued(
    store: SqlStore,
) -> None:
    store.jobs.create(JOB, None)
    await record(store, [0])
    assert enqueued(store, 1)
    assert JobState.COMPLETED is store.jobs.status(JOB).state


async def test_a_name_is_used_once(store: SqlStore) -> None:
    store.jobs.create(JOB, None)
    with pytest.raises(InvalidRequestError, match="there is a job 'spring' already: resume it"):
        store.jobs.create(JOB, 5.0)
    assert store.jobs.status(JOB).rate is None


async def test_a_job_that_is_not_there(store: SqlStore) -> None:
    for act in (store.jobs.status, store.jobs.cancel, store.jobs.reopen):
        with pytest.raises(LookupError, match="the store has no job 'spring'"):
            act(JOB)
    assert await lease(store) is None
    await record(store, [0])
    await stop(store)
    await note_canary(store, "any", was_sent=True)
    assert not enqueued(store, 1)
    assert [] == store.jobs.names()
    assert [] == list(store.jobs.outcomes(JOB))


# --- outcomes ---------------------------------------------------------------------


async def test_an_outcome_that_is_recorded_twice_counts_once(store: SqlStore) -> None:
    store.jobs.create(JOB, None)
    assert enqueued(store, 4)
    await record(store, [0, 1, 1, 0])
    await record(store, [1, 2])
    status = store.jobs.status(JOB)
    assert (JobState.SCHEDULED, 3, 1) == (status.state, status.counts[ACCEPTED], status.pending)
    await record(store, [3])
    assert JobState.COMPLETED is store.jobs.status(JOB).state


async def test_accepted_stays_accepted_and_all_else_is_replaced(
    store: SqlStore, clock: Clock
) -> None:
    store.jobs.create(JOB, None)
    await record(store, [0])
    await record(store, [1], UNKNOWN, "reset")
    clock.time += 5
    await record(store, [0], REFUSED, "later")
    await record(store, [1], ACCEPTED, "resolved")
    zero, one = store.jobs.outcomes(JOB)
    assert (ACCEPTED, "", clock.time - 5) == (zero.status, zero.msg, zero.at)
    assert (ACCEPTED, "resolved", clock.time) == (one.status, one.msg, one.at)


async def test_outcomes_are_read_page_by_page(store: SqlStore) -> None:
    store.jobs.create(JOB, None)
    await record(store, range(2000))
    await record(store, [2001])
    outcomes = list(store.jobs.outcomes(JOB))
    assert [*range(2000), 2001] == [outcome.index for outcome in outcomes]
    assert JobOutcome(7, ACCEPTED, MASKED, 2, "", "id 7", outcomes[7].at) == outcomes[7]


async def test_the_rows_of_a_chunk_that_have_ended(store: SqlStore) -> None:
    store.jobs.create(JOB, None)
    assert enqueued(store, 20)
    await record(store, [4, 5, 9, 10])
    await record(store, [6], REFUSED)
    await record(store, [7], UNKNOWN)
    assert Opening("", frozenset({5, 6, 7, 9})) == await store.jobs.opening(JOB, 1, 5, 10, math.inf)
    store.jobs.reopen(JOB)
    assert Opening("", frozenset({5, 9})) == await store.jobs.opening(JOB, 2, 5, 10, math.inf)
    assert "the job was resumed" in (await store.jobs.opening(JOB, 1, 5, 10, math.inf)).refusal
    store.jobs.cancel(JOB)
    assert "the job is canceled" == (await store.jobs.opening(JOB, 2, 5, 10, math.inf)).refusal
    refusal = (await store.jobs.opening("other", 2, 5, 10, math.inf)).refusal
    assert "the store has no such job" == refusal


async def test_jobs_do_not_mix(store: SqlStore) -> None:
    store.jobs.create(JOB, None)
    store.jobs.create("other", None)
    await record(store, [0])
    assert 0 == store.jobs.status("other").done
    assert [] == list(store.jobs.outcomes("other"))
    assert ["other", JOB] == store.jobs.names()


# --- leases -------------------------------------------------------------------------


async def test_one_row_goes_out_before_all_others(store: SqlStore) -> None:
    store.jobs.create(JOB, None)
    first = await lease(store, token="first")
    second = await lease(store)
    assert Lease(1, is_canary=True) == first
    assert second is not None
    assert (0, True) == (second.starts, second.wait > 0)
    await note_canary(store, "another", was_sent=True)
    assert second == await lease(store)
    # The step of the same lease ran a second time.
    assert first == await lease(store, token="first")
    await note_canary(store, "first", was_sent=True)
    assert Lease(10) == await lease(store)


async def test_a_canary_that_was_not_sent_is_followed_by_another(store: SqlStore) -> None:
    store.jobs.create(JOB, None)
    await canary_is_back(store, was_sent=False)
    await canary_is_back(store)
    assert Lease(10) == await lease(store)


async def test_a_canary_of_a_process_that_died_blocks_a_while_only(
    store: SqlStore, clock: Clock
) -> None:
    store.jobs.create(JOB, None)
    assert Lease(1, is_canary=True) == await lease(store, token="dead")
    clock.time += CANARY_SECONDS
    await canary_is_back(store)
    await note_canary(store, "dead", was_sent=False)
    assert Lease(10) == await lease(store)


async def test_leases_follow_one_another_at_the_rate(store: SqlStore, clock: Clock) -> None:
    store.jobs.create(JOB, 100.0)
    await canary_is_back(store)
    first, second, third = [await lease(store) for _ in range(3)]
    assert first is not None
    assert second is not None
    assert third is not None
    assert [(10, 0.01)] * 3 == [(one.starts, one.interval) for one in (first, second, third)]
    # The canary took a start too.
    assert [0.01, 0.11, 0.21] == [round(one.wait, 6) for one in (first, second, third)]
    clock.time += 60
    late = await lease(store)
    # Only a little is caught up.
    assert late is not None
    assert 0.0 == late.wait
    after_it = await lease(store)
    assert after_it is not None
    assert 0.08 == round(after_it.wait, 3)


@pytest.mark.parametrize("rate", [None, 100.0])
async def test_a_stop_ends_all_leases(store: SqlStore, clock: Clock, rate: float | None) -> None:
    store.jobs.create(JOB, rate)
    assert enqueued(store, 100)
    await canary_is_back(store)
    await record(store, [0])
    clock.time += 3
    await stop(store)
    assert await lease(store) is None
    # What was in flight is recorded, and the first cause counts.
    await record(store, [1])
    await stop(store, "something else")
    assert not enqueued(store, 200)
    store.jobs.cancel(JOB)
    status = store.jobs.status(JOB)
    assert (JobState.STOPPED, "no balance", 2) == (status.state, status.stopped_by, status.done)
    assert (clock.time, 98) == (status.finished, status.pending)


async def test_cancel(store: SqlStore) -> None:
    store.jobs.create(JOB, None)
    store.jobs.cancel(JOB)
    assert await lease(store) is None
    assert JobState.CANCELED is store.jobs.status(JOB).state
    await stop(store)
    assert JobState.CANCELED is store.jobs.status(JOB).state
    assert not enqueued(store, 1)


async def test_a_completed_job_stays_completed(store: SqlStore) -> None:
    store.jobs.create(JOB, None)
    await canary_is_back(store)
    await record(store, [0])
    assert enqueued(store, 1)
    store.jobs.cancel(JOB)
    await stop(store)
    assert JobState.COMPLETED is store.jobs.status(JOB).state
    assert await lease(store) is None


async def test_a_resumed_job_sends_all_but_what_may_have_rung(store: SqlStore) -> None:
    store.jobs.create(JOB, None)
    assert enqueued(store, 9)
    await canary_is_back(store)
    await record(store, [0, 1])
    await record(store, [2], UNKNOWN)
    for index, one in enumerate((REFUSED, OutcomeStatus.NOT_SENT, OutcomeStatus.LIMITED), 3):
        await record(store, [index], one)
    await stop(store)
    resumed = store.jobs.reopen(JOB)
    assert (2, JobState.SCHEDULED) == (resumed.generation, resumed.state)
    job = store.jobs.status(JOB)
    assert (None, None) == (job.finished, job.stopped_by)
    assert {ACCEPTED: 2, UNKNOWN: 1} == {one: count for one, count in job.counts.items() if count}
    # Messages and stops of the first generation count no more.
    assert await lease(store) is None
    await stop(store, "late")
    assert not enqueued(store, 20)
    assert enqueued(store, 9, generation=2)
    assert Lease(1, is_canary=True) == await lease(store, generation=2)
    await record(store, range(3, 9), generation=2)
    # The row that was unknown is looked up once more.
    status = store.jobs.status(JOB)
    assert (JobState.PROCESSING, 0) == (status.state, status.pending)
    await record(store, [2], generation=2)
    status = store.jobs.status(JOB)
    assert (JobState.COMPLETED, 9) == (status.state, status.counts[ACCEPTED])


# --- processes ------------------------------------------------------------------------

WORKER = """
import itertools, math, os
from ihuyi_voice.store.jobs import JobOutcome
from ihuyi_voice.models import OutcomeStatus

async def work(store):
    total = 0
    for number in itertools.count():
        token = f"{os.getpid()} {number}"
        lease = await store.jobs.lease("spring", GENERATION, 10, token, 20.0, math.inf)
        if lease is None:
            return total
        if lease.is_canary:
            await store.jobs.note_canary("spring", token, math.inf, was_sent=True)
        total += lease.starts
        await store.jobs.record(
            "spring",
            GENERATION,
            [JobOutcome(index, OutcomeStatus.ACCEPTED, "139****5678") for index in range(number)],
            math.inf,
        )
        if number == 12:
            return total

with open_store(place, create=False) as store:
    print(asyncio.run(work(store)))
"""


async def test_processes_that_lease_and_record_at_once(place: str) -> None:
    with open_store(place) as store:
        generation = store.jobs.create(JOB, 1e6)
        # Not all rows, so that the job goes on until each worker has begun.
        assert enqueued(store, 12, generation, all_rows=False)
        program = WORKER.replace("GENERATION", str(generation))
        workers = [start(place, program) for _ in range(3)]
        for worker in workers:
            with worker:
                out, err = await asyncio.to_thread(worker.communicate, timeout=60)
                assert ("", 0) == (err, worker.returncode)
                assert int(out) > 10
        assert enqueued(store, 12, generation)
        status = store.jobs.status(JOB)
        assert (JobState.COMPLETED, 12) == (status.state, status.counts[ACCEPTED])
        assert 12 == len(list(store.jobs.outcomes(JOB)))
