"""Rows over their number's limit: they end limited, or wait."""

from __future__ import annotations

from collections import Counter
from typing import Any

import anyio
import pytest

from ihuyi_voice import Outcome, OutcomeStatus, QuotaExceededError, RecipientQuota
from ihuyi_voice._limits import Limits
from tests.bulk.spies import Asked, Gateway, Spy, client, counted, mobile, pair, pairs, turns, until
from tests.inside import has_ended, shorten, waiting_for_quota, within

S = OutcomeStatus


def short(seconds: float = 0.1) -> RecipientQuota:
    """One call per number and so many seconds."""
    quota = RecipientQuota(per_minute=1, per_day=None)
    shorten(quota, (1, seconds))
    return quota


async def test_a_limited_row_says_when_and_others_are_unaffected(gateway: Gateway) -> None:
    quota = RecipientQuota(per_minute=2, per_day=None, clock=lambda: 1000.0)
    rows = [pair(0), pair(1), pair(0), pair(0), pair(2), pair(0)]
    async with client(gateway.url, quota=quota) as voice, voice.submit_many(rows) as run:
        made: dict[int, Outcome] = {outcome.index: outcome async for outcome in run}
    assert [S.ACCEPTED, S.ACCEPTED, S.ACCEPTED, S.LIMITED, S.ACCEPTED, S.LIMITED] == [
        made[n].status for n in range(6)
    ]
    for n in (3, 5):
        error = made[n].error
        assert isinstance(error, QuotaExceededError)
        assert 60.0 == error.retry_after
    assert Counter({mobile(0): 2, mobile(1): 1, mobile(2): 1}) == Counter(gateway.mobiles)


async def test_a_waiting_row_holds_no_slot_and_is_overtaken(gateway: Gateway) -> None:
    """With one slot: the row over the limit is sent last."""
    rows = [pair(0), pair(0), *pairs(9)[1:]]
    async with (
        client(gateway.url, quota=short(1.5)) as voice,
        voice.submit_many(rows, concurrency=1, wait_for_quota=True) as run,
    ):
        made = [outcome async for outcome in run]
    assert [0, *range(2, 10), 1] == [outcome.index for outcome in made]
    assert {S.ACCEPTED: 10} == counted(run.report)
    assert run.report.elapsed >= 1.5


async def test_many_rows_to_one_number_keep_its_limit(gateway: Gateway) -> None:
    async with (
        client(gateway.url, quota=short(0.05)) as voice,
        voice.submit_many([pair(0)] * 8, wait_for_quota=True) as run,
    ):
        assert {S.ACCEPTED: 8} == counted(await run.finish())
    # One in each window after the first.
    assert run.report.elapsed >= 7 * 0.05


async def test_a_row_comes_due_while_the_source_has_none_yet(gateway: Gateway) -> None:
    """A slow source must not delay a row that is due."""

    async def rows() -> Any:
        yield pair(0)
        yield pair(0)
        await gateway.arrived(2)
        yield pair(1)

    async with (
        client(gateway.url, quota=short()) as voice,
        voice.submit_many(rows(), wait_for_quota=True) as run,
    ):
        assert [0, 1, 2] == [outcome.index async for outcome in run]


async def test_a_limited_number_of_rows_wait(gateway: Gateway) -> None:
    spy = Spy([pair(0)] * 8 + [pair(1)])
    waiting: list[int] = []
    spy.look = lambda: waiting.append(waiting_for_quota(run))
    async with (
        within(client(gateway.url, quota=short(0.15)), Limits(most_waiting=5)) as voice,
        voice.submit_many(spy.as_list(), wait_for_quota=True) as run,
    ):
        assert {S.ACCEPTED: 9} == counted(await run.finish())
    # While five rows wait, no more are taken before one of them is due.
    assert 9 == len(waiting)
    assert max(waiting) < 5


async def test_more_than_a_thousand_waiting_rows_are_bounded(gateway: Gateway) -> None:
    spy = Spy([pair(0)] * 1500)
    quota = RecipientQuota(per_minute=1, per_day=None)
    async with (
        client(gateway.url, quota=quota) as voice,
        voice.submit_many(spy.as_list(), wait_for_quota=True) as run,
    ):
        await run.__anext__()
        await until(lambda: spy.taken == 1001)
        await turns()
        assert 1001 == spy.taken
        run.stop()
        made = [outcome.status async for outcome in run]
    assert [S.LIMITED] * 1000 == made
    assert {S.ACCEPTED: 1, S.LIMITED: 1000} == counted(run.report)


@pytest.mark.parametrize("ending", ["stop", "abort", "leave"])
async def test_rows_that_wait_when_the_run_is_stopped_end_limited(
    gateway: Gateway, ending: str
) -> None:
    spy = Spy([pair(0)] * 4)
    quota = RecipientQuota(per_minute=1, per_day=None)
    async with client(gateway.url, quota=quota) as voice:
        async with voice.submit_many(spy.as_list(), wait_for_quota=True) as run:
            await run.__anext__()
            await until(lambda: spy.taken == 4)
            await turns()
            if ending != "leave":
                getattr(run, ending)()
        made = [outcome async for outcome in run]
    assert [1, 2, 3] == sorted(outcome.index for outcome in made)
    for outcome in made:
        assert S.LIMITED is outcome.status
        assert isinstance(outcome.error, QuotaExceededError)
        assert 59 < outcome.error.retry_after <= 60
    assert [mobile(0)] == gateway.mobiles


async def test_a_cancelled_scope_while_rows_wait(gateway: Gateway) -> None:
    """The predicate is not asked about rows that end because of the cancellation."""
    asked = Asked()
    quota = RecipientQuota(per_minute=1, per_day=None)
    spy = Spy([pair(0)] * 4)
    async with client(gateway.url, quota=quota) as voice:
        with anyio.CancelScope() as scope:
            rows = spy.as_list()
            async with voice.submit_many(rows, wait_for_quota=True, stop_on=asked) as run:
                await run.__anext__()
                await until(lambda: spy.taken == 4)
                await turns()
                scope.cancel()
                # The run ends before its consumer notices the cancellation.
                with anyio.CancelScope(shield=True):
                    await until(lambda: has_ended(run))
    assert {S.ACCEPTED: 1, S.LIMITED: 3} == counted(run.report)
    assert [S.ACCEPTED] == asked


async def test_a_refused_row_uses_up_the_quota_and_a_row_not_sent_does_not(
    gateway: Gateway,
) -> None:
    quota = RecipientQuota(per_minute=1, per_day=None)
    gateway.answer = lambda _: b'{"code":406,"msg":"no","voiceid":"0"}'
    async with (
        client(gateway.url, quota=quota) as voice,
        voice.submit_many([pair(0), pair(0)], concurrency=1) as run,
    ):
        assert [S.REFUSED, S.LIMITED] == [outcome.status async for outcome in run]
    async with (
        client("http://127.0.0.1:9", quota=quota, connect_attempts=1) as voice,
        voice.submit_many([pair(1), pair(1)], concurrency=1) as run,
    ):
        assert [S.NOT_SENT, S.NOT_SENT] == [outcome.status async for outcome in run]


class FailingStore:
    async def reserve(self, number: str, token: str, windows: object) -> float:
        raise OSError

    async def release(self, number: str, token: str) -> None:
        """Never called: nothing was reserved."""


async def test_a_failed_quota_store_means_not_sent(gateway: Gateway) -> None:
    quota = RecipientQuota(store=FailingStore())
    async with client(gateway.url, quota=quota) as voice, voice.submit_many(pairs(3)) as run:
        made = [outcome async for outcome in run]
    assert [S.NOT_SENT] * 3 == [outcome.status for outcome in made]
    assert "the quota's store failed (OSError)" in str(made[0].error)
    assert [] == gateway.mobiles
