"""Bulk runs of the blocking client: the same outcomes, read in any thread."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from ihuyi_voice import (
    AsyncVoiceClient,
    BulkStoppedError,
    InsufficientBalanceError,
    Outcome,
    OutcomeStatus,
    QuotaExceededError,
    RecipientQuota,
    VoiceClient,
)
from ihuyi_voice.bulk.rows import READ_AHEAD
from ihuyi_voice.bulk.run import BulkRun
from ihuyi_voice.sandbox import Chaos
from tests.bulk.spies import Pair, Spy, counted, mobile, pair, pairs, sandbox, source, threads
from tests.inside import ThreadOutcomes, running_thread_of, shorten, unread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ihuyi_voice.sandbox import SandboxGateway
    from ihuyi_voice.sync.bulk import BlockingBulkRun

S = OutcomeStatus
NO_ANSWERS = Chaos(no_answer=1.0)


@pytest.fixture(autouse=True)
def _nothing_outlives_a_test() -> Iterator[None]:
    before = threads()
    yield
    assert before == threads()


@pytest.fixture
def gateway() -> SandboxGateway:
    return sandbox()


@pytest.fixture
def url(gateway: SandboxGateway) -> Iterator[str]:
    with gateway.serve_in_thread() as url:
        yield url


@pytest.fixture
def voice(url: str) -> Iterator[VoiceClient]:
    with client(url) as voice:
        yield voice


def client(url: str, **options: Any) -> VoiceClient:
    defaults: dict[str, Any] = {"base_url": url, "quota": None, "timeout": 10.0}
    return VoiceClient("sandbox", "sandbox-key", **{**defaults, **options})


def in_flight(gateway: SandboxGateway, count: int) -> None:
    """Wait until so many submits have arrived."""
    while len(gateway.attempts) < count:
        pass


@pytest.mark.parametrize("kind", ["list", "tuple", "generator", "async_generator", "csv_reader"])
def test_one_outcome_per_row(voice: VoiceClient, gateway: SandboxGateway, kind: str) -> None:
    spy = Spy(pairs(100))
    rows: Any = source(kind, spy)
    with voice.submit_many(rows, concurrency=7) as run:
        assert run is iter(run)
        made = {outcome.index: outcome for outcome in run}
        assert [] == list(run)
    assert set(range(100)) == set(made)
    for n, outcome in made.items():
        assert S.ACCEPTED is outcome.status
        assert outcome.request is not None
        assert outcome.result is not None
        assert mobile(n) == outcome.request.mobile == outcome.result.mobile
    assert {S.ACCEPTED: 100} == counted(run.report)
    assert 100 == len(gateway.calls) == spy.taken


async def test_the_same_outcomes_as_the_async_client() -> None:
    gateway = sandbox(blacklist={mobile(3)}, balance=500)
    rows: Any = [*pairs(9), None, (mobile(1), 5), [mobile(2), "0000"], pair(4)]

    def comparable(outcomes: list[Outcome]) -> list[tuple[int, object, S, str]]:
        return sorted((o.index, repr(o.request), o.status, str(o.error)) for o in outcomes)

    with gateway.serve_in_thread() as url:
        async with (
            AsyncVoiceClient("sandbox", "sandbox-key", base_url=url) as one,
            one.submit_many(rows, concurrency=1) as run,
        ):
            expected = comparable([outcome async for outcome in run])

        def block() -> list[Outcome]:
            with (
                client(url, quota=RecipientQuota()) as two,
                two.submit_many(rows, concurrency=1) as run,
            ):
                return list(run)

        with ThreadPoolExecutor(1) as pool:
            assert expected == comparable(pool.submit(block).result())
    assert 13 == len(expected)


def test_finish_returns_the_report_and_report_works_at_any_time(voice: VoiceClient) -> None:
    run = voice.submit_many(pairs(30))
    assert (0, 0.0) == (run.report.total, run.report.elapsed)
    with run:
        next(run)
        assert 1 <= run.report.total <= 30
        report = run.finish()
    assert {S.ACCEPTED: 30} == counted(report)
    assert report == run.report


def test_a_waiting_consumer_is_woken_for_several_outcomes_at_once(
    voice: VoiceClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []
    wait = ThreadOutcomes.wait_in_thread

    def counting(self: ThreadOutcomes) -> None:
        wait(self)
        waits.append(len(self))

    monkeypatch.setattr(ThreadOutcomes, "wait_in_thread", counting)
    with voice.submit_many(pairs(1000)) as run:
        assert 1000 == run.finish().total
    # In practice 16 and more at a time; a switch of threads per row would be 1,000.
    assert len(waits) < 400


def test_an_outcome_does_not_wait_for_a_batch_to_fill(
    voice: VoiceClient, gateway: SandboxGateway
) -> None:
    go_on = threading.Event()

    def rows() -> Iterator[Pair]:
        yield pair(0)
        assert go_on.wait(10)
        yield pair(1)

    with voice.submit_many(rows()) as run:
        assert 0 == next(run).index
        go_on.set()
        assert [1] == [outcome.index for outcome in run]


def test_wait_returns_at_once_if_an_outcome_came_just_before() -> None:
    outcomes, outcome = ThreadOutcomes(), Outcome(0, None, S.NOT_SENT, None, None)
    outcomes.put(outcome)
    outcomes.wait_in_thread()
    assert [outcome] == [next(outcomes.taking)]


@pytest.mark.parametrize("kind", ["list", "generator", "async_generator"])
@pytest.mark.parametrize("concurrency", [1, 10])
def test_at_most_32_rows_more_than_are_in_flight_are_taken_beyond_what_was_read(
    voice: VoiceClient, gateway: SandboxGateway, kind: str, concurrency: int
) -> None:
    """Outcomes that wait in the loop thread count as not read."""
    spy, read = Spy(pairs(300)), 0
    beyond: list[int] = []
    spy.look = lambda: beyond.append(spy.taken - read)
    with voice.submit_many(source(kind, spy), concurrency=concurrency) as run:
        for _ in run:
            read += 1
            if read % 50 == 1:
                # Wait until the run has started all rows that it may.
                while unread(run) < min(300 - read, concurrency):
                    pass
        assert 300 == read == spy.taken
    # The consumer counts an outcome a moment after it has taken it.
    assert 1 <= max(beyond) <= concurrency + 32 + 1


def test_a_consumer_that_stops_early_has_rung_few_extra_phones(
    voice: VoiceClient, gateway: SandboxGateway
) -> None:
    spy = Spy(pairs(2000))
    rows: Any = spy.as_list()
    with voice.submit_many(rows, concurrency=5) as run:
        next(run)
        while run.report.total < 5 + 32:
            pass
        assert len(gateway.attempts) <= spy.taken <= 1 + 5 + 32
        run.stop()
        assert spy.taken == run.finish().total <= 1 + 5 + 32


def test_several_threads_each_with_a_run_of_its_own(
    voice: VoiceClient, gateway: SandboxGateway
) -> None:
    def send(thread: int) -> Counter[S]:
        with voice.submit_many([pair(1000 * thread + n) for n in range(50)]) as run:
            return Counter(outcome.status for outcome in run)

    with ThreadPoolExecutor(8) as pool:
        assert [Counter({S.ACCEPTED: 50})] * 8 == list(pool.map(send, range(8)))
    assert 400 == len({call.mobile for call in gateway.calls}) == len(gateway.calls)


def test_several_threads_read_one_run(voice: VoiceClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each outcome goes to one thread, and no thread ends before the run."""
    with voice.submit_many(pairs(600), concurrency=30) as run, ThreadPoolExecutor(6) as pool:
        read = [pool.submit(lambda: [outcome.index for outcome in run]) for _ in range(6)]
        indices = [index for future in read for index in future.result()]
    assert list(range(600)) == sorted(indices)


class UsersError(Exception):
    pass


def raise_after(_: Outcome, error: Exception) -> None:
    raise error


@pytest.mark.parametrize("kind", ["list", "generator"])
def test_the_users_exception_leaves_the_block_unwrapped(
    voice: VoiceClient, gateway: SandboxGateway, kind: str
) -> None:
    spy, error = Spy(pairs(500)), UsersError()
    rows: Any = source(kind, spy)
    with pytest.raises(UsersError) as caught, voice.submit_many(rows, concurrency=5) as run:
        raise_after(next(run), error)
    assert error is caught.value
    assert (None, None) == (error.__cause__, error.__context__)
    assert spy.taken == run.report.total < 500
    assert len(gateway.calls) == run.report.counts[S.ACCEPTED]


def test_leaving_early_awaits_what_is_in_flight(
    voice: VoiceClient, gateway: SandboxGateway
) -> None:
    gateway.chaos = Chaos(latency=1.0)
    rows: Any = iter(pairs(500))
    with voice.submit_many(rows, concurrency=5) as run:
        in_flight(gateway, 5)
    assert {S.ACCEPTED: 5} == {s: n for s, n in counted(run.report).items() if s is not S.NOT_SENT}
    # The rows read ahead are reported. The rest is still in the iterator.
    assert 500 == len(list(rows)) + run.report.total
    assert run.report.total <= 5 + READ_AHEAD
    # Outcomes that were not read in the block can be read after it.
    assert run.report.total == len(list(run))


def test_a_refusal_of_the_account(voice: VoiceClient, gateway: SandboxGateway) -> None:
    gateway.balance = 50
    spy = Spy(pairs(10_000))
    rows: Any = spy.as_generator()
    seen: list[Outcome] = []
    with (
        pytest.raises(BulkStoppedError, match="the balance is used up") as caught,
        voice.submit_many(rows, concurrency=20) as run,
    ):
        seen.extend(run)
    assert isinstance(caught.value.cause, InsufficientBalanceError)
    assert 50 == len(gateway.calls) == caught.value.report.counts[S.ACCEPTED]
    assert len(gateway.attempts) <= 70
    assert spy.taken <= len(gateway.attempts) + READ_AHEAD
    assert caught.value.report == run.report == run.finish()


def test_exceptions_of_source_and_predicate_are_raised_unwrapped(voice: VoiceClient) -> None:
    error = UsersError()

    def rows() -> Iterator[Pair]:
        yield from pairs(5)
        raise error

    def stop_on(_: Outcome) -> bool:
        raise error

    with pytest.raises(UsersError) as caught, voice.submit_many(rows()) as run:
        run.finish()
    assert error is caught.value
    assert {S.ACCEPTED: 5} == counted(run.report)
    with pytest.raises(UsersError) as caught, voice.submit_many(pairs(5), stop_on=stop_on) as run:
        run.finish()
    assert error is caught.value


def test_stop_from_another_thread(voice: VoiceClient, gateway: SandboxGateway) -> None:
    gateway.chaos = Chaos(latency=0.1)

    def stop() -> None:
        in_flight(gateway, 5)
        run.stop()

    with voice.submit_many(pairs(500), concurrency=5) as run, ThreadPoolExecutor(1) as pool:
        pool.submit(stop)
        assert {S.ACCEPTED: 5} == counted(run.finish())


def test_abort_from_another_thread(voice: VoiceClient, gateway: SandboxGateway) -> None:
    gateway.chaos = NO_ANSWERS

    def abort() -> None:
        in_flight(gateway, 5)
        run.abort()

    with voice.submit_many(pairs(500), concurrency=5) as run, ThreadPoolExecutor(1) as pool:
        pool.submit(abort)
        assert [S.UNKNOWN] * 5 == [outcome.status for outcome in run]
    assert {S.UNKNOWN: 5} == counted(run.report)
    assert run.report.elapsed < 5


def test_stop_from_the_loop_thread(voice: VoiceClient) -> None:
    """A predicate runs in the loop thread; `stop` must not wait for it."""

    def stop_on(outcome: Outcome) -> bool:
        if outcome.index == 10:
            run.stop()
        return False

    with voice.submit_many(pairs(500), concurrency=1, stop_on=stop_on) as run:
        assert 11 <= run.finish().total < 20


@pytest.mark.parametrize("ending", ["stop", "abort"])
def test_stop_and_abort_before_the_block_and_after_the_end(url: str, ending: str) -> None:
    with client(url) as voice:
        run = voice.submit_many(pairs(5))
        getattr(run, ending)()
        with run:
            assert 0 == run.finish().total
        getattr(run, ending)()
    getattr(run, ending)()
    assert 0 == run.report.total


def test_rows_over_the_limit_end_limited_or_wait(url: str) -> None:
    quota = RecipientQuota(per_minute=1, per_day=None, clock=lambda: 1000.0)
    with client(url, quota=quota) as voice:
        with voice.submit_many([pair(0), pair(0)]) as run:
            one, two = sorted(run, key=lambda outcome: outcome.index)
        assert (S.ACCEPTED, S.LIMITED) == (one.status, two.status)
        assert isinstance(two.error, QuotaExceededError)
        assert 60.0 == two.error.retry_after
    quota = RecipientQuota(per_minute=1, per_day=None)
    shorten(quota, (1, 0.05))
    with (
        client(url, quota=quota) as voice,
        voice.submit_many([pair(1)] * 3, wait_for_quota=True) as run,
    ):
        assert {S.ACCEPTED: 3} == counted(run.finish())


def test_starts_keep_to_the_rate(voice: VoiceClient) -> None:
    with voice.submit_many(pairs(31), rate=100) as run:
        assert {S.ACCEPTED: 31} == counted(run.finish())
    assert run.report.elapsed >= 0.3


# --- misuse -----------------------------------------------------------------------


def test_wrong_arguments_raise_at_once() -> None:
    voice = client("http://127.0.0.1:9", max_connections=7)
    with pytest.raises(ValueError, match="concurrency is 8, and the client has max_connections=7"):
        voice.submit_many([], concurrency=8)
    with pytest.raises(ValueError, match="rate is in starts per second"):
        voice.submit_many([], rate=0)
    with pytest.raises(TypeError, match="requests must be an iterable or async iterable"):
        voice.submit_many("13912345678")  # type: ignore[arg-type]
    # No thread was started.
    assert running_thread_of(voice) is None


def test_used_before_it_is_entered_and_twice(voice: VoiceClient) -> None:
    run = voice.submit_many(pairs(9))
    for use in (run.__next__, run.finish):
        with pytest.raises(RuntimeError, match=r"must be entered first: `with client\.submit_many"):
            use()
    with run:
        with pytest.raises(RuntimeError, match="is used once: call submit_many again"):
            run.__enter__()
        # The run that was entered continues.
        assert 9 == run.finish().total
    with pytest.raises(RuntimeError, match="is used once: call submit_many again"):
        run.__enter__()


def test_with_a_closed_client(url: str) -> None:
    voice = client(url)
    run = voice.submit_many(pairs(1))
    voice.close()
    with pytest.raises(RuntimeError, match="this client is closed: make a new one"):
        run.__enter__()


@pytest.mark.parametrize("thread", ["own", "another"])
def test_closing_the_client_inside_the_block_ends_the_run(
    url: str, gateway: SandboxGateway, thread: str
) -> None:
    """As when the block is left: requests in flight finish, and nothing waits for ever."""
    gateway.chaos = Chaos(latency=0.1)
    voice = client(url)
    with voice.submit_many(pairs(500), concurrency=5) as run:
        in_flight(gateway, 5)
        if thread == "own":
            voice.close()
        else:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(voice.close).result()
        # Every row that was taken has an outcome, and each can be read.
        assert [0, 1, 2, 3, 4] == sorted(outcome.index for outcome in run)
    assert {S.ACCEPTED: 5} == counted(run.report)


@pytest.mark.parametrize("kind", ["list", "generator"])
def test_closing_the_client_in_another_thread_loses_no_outcome(
    url: str, gateway: SandboxGateway, kind: str
) -> None:
    """The consumer continues to read, in the block and after it, and gets every outcome."""
    voice, spy = client(url), Spy(pairs(3000))
    rows: Any = source(kind, spy)
    seen: list[int] = []
    with voice.submit_many(rows, concurrency=20) as run, ThreadPoolExecutor(1) as pool:
        while len(seen) < 200:
            seen.append(next(run).index)
        closing = pool.submit(voice.close)
        while len(seen) < 210:
            seen.append(next(run).index)
        closing.result()
    seen += [outcome.index for outcome in run]
    assert list(range(spy.taken)) == sorted(seen)
    assert spy.taken == run.report.total < 3000
    assert len(gateway.calls) == run.report.counts[S.ACCEPTED]


def test_a_run_that_cannot_be_entered_sends_nothing(
    voice: VoiceClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when Ctrl-C interrupts `__enter__`: `close` does not wait for the run either."""
    entered = BulkRun.__aenter__

    async def interrupted(self: BulkRun) -> BulkRun:
        raise UsersError

    monkeypatch.setattr(BulkRun, "__aenter__", interrupted)
    run = voice.submit_many(pairs(5))
    with pytest.raises(UsersError):
        run.__enter__()
    monkeypatch.setattr(BulkRun, "__aenter__", entered)
    with voice.submit_many(pairs(5)) as again:
        assert 5 == again.finish().total
    assert 0 == run.report.total


async def test_refused_inside_a_running_loop(url: str) -> None:
    voice = client(url)
    run = await asyncio.to_thread(voice.submit_many, pairs(1))
    refusal = r"VoiceClient\.submit_many would block the event loop"
    with pytest.raises(RuntimeError, match=refusal):
        run.__enter__()
    with pytest.raises(RuntimeError, match=refusal):
        voice.submit_many(pairs(1))


async def test_allowed_inside_a_running_loop(url: str) -> None:
    with client(url, allow_running_loop=True) as voice, voice.submit_many(pairs(5)) as run:
        assert {S.ACCEPTED: 5} == counted(run.finish())


def test_from_env(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IHUYI_VOICE_API_ID", "sandbox")
    monkeypatch.setenv("IHUYI_VOICE_API_KEY", "sandbox-key")
    monkeypatch.setenv("IHUYI_VOICE_BASE_URL", url)
    with VoiceClient.from_env(quota=None) as voice:
        run: BlockingBulkRun = voice.submit_many(pairs(5))
        with run:
            assert {S.ACCEPTED: 5} == counted(run.finish())
