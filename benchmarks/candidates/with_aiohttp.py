"""aiohttp: as people write it, and with everything done that makes it fast."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiohttp
import orjson
from yarl import URL

from .job import signed_body, signed_form

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .job import Job, Row


async def plain(job: Job) -> int:
    """All at once, held back by a semaphore."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=job.concurrency),
        timeout=aiohttp.ClientTimeout(total=15),
    ) as session:
        semaphore = asyncio.Semaphore(job.concurrency)

        async def send(row: Row) -> int:
            async with semaphore, session.post(job.url, data=signed_form(*row)) as response:
                answer = await response.json()
                return int(answer["code"] == 2)

        async def send_all(rows: Iterable[Row]) -> int:
            return sum(await asyncio.gather(*(send(row) for row in rows)))

        return await job.measure_async(send_all)


async def best(job: Job) -> int:
    """As many workers as connections, and no needless work."""
    url = URL(job.url)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Content-Type": "application/x-www-form-urlencoded"},
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=15),
    ) as session:

        async def send_all(rows: Iterable[Row]) -> int:
            unsent = iter(rows)

            async def work() -> int:
                accepted = 0
                for mobile, content in unsent:
                    body = signed_body(mobile, content)
                    async with session.post(url, data=body, allow_redirects=False) as response:
                        accepted += orjson.loads(await response.read())["code"] == 2
                return accepted

            return sum(await asyncio.gather(*(work() for _ in range(job.concurrency))))

        return await job.measure_async(send_all)
