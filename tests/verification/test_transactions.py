"""Two processes create one verification at the same moment: both find the same record."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import pytest

from ihuyi_voice import Store
from ihuyi_voice.store.verifications import NewRecord, Verifications

from .conftest import place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ihuyi_voice.store.limits import Start
    from ihuyi_voice.store.sql.store import SqlStore
    from ihuyi_voice.store.verifications import Transaction

ID = "0123456789abcdef" * 2


def new(token: str, cooldown: float) -> NewRecord:
    return NewRecord(
        id=ID,
        purpose="login",
        binding="b" * 32,
        subject="c" * 32,
        hashed_with="d" * 8,
        mobile="139****5678",
        length=6,
        ttl=300.0,
        attempts=5,
        cooldown=cooldown,
        is_decoy=False,
        token=token,
    )


class Reporting:
    """A transaction that says that it is about to lock a person's starts."""

    def __init__(self, transaction: Transaction, event: threading.Event) -> None:
        self._transaction, self._event = transaction, event

    def starts(self, number: str) -> Sequence[Start]:
        self._event.set()
        return self._transaction.starts(number)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transaction, name)


class Runner:
    """Runs steps of a store with something before and after them."""

    def __init__(
        self,
        store: SqlStore,
        before: Callable[[Transaction], Transaction],
        after: Callable[[], object],
    ) -> None:
        self._store, self._before, self._after = store, before, after

    async def run(self, step: Callable[[Transaction], Any], deadline: float) -> Any:
        def whole(transaction: Transaction) -> Any:
            result = step(self._before(transaction))
            self._after()
            return result

        return await self._store.run(whole, deadline)

    async def run_later(self, step: Callable[[Transaction], Any], deadline: float) -> None:
        await self.run(step, deadline)  # pragma: no cover - no call is noted here


@pytest.mark.parametrize("cooldown", [0.0, 60.0])
@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_both_find_one_record(
    name: str, cooldown: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """SQLite lets one transaction at a time begin, so that there is no such moment."""
    place = place_of(name, request, tmp_path)
    first_has_written, second_locks = threading.Event(), threading.Event()

    def wait_for_the_second() -> None:
        first_has_written.set()
        assert second_locks.wait(30)

    def say_when_it_locks(transaction: Transaction) -> Transaction:
        return cast("Transaction", Reporting(transaction, second_locks))

    def create(runner: Runner, token: str) -> Any:
        store = Verifications(runner)
        return asyncio.run(store.create(new(token, cooldown), time.monotonic() + 30))

    with ExitStack() as stack:
        one, two = (cast("SqlStore", stack.enter_context(Store.open(place))) for _ in range(2))
        threads = stack.enter_context(ThreadPoolExecutor(2))
        first = threads.submit(create, Runner(one, lambda tx: tx, wait_for_the_second), "first")
        assert first_has_written.wait(30)
        second = threads.submit(create, Runner(two, say_when_it_locks, lambda: None), "second")
        assert (True, False) == (first.result(60).is_new, second.result(60).is_new)
        assert first.result().found.record == second.result().found.record
