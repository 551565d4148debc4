"""Every way in which a run can end: what is reported, and that no task or thread is left."""

from __future__ import annotations

import asyncio
import pickle
import socket
import sys
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ihuyi_voice import (
    AccountFrozenError,
    AuthenticationError,
    BulkStoppedError,
    InsufficientBalanceError,
    NotSentError,
    Outcome,
    OutcomeStatus,
    OutcomeUnknownError,
)
from ihuyi_voice.bulk.rows import READ_AHEAD
from tests.bulk.spies import (
    Asked,
    Gateway,
    Spy,
    client,
    counted,
    leaving_nothing,
    mobile,
    own_tasks,
    pairs,
    sandbox,
    source,
    turns,
    until,
)
from tests.inside import taken
from tests.rogue import ACCEPTED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ihuyi_voice.bulk.run import BulkRun

S = OutcomeStatus
KINDS = ["list", "generator", "async_generator"]


# --- leaving the block ---------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_leaving_early_starts_no_more_and_awaits_what_is_in_flight(
    gateway: Gateway, kind: str
) -> None:
    spy = Spy(pairs(500))
    gateway.held = lambda number: number != mobile(0)
    with leaving_nothing():
        async with client(gateway.url) as voice:
            async with voice.submit_many(source(kind, spy), concurrency=6) as run:
                assert 0 == (await run.__anext__()).index
                await gateway.arrived(7)
                asyncio.get_running_loop().call_soon(gateway.release)
            assert 7 == len(gateway.mobiles)
            assert {S.ACCEPTED: 7} == {
                status: count
                for status, count in counted(run.report).items()
                if status is not S.NOT_SENT
            }
            assert spy.taken == run.report.total <= 7 + READ_AHEAD


async def test_leaving_the_block_without_reading_reports_every_row(gateway: Gateway) -> None:
    async with client(gateway.url) as voice:

        async def send() -> BulkRun:
            async with voice.submit_many(pairs(500), concurrency=3) as run:
                await gateway.arrived(1)
                return run

        run = await send()
    assert run.report.total == len(gateway.mobiles) < 500
    assert {S.ACCEPTED: run.report.total} == counted(run.report)


class UsersError(Exception):
    pass


@pytest.mark.parametrize("kind", KINDS)
async def test_the_users_exception_leaves_the_block_unwrapped(gateway: Gateway, kind: str) -> None:
    error, spy = UsersError(), Spy(pairs(500))
    with leaving_nothing(), pytest.raises(UsersError) as caught:  # noqa: PT012
        async with (
            client(gateway.url) as voice,
            voice.submit_many(source(kind, spy), concurrency=6) as run,
        ):
            await run.__anext__()
            raise error
    assert error is caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    assert spy.taken == run.report.total
    # The block waited for the requests in flight.
    assert len(gateway.mobiles) == run.report.counts[S.ACCEPTED]
    assert gateway.running == 0


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit()], ids=repr)
async def test_an_exception_that_ends_a_program_aborts_the_run(
    gateway: Gateway, error: BaseException
) -> None:
    gateway.hold()
    spy = Spy(pairs(50))
    caught: BaseException | None = None
    async with client(gateway.url) as voice:
        run = voice.submit_many(spy.as_list(), concurrency=6)
        with leaving_nothing():
            try:
                async with run:
                    await gateway.arrived(6)
                    raise error  # noqa: TRY301 - the block is what is tested
            except BaseException as raised:  # noqa: BLE001 - looked at below
                caught = raised
    assert error is caught
    assert {S.UNKNOWN: 6} == counted(run.report)


async def test_an_async_generator_around_a_run_can_be_closed(gateway: Gateway) -> None:
    gateway.held = lambda number: number != mobile(0)
    async with client(gateway.url) as voice:
        run = voice.submit_many(pairs(500), concurrency=3)

        async def indices() -> Any:
            async with run:
                yield (await run.__anext__()).index

        with leaving_nothing():
            made = indices()
            assert 0 == await made.__anext__()
            await gateway.arrived(4)
            await made.aclose()
    assert {S.ACCEPTED: 1, S.UNKNOWN: 3} == counted(run.report)


# --- cancellation ------------------------------------------------------------------


def check_cancelled(
    run: BulkRun, spy: Spy, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests in flight are unknown, other rows not sent; report, log and gateway agree."""
    counts = counted(run.report)
    assert 6 == counts.pop(S.UNKNOWN) == len(gateway.mobiles)
    assert set(counts) <= {S.NOT_SENT}
    assert spy.taken == run.report.total
    # The cancellation came from outside: no outcome stopped the run.
    assert run.report.stopped_by is None
    logged = [record.getMessage() for record in caplog.records if record.name == "ihuyi_voice"]
    lines = sorted(line.partition(" code=")[0] for line in logged)
    assert [f"submit_many 139****{n:04d} unknown" for n in range(6)] == [
        line for line in lines if line.endswith(" unknown")
    ]
    assert run.report.total == len(lines)


@pytest.mark.parametrize("where", ["iterating", "sleeping", "leaving"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancelled_task_aborts_the_run(
    gateway: Gateway, kind: str, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.hold()
    spy = Spy(pairs(500))
    async with client(gateway.url) as voice:
        run = voice.submit_many(source(kind, spy), concurrency=6)

        async def use() -> None:
            async with run:
                if where == "iterating":
                    await run.finish()
                elif where == "sleeping":
                    await asyncio.Event().wait()
                else:
                    await gateway.arrived(6)

        with leaving_nothing():
            task = asyncio.create_task(use())
            await gateway.arrived(6)
            await turns()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert task.cancelled()
        check_cancelled(run, spy, gateway, caplog)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancelled_scope_around_the_block_aborts_the_run(
    gateway: Gateway, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It reaches the workers directly, before `__aexit__`; the predicate is still not asked."""
    gateway.hold()
    spy, asked = Spy(pairs(500)), Asked()
    async with client(gateway.url) as voice:
        run = voice.submit_many(
            source(kind, spy), concurrency=6, max_failures_in_row=1, stop_on=asked
        )
        with leaving_nothing(), pytest.raises(TimeoutError):  # noqa: PT012
            with anyio.fail_after(30) as scope:
                async with run:
                    await gateway.arrived(6)
                    await turns()
                    scope.deadline = -1.0
                    await run.finish()
        check_cancelled(run, spy, gateway, caplog)
    assert [] == asked


async def test_a_cancelled_scope_while_a_row_waits_for_the_rate(gateway: Gateway) -> None:
    spy, asked = Spy(pairs(500)), Asked()
    async with client(gateway.url) as voice:
        run = voice.submit_many(spy.as_list(), rate=0.01, stop_on=asked)
        with leaving_nothing(), anyio.CancelScope() as scope:
            async with run:
                await run.__anext__()
                await until(lambda: spy.taken == 2)
                await turns()
                scope.cancel()
                await run.finish()
    assert {S.ACCEPTED: 1, S.NOT_SENT: 1} == counted(run.report)
    assert (2, [S.ACCEPTED]) == (spy.taken, asked)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout is new in 3.11")
async def test_asyncio_timeout_around_the_block_aborts_the_run(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    any_asyncio: Any = asyncio
    gateway.hold()
    spy = Spy(pairs(500))
    async with client(gateway.url) as voice:
        run = voice.submit_many(spy.as_list(), concurrency=6)
        with leaving_nothing(), pytest.raises(TimeoutError):  # noqa: PT012
            async with any_asyncio.timeout(None) as timeout, run:
                await gateway.arrived(6)
                timeout.reschedule(asyncio.get_running_loop().time())
                await run.finish()
        assert 0 == any_asyncio.current_task().cancelling()
        check_cancelled(run, spy, gateway, caplog)


async def test_cancelling_every_task_of_the_loop_aborts_the_run(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    """`asyncio.run` does this at its end, and on Python 3.10 after Ctrl-C."""
    gateway.hold()
    spy = Spy(pairs(500))
    async with client(gateway.url) as voice:
        run = voice.submit_many(spy.as_list(), concurrency=6)

        async def consume() -> None:
            async with run:
                await run.finish()

        before = own_tasks()
        task = asyncio.create_task(consume())
        await gateway.arrived(6)
        for other in own_tasks() - before:
            other.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        check_cancelled(run, spy, gateway, caplog)


# --- stop and abort ------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_stop_lets_requests_in_flight_finish(gateway: Gateway, kind: str) -> None:
    gateway.hold()
    spy = Spy(pairs(500))
    with leaving_nothing():
        async with (
            client(gateway.url) as voice,
            voice.submit_many(source(kind, spy), concurrency=6) as run,
        ):
            await gateway.arrived(6)
            run.stop()
            run.stop()
            gateway.release()
            made = [outcome async for outcome in run]
    assert 6 == len(gateway.mobiles)
    assert {mobile(n) for n in range(6)} == {
        outcome.result.mobile for outcome in made if outcome.result
    }
    assert list(range(spy.taken)) == sorted(outcome.index for outcome in made)
    assert spy.taken == run.report.total
    assert run.report.stopped_by is None


@pytest.mark.parametrize("kind", KINDS)
async def test_abort_reports_each_row_in_flight_through_the_iteration(
    gateway: Gateway, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.hold()
    spy = Spy(pairs(500))
    with leaving_nothing():
        async with client(gateway.url) as voice:
            run = voice.submit_many(source(kind, spy), concurrency=6, max_failures_in_row=1)
            async with run:
                await gateway.arrived(6)
                run.abort()
                run.abort()
                made = [outcome async for outcome in run]
            check_cancelled(run, spy, gateway, caplog)
    assert list(range(spy.taken)) == sorted(outcome.index for outcome in made)
    for outcome in made:
        if outcome.status is S.UNKNOWN:
            assert isinstance(outcome.error, OutcomeUnknownError)
            assert outcome.error.may_have_rung
            assert "the run was stopped while the request was in flight" == outcome.error.reason
        else:
            assert isinstance(outcome.error, NotSentError)


async def test_abort_while_connecting_is_not_sent(watched: None) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        async with client(url) as voice, voice.submit_many(pairs(9), concurrency=2) as run:
            await until(lambda: taken(run) == 2)
            await turns()
            run.abort()
            assert {S.NOT_SENT: 2} == counted(await run.finish())
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize("ending", ["stop", "abort"])
@pytest.mark.parametrize("kind", KINDS)
async def test_stop_right_after_entering_sends_nothing(
    gateway: Gateway, kind: str, ending: str
) -> None:
    spy = Spy(pairs(500))
    with leaving_nothing():
        async with client(gateway.url) as voice, voice.submit_many(source(kind, spy)) as run:
            getattr(run, ending)()
            report = await run.finish()
    assert ({S.NOT_SENT: spy.taken} if spy.taken else {}) == counted(report)
    assert READ_AHEAD >= spy.taken
    assert [] == gateway.mobiles


@pytest.mark.parametrize("ending", ["stop", "abort"])
async def test_stop_and_abort_before_the_block_and_after_the_end(
    gateway: Gateway, ending: str
) -> None:
    async with client(gateway.url) as voice:
        run = voice.submit_many(pairs(5))
        getattr(run, ending)()
        async with run:
            assert 0 == (await run.finish()).total
        getattr(run, ending)()
        assert 0 == run.report.total


async def test_stop_from_the_predicate_and_from_the_consumer(gateway: Gateway) -> None:
    async with client(gateway.url) as voice:

        def stop(outcome: Outcome) -> bool:
            if outcome.index == 10:
                run.stop()
            return False

        async with voice.submit_many(pairs(500), concurrency=1, stop_on=stop) as run:
            assert 11 == (await run.finish()).total
        async with voice.submit_many(pairs(500), concurrency=1) as run:
            async for outcome in run:
                if outcome.index == 10:
                    run.stop()
        assert 11 <= run.report.total < 500


# --- refusals of the account ---------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_an_empty_balance_stops_ten_thousand_rows(watched: None, kind: str) -> None:
    """At most `concurrency` submits follow the first refusal."""
    gateway = sandbox(balance=50)
    spy = Spy(pairs(10_000))
    ahead = 0 if kind == "list" else READ_AHEAD
    seen: list[Outcome] = []
    with leaving_nothing(), pytest.raises(BulkStoppedError) as caught:  # noqa: PT012
        async with (
            gateway.serve() as url,
            client(url) as voice,
            voice.submit_many(source(kind, spy), concurrency=20) as run,
        ):
            async for outcome in run:
                seen.append(outcome)  # noqa: PERF401 - what was read before it raised
    assert 50 < len(gateway.attempts) <= 70
    assert spy.taken <= len(gateway.attempts) + ahead
    error = caught.value
    assert isinstance(error.cause, InsufficientBalanceError)
    assert "balance" in str(error)
    assert error.may_have_rung
    assert 50 == len(gateway.calls) == error.report.counts[S.ACCEPTED]
    assert len(gateway.attempts) - 50 == error.report.counts[S.REFUSED]
    assert spy.taken == error.report.total == len(seen)
    stopped_at = error.report.stopped_at
    assert error.cause is next(o for o in seen if o.index == stopped_at).error
    assert error.cause is error.report.stopped_by
    assert error.report == run.report


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"frozen": True}, AccountFrozenError),
        ({"api_key": "another-key"}, AuthenticationError),
        ({"balance": 0}, InsufficientBalanceError),
    ],
)
async def test_a_refused_account_stops_the_run_at_its_first_rows(
    watched: None, options: dict[str, Any], cause: type[Exception]
) -> None:
    gateway, spy = sandbox(**options), Spy(pairs(1000))
    async with gateway.serve() as url, client(url) as voice:
        with pytest.raises(BulkStoppedError) as caught:
            async with voice.submit_many(spy.as_list(), concurrency=4) as run:
                await run.finish()
        assert isinstance(caught.value.cause, cause)
        assert spy.taken == len(gateway.attempts) == run.report.total <= 4
        assert not caught.value.may_have_rung
        # Raised once. The run is over, and its report stays.
        assert caught.value.report == await run.finish()
        copied = pickle.loads(pickle.dumps(caught.value))
        assert (str(caught.value), caught.value.report.counts) == (
            str(copied),
            copied.report.counts,
        )
        assert cause is type(copied.cause)


async def test_the_refusal_stops_a_row_that_waits_for_the_rate(watched: None) -> None:
    gateway = sandbox(balance=0)
    async with gateway.serve() as url, client(url) as voice:
        with pytest.raises(BulkStoppedError) as caught:
            async with voice.submit_many(pairs(9), rate=0.01) as run:
                await run.finish()
    assert 1 == len(gateway.attempts) == caught.value.report.counts[S.REFUSED]
    assert {S.REFUSED: 1, S.NOT_SENT: 1} == counted(run.report)


async def test_leaving_early_does_not_raise_the_refusal(watched: None) -> None:
    gateway = sandbox(balance=0)
    async with (
        gateway.serve() as url,
        client(url) as voice,
        voice.submit_many(pairs(9), concurrency=1) as run,
    ):
        assert S.REFUSED is (await run.__anext__()).status
    assert isinstance(run.report.stopped_by, InsufficientBalanceError)


async def test_a_predicate_decides_when_to_stop(gateway: Gateway) -> None:
    with pytest.raises(BulkStoppedError) as caught:  # noqa: PT012
        async with client(gateway.url) as voice:
            stop_on: Any = lambda outcome: outcome.index == 30  # noqa: E731
            async with voice.submit_many(pairs(500), concurrency=5, stop_on=stop_on) as run:
                await run.finish()
    assert (None, None, 30) == (
        caught.value.cause,
        run.report.stopped_by,
        caught.value.report.stopped_at,
    )
    assert "stopped at row 30: stop_on asked for it; so far" in str(caught.value)
    assert 31 <= run.report.total == len(gateway.mobiles) <= 35


async def test_a_predicate_sees_every_outcome_until_it_stops_the_run(gateway: Gateway) -> None:
    seen: list[Outcome] = []

    def stop_on(outcome: Outcome) -> bool:
        seen.append(outcome)
        return False

    async with client(gateway.url) as voice:
        rows: Any = [*pairs(50), None]
        async with voice.submit_many(rows, stop_on=stop_on) as run:
            assert seen == [outcome async for outcome in run]
    assert 51 == len(seen)


async def test_without_stop_on_nothing_stops(gateway: Gateway) -> None:
    gateway.answer = lambda _: b'{"code":4051,"msg":"x","voiceid":"0"}'
    async with client(gateway.url) as voice, voice.submit_many(pairs(60), stop_on=None) as run:
        assert {S.REFUSED: 60} == counted(await run.finish())
    gateway.answer = lambda _: None
    async with (
        client(gateway.url) as voice,
        voice.submit_many(pairs(60), stop_on=None, max_failures_in_row=1) as run,
    ):
        assert {S.UNKNOWN: 60} == counted(await run.finish())


@pytest.mark.parametrize("status", [S.ACCEPTED, S.INVALID, S.UNKNOWN])
async def test_an_exception_of_a_predicate_is_raised_unwrapped(
    gateway: Gateway, status: OutcomeStatus
) -> None:
    error = UsersError()
    gateway.answer = lambda number: None if number == mobile(7) else ACCEPTED

    def stop_on(outcome: Outcome) -> bool:
        if outcome.index >= 5 and outcome.status is status:
            raise error
        return False

    rows: Any = Spy([*pairs(10), None, *pairs(500)[10:]])
    with leaving_nothing(), pytest.raises(UsersError) as caught:
        async with (
            client(gateway.url) as voice,
            voice.submit_many(rows.as_list(), concurrency=4, stop_on=stop_on) as run,
        ):
            await run.finish()
    assert error is caught.value
    assert rows.taken == run.report.total < 30


# --- failures in a row -----------------------------------------------------------------


def unlistened() -> Iterator[str]:
    """A port that is bound, so that no other program gets it, and does not listen."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


down_url = pytest.fixture(unlistened)


@pytest.mark.parametrize("most", [3, 20])
async def test_a_gateway_that_is_down_stops_the_run(
    watched: None, down_url: str, most: int
) -> None:
    """Both not-sent and unknown rows; invalid rows between them change nothing."""
    rows: list[Any] = []
    for row in pairs(500):
        rows += [row, None]
    spy = Spy(rows)
    options: dict[str, Any] = {} if most == 20 else {"max_failures_in_row": most}
    with pytest.raises(BulkStoppedError) as caught:  # noqa: PT012
        async with client(down_url, connect_attempts=1) as voice:
            run = voice.submit_many(spy.as_list(), concurrency=1, **options)
            async with run:
                await run.finish()
    assert isinstance(caught.value.cause, NotSentError)
    assert not caught.value.may_have_rung
    assert most == run.report.counts[S.NOT_SENT]
    assert most - 1 == run.report.counts[S.INVALID]
    assert 2 * (most - 1) == run.report.stopped_at
    assert spy.taken == run.report.total


async def test_unknown_rows_stop_the_run_and_those_in_flight_finish(gateway: Gateway) -> None:
    gateway.answer = lambda _: None
    with pytest.raises(BulkStoppedError) as caught:
        async with (
            client(gateway.url) as voice,
            voice.submit_many(pairs(500), concurrency=10) as run,
        ):
            await run.finish()
    assert isinstance(caught.value.cause, OutcomeUnknownError)
    assert caught.value.may_have_rung
    assert 20 <= run.report.counts[S.UNKNOWN] == run.report.total <= 29
    assert len(gateway.mobiles) == run.report.total


@pytest.mark.parametrize(
    "answer", [b'{"code":2,"msg":"ok","voiceid":"1"}', b'{"code":406,"msg":"no","voiceid":"0"}']
)
async def test_an_accepted_row_resets_the_count_of_failures(
    gateway: Gateway, answer: bytes
) -> None:
    gateway.answer = lambda number: answer if int(number[3:]) % 3 == 0 else None
    async with client(gateway.url) as voice:
        async with voice.submit_many(pairs(60), concurrency=1, max_failures_in_row=3) as run:
            assert 40 == (await run.finish()).counts[S.UNKNOWN]
        with pytest.raises(BulkStoppedError):
            async with voice.submit_many(pairs(60), concurrency=1, max_failures_in_row=2) as run:
                await run.finish()
    assert 3 == run.report.total


async def test_max_failures_in_row_none_never_stops_the_run(gateway: Gateway) -> None:
    gateway.answer = lambda _: None
    async with (
        client(gateway.url) as voice,
        voice.submit_many(pairs(60), max_failures_in_row=None) as run,
    ):
        assert {S.UNKNOWN: 60} == counted(await run.finish())


# --- misuse ------------------------------------------------------------------------------


async def test_use_before_the_block_raises(gateway: Gateway) -> None:
    async with client(gateway.url) as voice:
        run = voice.submit_many(pairs(1))
        for use in (run.__anext__, run.finish):
            with pytest.raises(RuntimeError, match="must be entered first: `async with client"):
                await use()
        async with run:
            assert 1 == (await run.finish()).total


async def test_a_second_use_raises(gateway: Gateway) -> None:
    async with client(gateway.url) as voice:
        async with voice.submit_many(pairs(1)) as run:
            with pytest.raises(RuntimeError, match="is used once: call submit_many again"):
                await run.__aenter__()
            assert 1 == (await run.finish()).total
        with pytest.raises(RuntimeError, match="is used once: call submit_many again"):
            await run.__aenter__()


async def test_a_closed_client_starts_no_run(gateway: Gateway) -> None:
    spy = Spy(pairs(1))
    async with client(gateway.url) as voice:
        run = voice.submit_many(iter(spy))
    with pytest.raises(RuntimeError, match="this client is closed: make a new one"):
        await run.__aenter__()
    assert (0, 0) == (spy.taken, run.report.total)


def test_entering_outside_a_loop_raises() -> None:
    run = client("http://127.0.0.1:9").submit_many(pairs(1))
    with pytest.raises(RuntimeError, match="no asyncio event loop is running"):
        run.__aenter__().send(None)


def test_entering_in_another_loop_raises() -> None:
    voice = client("http://127.0.0.1:9")
    run = voice.submit_many(pairs(1))

    loop = asyncio.new_event_loop()
    loop.run_until_complete(voice.__aenter__())
    with pytest.raises(RuntimeError, match="belongs to another event loop"):
        asyncio.run(run.__aenter__())
    loop.run_until_complete(voice.aclose())
    loop.close()
