"""Row sources: each kind of iterable is read lazily, and none blocks the loop."""

from __future__ import annotations

import asyncio
import contextvars
import csv
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ihuyi_voice import OutcomeStatus, SubmitRequest
from ihuyi_voice.bulk.rows import READ_AHEAD, _ThreadSource, open_source, read_ahead
from tests.bulk.spies import (
    IN_MEMORY,
    READ_AHEAD_OF,
    Gateway,
    Pair,
    Spy,
    client,
    counted,
    leaving_nothing,
    mobile,
    pair,
    pairs,
    source,
    turns,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator
    from pathlib import Path

    from ihuyi_voice.bulk.run import Rows

S = OutcomeStatus
ANY = (*IN_MEMORY, *READ_AHEAD_OF)


@pytest.mark.parametrize(
    ("kind", "concurrency"), [*((kind, 7) for kind in ANY), ("list", 1), ("generator", 1)]
)
async def test_rows_are_read_lazily(gateway: Gateway, kind: str, concurrency: int) -> None:
    """At most the rows in flight are taken, plus those read ahead."""
    spy = Spy(pairs(90))
    ahead = 0 if kind in IN_MEMORY else READ_AHEAD
    most = 0

    def look() -> None:
        nonlocal most
        most = max(most, spy.taken - run.report.total)

    spy.look = look
    rows: Rows = source(kind, spy)
    with leaving_nothing():
        async with client(gateway.url) as voice:
            run = voice.submit_many(rows, concurrency=concurrency)
            assert spy.taken == 0
            async with run:
                made = [outcome.index async for outcome in run]
    assert list(range(90)) == sorted(made)
    assert (90, {S.ACCEPTED: 90}) == (spy.taken, counted(run.report))
    assert concurrency + ahead >= most > 0


@pytest.mark.parametrize("kind", ANY)
async def test_nothing_is_taken_while_the_gateway_holds_everything(
    gateway: Gateway, kind: str
) -> None:
    spy = Spy(pairs(70))
    gateway.hold()
    rows: Rows = source(kind, spy)
    ahead = 0 if kind in IN_MEMORY else READ_AHEAD
    async with client(gateway.url) as voice, voice.submit_many(rows, concurrency=4) as run:
        await gateway.arrived(4)
        await until(lambda: spy.taken >= 4 + ahead // 2)
        await turns()
        assert 4 + ahead >= spy.taken
        gateway.release()
        assert 70 == (await run.finish()).total


@pytest.mark.parametrize(
    ("taken", "ahead"), [(0, 32), (263, 32), (264, 33), (2047, 255), (2048, 256), (10**6, 256)]
)
def test_a_long_run_reads_further_ahead(taken: int, ahead: int) -> None:
    assert ahead == read_ahead(taken)


@pytest.mark.parametrize("kind", ["generator", "async_generator"])
async def test_a_consumer_that_pauses_in_a_long_run_bounds_the_rows_read_ahead(
    gateway: Gateway, kind: str
) -> None:
    spy = Spy(pairs(600))
    rows: Rows = source(kind, spy)
    async with client(gateway.url) as voice, voice.submit_many(rows, concurrency=4) as run:
        outcomes = aiter(run)
        while run.report.total < 480:
            await anext(outcomes)
        await until(lambda: spy.taken >= 480 + 4 + read_ahead(480) // 2)
        await turns()
        assert 480 + 4 + read_ahead(spy.taken) >= spy.taken > 480 + 4 + READ_AHEAD
        assert 600 == (await run.finish()).total


@pytest.mark.parametrize("rows", [set(pairs(9)), frozenset(pairs(9)), deque(pairs(9)), {}.values()])
async def test_other_collections(gateway: Gateway, rows: Collection[Pair]) -> None:
    async with client(gateway.url) as voice, voice.submit_many(rows) as run:
        report = await run.finish()
    assert report.total == len(gateway.mobiles) == len(rows)


async def test_a_csv_file(gateway: Gateway, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(f"{mobile(0)},0042\n\n{mobile(1)},1125,more\n{mobile(2)},1125\n")
    with file.open(newline="") as opened:
        rows: Any = csv.reader(opened)
        async with client(gateway.url) as voice, voice.submit_many(rows) as run:
            made = {outcome.index: outcome async for outcome in run}
    assert [S.ACCEPTED, S.INVALID, S.INVALID, S.ACCEPTED] == [made[n].status for n in range(4)]
    assert str(made[1].error).endswith("not a list of 0")
    assert str(made[2].error).endswith("not a list of 3")


@pytest.mark.parametrize("rows", ["13912345678", b"13912345678", {}, 5, None, pair(1)[0]])
def test_an_argument_that_is_no_iterable_of_rows_raises_at_once(rows: Rows) -> None:
    with pytest.raises(TypeError, match=f"pairs, not {type(rows).__name__}$"):
        client("http://127.0.0.1:9").submit_many(rows)


async def test_an_iterable_that_blocks_does_not_block_the_loop(gateway: Gateway) -> None:
    """Everything else in the loop continues, also rows that were read before."""
    go_on = threading.Event()

    def rows() -> Iterator[Pair]:
        yield pair(0)
        assert go_on.wait(30)
        yield pair(1)

    with leaving_nothing():
        async with client(gateway.url) as voice, voice.submit_many(rows()) as run:
            assert 0 == (await run.__anext__()).index
            await turns()
            go_on.set()
            assert [1] == [outcome.index async for outcome in run]


async def test_a_slow_async_iterable(gateway: Gateway) -> None:
    more = anyio.Event()

    async def rows() -> AsyncIterator[Pair]:
        yield pair(0)
        await more.wait()
        yield pair(1)

    async with client(gateway.url) as voice, voice.submit_many(rows()) as run:
        assert 0 == (await run.__anext__()).index
        more.set()
        assert [1] == [outcome.index async for outcome in run]


class SourceBrokeError(Exception):
    pass


def breaking(spy: Spy, error: Exception) -> None:
    def look() -> None:
        if spy.taken == 41:
            raise error

    spy.look = look


@pytest.mark.parametrize("kind", ANY)
async def test_an_exception_of_the_source_is_raised_unwrapped_after_its_rows(
    gateway: Gateway, kind: str
) -> None:
    """Requests in flight finish and are reported first."""
    spy, error = Spy(pairs(100)), SourceBrokeError()
    breaking(spy, error)
    gateway.hold()
    seen: list[int] = []
    rows: Rows = source(kind, spy)
    with leaving_nothing(), pytest.raises(SourceBrokeError) as caught:  # noqa: PT012
        async with client(gateway.url) as voice, voice.submit_many(rows, concurrency=41) as run:
            await gateway.arrived(40)
            gateway.release()
            async for outcome in run:
                seen.append(outcome.index)  # noqa: PERF401 - what was read before it raised
    assert error is caught.value
    assert list(range(40)) == sorted(seen)
    assert {S.ACCEPTED: 40} == counted(run.report)
    # Raised once. The run is over.
    assert 40 == (await run.finish()).total


async def test_leaving_early_does_not_raise_the_exception_of_the_source(gateway: Gateway) -> None:
    spy = Spy(pairs(100))
    breaking(spy, SourceBrokeError())
    async with client(gateway.url) as voice, voice.submit_many(iter(spy)):
        await gateway.arrived(40)
    assert 40 == len(gateway.mobiles)


@pytest.mark.parametrize("ending", ["break", "stop", "abort"])
async def test_an_iterator_can_be_read_on_after_a_stop(gateway: Gateway, ending: str) -> None:
    """Each row either was taken and has an outcome, or is still in the iterator."""
    spy = Spy(pairs(500))
    rows: Any = spy.as_map()
    async with client(gateway.url) as voice, voice.submit_many(rows, concurrency=3) as run:
        async for outcome in run:
            if outcome.index < 20:
                continue
            if ending == "break":
                break
            getattr(run, ending)()
    left = list(rows)
    assert 500 == len(left) + run.report.total
    assert pair(run.report.total) == left[0]
    assert len(left) >= 500 - 21 - 3 - READ_AHEAD


async def test_an_async_iterator_can_be_read_on_after_a_stop(gateway: Gateway) -> None:
    rows = Spy(pairs(500)).as_async_iterator()
    gateway.hold()
    async with client(gateway.url) as voice, voice.submit_many(rows, concurrency=3) as run:
        await gateway.arrived(3)
        await turns(2 * READ_AHEAD)
        run.stop()
        gateway.release()
    left = [row async for row in rows]
    assert 500 == len(left) + run.report.total
    # The buffer is refilled by half at a time.
    assert {S.ACCEPTED: 3, S.NOT_SENT: READ_AHEAD - 3} == counted(run.report)


async def test_rows_read_ahead_and_not_started_are_reported_even_malformed_ones(
    gateway: Gateway,
) -> None:
    gateway.hold()
    rows = Spy([pair(0), pair(1), None, ("1", "2")])
    async with client(gateway.url) as voice, voice.submit_many(iter(rows), concurrency=1) as run:
        await until(lambda: len(gateway.mobiles) == 1 and rows.taken == 4)
        await turns()
        run.stop()
        gateway.release()
        made = [outcome async for outcome in run]
    assert [S.ACCEPTED, S.NOT_SENT, S.NOT_SENT, S.NOT_SENT] == [o.status for o in made]
    assert [0, 1, 2, 3] == [outcome.index for outcome in made]
    assert [True, True, False, True] == [outcome.request is not None for outcome in made]
    assert str(made[1].error).startswith("not sent: the run was stopped before it was this row's")


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.mark.parametrize("kind", ["generator", "async_generator", "list"])
async def test_the_source_runs_in_the_context_of_the_run(gateway: Gateway, kind: str) -> None:
    spy, seen = Spy(pairs(2)), set[str]()
    spy.look = lambda: seen.add(variable.get())
    variable.set("set")
    rows: Rows = source(kind, spy)
    async with client(gateway.url) as voice, voice.submit_many(rows) as run:
        await run.finish()
    assert {"set"} == seen


async def test_one_thread_of_the_run_pulls_a_generator(gateway: Gateway) -> None:
    spy, seen = Spy(pairs(50)), set[threading.Thread]()
    spy.look = lambda: seen.add(threading.current_thread())
    async with client(gateway.url) as voice, voice.submit_many(iter(spy)) as run:
        await run.finish()
    (thread,) = seen
    assert ("ihuyi-voice-source", True) == (thread.name, thread.daemon)
    assert not thread.is_alive()


async def test_a_stopped_thread_reads_no_further_row(watched: None) -> None:
    def stopping() -> Iterator[Pair]:
        yield pair(0)
        rows.stop()
        yield pair(1)
        yield pair(2)  # pragma: no cover - never read

    rows = open_source(stopping())
    rows.grant(READ_AHEAD)
    await rows.pump()
    assert [SubmitRequest(*pair(0)), SubmitRequest(*pair(1))] == rows.leftovers()


async def test_a_thread_whose_loop_is_closed_ends() -> None:
    rows = _ThreadSource(pairs(3))
    rows._loop, rows._pull_ended = asyncio.new_event_loop(), anyio.Event()
    rows._loop.close()
    rows._news = anyio.Event()
    rows.grant(READ_AHEAD)
    thread = threading.Thread(target=rows._pull)
    thread.start()
    thread.join()
    # Rows are there, although the loop was not notified: no wait.
    await rows.wait()
    assert [SubmitRequest(*row) for row in pairs(3)] == rows.leftovers()
    assert [] == rows.leftovers()
