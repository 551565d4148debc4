"""Exceptions of the caller's own code, of any class, and sources that are closed."""

from __future__ import annotations

import asyncio
import itertools
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ihuyi_voice import (
    BulkStoppedError,
    InvalidRequestError,
    NotSentError,
    Outcome,
    OutcomeStatus,
    RecipientQuota,
    SubmitRequest,
    VoiceClient,
)
from ihuyi_voice.bulk.rows import open_source
from tests.bulk.spies import (
    Gateway,
    Pair,
    Spy,
    client,
    counted,
    leaving_nothing,
    mobile,
    pair,
    pairs,
    sandbox,
    source,
    turns,
)
from tests.rogue import ACCEPTED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from ihuyi_voice.bulk.run import BulkRun

S = OutcomeStatus
KINDS = ["list", "generator", "iterable", "map", "async_generator", "async_iterator"]
GENERATORS = ["generator", "async_generator"]


class UsersBaseError(BaseException):
    pass


FOREIGN: list[Callable[[], BaseException]] = [
    lambda: SystemExit(3),
    asyncio.CancelledError,
    KeyboardInterrupt,
    GeneratorExit,
    UsersBaseError,
    lambda: KeyError("key"),
]
ids = [type(make()).__name__ for make in FOREIGN]
# A source is of one kind and an exception of one class, and neither asks for the other:
# each class from a thread and from the loop, and each kind with the class that is asyncio's own.
OF_A_SOURCE = pytest.mark.parametrize(
    ("kind", "make"),
    [
        pytest.param(kind, make, id=f"{kind}-{name}")
        for kind in KINDS
        for make, name in zip(FOREIGN, ids, strict=True)
        if kind in GENERATORS or make is asyncio.CancelledError
    ],
)


def raising_at(count: int, spy: Spy, error: BaseException) -> None:
    def look() -> None:
        if spy.taken == count:
            raise error

    spy.look = look


async def read(run: BulkRun, seen: list[int]) -> BaseException | None:
    """Read to the end. Returns what the run raises there."""
    error: BaseException | None = None
    try:
        async for outcome in run:  # pragma: no branch - it raises
            seen.append(outcome.index)  # noqa: PERF401 - what was read before it raised
    except BaseException as raised:  # noqa: BLE001 - looked at by the test
        error = raised
    return error


@OF_A_SOURCE
async def test_an_exception_of_a_source_is_raised_after_the_outcomes_of_its_rows(
    gateway: Gateway, kind: str, make: Callable[[], BaseException]
) -> None:
    spy, error, seen = Spy(pairs(100)), make(), list[int]()
    raising_at(41, spy, error)
    rows: Any = source(kind, spy)
    with leaving_nothing():
        async with (
            client(gateway.url) as voice,
            voice.submit_many(rows, concurrency=5) as run,
        ):
            assert error is await read(run, seen)
            # Raised once. The run is over.
            assert 40 == (await run.finish()).total
    assert list(range(40)) == sorted(seen)
    assert {S.ACCEPTED: 40} == counted(run.report)


@OF_A_SOURCE
async def test_an_exception_of_a_source_leaves_the_block_unwrapped(
    gateway: Gateway, kind: str, make: Callable[[], BaseException]
) -> None:
    spy, error = Spy(pairs(100)), make()
    raising_at(41, spy, error)
    rows: Any = source(kind, spy)
    caught: BaseException | None = None
    with leaving_nothing():
        async with client(gateway.url) as voice:
            try:
                async with voice.submit_many(rows, concurrency=5) as run:
                    await run.finish()
            except BaseException as raised:  # noqa: BLE001 - looked at below
                caught = raised
    assert error is caught
    assert {S.ACCEPTED: 40} == counted(run.report)


# Each class from a generator; a list and an asynchronous generator with those that are special.
@pytest.mark.parametrize(
    ("kind", "make"),
    [
        *(("generator", make) for make in FOREIGN),
        ("async_generator", asyncio.CancelledError),
        ("async_generator", GeneratorExit),
        ("list", KeyboardInterrupt),
    ],
)
def test_an_exception_in_a_blocking_run_does_not_affect_other_calls_of_the_client(
    kind: str, make: Callable[[], BaseException]
) -> None:
    spy, error = Spy(pairs(100)), make()
    raising_at(41, spy, error)
    rows: Any = source(kind, spy)
    caught: BaseException | None = None
    with (
        sandbox().serve_in_thread() as url,
        VoiceClient("sandbox", "sandbox-key", base_url=url, quota=None) as voice,
    ):
        try:
            with voice.submit_many(rows, concurrency=5) as run:
                run.finish()
        except BaseException as raised:  # noqa: BLE001 - looked at below
            caught = raised
        assert error is caught
        assert {S.ACCEPTED: 40} == counted(run.report)
        assert voice.submit(*pair(99)).voice_id


@pytest.mark.parametrize(
    ("status", "make"),
    [*zip(itertools.cycle([S.ACCEPTED, S.INVALID, S.UNKNOWN]), FOREIGN, strict=False)],
)
async def test_an_exception_of_a_predicate_is_raised_after_the_outcomes_of_the_taken_rows(
    gateway: Gateway, status: OutcomeStatus, make: Callable[[], BaseException]
) -> None:
    error, seen = make(), list[int]()
    gateway.answer = lambda number: None if number == mobile(7) else ACCEPTED

    def stop_on(outcome: Outcome) -> bool:
        if outcome.index >= 5 and outcome.status is status:
            raise error
        return False

    rows: Any = Spy([*pairs(10), None, *pairs(500)[10:]])
    with leaving_nothing():
        async with (
            client(gateway.url) as voice,
            voice.submit_many(rows.as_list(), concurrency=4, stop_on=stop_on) as run,
        ):
            assert error is await read(run, seen)
    assert list(range(rows.taken)) == sorted(seen)
    assert rows.taken < 50


@pytest.mark.parametrize("make", FOREIGN[:-1], ids=ids[:-1])
async def test_an_exception_of_a_clock_is_raised_and_its_row_has_an_outcome(
    gateway: Gateway, make: Callable[[], BaseException]
) -> None:
    error, seen = make(), list[int]()
    calls = 0

    def clock() -> float:
        nonlocal calls
        calls += 1
        # One call for each row, for its signature, when nothing is written.
        if calls == 11:
            raise error
        return 1_700_000_000.0

    with leaving_nothing():
        async with (
            client(gateway.url, clock=clock) as voice,
            voice.submit_many(pairs(100), concurrency=1) as run,
        ):
            assert error is await read(run, seen)
            seen.clear()
    assert {S.ACCEPTED: 10, S.NOT_SENT: 1} == counted(run.report)


# A store that raises CancelledError has failed like any other: it runs in a task of its own.
@pytest.mark.parametrize("make", [SystemExit, KeyboardInterrupt, GeneratorExit, UsersBaseError])
@pytest.mark.parametrize("where", ["reserve", "release"])
async def test_an_exception_of_a_quota_store_is_raised_and_no_row_is_lost(
    gateway: Gateway, make: Callable[[], BaseException], where: str
) -> None:
    error, seen = make(), list[int]()

    class Store:
        async def reserve(self, number: str, token: str, windows: object) -> float:
            if where == "reserve" and number == mobile(5):
                raise error
            return 0.0

        async def release(self, number: str, token: str) -> None:
            raise error

    options: dict[str, Any] = {"quota": RecipientQuota(store=Store())}
    if where == "release":
        # Nothing is sent, so the reservation is released.
        options |= {"base_url": "http://127.0.0.1:9", "connect_attempts": 1}
    spy = Spy(pairs(50))
    with leaving_nothing():
        async with (
            client(gateway.url, **options) as voice,
            voice.submit_many(spy.as_list(), concurrency=1) as run,
        ):
            assert error is await read(run, seen)
    assert list(range(spy.taken)) == seen
    assert 1 == run.report.counts[S.NOT_SENT]


@pytest.mark.parametrize("make", [StopIteration, StopAsyncIteration])
@pytest.mark.parametrize("blocking", [True, False])
async def test_stop_iteration_is_raised_as_a_runtime_error(
    gateway: Gateway, make: type[Exception], blocking: bool
) -> None:
    """An empty `next` in the predicate must not look like the end of the run."""
    error = make()

    def stop_on(_: Outcome) -> bool:
        raise error

    def block() -> None:
        with (
            VoiceClient("sandbox", "sandbox-key", base_url=gateway.url, quota=None) as voice,
            voice.submit_many(pairs(5), stop_on=stop_on) as run,
        ):
            run.finish()

    async def on_the_loop() -> None:
        async with (
            client(gateway.url) as voice,
            voice.submit_many(pairs(5), stop_on=stop_on) as run,
        ):
            await run.finish()

    with ThreadPoolExecutor(1) as pool:
        ended: Any = on_the_loop()
        if blocking:
            ended.close()
            ended = asyncio.get_running_loop().run_in_executor(pool, block)
        with pytest.raises(RuntimeError, match=f"the caller's raised {make.__name__}") as caught:
            await ended
    assert error is caught.value.__cause__


async def test_a_refusal_that_stopped_the_run_wins_over_what_the_closed_source_raises(
    gateway: Gateway,
) -> None:
    gateway.answer = lambda _: b'{"code":4051,"msg":"x","voiceid":"0"}'

    def rows() -> Iterator[Pair]:
        try:
            yield from pairs(500)
        finally:
            raise UsersBaseError

    async with client(gateway.url) as voice, voice.submit_many(rows()) as run:
        with pytest.raises(BulkStoppedError):
            await run.finish()


# --- closing -----------------------------------------------------------------------------


class Closed:
    """A source that records in which thread and task it was iterated and closed."""

    def __init__(self) -> None:
        self.iterated: object = None
        self.closed: object = None

    def rows(self) -> Iterator[Pair]:
        try:
            while True:
                self.iterated = threading.current_thread()
                yield pair(0)
        finally:
            self.closed = threading.current_thread()

    async def each(self) -> AsyncIterator[Pair]:
        try:
            while True:
                self.iterated = asyncio.current_task()
                yield pair(0)
        finally:
            self.closed = asyncio.current_task()

    def as_list(self) -> Any:
        closed = self

        class Spied(list[object]):
            def __iter__(self) -> Iterator[Any]:
                return closed.rows()

        return Spied()

    def as_iterable(self) -> Any:
        closed = self

        class Spied:
            def __iter__(self) -> Iterator[Any]:
                return closed.rows()

        return Spied()

    def as_generator(self) -> Any:
        return self.rows()

    def as_async_generator(self) -> Any:
        return self.each()

    def as_async_iterable(self) -> Any:
        closed = self

        class Spied:
            def __aiter__(self) -> AsyncIterator[Any]:
                return closed.each()

        return Spied()


@pytest.mark.parametrize("ending", ["leave", "raise", "stop", "abort", "cancel"])
@pytest.mark.parametrize(
    "kind", ["list", "iterable", "generator", "async_generator", "async_iterable"]
)
async def test_a_generator_is_closed_inside_the_block_where_it_was_iterated(
    gateway: Gateway, kind: str, ending: str
) -> None:
    spy = Closed()
    rows: Any = getattr(spy, f"as_{kind}")()
    gateway.hold()
    with leaving_nothing():
        async with client(gateway.url) as voice:

            async def use() -> None:
                async with voice.submit_many(rows, concurrency=3) as run:
                    await gateway.arrived(3)
                    await turns()
                    assert spy.closed is None
                    if ending == "cancel":
                        await asyncio.Event().wait()
                    if ending != "abort":
                        gateway.release()
                    if ending == "raise":
                        raise KeyError
                    if ending in {"stop", "abort"}:
                        getattr(run, ending)()
                        await run.finish()
                        assert spy.closed is not None

            task = asyncio.create_task(use())
            await gateway.arrived(3)
            await turns(200)
            if ending == "cancel":
                task.cancel()
            await asyncio.wait([task])
    assert (ending == "cancel") is task.cancelled()
    if ending == "raise":
        assert isinstance(task.exception(), KeyError)
    assert spy.iterated is spy.closed is not None


async def scoped() -> AsyncIterator[Pair]:
    with anyio.move_on_after(30):
        while True:
            yield pair(0)


async def grouped() -> AsyncIterator[Pair]:
    async with anyio.create_task_group():
        while True:
            yield pair(0)


@pytest.mark.parametrize("rows", [scoped, grouped])
@pytest.mark.parametrize("ending", ["leave", "stop", "abort", "raise"])
async def test_an_async_generator_that_yields_inside_a_scope_can_be_left(
    gateway: Gateway, rows: Callable[[], Any], ending: str
) -> None:
    with leaving_nothing(), ExitStack() as stack:
        if ending == "raise":
            stack.enter_context(pytest.raises(KeyError))
        async with client(gateway.url) as voice, voice.submit_many(rows(), concurrency=3) as run:
            await run.__anext__()
            if ending == "raise":
                raise KeyError
            if ending != "leave":
                getattr(run, ending)()
                await run.finish()
        # The rows that were taken are reported, and nothing else is raised.
        assert run.report.total == (await run.finish()).total


async def test_leaving_does_not_wait_for_a_waiting_async_source(gateway: Gateway) -> None:
    closed = anyio.Event()

    async def rows() -> AsyncIterator[Pair]:
        try:
            yield pair(0)
            await anyio.sleep_forever()
        finally:
            # It may wait here, for example to close a connection.
            await turns(2)
            closed.set()

    with leaving_nothing():
        async with client(gateway.url) as voice, voice.submit_many(rows()) as run:
            assert 0 == (await run.__anext__()).index
        assert closed.is_set()
    assert 1 == (await run.finish()).total


@pytest.mark.parametrize("kind", GENERATORS)
async def test_an_exception_of_a_closed_source_reaches_a_consumer_that_continues_to_read(
    gateway: Gateway, kind: str
) -> None:
    error, seen = UsersBaseError(), list[int]()

    def rows() -> Iterator[Pair]:
        try:
            yield from pairs(500)
        finally:
            raise error

    async def each() -> AsyncIterator[Pair]:
        try:
            while True:
                yield pair(0)
        finally:
            raise error

    any_rows: Any = rows() if kind == "generator" else each()
    async with client(gateway.url) as voice:
        async with voice.submit_many(any_rows, concurrency=3) as run:
            await gateway.arrived(3)
        assert error is await read(run, seen)
    assert run.report.total == len(seen) < 500


async def test_abort_does_not_wait_for_the_clean_up_of_a_source(gateway: Gateway) -> None:
    gateway.hold()
    ended: list[type[BaseException]] = []

    async def rows() -> AsyncIterator[Pair]:
        try:
            while True:
                yield pair(0)
        finally:
            try:
                await anyio.sleep_forever()
            except BaseException as error:
                ended.append(type(error))
                raise

    with leaving_nothing():
        async with client(gateway.url) as voice, voice.submit_many(rows(), concurrency=3) as run:
            await gateway.arrived(3)
            await turns()
            run.abort()
            assert {S.UNKNOWN: 3, S.NOT_SENT: 29} == counted(await run.finish())
    assert [asyncio.CancelledError] == ended


async def test_a_thread_that_cannot_be_started_means_not_sent(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:  # pragma: no cover - in an untraced thread
        msg = "can't start new thread"
        raise RuntimeError(msg)

    async with client(gateway.url) as voice:
        with monkeypatch.context() as patched:
            patched.setattr("threading.Thread.start", start)
            with pytest.raises(NotSentError, match="could not be started: can't start new thread"):
                async with voice.submit_many(iter(pairs(5))) as run:
                    await run.finish()
    assert 0 == run.report.total


# --- secrets in frames ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["list", "generator", "async_generator"])
async def test_no_library_frame_holds_a_row_when_the_source_raises(
    gateway: Gateway, kind: str
) -> None:
    """Rows become requests, whose repr is masked, as soon as they are taken."""
    spy, error = Spy([(mobile(n), "975310") for n in range(100)]), UsersBaseError()
    raising_at(41, spy, error)
    rows: Any = source(kind, spy)
    async with client(gateway.url) as voice, voice.submit_many(rows) as run:
        assert error is await read(run, [])
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    ours = [frame for frame in shown.stack if "ihuyi_voice/" in frame.filename]
    assert ours
    for frame in ours:
        assert "975310" not in str(frame.locals)
        assert "1390000" not in str(frame.locals)


class Awkward(tuple[str, str]):
    __slots__ = ()

    def __len__(self) -> int:
        raise UsersError


class UsersError(Exception):
    pass


def test_a_row_that_raises_when_it_is_read_is_invalid() -> None:
    rows = open_source([Awkward(("1", "2")), pair(0)])
    taken = rows.take()
    assert isinstance(taken, InvalidRequestError)
    assert str(taken).endswith("not a Awkward that raises UsersError")
    assert SubmitRequest(*pair(0)) == rows.take()
