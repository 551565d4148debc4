"""When a run stops by itself: the gateway refuses everything, or does not answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ihuyi_voice import (
    BulkStoppedError,
    GatewayError,
    OutcomeStatus,
    SubmitFailedError,
    UnrecognizedCodeError,
)
from tests.bulk.spies import Gateway, Spy, client, counted, pairs
from tests.rogue import ACCEPTED

if TYPE_CHECKING:
    from collections.abc import Sequence

S = OutcomeStatus
BLACKLISTED = b'{"code":4030,"msg":"x","voiceid":"0"}'


def refusal(code: int) -> bytes:
    return b'{"code":%d,"msg":"x","voiceid":"0"}' % code


def in_turn(gateway: Gateway, answers: Sequence[bytes | None]) -> None:
    """Answer the n-th number with the n-th answer, and start again after the last."""
    gateway.answer = lambda number: answers[int(number[3:]) % len(answers)]


async def run_of(gateway: Gateway, count: int = 3000, **options: Any) -> Any:
    """Send so many rows one after another. Returns the run and what stopped it."""
    spy = Spy(pairs(count))
    async with client(gateway.url, timeout=60.0) as voice:
        options = {"concurrency": 1, **options}
        async with voice.submit_many(spy.as_list(), **options) as run:
            try:
                await run.finish()
            except BulkStoppedError as stopped:
                return run.report, stopped.cause
    return run.report, None


@pytest.mark.parametrize(
    ("code", "concurrency"),
    [*((code, 1) for code in (0, 1, 4053, 40505, 4086, 99999, -1)), (0, 30), (4053, 30)],
)
async def test_twenty_equal_unexplained_refusals_stop_the_run(
    gateway: Gateway, code: int, concurrency: int
) -> None:
    gateway.answer = lambda _: refusal(code)
    report, cause = await run_of(gateway, concurrency=concurrency)
    assert isinstance(cause, SubmitFailedError if code == 0 else UnrecognizedCodeError)
    assert code == cause.code
    assert 20 <= report.counts[S.REFUSED] == report.total < 20 + concurrency
    assert len(gateway.mobiles) == report.total


@pytest.mark.parametrize("code", [4030, 403, 406, 404, 407, 4070])
async def test_refusals_that_the_table_blames_on_the_row_do_not_stop_a_run(
    gateway: Gateway, code: int
) -> None:
    gateway.answer = lambda _: refusal(code)
    report, cause = await run_of(gateway, 40)
    assert cause is None
    assert {S.REFUSED: 40} == counted(report)


@pytest.mark.parametrize("code", [400, 401, 402, 405, 4050, 4051, 4052, 408])
async def test_a_refusal_of_the_account_stops_at_once(gateway: Gateway, code: int) -> None:
    gateway.answer = lambda _: refusal(code)
    report, cause = await run_of(gateway, 100)
    assert isinstance(cause, GatewayError)
    assert {S.REFUSED: 1} == counted(report)


async def test_twenty_refusals_of_the_account_stop_a_run_whose_predicate_ignores_them(
    gateway: Gateway,
) -> None:
    gateway.answer = lambda _: refusal(4051)
    report, _ = await run_of(gateway, 100, stop_on=lambda _: False)
    assert {S.REFUSED: 20} == counted(report)


@pytest.mark.parametrize(
    ("answers", "stopped_at"),
    [
        # An accepted row resets the count.
        ([refusal(0)] * 19 + [ACCEPTED], None),
        ([None] * 19 + [ACCEPTED], None),
        # Another code resets the count of refusals.
        ([refusal(0), refusal(1)], None),
        ([refusal(0)] * 19 + [refusal(1)], None),
        # Unknown outcomes and refusals of one code count together.
        ([None, refusal(0)], 19),
        ([refusal(0)] * 19 + [None], 19),
        # A refusal blamed on its row shows that the gateway answers.
        ([None] * 19 + [BLACKLISTED], None),
        # It does not reset the count of unexplained refusals.
        ([refusal(0), BLACKLISTED], 38),
        ([refusal(0)] * 19 + [BLACKLISTED], 20),
    ],
)
async def test_what_resets_the_count_of_failures(
    gateway: Gateway, answers: list[bytes | None], stopped_at: int | None
) -> None:
    in_turn(gateway, answers)
    report, cause = await run_of(gateway, 60)
    assert stopped_at == report.stopped_at
    assert (stopped_at is None) is (cause is None)
    assert 60 == report.total if stopped_at is None else report.total == stopped_at + 1


async def test_rows_that_are_not_sent_now_neither_count_nor_reset(gateway: Gateway) -> None:
    gateway.answer = lambda _: refusal(4053)
    rows: list[Any] = []
    for row in pairs(100):
        rows += [row, None]
    async with client(gateway.url) as voice:
        with pytest.raises(BulkStoppedError) as caught:
            async with voice.submit_many(rows, concurrency=1) as run:
                await run.finish()
    assert 20 == caught.value.report.counts[S.REFUSED]
    assert 38 == caught.value.report.stopped_at


@pytest.mark.parametrize("most", [3, None])
async def test_max_failures_in_row_changes_or_disables_the_limit(
    gateway: Gateway, most: int | None
) -> None:
    gateway.answer = lambda _: refusal(4053)
    report, _ = await run_of(gateway, 60, max_failures_in_row=most)
    assert {S.REFUSED: most or 60} == counted(report)


async def test_without_stop_on_no_failures_stop_the_run(gateway: Gateway) -> None:
    gateway.answer = lambda _: refusal(4053)
    report, _ = await run_of(gateway, 60, stop_on=None)
    assert {S.REFUSED: 60} == counted(report)
