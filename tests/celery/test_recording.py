"""When the outcomes of a chunk are written; the store is the test's, which sees each step."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ihuyi_voice import OutcomeStatus
from ihuyi_voice._limits import JobLimits
from ihuyi_voice.celery.chunks import Chunk, ChunkRows, Plan
from ihuyi_voice.celery.pace import CanaryRow
from ihuyi_voice.celery.recording import Recording
from ihuyi_voice.store.jobs import JobOutcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

CHUNK = Chunk("spring", Plan(7, 5, None), 0, ChunkRows())
NO_CANARY: Any = SimpleNamespace(canary=None)
# Nothing is written because of the time.
LIMITS = JobLimits(batch=10_000, linger=1000.0, last=0.0)


class JobsDouble:
    """What a recording asks of the store.

    Attributes:
        steps: the steps in their order.
        news: is set by each of them.
    """

    def __init__(self) -> None:
        self.steps: list[tuple[object, ...]] = []
        self.news = asyncio.Event()

    async def stop(self, job: str, generation: int, cause: str, _: float) -> None:
        self._note("stop", job, generation, cause)

    async def record(self, job: str, generation: int, some: Sequence[JobOutcome], _: float) -> None:
        self._note("record", job, generation, [one.index for one in some])

    async def note_canary(self, job: str, token: str, _: float, *, was_sent: bool) -> None:
        self._note("canary", job, token, was_sent)

    def _note(self, *step: object) -> None:
        self.steps.append(step)
        self.news.set()


def accepted(first: int, end: int) -> list[JobOutcome]:
    return [JobOutcome(index, OutcomeStatus.ACCEPTED, "139****5678") for index in range(first, end)]


def recording_in(jobs: Any) -> Recording:
    return Recording(jobs, CHUNK, LIMITS)


@asynccontextmanager
async def running(recording: Recording) -> AsyncIterator[None]:
    task = asyncio.create_task(recording.run())
    # It waits for news.
    await asyncio.sleep(0)
    yield
    task.cancel()
    await asyncio.wait([task])


async def test_a_stop_is_written_once_and_at_once() -> None:
    jobs = JobsDouble()
    recording = recording_in(jobs)
    async with running(recording):
        recording.stop_job("the account is empty")
        await asyncio.wait_for(jobs.news.wait(), 60)
        for _ in range(20):
            await asyncio.sleep(0)
    assert [("stop", "spring", 7, "the account is empty")] == jobs.steps


async def test_a_stop_is_written_before_the_outcomes() -> None:
    """Otherwise they could complete a job whose account was refused."""
    jobs = JobsDouble()
    recording = recording_in(jobs)
    recording.add(*accepted(0, 2))
    recording.stop_job("the account is empty")
    await recording.finish(NO_CANARY)
    assert [
        ("stop", "spring", 7, "the account is empty"),
        ("record", "spring", 7, [0, 1]),
    ] == jobs.steps


async def test_many_outcomes_are_written_in_several_steps_and_none_twice() -> None:
    jobs = JobsDouble()
    recording = recording_in(jobs)
    recording.add(*accepted(0, 501))
    await recording.finish(NO_CANARY)
    await recording.finish(NO_CANARY)
    assert [
        ("record", "spring", 7, list(range(500))),
        ("record", "spring", 7, [500]),
    ] == jobs.steps


async def test_a_canary_that_has_not_ended_at_the_end_is_given_back() -> None:
    """Otherwise the other workers would wait until it counts as lost."""
    jobs = JobsDouble()
    pace: Any = SimpleNamespace(canary=CanaryRow("token", 3))
    await recording_in(jobs).finish(pace)
    assert [("canary", "spring", "token", False)] == jobs.steps
