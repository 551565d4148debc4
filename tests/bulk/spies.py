"""A gateway and row sources that count what a bulk run does.

The gateway answers over real sockets, by `tests.rogue`. It counts how many
submits run at once, and holds back the answers that a test chooses.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import threading
from collections import deque
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from ihuyi_voice import AsyncVoiceClient, OutcomeStatus
from ihuyi_voice.sandbox import SandboxGateway
from tests.rogue import ACCEPTED, Connection, Rogue, http_answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from ihuyi_voice import BulkReport, Outcome

Pair = tuple[str, str]


def mobile(n: int) -> str:
    return f"139{n:08d}"


def pair(n: int) -> Pair:
    return mobile(n), "1125"


def pairs(count: int) -> list[Pair]:
    """Good rows, each with a number of its own."""
    return [pair(n) for n in range(count)]


def client(url: str, **options: Any) -> AsyncVoiceClient:
    defaults: dict[str, Any] = {"base_url": url, "timeout": 10.0, "quota": None}
    return AsyncVoiceClient("sandbox", "sandbox-key", **{**defaults, **options})


def sandbox(**options: Any) -> SandboxGateway:
    return SandboxGateway(**{"balance": 1_000_000, **options})


def counted(report: BulkReport) -> dict[OutcomeStatus, int]:
    """The counts that are not 0."""
    return {status: count for status, count in report.counts.items() if count}


async def turns(count: int = 100) -> None:
    """Let the loop run so many times: everything that is ready has happened."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it: turn by turn, and soon without taking the core from other processes."""
    for _ in range(100):
        if condition():
            return
        await asyncio.sleep(0)
    while not condition():
        await asyncio.sleep(0.001)


def own_tasks() -> set[asyncio.Task[object]]:
    """The loop's other tasks, without those of a server."""
    return {
        task
        for task in asyncio.all_tasks() - {asyncio.current_task()}
        if not getattr(task.get_coro(), "__qualname__", "").startswith(
            ("Rogue.", "RequestHandler.")
        )
    }


def threads() -> set[threading.Thread]:
    return set(threading.enumerate())


def no_thread_is_left(before: set[threading.Thread]) -> bool:
    """Whether all other threads have ended; one that has done its work may need a moment."""
    for thread in threads() - before:
        thread.join(10)  # pragma: no cover - most have ended by then
    return threads() <= before


@contextlib.contextmanager
def leaving_nothing() -> Iterator[None]:
    """No task and no thread outlives the block, however it ends."""
    tasks, before = own_tasks(), threads()
    try:
        yield
    finally:
        assert tasks == own_tasks()
        assert no_thread_is_left(before)


class Gateway:
    """Answers submits over HTTP, and records them.

    Attributes:
        url: where it listens.
        mobiles: the number of every submit that arrived, in that order.
        arrivals: when each arrived, by the loop's clock.
        running: how many have arrived and are not answered.
        most: the highest value of `running` so far.
        answer: the answer's body for a number; None closes the connection.
        held: whether the answer for a number waits for `release`.
    """

    def __init__(self) -> None:
        self.url = ""
        self.mobiles: list[str] = []
        self.arrivals: list[float] = []
        self.running = 0
        self.most = 0
        self.answer: Callable[[str], bytes | None] = lambda _: ACCEPTED
        self.held: Callable[[str], bool] = lambda _: False
        self._released = asyncio.Event()

    def hold(self) -> None:
        """Answer nothing until `release`."""
        self.held = lambda _: True

    def release(self) -> None:
        """Answer everything, from now on."""
        self.held = lambda _: False
        self._released.set()

    async def arrived(self, count: int) -> None:
        """Wait until so many submits have arrived."""
        await until(lambda: len(self.mobiles) >= count)

    async def __call__(self, connection: Connection) -> None:
        while request := await connection.read_request():
            number = parse_qs(request.partition(b"\r\n\r\n")[2].decode())["mobile"][0]
            self.mobiles.append(number)
            self.arrivals.append(asyncio.get_running_loop().time())
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                if self.held(number):
                    await self._released.wait()
            finally:
                self.running -= 1
            answer = self.answer(number)
            if answer is None:
                return
            await connection.send(http_answer(answer))

    @contextlib.asynccontextmanager
    async def running_server(self) -> AsyncIterator[str]:
        async with Rogue(self).running() as rogue:
            self.url = rogue.url
            yield rogue.url


class Asked(list[OutcomeStatus]):
    """A predicate that keeps the status of every outcome it was asked about."""

    def __call__(self, outcome: Outcome) -> bool:
        self.append(outcome.status)
        return False


class Spy:
    """A source of rows that counts the rows it gave.

    Attributes:
        taken: how many rows were taken.
        look: called after each row.
    """

    def __init__(self, rows: Iterable[object]) -> None:
        self._rows = list(rows)
        self.taken = 0
        self.look: Callable[[], None] = lambda: None

    def __iter__(self) -> Iterator[Any]:
        for row in self._rows:
            self.taken += 1
            self.look()
            yield row

    async def each(self) -> AsyncIterator[Any]:
        rows = iter(self)
        while True:
            # Before a row is taken, so that a cancellation loses no row.
            await asyncio.sleep(0)
            for row in rows:
                yield row
                break
            else:
                return

    def as_list(self) -> Any:
        spy = self

        class Spied(list[object]):
            def __iter__(self) -> Iterator[object]:
                return iter(spy)

        return Spied()

    def as_tuple(self) -> Any:
        spy = self

        class Spied(tuple[object, ...]):
            __slots__ = ()

            def __iter__(self) -> Iterator[object]:
                return iter(spy)

        return Spied()

    def as_deque(self) -> Any:
        spy = self

        class Spied(deque[object]):
            def __iter__(self) -> Iterator[object]:
                return iter(spy)

        return Spied()

    def as_generator(self) -> Any:
        return iter(self)

    def as_iterable(self) -> Any:
        return self

    def as_map(self) -> Any:
        return map(_same, self)

    def as_async_generator(self) -> Any:
        return self.each()

    def as_async_iterator(self) -> Any:
        rows = self.each()

        class Spied:
            def __aiter__(self) -> Spied:
                return self

            async def __anext__(self) -> object:
                return await rows.__anext__()

        return Spied()

    def as_csv_reader(self) -> Any:
        def lines() -> Iterator[str]:
            for row in self:
                assert isinstance(row, tuple)
                yield ",".join(row)

        return csv.reader(lines())


def _same(row: object) -> object:
    return row


IN_MEMORY = ("list", "tuple", "deque")
READ_AHEAD_OF = (
    "generator",
    "iterable",
    "map",
    "async_generator",
    "async_iterator",
    "csv_reader",
)


def source(kind: str, spy: Spy) -> Any:
    """The spy's rows as an iterable of this kind."""
    return getattr(spy, f"as_{kind}")()
