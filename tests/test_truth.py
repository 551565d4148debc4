"""The promise against a gateway in another process with every fault switched on.

Every request has one outcome that agrees with the gateway's own record.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.request import Request, urlopen

import pytest

from ihuyi_voice import (
    AsyncVoiceClient,
    IhuyiVoiceError,
    OutcomeStatus,
    RecipientQuota,
    VoiceClient,
)
from ihuyi_voice._pipeline import status_of

if TYPE_CHECKING:
    from collections.abc import Iterator

CHAOS = {
    "latency": 0.002,
    "latency_jitter": 0.004,
    "close_before_reading": 0.04,
    "code": 4053,
    "code_probability": 0.04,
    "no_answer": 0.01,
    "close_after_placing": 0.04,
    "truncate": 0.04,
    "html_502": 0.04,
    "garbage": 0.04,
    "seed": 7,
}
BLACKLISTED = "13800000000"


@pytest.fixture
def url() -> Iterator[str]:
    """A sandbox in another process, every chaos on."""
    command = [sys.executable, "-m", "ihuyi_voice", "sandbox", "--port", "0"]
    options = ["--balance", "1700", "--blacklist", BLACKLISTED]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        match = re.search(r"http://\S+", process.stdout.readline())
        assert match
        control(match[0], "PUT", "chaos", CHAOS)
        # Its log is not read, and must not fill the pipe.
        with ThreadPoolExecutor(1) as drain:
            drain.submit(process.stdout.read)
            yield match[0]
            process.terminate()


def control(url: str, method: str, what: str, body: object = None) -> object:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(f"{url}/_sandbox/{what}", data, method=method)) as answer:
        return json.load(answer)


def requests(count: int) -> list[tuple[str, str]]:
    """Unique pairs, so that each can be found in the gateway's record."""
    made = []
    for n in range(count):
        mobile, content = f"139{n:08d}", f"{n:06d}"
        if n % 20 == 1:
            content = "12ab"
        elif n % 20 == 2:
            mobile = f"139{n - 2:08d}"
        elif n % 20 == 3:
            mobile = BLACKLISTED
        made.append((mobile, content))
    return made


def check_against_the_record(
    url: str, made: list[tuple[str, str]], outcomes: list[OutcomeStatus]
) -> Counter[OutcomeStatus]:
    assert len(outcomes) == len(made)
    attempts = control(url, "GET", "attempts")
    assert isinstance(attempts, list)
    seen = Counter((attempt["mobile"], attempt["content"]) for attempt in attempts)
    placed = {(a["mobile"], a["content"]) for a in attempts if a["voice_id"] is not None}
    assert max(seen.values()) == 1
    assert set(seen) <= set(made)
    for request, status in zip(made, outcomes, strict=True):
        if status is OutcomeStatus.ACCEPTED:
            assert request in placed
        elif status is OutcomeStatus.REFUSED:
            assert request in seen
            assert request not in placed
        elif status is not OutcomeStatus.UNKNOWN:
            assert request not in seen
    return Counter(outcomes)


async def test_two_thousand_submits_at_once(url: str) -> None:
    quota = RecipientQuota(per_minute=1, per_day=None)
    made = requests(2000)
    outcomes: list[OutcomeStatus] = []
    client = AsyncVoiceClient(
        "sandbox", "sandbox-key", base_url=url, timeout=3.0, max_connections=50, quota=quota
    )

    async def submit(mobile: str, content: str) -> OutcomeStatus:
        try:
            await client.submit(mobile, content)
        except IhuyiVoiceError as error:
            return status_of(error)
        return OutcomeStatus.ACCEPTED

    async with client:
        tasks = [asyncio.create_task(submit(*request)) for request in made]
        outcomes = await asyncio.gather(*tasks)
    # The limiter let a blacklisted number through once, and refused it afterwards.
    counted = check_against_the_record(url, made, outcomes)
    assert counted[OutcomeStatus.INVALID] == 100
    assert counted[OutcomeStatus.LIMITED] > 100
    assert counted[OutcomeStatus.UNKNOWN] > 100
    assert counted[OutcomeStatus.REFUSED] > 0
    assert counted[OutcomeStatus.ACCEPTED] > 500


async def test_cancelled_at_any_moment(url: str) -> None:
    """The gateway sees a cancelled request at most once."""
    made = requests(400)
    async with AsyncVoiceClient(
        "sandbox", "sandbox-key", base_url=url, timeout=3.0, max_connections=20, quota=None
    ) as client:
        tasks = [asyncio.create_task(client.submit(*request)) for request in made]
        for n, task in enumerate(tasks):
            with contextlib.suppress(IhuyiVoiceError, asyncio.CancelledError):
                if n % 3 == 0:
                    task.cancel()
                await task
    outcomes = [
        OutcomeStatus.ACCEPTED
        if not task.cancelled() and task.exception() is None
        else OutcomeStatus.UNKNOWN
        for task in tasks
    ]
    assert 100 < check_against_the_record(url, made, outcomes)[OutcomeStatus.ACCEPTED]


def test_from_twenty_threads(url: str) -> None:
    made = requests(400)

    def submit(request: tuple[str, str]) -> OutcomeStatus:
        try:
            client.submit(*request)
        except IhuyiVoiceError as error:
            return status_of(error)
        return OutcomeStatus.ACCEPTED

    with (
        VoiceClient("sandbox", "sandbox-key", base_url=url, timeout=3.0, quota=None) as client,
        ThreadPoolExecutor(20) as pool,
    ):
        outcomes = list(pool.map(submit, made))
    counted = check_against_the_record(url, made, outcomes)
    assert counted[OutcomeStatus.ACCEPTED] > 150
    assert counted[OutcomeStatus.UNKNOWN] > 20
