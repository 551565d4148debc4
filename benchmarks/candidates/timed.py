"""The latency of single sends over TLS, by one candidate in this process.

`python -m benchmarks.candidates.timed NAME --url https://... --ca FILE` prints one
line of JSON. See `python -m benchmarks.latency`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import ssl
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

from benchmarks import ACCOUNT, API_KEY, TARGET

from .__main__ import resident_bytes
from .job import signed_body, signed_form

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    Send: TypeAlias = Callable[[str, str], Awaitable[object]]

# Clients that are opened, and kept, for their memory.
_CLIENTS = 20
_COLD_CALLS = 5


@contextlib.asynccontextmanager
async def ours(url: str, ca: str, in_flight: int) -> AsyncIterator[Send]:
    """`AsyncVoiceClient.submit`."""
    from ihuyi_voice import AsyncVoiceClient  # noqa: PLC0415 - only what is measured

    async with AsyncVoiceClient(
        ACCOUNT,
        API_KEY,
        base_url=url,
        ssl_context=ssl.create_default_context(cafile=ca),
        max_connections=in_flight,
        quota=None,
    ) as client:
        yield client.submit


@contextlib.asynccontextmanager
async def bare_aiohttp(url: str, ca: str, in_flight: int) -> AsyncIterator[Send]:
    """Bare aiohttp, with everything done that makes it fast."""
    import aiohttp  # noqa: PLC0415 - only what is measured
    import orjson  # noqa: PLC0415 - as above
    from yarl import URL  # noqa: PLC0415 - as above

    target = URL(url + TARGET)
    context = ssl.create_default_context(cafile=ca)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=in_flight, ssl=context),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Content-Type": "application/x-www-form-urlencoded"},
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=15),
    ) as session:

        async def send(mobile: str, content: str) -> None:
            body = signed_body(mobile, content)
            async with session.post(target, data=body, allow_redirects=False) as response:
                _check(orjson.loads(await response.read()))

        yield send


@contextlib.asynccontextmanager
async def plain_aiohttp(url: str, ca: str, in_flight: int) -> AsyncIterator[Send]:
    """An aiohttp session as people write it."""
    import aiohttp  # noqa: PLC0415 - only what is measured

    context = ssl.create_default_context(cafile=ca)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=in_flight, ssl=context),
        timeout=aiohttp.ClientTimeout(total=15),
    ) as session:

        async def send(mobile: str, content: str) -> None:
            form = signed_form(mobile, content)
            async with session.post(url + TARGET, data=form) as response:
                _check(await response.json())

        yield send


@contextlib.asynccontextmanager
async def httpx_client(url: str, ca: str, in_flight: int) -> AsyncIterator[Send]:
    """`httpx.AsyncClient`."""
    import httpx  # noqa: PLC0415 - may be missing

    limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    context = ssl.create_default_context(cafile=ca)
    async with httpx.AsyncClient(limits=limits, timeout=15, verify=context) as client:

        async def send(mobile: str, content: str) -> None:
            _check((await client.post(url + TARGET, data=signed_form(mobile, content))).json())

        yield send


@contextlib.asynccontextmanager
async def requests_session(url: str, ca: str, in_flight: int) -> AsyncIterator[Send]:
    """`requests.Session`, in as many threads as there are sends in flight."""
    import requests  # noqa: PLC0415 - may be missing
    from requests.adapters import HTTPAdapter  # noqa: PLC0415 - as above

    with requests.Session() as session, ThreadPoolExecutor(in_flight) as pool:
        session.mount("https://", HTTPAdapter(pool_maxsize=in_flight))
        loop = asyncio.get_running_loop()

        def post(mobile: str, content: str) -> None:
            form = signed_form(mobile, content)
            # Not `session.verify`: a variable of the environment would win over it.
            _check(session.post(url + TARGET, data=form, timeout=15, verify=ca).json())

        def send(mobile: str, content: str) -> Awaitable[None]:
            return loop.run_in_executor(pool, post, mobile, content)

        yield send


def _check(answer: dict[str, object]) -> None:
    if answer["code"] != 2:
        msg = f"not accepted: {answer}"
        raise ValueError(msg)


TIMED: dict[str, Callable[[str, str, int], AbstractAsyncContextManager[Send]]] = {
    "submit": ours,
    "aiohttp-best": bare_aiohttp,
    "aiohttp": plain_aiohttp,
    "httpx": httpx_client,
    "requests": requests_session,
}


async def latencies(name: str, url: str, ca: str, in_flight: int, count: int) -> list[float]:
    """Seconds of each of so many sends, of which so many are in flight at once."""
    took: list[float] = []
    async with TIMED[name](url, ca, in_flight) as send:

        async def work(serials: range) -> None:
            for serial in serials:
                began = time.perf_counter()
                await send(f"139{serial:08d}", "112512")
                took.append(time.perf_counter() - began)

        each = -(-count // in_flight)
        # Twice: the first sends open the connections.
        for sends in (3, each):
            took.clear()
            gc.collect()
            ranges = (range(n * each, n * each + sends) for n in range(in_flight))
            await asyncio.gather(*map(work, ranges))
    return took


async def cold_seconds(name: str, url: str, ca: str) -> float:
    """The least seconds from making a client to its first answer, with imports done."""
    took = []
    for _ in range(1 + _COLD_CALLS):
        began = time.perf_counter()
        async with TIMED[name](url, ca, 1) as send:
            await send("13912345678", "112512")
            took.append(time.perf_counter() - began)
    return min(took[1:])


async def idle_bytes(name: str, url: str, ca: str) -> float:
    """Resident bytes of one client that has sent once and is idle."""
    async with contextlib.AsyncExitStack() as stack:
        serials = itertools.count()
        before = 0
        # The first ones bring what all share.
        for clients in (2, _CLIENTS):
            gc.collect()
            before = resident_bytes()
            for _ in range(clients):
                send = await stack.enter_async_context(TIMED[name](url, ca, 100))
                await send(f"139{next(serials):08d}", "112512")
        gc.collect()
        return max(0, resident_bytes() - before) / _CLIENTS


async def measured(name: str, url: str, ca: str, in_flight: int, count: int) -> dict[str, float]:
    """p50 and p99 in milliseconds; with one send in flight also the client's own figures."""
    took = await latencies(name, url, ca, in_flight, count)
    centiles = statistics.quantiles(took, n=100)
    figures = {"p50_ms": centiles[49] * 1000, "p99_ms": centiles[98] * 1000}
    if in_flight == 1:
        figures["cold_ms"] = await cold_seconds(name, url, ca) * 1000
        figures["idle_kb"] = await idle_bytes(name, url, ca) / 1000
    return figures


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="benchmarks.candidates.timed", description=__doc__)
    parser.add_argument("name", choices=TIMED)
    parser.add_argument("--url", required=True, help="scheme, host and port of the stub")
    parser.add_argument("--ca", required=True, help="a file with the stub's authority")
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--count", type=int, default=1000)
    options = parser.parse_args()
    figures = asyncio.run(
        measured(options.name, options.url, options.ca, options.in_flight, options.count)
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
