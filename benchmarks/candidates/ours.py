"""Our library, by each of its ways to send; the quota is off unless the name says so."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import ACCOUNT, API_KEY
from ihuyi_voice import AsyncVoiceClient, OutcomeStatus, Store, SubmitRequest, VoiceClient

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ihuyi_voice.bulk.run import Rows

    from .job import Job, Row


def _async_client(job: Job) -> AsyncVoiceClient:
    return AsyncVoiceClient(
        ACCOUNT, API_KEY, base_url=job.base_url, max_connections=job.concurrency, quota=None
    )


def _blocking_client(job: Job) -> VoiceClient:
    return VoiceClient(
        ACCOUNT, API_KEY, base_url=job.base_url, max_connections=job.concurrency, quota=None
    )


async def submit(job: Job) -> int:
    """`submit`, from as many tasks as there are connections."""
    async with _async_client(job) as client:

        async def send_all(rows: Iterable[Row]) -> int:
            unsent = iter(rows)

            async def work() -> int:
                accepted = 0
                for mobile, content in unsent:
                    await client.submit(mobile, content)
                    accepted += 1
                return accepted

            return sum(await asyncio.gather(*(work() for _ in range(job.concurrency))))

        return await job.measure_async(send_all)


async def _send_all(client: AsyncVoiceClient, rows: Rows) -> int:
    accepted = 0
    async with client.submit_many(rows) as run:
        async for outcome in run:
            accepted += outcome.status is OutcomeStatus.ACCEPTED
    return accepted


async def submit_many(job: Job) -> int:
    """`submit_many` of a list, each outcome looked at."""
    async with _async_client(job) as client:
        return await job.measure_async(lambda rows: _send_all(client, rows))


async def submit_many_generator(job: Job) -> int:
    """The same of a generator, so that only the rows on the way exist."""
    async with _async_client(job) as client:
        return await job.measure_async(lambda rows: _send_all(client, rows), prepared=iter)


async def submit_many_quota(job: Job) -> int:
    """`submit_many` of a list, with the quota that is on by default; distinct numbers."""
    async with AsyncVoiceClient(
        ACCOUNT, API_KEY, base_url=job.base_url, max_connections=job.concurrency
    ) as client:
        return await job.measure_async(lambda rows: _send_all(client, rows))


async def submit_many_store(job: Job) -> int:
    """`submit_many` of a list, each row with a key, and a store in an SQLite file."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Store.open(Path(folder, "calls.db")) as store,
    ):
        async with AsyncVoiceClient(
            ACCOUNT,
            API_KEY,
            base_url=job.base_url,
            max_connections=job.concurrency,
            quota=None,
            store=store,
        ) as client:

            async def send_all(rows: Iterable[Row]) -> int:
                keyed = [SubmitRequest(mobile, content, mobile) for mobile, content in rows]
                return await _send_all(client, keyed)

            return await job.measure_async(send_all)


async def submit_many_limits(job: Job) -> int:
    """`submit_many` of a list without keys, with the default limits in an SQLite file."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Store.open(Path(folder, "calls.db")) as store,
    ):
        async with AsyncVoiceClient(
            ACCOUNT,
            API_KEY,
            base_url=job.base_url,
            max_connections=job.concurrency,
            store=store,
        ) as client:
            return await job.measure_async(lambda rows: _send_all(client, rows))


def voice_client_submit(job: Job) -> int:
    """`VoiceClient.submit`, one after another."""
    with _blocking_client(job) as client:

        def send_all(rows: Iterable[Row]) -> int:
            accepted = 0
            for mobile, content in rows:
                client.submit(mobile, content)
                accepted += 1
            return accepted

        return job.measure(send_all)


def voice_client_submit_many(job: Job) -> int:
    """`VoiceClient.submit_many` of a list, each outcome looked at."""
    with _blocking_client(job) as client:

        def send_all(rows: Iterable[Row]) -> int:
            accepted = 0
            with client.submit_many(rows) as run:
                for outcome in run:
                    accepted += outcome.status is OutcomeStatus.ACCEPTED
            return accepted

        return job.measure(send_all)
