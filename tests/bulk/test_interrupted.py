"""Signal handlers interrupt a blocking consumer that then continues: no outcome is lost."""

from __future__ import annotations

import random
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ihuyi_voice
from ihuyi_voice import BulkStoppedError, OutcomeStatus, VoiceClient
from ihuyi_voice.bulk.outcomes import OutcomeQueue
from ihuyi_voice.sandbox import Chaos
from tests.bulk.spies import Spy, counted, pairs, sandbox, source
from tests.inside import bells

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from ihuyi_voice.sync.bulk import BlockingBulkRun

S = OutcomeStatus
ROWS = 600


class TimeLimitError(Exception):
    """As Celery's soft time limit: a signal handler raises it anywhere in the program."""


# If a signal handler raises when a function is entered, the coverage tracer loses
# its place in the callers and does not measure their later lines. Hence the
# exclusions in this file.
PLACES = (str(Path(ihuyi_voice.__file__).parent), __file__)


def consume(run: BlockingBulkRun, seen: list[int]) -> None:  # pragma: no cover
    for outcome in run:
        seen.append(outcome.index)  # noqa: PERF401 - what was read before it raised


class Interrupter:
    """Raises in `consume` and in what it calls, every few hundred microseconds.

    Attributes:
        raised: how often it has raised.
        enough: how often it raises at most.
        at_last: called when `enough` is reached.
    """

    def __init__(self) -> None:
        self.raised = 0
        # On a busy machine the loop thread does little between two interruptions.
        self.enough = 150
        self.at_last: Callable[[], object] = lambda: None
        self._random = random.Random(7)

    def __call__(self, _: int, frame: FrameType | None) -> None:  # pragma: no cover
        # Never twice at the same place.
        if self.raised < self.enough:
            signal.setitimer(signal.ITIMER_REAL, self._random.uniform(0.0002, 0.002))
        # Not in a finalizer that the garbage collector runs: Python ignores its exceptions.
        if frame is None or not frame.f_code.co_filename.startswith(PLACES):
            return
        caller: FrameType | None = frame
        while caller is not None and caller.f_code is not consume.__code__:
            caller = caller.f_back
        if caller is None or self.raised == self.enough:
            return
        self.raised += 1
        if self.raised == self.enough:
            self.at_last()
        raise TimeLimitError

    def read_all(self, run: BlockingBulkRun) -> list[int]:  # pragma: no cover
        """Iterate, and continue after each interruption, until the run is over."""
        seen: list[int] = []
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        while True:
            try:
                consume(run, seen)
            except TimeLimitError:
                continue
            return seen


@pytest.fixture
def interrupter() -> Iterator[Interrupter]:
    interrupter = Interrupter()
    before = signal.signal(signal.SIGALRM, interrupter)
    yield interrupter
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=[0.0, 0.003])
def voice(request: pytest.FixtureRequest) -> Iterator[VoiceClient]:
    gateway = sandbox(chaos=Chaos(latency_jitter=request.param))
    with (
        gateway.serve_in_thread() as url,
        VoiceClient("sandbox", "sandbox-key", base_url=url, quota=None, timeout=15.0) as voice,
    ):
        yield voice


@pytest.mark.parametrize("kind", ["list", "generator", "async_generator"])
def test_a_consumer_that_continues_after_interruptions_gets_every_outcome_once(  # pragma: no cover
    voice: VoiceClient, interrupter: Interrupter, kind: str
) -> None:
    rows: Any = source(kind, Spy(pairs(ROWS)))
    with voice.submit_many(rows, concurrency=50) as run:
        seen = interrupter.read_all(run)
    assert list(range(ROWS)) == sorted(seen)
    assert {S.ACCEPTED: ROWS} == counted(run.report)
    assert interrupter.raised > 10


def test_an_interrupted_consumer_loses_no_outcome_that_is_in_the_queue(  # pragma: no cover
    interrupter: Interrupter,
) -> None:
    """Most interruptions of a fast consumer come while it takes one, not while it waits."""
    queue = OutcomeQueue()
    taking: Any = queue.taking

    class Run:
        def __iter__(self) -> Run:
            return self

        def __next__(self) -> Any:
            queue.run_callback_if_due()
            try:
                for outcome in taking:
                    return outcome
            except IndexError:
                pass
            raise StopIteration

    class Indexed:
        def __init__(self, index: int) -> None:
            self.index = index

    any_queue: Any = queue
    any_run: Any = Run()
    put, seen = 0, list[int]()
    while interrupter.raised < 100 and put < 2_000_000:
        for n in range(put, put + 20_000):
            any_queue.put(Indexed(n))
        put += 20_000
        seen += interrupter.read_all(any_run)
    assert list(range(put)) == seen
    assert put == queue.read
    assert interrupter.raised >= 100


def test_the_reason_of_a_stop_is_raised_despite_interruptions(  # pragma: no cover
    interrupter: Interrupter,
) -> None:
    gateway = sandbox(balance=300)
    with (
        gateway.serve_in_thread() as url,
        VoiceClient("sandbox", "sandbox-key", base_url=url, quota=None, timeout=15.0) as voice,
        voice.submit_many(pairs(ROWS), concurrency=20) as run,
        pytest.raises(BulkStoppedError, match="the balance is used up"),
    ):
        interrupter.read_all(run)


def test_after_ctrl_c_the_remaining_outcomes_are_read_after_the_block(  # pragma: no cover
    voice: VoiceClient,
) -> None:
    """The block ends at once, and no outcome is missing afterwards."""
    seen: list[int] = []
    spy = Spy(pairs(ROWS))
    with (  # noqa: PT012 - where it is raised is what is tested
        pytest.raises(KeyboardInterrupt),
        voice.submit_many(spy.as_list(), concurrency=20) as run,
    ):
        while len(seen) < 100:
            seen.append(next(run).index)
        signal.raise_signal(signal.SIGINT)
    assert 100 == len(seen)
    seen += [outcome.index for outcome in run]
    assert list(range(spy.taken)) == sorted(seen)
    assert spy.taken == run.report.total < ROWS


def test_interrupted_waits_leave_at_most_one_bell_per_thread(  # pragma: no cover
    voice: VoiceClient, interrupter: Interrupter
) -> None:
    go_on = threading.Event()
    interrupter.enough, interrupter.at_last = 50, go_on.set

    def rows() -> Iterator[tuple[str, str]]:
        yield from pairs(1)
        assert go_on.wait(20)
        yield from pairs(2)

    with voice.submit_many(rows()) as run:
        assert [0, 1, 2] == sorted(interrupter.read_all(run))
        assert bells(run) <= 1
    assert 50 == interrupter.raised
