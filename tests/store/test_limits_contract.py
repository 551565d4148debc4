"""The limit of calls per number, in every store: one contract for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ihuyi_voice import (
    AsyncVoiceClient,
    NotSentError,
    OutcomeUnknownError,
    QuotaExceededError,
    RecipientQuota,
    Store,
    VoiceClient,
)
from ihuyi_voice.sandbox import Chaos, SandboxGateway
from ihuyi_voice.store.limits import DAY, KEEP_SECONDS
from ihuyi_voice.store.memory import MemoryLimits
from ihuyi_voice.store.redis import RedisStore
from ihuyi_voice.store.sql.store import SqlStore

from .redis_server import running_redis
from .support import run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ihuyi_voice.store.base import LimitStore
    from ihuyi_voice.store.limits import Windows

    from .redis_server import RedisServer
    from .support import Clock

MOBILE = "13912345678"
CODE = "112578"
NOT_LISTENING = "http://127.0.0.1:9"

# The fixtures of the servers, each of which has an empty database.
SERVERS = {"postgresql": "postgres", "mariadb": "mariadb", "redis": "redis_server"}
SHARED = ("sqlite", *SERVERS)

ONE_A_MINUTE: Windows = ((1, 60.0),)
TWO_A_MINUTE: Windows = ((2, 60.0),)
DEFAULT: Windows = ((2, 60.0), (10, DAY))

_unique = count()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


def place_of(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The place of a store that does not exist yet."""
    if kind == "sqlite":
        return str(tmp_path / "voice.db")
    url: str = request.getfixturevalue(SERVERS[kind]).empty()
    return url


@pytest.fixture(params=SHARED)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return place_of(request.param, request, tmp_path)


@pytest.fixture
def store(place: str, clock: Clock) -> Iterator[Store]:
    with Store.open(place, clock=clock) as opened:
        yield opened


@pytest.fixture(params=["memory", *SHARED])
def limits(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[LimitStore]:
    if request.param == "memory":
        yield MemoryLimits(clock)
    else:
        with Store.open(place_of(request.param, request, tmp_path), clock=clock) as opened:
            yield opened.limits


def token() -> str:
    return f"t{next(_unique)}"


async def granted(
    limits: LimitStore, times: int = 1, windows: Windows = TWO_A_MINUTE, number: str = "n"
) -> int:
    """How many of so many reservations at once are granted."""
    waits = await asyncio.gather(*(limits.reserve(number, token(), windows) for _ in range(times)))
    return waits.count(0.0)


# --- exact over any window -------------------------------------------------------


class Step(NamedTuple):
    """What happens after some seconds.

    Attributes:
        seconds: since the last step.
        action: reserve; release a reservation, or one that was released before.
        windows: of the client that reserves.
        which: the reservation to be released, the last is 0.
    """

    seconds: int
    action: str
    windows: Windows
    which: int


STEPS = st.builds(
    Step,
    # Whole seconds, so that nothing is rounded; most of them near a window's end.
    seconds=st.one_of(
        st.integers(0, 70), st.sampled_from([0, 0, 59, 60, 61, 3_599, 3_600, 86_399, 86_400])
    ),
    action=st.sampled_from(["reserve", "reserve", "reserve", "release"]),
    windows=st.sampled_from(
        [
            DEFAULT,
            ONE_A_MINUTE,
            ((3, 3600.0),),
            ((4, DAY),),
            ((2, 60.0), (5, 3600.0), (6, DAY)),
        ]
    ),
    which=st.integers(0, 5),
)


def expected_wait(starts: Sequence[float], now: float, windows: Windows) -> float:
    """How long until one more fits, by trying every moment at which that may change."""

    def fits(moment: float) -> bool:
        return all(
            sum(moment - seconds < start <= moment for start in starts) < allowed
            for allowed, seconds in windows
        )

    moments = [now, *(start + seconds for start in starts for _, seconds in windows)]
    return min(moment - now for moment in moments if moment >= now and fits(moment))


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEPS, min_size=1, max_size=25))
def test_it_grants_and_refuses_exactly_what_counting_every_window_does(
    limits: LimitStore, clock: Clock, steps: list[Step]
) -> None:
    number = f"exact {next(_unique)}"
    there: dict[str, float] = {}
    ever: list[str] = []

    async def walk() -> None:
        for step in steps:
            clock.time += step.seconds
            if step.action == "release":
                name = ever[-1 - step.which] if step.which < len(ever) else "never reserved"
                await limits.release(number, name)
                there.pop(name, None)
                continue
            name = token()
            expected = expected_wait(list(there.values()), clock.time, step.windows)
            assert expected == await limits.reserve(number, name, step.windows)
            if expected == 0.0:
                there[name] = clock.time
                ever.append(name)

    asyncio.run(walk())


@pytest.mark.parametrize("seconds", [0.1, 1 / 3, 59.999999])
async def test_waiting_for_exactly_so_long_makes_it_allowed(
    limits: LimitStore, clock: Clock, seconds: float
) -> None:
    assert 1 == await granted(limits, windows=ONE_A_MINUTE)
    clock.time += seconds
    wait = await limits.reserve("n", token(), ONE_A_MINUTE)
    assert math.isclose(60.0 - seconds, wait, abs_tol=1e-6)
    clock.time = math.nextafter(clock.time + wait, math.inf)
    assert 1 == await granted(limits, windows=ONE_A_MINUTE)


async def test_a_refusal_reserves_nothing(limits: LimitStore, clock: Clock) -> None:
    assert 1 == await granted(limits, windows=ONE_A_MINUTE)
    for second in range(1, 60):
        clock.time += 1.0
        assert 60.0 - second == await limits.reserve("n", token(), ONE_A_MINUTE)
    clock.time += 1.0
    assert 1 == await granted(limits, windows=ONE_A_MINUTE)


async def test_the_later_of_several_windows_counts(limits: LimitStore, clock: Clock) -> None:
    windows = ((1, 60.0), (1, 3600.0), (1, DAY))
    assert 1 == await granted(limits, windows=windows)
    clock.time += 30.0
    assert DAY - 30.0 == await limits.reserve("n", token(), windows)


async def test_clients_with_other_windows_leave_each_other_their_starts(
    limits: LimitStore, clock: Clock
) -> None:
    by_day = ((3, DAY),)
    for _ in range(3):
        assert 1 == await granted(limits, windows=by_day)
        clock.time += 3_600.0
    # More starts than the other client's limit, in windows that are much shorter.
    for _ in range(5):
        assert 1 == await granted(limits, windows=ONE_A_MINUTE)
        clock.time += 60.0
    wait = DAY - 3 * 60.0
    assert wait == await limits.reserve("n", token(), by_day)
    assert 1 == await granted(limits, windows=((9, DAY),))
    assert 0 == await granted(limits, windows=((9, DAY),))


async def test_a_number_is_nothing_to_another(limits: LimitStore) -> None:
    assert [2, 2, 2] == [await granted(limits, 3, number=number) for number in ("a", "b", "A")]


@pytest.mark.parametrize("back", [1.0, 1_000.0, 10 * DAY])
async def test_a_clock_that_was_set_back_locks_a_number_for_its_window_at_most(
    limits: LimitStore, clock: Clock, back: float
) -> None:
    assert 1 == await granted(limits, windows=ONE_A_MINUTE)
    clock.time -= back
    assert 60.0 == await limits.reserve("n", token(), ONE_A_MINUTE)


async def test_a_start_is_never_recorded_before_an_earlier_one(
    limits: LimitStore, clock: Clock
) -> None:
    assert 0.0 == await limits.reserve("n", "before", TWO_A_MINUTE)
    clock.time -= 1_000.0
    assert 0.0 == await limits.reserve("n", "after", TWO_A_MINUTE)
    await limits.release("n", "before")
    clock.time += 1_001.0
    assert 59.0 == await limits.reserve("n", token(), ONE_A_MINUTE)


# --- giving back -----------------------------------------------------------------


@pytest.mark.parametrize(("released", "wait"), [("first", 40.0), ("second", 10.0)])
async def test_a_token_gives_exactly_its_place_back(
    limits: LimitStore, clock: Clock, released: str, wait: float
) -> None:
    for name in ("first", "second"):
        assert 0.0 == await limits.reserve("n", name, TWO_A_MINUTE)
        clock.time += 30.0
    clock.time -= 10.0
    await limits.release("n", released)
    assert wait == await limits.reserve("n", token(), ONE_A_MINUTE)
    assert 1 == await granted(limits, 2)


async def test_one_of_two_at_the_same_moment_is_given_back(limits: LimitStore) -> None:
    for name in ("first", "second"):
        assert 0.0 == await limits.reserve("n", name, TWO_A_MINUTE)
    await limits.release("n", "first")
    await limits.release("n", "first")
    assert 1 == await granted(limits, 2)


async def test_an_unknown_token_changes_nothing(limits: LimitStore) -> None:
    assert 0.0 == await limits.reserve("n", "known", ONE_A_MINUTE)
    await limits.release("n", "unknown")
    await limits.release("another number", "known")
    assert 60.0 == await limits.reserve("n", token(), ONE_A_MINUTE)


async def test_a_token_that_comes_twice_is_one_start(store: Store, clock: Clock) -> None:
    for _ in range(3):
        assert 0.0 == await store.limits.reserve("n", "repeated", ONE_A_MINUTE)
        clock.time += 1.0
    # Since the first of the three.
    assert 57.0 == await store.limits.reserve("n", token(), ONE_A_MINUTE)
    assert 1 == await granted(store.limits, 2)
    await store.limits.release("n", "repeated")
    assert 1 == await granted(store.limits, 2)


async def test_starts_that_no_window_needs_are_deleted(
    place: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ihuyi_voice.store.writer.bounds.CLEANING_PAUSE", 0.0)
    monkeypatch.setattr("ihuyi_voice.store.writer.bounds.CLEANED_AT_ONCE", 1)
    with Store.open(place, clock=clock) as store:
        for number in ("n", "quiet"):
            assert 0.0 == await store.limits.reserve(number, f"old {number}", DEFAULT)
            assert [f"old {number}"] == await tokens(store, number)
        clock.time += KEEP_SECONDS + 1.0
        assert 0.0 == await store.limits.reserve("n", "new", DEFAULT)
    # At its end the thread has cleaned.
    with Store.open(place, clock=clock) as store:
        assert ["new"] == await tokens(store, "n")
        # Redis deletes by its own clock, which has not moved.
        left = ["old quiet"] if isinstance(store, RedisStore) else []
        assert left == await tokens(store, "quiet")


async def tokens(store: Store, number: str) -> list[str]:
    """The tokens that a store keeps for a number."""
    assert isinstance(store, SqlStore | RedisStore)
    starts = await store.run(lambda tx: tx.starts(number), time.monotonic() + 60)
    return [start.token for start in starts]


# --- at once ---------------------------------------------------------------------


async def test_of_many_tasks_exactly_the_allowed_number_is_granted(limits: LimitStore) -> None:
    assert 7 == await granted(limits, 100, ((7, 60.0),))


def test_of_many_threads_exactly_the_allowed_number_is_granted(limits: LimitStore) -> None:
    start = threading.Barrier(8)
    grants: list[int] = []

    def reserve() -> None:
        start.wait()
        grants.append(asyncio.run(granted(limits, 20, ((51, 60.0),))))

    threads = [threading.Thread(target=reserve) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (8, 51) == (len(grants), sum(grants))


async def test_several_stores_in_one_place_share_its_limits(place: str, clock: Clock) -> None:
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(Store.open(place, clock=clock)) for _ in range(3)]
        grants = await asyncio.gather(
            *(granted(store.limits, 10, ((11, 60.0),)) for store in stores)
        )
        assert 11 == sum(grants)
        assert 0.0 == await stores[0].limits.reserve("other", "of the first", ONE_A_MINUTE)
        await stores[1].limits.release("other", "of the first")
        assert 1 == await granted(stores[2].limits, 2, ONE_A_MINUTE, "other")


def test_a_forked_child_shares_the_limits_of_its_parent(place: str) -> None:
    script = """
        store = Store.open(place)
        def granted(prefix):
            async def main():
                return await asyncio.gather(
                    *(store.limits.reserve("n", f"{prefix}{i}", ((9, 60.0),)) for i in range(6)))
            return asyncio.run(main()).count(0.0)
        mine = granted("before")
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, str(granted("child")).encode())
            store.close()
            os._exit(0)
        mine += granted("parent")
        assert (child, 0) == os.waitpid(child, 0)
        print(mine + int(os.read(reading, 9)))
        store.close()
    """
    assert (0, "9\n", "") == run(place, script)


async def test_a_closed_store_says_so(store: Store) -> None:
    assert 1 == await granted(store.limits)
    store.close()
    with pytest.raises(RuntimeError, match="this store is closed"):
        await store.limits.reserve("n", "t", ONE_A_MINUTE)
    with pytest.raises(RuntimeError, match="this store is closed"):
        await store.limits.release("n", "t")


# --- through a client --------------------------------------------------------------


class Caller:
    """Submits to one number, each time by a client of its own.

    Args:
        kind: of the client, "asyncio" or "blocking".
        store: of all clients.
        keyed: whether each submit has an idempotency key.
    """

    def __init__(self, kind: str, store: Store, *, keyed: bool) -> None:
        self._kind = kind
        self._store = store
        self._keyed = keyed

    async def submit(self, url: str) -> str:
        """One submit; returns the name of its error, "" without one."""
        key = token() if self._keyed else None
        options: dict[str, Any] = {
            "base_url": url,
            "connect_attempts": 1,
            "store": self._store,
            "quota": RecipientQuota(per_minute=2),
        }
        try:
            if self._kind == "asyncio":
                async with AsyncVoiceClient("sandbox", "sandbox-key", **options) as client:
                    await client.submit(MOBILE, CODE, idempotency_key=key)
            else:
                await asyncio.to_thread(self._block, key, options)
        except (NotSentError, OutcomeUnknownError, QuotaExceededError) as error:
            return type(error).__name__
        return ""

    def _block(self, key: str | None, options: dict[str, Any]) -> None:
        with VoiceClient("sandbox", "sandbox-key", **options) as client:
            client.submit(MOBILE, CODE, idempotency_key=key)

    async def submits(self, url: str, times: int) -> list[str]:
        """The errors of several submits at once, sorted."""
        return sorted(await asyncio.gather(*(self.submit(url) for _ in range(times))))


@pytest.fixture(
    params=[
        (kind, place, keyed)
        for kind in ("asyncio", "blocking")
        for place in SHARED
        for keyed in (False, True)
        # Redis keeps no keys.
        if not (keyed and place == "redis")
    ],
    ids=lambda param: f"{param[0]}-{param[1]}{'-keyed' if param[2] else ''}",
)
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Caller]:
    kind, place, keyed = request.param
    with Store.open(place_of(place, request, tmp_path)) as store:
        yield Caller(kind, store, keyed=keyed)


async def test_clients_that_share_a_store_share_the_limit(caller: Caller) -> None:
    gateway = SandboxGateway()
    async with gateway.serve() as url:
        assert ["", "", *["QuotaExceededError"] * 4] == await caller.submits(url, 6)
    assert 2 == len(gateway.calls)


async def test_what_was_not_sent_leaves_its_place_free(caller: Caller) -> None:
    gateway = SandboxGateway()
    async with gateway.serve() as url:
        for _ in range(3):
            assert ["NotSentError"] * 2 == await caller.submits(NOT_LISTENING, 2)
        assert ["", "", "QuotaExceededError"] == await caller.submits(url, 3)
    assert 2 == len(gateway.calls)


async def test_an_unknown_outcome_counts(caller: Caller) -> None:
    gateway = SandboxGateway(chaos=Chaos(close_after_placing=1.0))
    async with gateway.serve() as url:
        expected = ["OutcomeUnknownError", "OutcomeUnknownError", "QuotaExceededError"]
        assert expected == await caller.submits(url, 3)
    assert 2 == len(gateway.calls)
