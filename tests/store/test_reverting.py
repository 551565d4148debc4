"""Claims whose task no longer waits are reverted: deadlines, cancellation, closed loops."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from ihuyi_voice.errors import StoreError
from ihuyi_voice.store.entry import EntryState, FailureScope
from ihuyi_voice.store.sql.connection import Connection
from tests.inside import writer_of

from .support import Clock, claim, claimed, ended, find, open_store, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ihuyi_voice.store.sql.store import SqlStore

    from .mariadb import MariaDbServer
    from .postgres import PostgresServer

NONE = {"accepted": 0, "refused": 0, "not_sent": 0, "unknown": 0}


class Block:
    """Blocks every transaction of the store until it is released."""

    def __init__(self, store: SqlStore, release: contextlib.ExitStack) -> None:
        self._store = store
        self.release = release.close

    async def reached(self) -> None:
        """Wait until a transaction is blocked: it has all operations queued so far."""
        await until(writer_of(self._store).at_work.locked)


@pytest.fixture
def block(store: SqlStore, place: str, request: pytest.FixtureRequest) -> Iterator[Block]:
    with contextlib.ExitStack() as stack:
        if place.startswith("mysql"):
            mariadb: MariaDbServer = request.getfixturevalue("mariadb")
            locking = stack.enter_context(contextlib.closing(mariadb.connect()))
            # Others may read it too, and not write.
            locking.cursor().execute("LOCK TABLES store.ihuyi_voice_calls READ")
        elif "://" in place:
            server: PostgresServer = request.getfixturevalue("postgres")
            other = stack.enter_context(contextlib.closing(server.connect()))
            other.autocommit = False
            other.execute("LOCK TABLE ihuyi_voice_calls IN EXCLUSIVE MODE")
        else:
            file = stack.enter_context(
                contextlib.closing(sqlite3.connect(place, isolation_level=None))
            )
            file.execute("BEGIN IMMEDIATE")
        yield Block(store, stack)


async def test_reading_does_not_wait_for_writing(store: SqlStore, block: Block) -> None:
    writing = asyncio.create_task(claim(store))
    await block.reached()
    assert NONE == store.summary()
    assert [] == store.unknown()
    assert not writing.done()
    block.release()
    assert (await writing).entry is None


async def test_a_cancelled_claim_is_reverted(store: SqlStore, block: Block) -> None:
    waiting = asyncio.create_task(claim(store))
    await block.reached()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    block.release()
    # The next transaction starts with reverting the claim.
    await claimed(store)


async def test_a_cancelled_claim_is_reverted_without_another_operation(
    store: SqlStore, block: Block
) -> None:
    waiting = asyncio.create_task(claim(store))
    await block.reached()
    waiting.cancel()
    await asyncio.wait([waiting])
    block.release()
    await until(lambda: NONE | {"not_sent": 1} == store.summary())
    found = await find(store)
    assert found is not None
    assert "given up before it was sent" == found.answer.msg


async def test_a_claim_past_its_deadline_is_reverted(store: SqlStore, block: Block) -> None:
    waiting = asyncio.create_task(claim(store, timeout=0.2))
    with pytest.raises(StoreError, match="did not answer in time; nothing"):
        await waiting
    block.release()
    await claimed(store)


async def test_a_claim_that_starts_past_its_deadline_is_not_made(in_file: SqlStore) -> None:
    with pytest.raises(StoreError, match="did not answer in time"):
        await claim(in_file, timeout=0)
    assert NONE == in_file.summary()


async def test_a_claim_whose_commit_was_lost_is_reverted_although_the_retry_failed(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first try may have committed the claim although the retry found no server."""
    apply, connect = Connection.apply, writer_of(store).thread.transactions.connect

    def fail_to_connect() -> Connection:
        writer_of(store).thread.transactions.connect = connect
        msg = "the server is still down"
        raise StoreError(msg)

    def lose_connection(connection: Connection, *operations: Any) -> Any:
        monkeypatch.undo()
        apply(connection, *operations)
        connection.failure_scope = FailureScope.CONNECTION
        writer_of(store).thread.transactions.connect = fail_to_connect
        msg = "the connection was lost at the commit"
        raise StoreError(msg)

    monkeypatch.setattr(Connection, "apply", lose_connection)
    with pytest.raises(StoreError, match="the server is still down; nothing was sent"):
        await claim(store)
    assert NONE | {"unknown": 1} == store.summary()
    # The next transaction starts with reverting the claim.
    await claimed(store)


async def test_a_claim_cancelled_in_the_queue_is_not_made(store: SqlStore, block: Block) -> None:
    first = asyncio.create_task(claim(store, "first"))
    await block.reached()
    second = asyncio.create_task(claim(store, "second"))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    block.release()
    assert (await first).entry is None
    await claimed(store, "third")
    assert ["first", "third"] == sorted(entry.key for entry in store.unknown())


async def test_a_claim_cancelled_when_it_is_committed_is_reverted(in_file: SqlStore) -> None:
    answered = asyncio.Event()
    loop = asyncio.get_running_loop()
    waiting = asyncio.create_task(claim(in_file))
    await asyncio.sleep(0)
    await until(lambda: NONE | {"unknown": 1} == _summary(in_file))
    # The task may or may not have been woken.
    loop.call_soon(answered.set)
    waiting.cancel()
    result = await asyncio.gather(waiting, return_exceptions=True)
    assert isinstance(result[0], asyncio.CancelledError)
    await until(lambda: NONE | {"not_sent": 1} == in_file.summary())


def _summary(store: SqlStore) -> dict[str, int]:
    """Wait without running the loop, so that no task is woken."""
    end = time.monotonic() + 10
    looks = (store.summary() for _ in iter(lambda: time.monotonic() < end, False))
    return next(found for found in looks if found != NONE)


async def test_a_cancelled_claim_leaves_the_blocking_entry_unchanged(
    store: SqlStore, block: Block
) -> None:
    waiting = asyncio.create_task(ended(store, EntryState.ACCEPTED))
    await block.reached()
    block.release()
    await waiting
    again = asyncio.create_task(claim(store))
    await asyncio.sleep(0)
    again.cancel()
    await asyncio.wait([again])
    await claimed(store, "other")
    assert NONE | {"accepted": 1, "unknown": 1} == store.summary()


async def test_a_cancelled_settlement_is_recorded(store: SqlStore) -> None:
    token = await claimed(store)
    settling = asyncio.create_task(store.settle("k", token, EntryState.ACCEPTED))
    await asyncio.sleep(0)
    settling.cancel()
    await asyncio.wait([settling])
    await until(lambda: NONE | {"accepted": 1} == store.summary())


async def test_a_cancelled_waiting_claim_leaves_the_other_claim_unchanged(
    store: SqlStore,
) -> None:
    store.patience = 60.0
    token = await claimed(store)
    waiting = asyncio.create_task(claim(store))
    await asyncio.sleep(0.03)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await store.settle("k", token, EntryState.ACCEPTED)


async def test_the_claims_of_a_closed_loop_are_reverted(store: SqlStore, block: Block) -> None:
    claiming = claim(store, "abandoned")

    def abandon() -> asyncio.Task[object]:
        """Close a loop while its claim is executed, without cancelling the task."""
        loop = asyncio.new_event_loop()
        task: asyncio.Task[object] = loop.create_task(claiming)
        loop.run_until_complete(block.reached())
        loop.close()
        return task

    task = await asyncio.to_thread(abandon)
    block.release()
    await until(lambda: NONE | {"not_sent": 1} == store.summary())
    await claimed(store)
    # Suppress the warnings about a task that never ended.
    claiming.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]


async def test_closing_executes_the_queued_operations(
    store: SqlStore, block: Block, place: str
) -> None:
    waiting = asyncio.create_task(claim(store))
    await block.reached()
    timed_out = asyncio.create_task(claim(store, "timed out", timeout=0.1))
    await asyncio.sleep(0)
    closing = threading.Thread(target=store.close)
    closing.start()
    with pytest.raises(StoreError):
        await timed_out
    block.release()
    assert (await waiting).entry is None
    await asyncio.to_thread(closing.join)
    with open_store(place) as again:
        assert NONE | {"unknown": 1} == again.summary()


async def test_a_claim_cancelled_while_the_store_closes_is_reverted(
    store: SqlStore, block: Block, place: str
) -> None:
    waiting = asyncio.create_task(claim(store))
    await block.reached()
    closing = threading.Thread(target=store.close)
    closing.start()
    await until(lambda: writer_of(store).closed)
    waiting.cancel()
    await asyncio.wait([waiting])
    block.release()
    await asyncio.to_thread(closing.join)
    with open_store(place) as again:
        assert NONE | {"not_sent": 1} == again.summary()


async def test_a_settlement_precedes_a_claim_of_the_same_batch(
    store: SqlStore, clock: Clock
) -> None:
    token = await claimed(store)
    settling = store.settle("k", token, EntryState.ACCEPTED)
    answer, _ = await asyncio.gather(claim(store), settling)
    assert answer.entry is not None
    assert EntryState.ACCEPTED is answer.entry.state


async def test_the_wait_for_a_settlement_is_bounded(
    store: SqlStore, block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ihuyi_voice.store.writer.bounds.SETTLE_TIMEOUT", 0.05)
    with pytest.raises(StoreError, match="did not answer in time"):
        await store.settle("k", "t", EntryState.ACCEPTED)
    block.release()


async def test_without_a_thread_a_claim_fails(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(thread: threading.Thread) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    with monkeypatch.context() as full:
        full.setattr("threading.Thread.start", fail)
        with pytest.raises(StoreError, match="no thread can be started"):
            await claim(store)
    await claimed(store)


async def test_closing_in_the_stores_own_thread_does_not_deadlock(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finalizer may run in any thread."""
    writer = writer_of(store)
    closed_in: list[str] = []

    def close_inside() -> float:
        store.close()
        closed_in.append(threading.current_thread().name)
        return 0.0

    monkeypatch.setattr(writer.thread, "clock", close_inside)
    await claimed(store)
    assert await asyncio.to_thread(writer.thread.ended.wait, 10)
    assert {"ihuyi-voice-store"} == set(closed_in)
