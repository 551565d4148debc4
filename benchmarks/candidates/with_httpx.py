"""httpx.AsyncClient, as people write it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx

from .job import signed_form

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .job import Job, Row


async def async_client(job: Job) -> int:
    """All at once, held back by a semaphore."""
    limits = httpx.Limits(
        max_connections=job.concurrency, max_keepalive_connections=job.concurrency
    )
    async with httpx.AsyncClient(limits=limits, timeout=15) as client:
        semaphore = asyncio.Semaphore(job.concurrency)

        async def send(row: Row) -> int:
            async with semaphore:
                response = await client.post(job.url, data=signed_form(*row))
                return int(response.json()["code"] == 2)

        async def send_all(rows: Iterable[Row]) -> int:
            return sum(await asyncio.gather(*(send(row) for row in rows)))

        return await job.measure_async(send_all)
