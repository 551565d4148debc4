"""The promise, row by row: a bulk run's outcomes against the gateway's own record."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from ihuyi_voice import AsyncVoiceClient, Outcome, OutcomeStatus, RecipientQuota, VoiceClient
from ihuyi_voice.sandbox import Chaos
from tests.bulk.spies import mobile, sandbox

if TYPE_CHECKING:
    from ihuyi_voice.sandbox import SandboxGateway

S = OutcomeStatus
COUNT = 2000
BLACKLISTED = mobile(99_999_999)
CHAOS = Chaos(
    latency=0.001,
    latency_jitter=0.003,
    close_before_reading=0.04,
    code=4053,
    code_probability=0.04,
    no_answer=0.003,
    close_after_placing=0.04,
    truncate=0.04,
    html_502=0.04,
    garbage=0.04,
    seed=11,
)
OPTIONS: dict[str, Any] = {"timeout": 1.0, "max_connections": 50}


def rows() -> list[Any]:
    """Rows with different contents, so that the gateway's record can be matched."""
    made: list[Any] = []
    for n in range(COUNT):
        row: Any = (mobile(n), f"{n:06d}")
        if n % 50 == 1:
            row = (mobile(n), "12ab")
        elif n % 50 == 2:
            row = None
        elif n % 50 == 3:
            row = (mobile(n - 3), f"{n:06d}")
        elif n % 50 == 4:
            row = (BLACKLISTED, f"{n:06d}")
        made.append(row)
    return made


def check(gateway: SandboxGateway, made: list[Outcome]) -> Counter[S]:
    """Every row has one outcome, which the gateway's record does not contradict."""
    assert list(range(COUNT)) == sorted(outcome.index for outcome in made)
    seen = Counter((attempt.mobile, attempt.content) for attempt in gateway.attempts)
    placed = Counter((call.mobile, call.content) for call in gateway.calls)
    assert {1} == set(seen.values()) == set(placed.values())
    source = rows()
    reported = set()
    for outcome in made:
        row = source[outcome.index]
        if outcome.status is S.ACCEPTED:
            assert row in placed
        elif outcome.status is S.REFUSED:
            assert row in seen
            assert row not in placed
        elif outcome.status is not S.UNKNOWN:
            assert row not in seen
        if outcome.error is not None:
            assert outcome.error.may_have_rung is (outcome.status is S.UNKNOWN)
        reported.add(row)
    assert set(seen) <= reported
    counts = Counter(outcome.status for outcome in made)
    assert 80 == counts[S.INVALID]
    assert 0 < counts[S.LIMITED] <= 80
    assert counts[S.UNKNOWN] > 100
    assert counts[S.REFUSED] > 20
    assert counts[S.ACCEPTED] > 1000
    return counts


@pytest.fixture
def gateway() -> SandboxGateway:
    return sandbox(chaos=CHAOS, blacklist={BLACKLISTED})


def quota() -> RecipientQuota:
    return RecipientQuota(per_minute=1, per_day=None)


async def test_two_thousand_rows_with_every_chaos(gateway: SandboxGateway) -> None:
    async with (
        gateway.serve() as url,
        AsyncVoiceClient("sandbox", "sandbox-key", base_url=url, quota=quota(), **OPTIONS) as voice,
        voice.submit_many(iter(rows()), max_failures_in_row=None) as run,
    ):
        made = [outcome async for outcome in run]
    assert check(gateway, made) == +Counter(run.report.counts)


def test_two_thousand_rows_with_every_chaos_blocking(gateway: SandboxGateway) -> None:
    with (
        gateway.serve_in_thread() as url,
        VoiceClient("sandbox", "sandbox-key", base_url=url, quota=quota(), **OPTIONS) as voice,
        voice.submit_many(rows(), max_failures_in_row=None) as run,
    ):
        made = list(run)
    assert check(gateway, made) == +Counter(run.report.counts)
