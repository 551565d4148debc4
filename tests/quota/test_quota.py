"""The limit of calls per number: exact over any window, with no socket and no loop."""

from __future__ import annotations

import asyncio
import gc
import inspect
import math
import re
import subprocess
import sys
import threading
import time
import tracemalloc
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import ihuyi_voice.store.memory
from ihuyi_voice import LimitStore, QuotaExceededError, RecipientQuota
from ihuyi_voice.quota import HOUR, MINUTE, QuotaDefault
from ihuyi_voice.store.limits import DAY
from ihuyi_voice.store.memory import MemoryLimits
from tests.inside import lock_of, starts_of

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

    from ihuyi_voice.store.limits import Windows

T = TypeVar("T")

MOBILE = "13912345678"
OTHER = "13812345678"
BOTH = ((2, MINUTE), (10, DAY))


def now(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that never waits for anything."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return cast("T", stop.value)
    coroutine.close()
    pytest.fail("it waits")


def test_what_waits_is_noticed() -> None:
    with pytest.raises(pytest.fail.Exception, match="it waits"):
        now(asyncio.sleep(0))


class Clock:
    """A clock that moves only when it is set."""

    def __init__(self, time: float = 0.0) -> None:
        self.time = time

    def __call__(self) -> float:
        return self.time


def asked(quota: RecipientQuota, mobile: str = MOBILE) -> str | float:
    """The token of a call that is reserved, else the seconds to wait."""
    try:
        return now(quota.reserve(mobile))
    except QuotaExceededError as error:
        return error.retry_after


def granted(quota: RecipientQuota, mobile: str = MOBILE) -> float | None:
    """None when a call is reserved, else the seconds to wait."""
    result = asked(quota, mobile)
    return None if isinstance(result, str) else result


# --- exact over any window ---------------------------------------------------

# Whole seconds, so that nothing is rounded; most of them near a window's end.
steps = st.one_of(
    st.integers(0, 70),
    st.sampled_from([0, 0, 1, 59, 60, 61, 3_600, 86_339, 86_340, 86_399, 86_400, 86_401]),
)
counts = st.one_of(st.none(), st.integers(1, 5))


def oracle(reserved: Sequence[int], at: int, limits: Sequence[tuple[int, float]]) -> float:
    """How long to wait until one more fits, by trying every moment at which that may change."""

    def fits(moment: float) -> bool:
        return all(
            sum(moment - seconds < start <= moment for start in reserved) < count
            for count, seconds in limits
        )

    moments = [float(at), *(t + seconds for t in reserved for _, seconds in limits)]
    return min(moment - at for moment in moments if moment >= at and fits(moment))


@example(per_minute=2, per_hour=None, per_day=10, walk=[(0, None)] * 12)
@example(
    per_minute=1, per_hour=5, per_day=2, walk=[(0, None), (60, None), (86_340, None), (0, None)]
)
@given(
    per_minute=counts,
    per_hour=counts,
    per_day=counts,
    walk=st.lists(st.tuples(steps, st.one_of(st.none(), st.integers(0, 4))), max_size=40),
)
def test_granted_and_refused_exactly_as_counting_every_window_has_it(
    per_minute: int | None,
    per_hour: int | None,
    per_day: int | None,
    walk: list[tuple[int, int | None]],
) -> None:
    if per_minute is None and per_hour is None and per_day is None:
        per_day = 3
    clock = Clock()
    quota = RecipientQuota(per_minute, per_day, per_hour=per_hour, clock=clock)
    limits = [
        (count, seconds)
        for count, seconds in ((per_minute, MINUTE), (per_hour, HOUR), (per_day, DAY))
        if count
    ]
    reserved: list[int] = []
    tokens: list[str] = []
    at = 0
    for step, release in walk:
        at += step
        clock.time = float(at)
        if release is not None:
            # One of the latest; nothing that a client gives back is old.
            if release < len(reserved):
                del reserved[-1 - release]
                now(quota.release(MOBILE, tokens.pop(-1 - release)))
            continue
        expected = oracle(reserved, at, limits)
        result = asked(quota)
        if isinstance(result, str):
            assert 0.0 == expected
            reserved.append(at)
            tokens.append(result)
        else:
            assert expected == result > 0.0
    # The promise itself, over every half-open window that begins with a reservation.
    for count, seconds in limits:
        for begin in reserved:
            assert sum(begin <= t < begin + seconds for t in reserved) <= count


@given(
    start=st.floats(0.0, 4e9),
    walk=st.lists(st.floats(0.0, 1e5), min_size=1, max_size=30),
    per_minute=st.integers(1, 3),
    per_day=st.integers(1, 6),
)
def test_waiting_for_exactly_so_long_makes_it_allowed(
    start: float, walk: list[float], per_minute: int, per_day: int
) -> None:
    clock = Clock(start)
    quota = RecipientQuota(per_minute, per_day, clock=clock)
    reserved: list[float] = []
    for step in walk:
        clock.time += step
        rounds = 0
        while (wait := granted(quota)) is not None:
            # A second time only where the sum was rounded down, and then not for long.
            rounds += 1
            assert rounds == 1 or (rounds == 2 and wait <= 2.0 * math.ulp(clock.time))
            until = clock.time + wait
            clock.time = until if rounds == 1 else math.nextafter(until, math.inf)
        reserved.append(clock.time)
    for count, seconds in ((per_minute, MINUTE), (per_day, DAY)):
        for first, last in zip(reserved, reserved[count:], strict=False):
            assert last - first >= seconds - 2.0 * math.ulp(last)


@given(st.lists(st.tuples(st.sampled_from([MOBILE, OTHER]), steps), max_size=30))
def test_one_number_is_nothing_to_another(calls: list[tuple[str, int]]) -> None:
    clock = Clock()
    shared = RecipientQuota(2, 3, clock=clock)
    alone = {mobile: RecipientQuota(2, 3, clock=clock) for mobile in (MOBILE, OTHER)}
    for mobile, step in calls:
        clock.time += step
        assert granted(alone[mobile], mobile) == granted(shared, mobile)


def test_two_a_minute_and_ten_a_day_by_default() -> None:
    clock = Clock()
    quota = RecipientQuota(clock=clock)
    outcomes: list[float | None] = []
    for minute in range(5):
        for second in (0.0, 1.0, 2.0):
            clock.time = 61.0 * minute + second
            outcomes.append(granted(quota))
    # The last is the eleventh: for a day after the first, not for a minute.
    assert [*4 * [None, None, 58.0], None, None, DAY - 246.0] == outcomes
    clock.time = 305.0
    assert DAY - 305.0 == granted(quota)
    clock.time = DAY
    assert granted(quota) is None


def test_the_later_of_both_limits_counts() -> None:
    clock = Clock()
    quota = RecipientQuota(1, 1, clock=clock)
    assert granted(quota) is None
    clock.time = 30.0
    assert DAY - 30.0 == granted(quota)


@pytest.mark.parametrize(
    ("per_minute", "per_day", "window"), [(1, None, MINUTE), (None, 1, DAY), (5, 1, DAY)]
)
def test_a_window_is_half_open(per_minute: int | None, per_day: int | None, window: float) -> None:
    clock = Clock()
    quota = RecipientQuota(per_minute, per_day, clock=clock)
    assert granted(quota) is None
    clock.time = math.nextafter(window, 0.0)
    assert 0.0 < (granted(quota) or 0.0) < 1e-10
    clock.time = window
    assert granted(quota) is None


def test_a_refusal_reserves_nothing() -> None:
    clock = Clock()
    quota = RecipientQuota(1, None, clock=clock)
    assert granted(quota) is None
    for second in range(1, 60):
        clock.time = float(second)
        assert 60.0 - second == granted(quota)
    clock.time = 60.0
    assert granted(quota) is None


def test_the_error_tells_the_masked_number_and_how_long() -> None:
    quota = RecipientQuota(1, clock=Clock())
    now(quota.reserve(MOBILE))
    with pytest.raises(QuotaExceededError) as caught:
        now(quota.reserve(MOBILE))
    assert (60.0, False) == (caught.value.retry_after, caught.value.may_have_rung)
    assert "139****5678" in str(caught.value)
    assert MOBILE not in repr(caught.value) + repr(vars(caught.value))


# --- giving back -------------------------------------------------------------


def test_a_reservation_given_back_is_free_again() -> None:
    clock = Clock(5.0)
    quota = RecipientQuota(1, 1, clock=clock)
    token = now(quota.reserve(MOBILE))
    assert DAY == granted(quota)
    now(quota.release(MOBILE, token))
    assert granted(quota) is None


def test_one_of_two_at_the_same_moment_is_given_back() -> None:
    quota = RecipientQuota(2, clock=Clock())
    first, second = now(quota.reserve(MOBILE)), now(quota.reserve(MOBILE))
    assert first != second
    now(quota.release(MOBILE, first))
    assert [None, 60.0] == [granted(quota), granted(quota)]


def test_the_right_one_of_several_is_given_back() -> None:
    clock = Clock()
    quota = RecipientQuota(2, clock=clock)
    tokens = []
    for second in (0.0, 50.0):
        clock.time = second
        tokens.append(now(quota.reserve(MOBILE)))
    now(quota.release(MOBILE, tokens[1]))
    clock.time = 55.0
    assert [None, 5.0] == [granted(quota), granted(quota)]


def test_giving_back_what_is_unknown_does_no_harm() -> None:
    limits = MemoryLimits(Clock())
    quota = RecipientQuota(1, 1, limits)
    now(quota.release(MOBILE, "0"))
    token = now(quota.reserve(MOBILE))
    now(quota.release(MOBILE, "1"))
    now(quota.release(OTHER, token))
    assert DAY == granted(quota)
    assert 1 == len(limits)
    now(quota.release(MOBILE, token))
    now(quota.release(MOBILE, token))
    assert 0 == len(limits)


# --- shared ------------------------------------------------------------------


@pytest.fixture
def _hasty_threads() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_hasty_threads")
def test_many_threads_get_exactly_what_the_limit_allows() -> None:
    threads_count, tries, limit = 16, 200, 1_000
    quota = RecipientQuota(limit, None, clock=Clock())
    start = threading.Barrier(threads_count)
    reserved: list[int] = []

    def reserve() -> None:
        start.wait()
        reserved.append(sum(granted(quota) is None for _ in range(tries)))

    threads = [threading.Thread(target=reserve) for _ in range(threads_count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert limit == sum(reserved)
    assert 60.0 == granted(quota)


@pytest.mark.usefixtures("_hasty_threads")
def test_threads_that_reserve_and_give_back_leave_nothing() -> None:
    limits = MemoryLimits(Clock())
    quota = RecipientQuota(1_000, None, limits)

    def reserve_and_release() -> None:
        for _ in range(300):
            now(quota.release(MOBILE, now(quota.reserve(MOBILE))))

    threads = [threading.Thread(target=reserve_and_release) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 == len(limits)


def test_a_store_is_shared_by_quotas() -> None:
    limits = MemoryLimits(Clock())
    first, second = (RecipientQuota(2, 2, limits) for _ in range(2))
    assert [None, None, DAY, DAY] == [granted(q) for q in (first, second, first, second)]
    assert granted(RecipientQuota(3, 3, limits)) is None


# --- fork --------------------------------------------------------------------


def test_a_lock_that_was_held_when_the_process_forked_is_renewed() -> None:
    limits = MemoryLimits(Clock())
    quota = RecipientQuota(1, 1, limits)
    now(quota.reserve(MOBILE))
    with lock_of(limits):
        ihuyi_voice.store.memory._renew_locks()
        # What was reserved before is known in the child too.
        assert [DAY, None] == [granted(quota, MOBILE), granted(quota, OTHER)]


FORK = """
import os
from ihuyi_voice import RecipientQuota
from ihuyi_voice.store.memory import MemoryLimits
from tests.inside import lock_of
limits = MemoryLimits()
quota = RecipientQuota(1, 1, limits)
with lock_of(limits):
    pid = os.fork()
    if pid == 0:
        try:
            quota.reserve("13912345678").send(None)
        except StopIteration:
            os._exit(7)
        os._exit(1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), len(limits))
"""


def test_a_forked_child_is_not_held_up_by_the_parents_lock() -> None:
    process = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, check=False, timeout=30, text=True
    )
    # And what the child reserves, the parent does not know.
    assert (0, "7 0\n", "") == (process.returncode, process.stdout, process.stderr)


# --- memory ------------------------------------------------------------------


class Memory:
    """Limits in memory, and the clock that they read."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.limits = MemoryLimits(self.clock)

    def __len__(self) -> int:
        return len(self.limits)

    def asked(self, mobile: str, at: float, windows: Windows) -> float:
        self.clock.time = at
        return now(self.limits.reserve(mobile, "t", windows))

    def reserve(self, number: int, at: float) -> None:
        assert 0.0 == self.asked(f"139{number:08d}", at, BOTH)


def test_quiet_numbers_disappear() -> None:
    memory = Memory()
    for number in range(1_000):
        memory.reserve(number, float(number))
    assert 1_000 == len(memory)
    # A day later each new number clears away up to two.
    for number in range(1_000, 1_500):
        memory.reserve(number, 1_000.0 + DAY)
    assert 500 == len(memory)
    memory.reserve(1_500, 1_000.0 + 2.0 * DAY)
    assert 499 == len(memory)


def test_a_number_is_forgotten_neither_early_nor_late() -> None:
    memory = Memory()
    memory.reserve(1, 0.0)
    memory.reserve(2, math.nextafter(DAY, 0.0))
    assert 2 == len(memory)
    memory.reserve(2, DAY)
    assert 1 == len(memory)


def test_a_number_that_is_called_again_is_not_quiet() -> None:
    memory = Memory()
    memory.reserve(1, 0.0)
    memory.reserve(2, 1.0)
    memory.reserve(1, 2.0)
    memory.reserve(3, DAY + 1.0)
    # The second number is forgotten; the first still knows its second call.
    assert 2 == len(memory)
    assert 1.0 == memory.asked("13900000001", DAY + 1.0, ((1, DAY),))


def test_the_day_over_and_over_takes_no_more_memory() -> None:
    memory = Memory()
    largest = 0
    for day in range(5):
        for number in range(300):
            memory.reserve(1_000 * day + number, day * DAY + 288.0 * number)
            largest = max(largest, len(memory))
    assert 300 <= largest <= 302


def test_starts_that_no_window_can_hold_are_dropped() -> None:
    memory = Memory()
    for minute in range(100):
        assert 0.0 == memory.asked(MOBILE, 60.0 * minute, ((1, MINUTE),))
    assert 1 == len(starts_of(memory.limits)[MOBILE])


def bytes_per_number(starts: int) -> float:
    """How much memory a number takes after so many calls, with the client's own tokens."""
    numbers = 10_000
    clock = Clock()
    limits = MemoryLimits(clock)
    quota = RecipientQuota(store=limits)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for start in range(starts):
            for number in range(numbers):
                clock.time = 61.0 * start + number * 1e-4
                now(quota.reserve(f"139{number:08d}"))
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert numbers == len(limits)
    return (after - before) / numbers


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_quotas_with_different_limits_share_a_store_and_keep_each_others_starts(
    order: tuple[int, int],
) -> None:
    """The small quota neither trims the starts of the large one nor forgets its numbers."""
    clock = Clock(1_000.0)
    store = MemoryLimits(clock)
    limits = ((None, 3), (1, None))
    quotas = {n: RecipientQuota(limits[n][0], limits[n][1], store) for n in order}
    large, small = quotas[0], quotas[1]
    for quota in (small, large, small):
        await quota.reserve(MOBILE)
        clock.time += 61.0
    # Each reservation also removes numbers that are quiet.
    for number in range(4):
        await small.reserve(f"1381234567{number}")
    with pytest.raises(QuotaExceededError) as caught:
        await large.reserve(MOBILE)
    assert 86_400.0 - 183.0 == caught.value.retry_after


def test_the_memory_per_number_is_as_stated() -> None:
    """The number's own string counted in."""
    words = " ".join((inspect.getdoc(MemoryLimits) or "").split())
    stated = re.search(
        r"A number takes about ([\d,]+) bytes after one call and about ([\d,]+) after ten calls",
        words,
    )
    assert stated
    for starts, figure in zip((1, 10), stated.groups(), strict=True):
        assert int(figure.replace(",", "")) == pytest.approx(bytes_per_number(starts), rel=0.15)


# --- arguments, store and clock ----------------------------------------------


@pytest.mark.parametrize("name", ["per_minute", "per_hour", "per_day"])
@pytest.mark.parametrize(
    ("value", "exception", "words"),
    [
        (0, ValueError, "must be at least 1, not 0"),
        (-1, ValueError, "must be at least 1, not -1"),
        (2.0, TypeError, "must be an int, not float"),
        ("2", TypeError, "must be an int, not str"),
        (True, TypeError, "must be an int, not bool"),
    ],
)
def test_a_limit_is_a_whole_number_of_at_least_one(
    name: str, value: object, exception: type[Exception], words: str
) -> None:
    with pytest.raises(exception, match=f"^{name} {words}$"):
        RecipientQuota(**cast("Any", {name: value}))


def test_no_limit_at_all_is_spelt_otherwise() -> None:
    words = (
        "^per_minute, per_hour and per_day are all None: pass quota=None to the client for no"
        " limit$"
    )
    with pytest.raises(ValueError, match=words):
        RecipientQuota(None, None)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "RecipientQuota(per_minute=2, per_day=10)"),
        ({"per_minute": 1, "per_day": None}, "RecipientQuota(per_minute=1, per_day=None)"),
        ({"per_minute": None}, "RecipientQuota(per_minute=None, per_day=10)"),
        ({"per_hour": 5}, "RecipientQuota(per_minute=2, per_hour=5, per_day=10)"),
    ],
)
def test_the_repr_says_the_limits(arguments: dict[str, Any], text: str) -> None:
    quota = RecipientQuota(**arguments)
    now(quota.reserve(MOBILE))
    assert text == repr(quota)


def test_the_repr_of_the_default_reads_as_what_it_makes() -> None:
    assert "RecipientQuota()" == repr(QuotaDefault.DEFAULT)


class Recording:
    """A store of another author."""

    def __init__(self, wait: float = 0.0) -> None:
        self.wait = wait
        self.asked: list[tuple[object, ...]] = []

    async def reserve(self, number: str, token: str, windows: Windows) -> float:
        self.asked.append(("reserve", number, token, windows))
        return self.wait

    async def release(self, number: str, token: str) -> None:
        self.asked.append(("release", number, token))


def test_a_store_is_asked_with_a_token_and_the_limits() -> None:
    store = Recording()
    quota = RecipientQuota(1, 3, store, per_hour=2)
    token = now(quota.reserve(MOBILE))
    now(quota.release(MOBILE, token))
    assert [
        ("reserve", MOBILE, token, ((1, 60.0), (2, 3_600.0), (3, 86_400.0))),
        ("release", MOBILE, token),
    ] == store.asked


def test_a_token_is_short_and_never_used_twice() -> None:
    quotas = [RecipientQuota(store=Recording()) for _ in range(2)]
    tokens = [now(quota.reserve(MOBILE)) for quota in quotas for _ in range(100)]
    assert 200 == len({*tokens})
    assert all(token.isascii() and 1 <= len(token) <= 32 for token in tokens)


TOKENS_OF_A_FORK = """
import os
from ihuyi_voice import RecipientQuota
pid = os.fork()
if pid:
    # Both write to one pipe: the child first.
    os.waitpid(pid, 0)
try:
    RecipientQuota().reserve("13912345678").send(None)
except StopIteration as reserved:
    print(reserved.value, flush=True)
os._exit(0)
"""


def test_a_forked_child_has_tokens_of_its_own() -> None:
    process = subprocess.run(
        [sys.executable, "-c", TOKENS_OF_A_FORK],
        capture_output=True,
        check=True,
        timeout=30,
        text=True,
    )
    assert 2 == len({*process.stdout.split()})


def test_the_seconds_that_a_store_returns_are_those_of_the_error() -> None:
    quota = RecipientQuota(store=Recording(wait=12.5))
    assert 12.5 == granted(quota)


def test_both_stores_are_stores() -> None:
    stores: list[LimitStore] = [Recording(), MemoryLimits()]
    for store in stores:
        assert 0.0 == now(store.reserve(MOBILE, "t", BOTH))


def test_the_clock_in_memory_is_the_monotonic_one() -> None:
    limits = MemoryLimits()
    quota = RecipientQuota(store=limits)
    before = time.monotonic()
    now(quota.reserve(MOBILE))
    (start,) = starts_of(limits)[MOBILE]
    assert before <= start.at <= time.monotonic()


def test_a_clock_beside_a_store_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^clock is for limits in memory, and a store has a"):
        RecipientQuota(store=Recording(), clock=Clock())
