"""Concurrency, rate and back-pressure."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import pytest

from ihuyi_voice import OutcomeStatus, RecipientQuota
from ihuyi_voice._limits import Limits
from tests.bulk.spies import (
    IN_MEMORY,
    READ_AHEAD_OF,
    Gateway,
    Spy,
    client,
    counted,
    mobile,
    pair,
    pairs,
    source,
    turns,
    until,
)
from tests.inside import make_due, shorten, unread, within

if TYPE_CHECKING:
    from ihuyi_voice.bulk.run import BulkRun

S = OutcomeStatus
NOWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize("limit", [1, 2, 5, 20, 100])
async def test_never_more_in_flight_than_the_limit_which_is_reached(
    gateway: Gateway, limit: int
) -> None:
    gateway.hold()
    rows = Spy(pairs(2 * limit + 10))
    async with client(gateway.url) as voice:
        async with voice.submit_many(iter(rows), concurrency=limit) as run:
            await gateway.arrived(limit)
            # Anything sent beyond the limit has time to arrive.
            await turns()
            assert limit == gateway.running
            gateway.release()
            async for _ in run:
                assert 0 <= gateway.running <= limit
        assert 0 < gateway.most <= limit
    assert limit == gateway.most
    assert 2 * limit + 10 == len(gateway.mobiles) == run.report.total


async def test_the_limit_is_kept_while_answers_come_and_go(gateway: Gateway) -> None:
    """Every other answer is held, so that starts and ends mix."""
    gateway.held = lambda number: int(number) % 2 == 1
    async with client(gateway.url) as voice, voice.submit_many(pairs(80), concurrency=8) as run:
        # The slots fill one by one with rows that are held.
        await until(lambda: gateway.running == 8 and len(gateway.mobiles) >= 15)
        await turns()
        gateway.release()
        assert {S.ACCEPTED: 80} == counted(await run.finish())
    assert 8 == gateway.most


async def test_concurrency_is_max_connections_by_default(gateway: Gateway) -> None:
    gateway.hold()
    async with client(gateway.url, max_connections=7) as voice, voice.submit_many(pairs(20)) as run:
        await gateway.arrived(7)
        await turns()
        assert 7 == gateway.running
        gateway.release()
        await run.finish()
    assert 7 == gateway.most


async def test_two_runs_share_the_clients_connections(gateway: Gateway) -> None:
    gateway.hold()
    async with (
        client(gateway.url, max_connections=5) as voice,
        voice.submit_many(pairs(40)) as one,
        voice.submit_many(pairs(40)) as two,
    ):
        await gateway.arrived(5)
        await turns()
        gateway.release()
        reports = await asyncio.gather(one.finish(), two.finish())
    assert [{S.ACCEPTED: 40}] * 2 == [counted(report) for report in reports]
    assert 5 == gateway.most


@pytest.mark.parametrize(
    ("error", "options", "text"),
    [
        (ValueError, {"concurrency": 8}, "concurrency is 8, and the client has max_connections=7"),
        (ValueError, {"concurrency": 0}, "concurrency must be at least 1, not 0"),
        (ValueError, {"concurrency": -3}, "concurrency must be at least 1, not -3"),
        (TypeError, {"concurrency": True}, "concurrency must be an int, not bool"),
        (TypeError, {"concurrency": 1.5}, "concurrency must be an int, not float"),
        (ValueError, {"rate": 0}, "rate is in starts per second, a number above 0 or None, not 0"),
        (ValueError, {"rate": -1.0}, "not -1.0"),
        (ValueError, {"rate": math.nan}, "not nan"),
        (ValueError, {"rate": math.inf}, "not inf"),
        (ValueError, {"rate": True}, "not True"),
        (ValueError, {"rate": "5"}, "not '5'"),
        (ValueError, {"max_failures_in_row": 0}, "max_failures_in_row must be at least 1, not 0"),
        (TypeError, {"max_failures_in_row": True}, "max_failures_in_row must be an int, not bool"),
        (TypeError, {"max_failures_in_row": "9"}, "max_failures_in_row must be an int, not str"),
    ],
)
def test_arguments_are_checked_at_once(
    error: type[Exception], options: dict[str, Any], text: str
) -> None:
    with pytest.raises(error) as caught:
        client(NOWHERE, max_connections=7).submit_many([], **options)
    assert text in str(caught.value)


# --- the rate ------------------------------------------------------------------


async def test_starts_keep_to_the_rate_without_a_burst(gateway: Gateway) -> None:
    """The n-th start comes at the earliest n intervals after the run began."""
    began = asyncio.get_running_loop().time()
    async with client(gateway.url) as voice, voice.submit_many(pairs(100), rate=200.0) as run:
        await run.finish()
    assert 100 == len(gateway.arrivals)
    for n, arrival in enumerate(gateway.arrivals):
        assert arrival - began > n / 200.0 - 0.001
    assert run.report.elapsed > 0.49


async def test_after_a_delay_only_a_short_burst_catches_up(gateway: Gateway) -> None:
    """Otherwise a gateway that was slow for a minute would get a minute of starts at once."""
    # At most the starts of one second, always; in this test those of two rows.
    assert 0 < Limits().catch_up <= 1
    gateway.held = lambda number: number == mobile(0)
    async with (
        within(client(gateway.url), Limits(catch_up=0.01)) as voice,
        voice.submit_many(pairs(50), rate=200, concurrency=1) as run,
    ):
        await gateway.arrived(1)
        # As long as 60 rows would have taken.
        asyncio.get_running_loop().call_later(0.3, gateway.release)
        await run.finish()
    resumed = gateway.arrivals[1]
    assert resumed - gateway.arrivals[0] >= 0.3
    assert gateway.arrivals[-1] - resumed >= (48 - 3) / 200 - 0.05


@pytest.mark.parametrize("ending", ["stop", "abort", "leave", "raise"])
async def test_stopped_while_a_row_waits_for_the_rate(gateway: Gateway, ending: str) -> None:
    """The run ends at once, the row is not sent, and its quota is free again."""
    quota = RecipientQuota(per_minute=1, per_day=1)
    spy = Spy(pairs(9))

    async def leave(run: BulkRun) -> None:
        await run.__anext__()
        await until(lambda: spy.taken == 2)
        await turns()
        if ending == "raise":
            raise KeyError
        if ending != "leave":
            getattr(run, ending)()

    async with client(gateway.url, quota=quota) as voice:
        run = voice.submit_many(spy.as_list(), rate=0.01)
        try:
            async with run:
                await leave(run)
        except KeyError:
            assert ending == "raise"
        made = [outcome async for outcome in run]
    assert (2, [mobile(0)]) == (spy.taken, gateway.mobiles)
    assert [(1, S.NOT_SENT)] == [(outcome.index, outcome.status) for outcome in made]
    assert {S.ACCEPTED: 1, S.NOT_SENT: 1} == counted(run.report)
    await quota.reserve(mobile(1))
    assert run.report.elapsed < 10


async def test_stopped_during_a_reservation_the_run_does_not_wait_for_the_rate(
    gateway: Gateway,
) -> None:
    store = SlowStore(mobile(1))
    async with (
        client(gateway.url, quota=RecipientQuota(store=store)) as voice,
        voice.submit_many(pairs(9), rate=0.01) as run,
    ):
        await run.__anext__()
        await until(lambda: store.reserving == mobile(1))
        run.stop()
        store.go_on.set()
        assert [S.NOT_SENT] == [outcome.status async for outcome in run]
    assert [mobile(1)] == store.released
    assert [mobile(0)] == gateway.mobiles


@pytest.mark.parametrize("ending", ["abort", "cancel"])
async def test_aborted_during_a_reservation_the_row_is_not_lost(
    gateway: Gateway, ending: str
) -> None:
    store, spy = SlowStore(mobile(0)), Spy(pairs(9))
    async with client(gateway.url, quota=RecipientQuota(store=store)) as voice:
        run = voice.submit_many(spy.as_list())

        async def enter() -> None:
            async with run:
                await run.finish()

        task = asyncio.create_task(enter())
        await until(lambda: store.reserving == mobile(0))
        if ending == "abort":
            run.abort()
        else:
            task.cancel()
        await asyncio.wait([task])
    assert (ending == "cancel") is task.cancelled()
    assert {S.NOT_SENT: 1} == counted(run.report)
    assert 1 == spy.taken
    assert [] == gateway.mobiles


class SlowStore:
    """A remote quota store, for which one number waits."""

    def __init__(self, slow_for: str) -> None:
        self._slow_for = slow_for
        self.go_on = asyncio.Event()
        self.reserving = ""
        self.released: list[str] = []

    async def reserve(self, number: str, token: str, windows: object) -> float:
        self.reserving = number
        if number == self._slow_for:
            await self.go_on.wait()
        return 0.0

    async def release(self, number: str, token: str) -> None:
        self.released.append(number)


# --- back-pressure ---------------------------------------------------------------


async def held_up(run: BulkRun, outcomes: int) -> None:
    """Wait for so many outcomes, and let the run start more rows if it would."""
    await until(lambda: run.report.total >= outcomes)
    await turns()


@pytest.mark.parametrize(
    ("kind", "concurrency"),
    [*((kind, 10) for kind in (*IN_MEMORY, *READ_AHEAD_OF)), ("list", 1), ("generator", 1)],
)
async def test_at_most_32_rows_more_than_are_in_flight_are_taken_beyond_what_was_read(
    gateway: Gateway, kind: str, concurrency: int
) -> None:
    """For each kind of source, at any moment, while the consumer reads slowly."""
    spy = Spy(pairs(100))
    read = 0
    beyond: list[int] = []
    spy.look = lambda: beyond.append(spy.taken - read)
    async with (
        client(gateway.url) as voice,
        voice.submit_many(source(kind, spy), concurrency=concurrency) as run,
    ):
        async for _ in run:
            read += 1
            if read % 20 == 1:
                # Everything that may start now has time to start.
                await turns()
    assert 100 == read == spy.taken
    assert 1 <= max(beyond) <= concurrency + 32


@pytest.mark.parametrize("kind", ["list", "generator", "async_generator"])
async def test_a_consumer_that_stops_early_has_rung_few_extra_phones(
    gateway: Gateway, kind: str
) -> None:
    spy = Spy(pairs(1000))
    async with client(gateway.url) as voice:
        async with voice.submit_many(source(kind, spy), concurrency=10) as run:
            await run.__anext__()
            await until(lambda: len(gateway.mobiles) >= 32 and not gateway.running)
            await turns()
            assert spy.taken <= 1 + 10 + 32
            assert 32 <= len(gateway.mobiles) <= 1 + 10 + 32
        made = [outcome async for outcome in run]
    assert len(made) + 1 == spy.taken == run.report.total
    assert len(gateway.mobiles) == run.report.counts[S.ACCEPTED]


async def test_reading_makes_room_for_more_rows(gateway: Gateway) -> None:
    """Several rows start together again, and none is left out."""
    async with client(gateway.url) as voice, voice.submit_many(pairs(200), concurrency=5) as run:
        await held_up(run, 5 + 32)
        sent = len(gateway.mobiles)
        assert 5 + 32 == sent
        seen = {(await run.__anext__()).index for _ in range(10)}
        await turns()
        assert sent == len(gateway.mobiles)
        seen |= {(await run.__anext__()).index for _ in range(20)}
        await gateway.arrived(sent + 1)
        seen |= {outcome.index async for outcome in run}
    assert set(range(200)) == seen


async def test_outcomes_of_invalid_rows_are_bounded_too(gateway: Gateway) -> None:
    spy = Spy([None] * 1000)
    async with (
        client(gateway.url) as voice,
        voice.submit_many(spy.as_list(), concurrency=8) as run,
    ):
        await held_up(run, 8 + 32)
        assert 8 + 32 == spy.taken
        assert 1000 == (await run.finish()).total


@pytest.mark.parametrize("ending", ["stop", "abort", "leave"])
async def test_stopped_while_the_outcomes_are_not_read(gateway: Gateway, ending: str) -> None:
    spy = Spy(pairs(1000))
    async with client(gateway.url) as voice:
        async with voice.submit_many(spy.as_list(), concurrency=5) as run:
            await held_up(run, 5 + 32)
            if ending != "leave":
                getattr(run, ending)()
        # Outcomes that were not read in the block can be read after it.
        made = [outcome.index async for outcome in run]
    assert list(range(spy.taken)) == sorted(made)
    assert {S.ACCEPTED: spy.taken} == counted(run.report)
    assert len(gateway.mobiles) == spy.taken == 5 + 32


async def test_a_row_that_waited_for_its_quota_waits_for_room_too(gateway: Gateway) -> None:
    """It was not counted while it waited, so it needs room when it starts."""
    quota = RecipientQuota(per_minute=1, per_day=None)
    rows = [pair(0), pair(0), *pairs(60)[1:]]
    async with (
        client(gateway.url, quota=quota) as voice,
        voice.submit_many(rows, concurrency=3, wait_for_quota=True) as run,
    ):
        await held_up(run, 3 + 32)
        # Its minute is over.
        shorten(quota, (1, 1e-6))
        make_due(run)
        await turns()
        assert 3 + 32 == len(gateway.mobiles)
        assert 61 == (await run.finish()).total
    assert 2 == gateway.mobiles.count(mobile(0))


async def test_two_readers_share_the_outcomes(gateway: Gateway) -> None:
    """A reader that loses an outcome to the other reader continues to wait."""
    async with client(gateway.url) as voice, voice.submit_many(pairs(30), concurrency=10) as run:

        async def read() -> list[int]:
            return [outcome.index async for outcome in run]

        gateway.held = lambda number: number != pair(0)[0]
        readers = [asyncio.create_task(read()) for _ in range(2)]
        await gateway.arrived(10)
        await until(lambda: run.report.total == 1 and not unread(run))
        await turns()
        assert not any(reader.done() for reader in readers)
        gateway.release()
        one, two = await asyncio.gather(*readers)
    assert list(range(30)) == sorted(one + two)
