"""Several processes share one store: together they keep the limit of each number.

Every process has a client of its own, and all of them submit at once. The
gateway is the test's, so that its record says what reached it.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice.sandbox import SandboxGateway

from .redis_server import running_redis

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typing_extensions import Self

    from .mariadb import MariaDbServer
    from .postgres import PostgresServer
    from .redis_server import RedisServer

NUMBERS = ("13912345678", "13812345678")
# Not the default, so that no minute passes on a slow machine: 3 in one day.
ALLOWED = 3
PROCESSES = 3
SUBMITS = 90
NOWHERE = "http://127.0.0.1:1"

# A step with a key is another one than without; each database has one way to lock for both.
WITH_KEYS = [
    ("sqlite", False),
    ("sqlite", True),
    ("postgresql", True),
    ("mariadb", True),
    ("redis", False),
]


def place_of(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The place of a store of this kind that does not exist yet."""
    if kind == "sqlite":
        return str(tmp_path / "calls.db")
    name = {"postgresql": "postgres", "redis": "redis_server"}.get(kind, kind)
    server: PostgresServer | MariaDbServer | RedisServer = request.getfixturevalue(name)
    return server.empty()


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def gateway() -> Iterator[tuple[SandboxGateway, str]]:
    """A gateway with no limit of its own, and its URL."""
    gateway = SandboxGateway()
    with gateway.serve_in_thread() as url:
        yield gateway, url


def reached(gateway: SandboxGateway) -> dict[str, int]:
    """How many calls of each number reached the gateway."""
    return dict(Counter(attempt.mobile for attempt in gateway.attempts))


SUBMITTER = textwrap.dedent("""
    import asyncio, os, sys
    from collections import Counter
    from ihuyi_voice import AsyncVoiceClient, OutcomeStatus, RecipientQuota, Store
    from ihuyi_voice.errors import IhuyiVoiceError
    from ihuyi_voice._pipeline import status_of
    place, mobile, submits, allowed, keyed = sys.argv[1:]

    async def one(client, url, n):
        key = f"{os.getpid()}-{url}-{n}" if keyed == "True" else None
        try:
            await client.submit(mobile, "1125", idempotency_key=key)
        except IhuyiVoiceError as error:
            return status_of(error).value
        return "accepted"

    async def main():
        quota = RecipientQuota(per_minute=None, per_day=int(allowed))
        with Store.open(place) as store:
            print("ready", flush=True)
            for line in sys.stdin:
                url = line.strip()
                async with AsyncVoiceClient(
                    "sandbox", "sandbox-key", base_url=url, store=store, quota=quota,
                    connect_attempts=1, timeout=60.0,
                ) as client:
                    ends = await asyncio.gather(*(one(client, url, n) for n in range(int(submits))))
                counts = sorted(Counter(ends).items())
                print(*(f"{end}={count}" for end, count in counts), flush=True)
    asyncio.run(main())
""")


class Senders:
    """Processes that each submit for one number, all of them at once.

    Args:
        place: where their store is.
        count: how many processes.
        keyed: whether each submit has a key of its own.
    """

    def __init__(self, place: str, count: int, *, keyed: bool) -> None:
        self._mobiles = [NUMBERS[n % len(NUMBERS)] for n in range(count)]
        self._processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-W", "error", "-c", SUBMITTER, place, mobile),
                    *(str(SUBMITS // count), str(ALLOWED), str(keyed)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for mobile in self._mobiles
        ]

    def __enter__(self) -> Self:
        assert ["ready\n"] * len(self._processes) == self._lines()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.communicate(timeout=60)

    def submit_to(self, url: str) -> dict[str, Counter[str]]:
        """Let all of them submit at once; returns how the submits of each number ended."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{url}\n")
            process.stdin.flush()
        ends: dict[str, Counter[str]] = {mobile: Counter() for mobile in NUMBERS}
        for mobile, line in zip(self._mobiles, self._lines(), strict=True):
            for word in line.split():
                status, _, count = word.partition("=")
                ends[mobile][status] += int(count)
        return ends

    def _lines(self) -> list[str]:
        """The next line of each."""
        return [process.stdout.readline() for process in self._processes if process.stdout]


@pytest.mark.parametrize(("kind", "keyed"), WITH_KEYS)
def test_three_processes_keep_the_limit_of_each_number(
    kind: str,
    keyed: bool,
    gateway: tuple[SandboxGateway, str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    record, url = gateway
    place = place_of(kind, request, tmp_path)
    # Two processes call the first number.
    each = {NUMBERS[0]: 2 * SUBMITS // PROCESSES, NUMBERS[1]: SUBMITS // PROCESSES}
    with Senders(place, PROCESSES, keyed=keyed) as senders:
        # Nothing is sent, so each place is free again.
        for mobile, ends in senders.submit_to(NOWHERE).items():
            assert {"not_sent", "limited"} >= ends.keys(), mobile
            assert ends["not_sent"] >= ALLOWED, mobile
            assert each[mobile] == ends.total(), mobile
        assert {} == reached(record)
        expected = {
            mobile: {"accepted": ALLOWED, "limited": count - ALLOWED}
            for mobile, count in each.items()
        }
        assert expected == senders.submit_to(url)
        assert dict.fromkeys(NUMBERS, ALLOWED) == reached(record)
