"""Claims whose task no longer waits are reverted: deadlines, cancellation, closed loops."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from ihuyi_voice.errors import LedgerError
from ihuyi_voice.store.entry import FailureScope
from ihuyi_voice.store.ledger import EntryState, Ledger
from ihuyi_voice.store.sql.connection import Connection

from .support import Clock, claim, claimed, ended, find, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .postgres import PostgresServer

NONE = {"accepted": 0, "refused": 0, "not_sent": 0, "unknown": 0}


class Block:
    """Blocks every transaction of the ledger until it is released."""

    def __init__(self, ledger: Ledger, release: contextlib.ExitStack) -> None:
        self._ledger = ledger
        self.release = release.close

    async def reached(self) -> None:
        """Wait until a transaction is blocked: it has all operations queued so far."""
        await until(self._ledger._writer.at_work.locked)


@pytest.fixture
def block(ledger: Ledger, place: str, request: pytest.FixtureRequest) -> Iterator[Block]:
    with contextlib.ExitStack() as stack:
        if "://" in place:
            server: PostgresServer = request.getfixturevalue("postgres")
            other = stack.enter_context(contextlib.closing(server.connect()))
            other.autocommit = False
            other.execute("LOCK TABLE ihuyi_voice_calls IN EXCLUSIVE MODE")
        else:
            file = stack.enter_context(
                contextlib.closing(sqlite3.connect(place, isolation_level=None))
            )
            file.execute("BEGIN IMMEDIATE")
        yield Block(ledger, stack)


async def test_reading_does_not_wait_for_writing(ledger: Ledger, block: Block) -> None:
    writing = asyncio.create_task(claim(ledger))
    await block.reached()
    assert NONE == ledger.summary()
    assert [] == ledger.unknown()
    assert not writing.done()
    block.release()
    assert (await writing).entry is None


async def test_a_cancelled_claim_is_reverted(ledger: Ledger, block: Block) -> None:
    waiting = asyncio.create_task(claim(ledger))
    await block.reached()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    block.release()
    # The next transaction starts with reverting the claim.
    await claimed(ledger)


async def test_a_cancelled_claim_is_reverted_without_another_operation(
    ledger: Ledger, block: Block
) -> None:
    waiting = asyncio.create_task(claim(ledger))
    await block.reached()
    waiting.cancel()
    await asyncio.wait([waiting])
    block.release()
    await until(lambda: NONE | {"not_sent": 1} == ledger.summary())
    found = await find(ledger)
    assert found is not None
    assert "given up before it was sent" == found.msg


async def test_a_claim_past_its_deadline_is_reverted(ledger: Ledger, block: Block) -> None:
    waiting = asyncio.create_task(claim(ledger, timeout=0.2))
    with pytest.raises(LedgerError, match="did not answer in time; nothing"):
        await waiting
    block.release()
    await claimed(ledger)


async def test_a_claim_that_starts_past_its_deadline_is_not_made(in_file: Ledger) -> None:
    with pytest.raises(LedgerError, match="did not answer in time"):
        await claim(in_file, timeout=0)
    assert NONE == in_file.summary()


async def test_a_claim_whose_commit_was_lost_is_reverted_although_the_retry_failed(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first try may have committed the claim although the retry found no server."""
    apply, connect = Connection.apply, ledger._writer.thread.transactions.connect

    def fail_to_connect() -> Connection:
        ledger._writer.thread.transactions.connect = connect
        msg = "the server is still down"
        raise LedgerError(msg)

    def lose_connection(connection: Connection, *operations: Any) -> Any:
        monkeypatch.undo()
        apply(connection, *operations)
        connection.failure_scope = FailureScope.CONNECTION
        ledger._writer.thread.transactions.connect = fail_to_connect
        msg = "the connection was lost at the commit"
        raise LedgerError(msg)

    monkeypatch.setattr(Connection, "apply", lose_connection)
    with pytest.raises(LedgerError, match="the server is still down; nothing was sent"):
        await claim(ledger)
    assert NONE | {"unknown": 1} == ledger.summary()
    # The next transaction starts with reverting the claim.
    await claimed(ledger)


async def test_a_claim_cancelled_in_the_queue_is_not_made(ledger: Ledger, block: Block) -> None:
    first = asyncio.create_task(claim(ledger, "first"))
    await block.reached()
    second = asyncio.create_task(claim(ledger, "second"))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    block.release()
    assert (await first).entry is None
    await claimed(ledger, "third")
    assert ["first", "third"] == sorted(entry.key for entry in ledger.unknown())


async def test_a_claim_cancelled_when_it_is_committed_is_reverted(in_file: Ledger) -> None:
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


def _summary(ledger: Ledger) -> dict[str, int]:
    """Wait without running the loop, so that no task is woken."""
    end = time.monotonic() + 10
    looks = (ledger.summary() for _ in iter(lambda: time.monotonic() < end, False))
    return next(found for found in looks if found != NONE)


async def test_a_cancelled_claim_leaves_the_blocking_entry_unchanged(
    ledger: Ledger, block: Block
) -> None:
    waiting = asyncio.create_task(ended(ledger, EntryState.ACCEPTED))
    await block.reached()
    block.release()
    await waiting
    again = asyncio.create_task(claim(ledger))
    await asyncio.sleep(0)
    again.cancel()
    await asyncio.wait([again])
    await claimed(ledger, "other")
    assert NONE | {"accepted": 1, "unknown": 1} == ledger.summary()


async def test_a_cancelled_settlement_is_recorded(ledger: Ledger) -> None:
    token = await claimed(ledger)
    settling = asyncio.create_task(ledger.settle("k", token, EntryState.ACCEPTED))
    await asyncio.sleep(0)
    settling.cancel()
    await asyncio.wait([settling])
    await until(lambda: NONE | {"accepted": 1} == ledger.summary())


async def test_a_cancelled_waiting_claim_leaves_the_other_claim_unchanged(
    ledger: Ledger,
) -> None:
    ledger.patience = 60.0
    token = await claimed(ledger)
    waiting = asyncio.create_task(claim(ledger))
    await asyncio.sleep(0.03)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await ledger.settle("k", token, EntryState.ACCEPTED)


async def test_the_claims_of_a_closed_loop_are_reverted(ledger: Ledger, block: Block) -> None:
    claiming = claim(ledger, "abandoned")

    def abandon() -> asyncio.Task[object]:
        """Close a loop while its claim is executed, without cancelling the task."""
        loop = asyncio.new_event_loop()
        task: asyncio.Task[object] = loop.create_task(claiming)
        loop.run_until_complete(block.reached())
        loop.close()
        return task

    task = await asyncio.to_thread(abandon)
    block.release()
    await until(lambda: NONE | {"not_sent": 1} == ledger.summary())
    await claimed(ledger)
    # Suppress the warnings about a task that never ended.
    claiming.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]


async def test_closing_executes_the_queued_operations(
    ledger: Ledger, block: Block, place: str
) -> None:
    waiting = asyncio.create_task(claim(ledger))
    await block.reached()
    timed_out = asyncio.create_task(claim(ledger, "timed out", timeout=0.1))
    await asyncio.sleep(0)
    closing = threading.Thread(target=ledger.close)
    closing.start()
    with pytest.raises(LedgerError):
        await timed_out
    block.release()
    assert (await waiting).entry is None
    await asyncio.to_thread(closing.join)
    with Ledger.open(place) as again:
        assert NONE | {"unknown": 1} == again.summary()


async def test_a_claim_cancelled_while_the_ledger_closes_is_reverted(
    ledger: Ledger, block: Block, place: str
) -> None:
    waiting = asyncio.create_task(claim(ledger))
    await block.reached()
    closing = threading.Thread(target=ledger.close)
    closing.start()
    await until(lambda: ledger._writer.closed)
    waiting.cancel()
    await asyncio.wait([waiting])
    block.release()
    await asyncio.to_thread(closing.join)
    with Ledger.open(place) as again:
        assert NONE | {"not_sent": 1} == again.summary()


async def test_a_settlement_precedes_a_claim_of_the_same_batch(
    ledger: Ledger, clock: Clock
) -> None:
    token = await claimed(ledger)
    settling = ledger.settle("k", token, EntryState.ACCEPTED)
    answer, _ = await asyncio.gather(claim(ledger), settling)
    assert answer.entry is not None
    assert EntryState.ACCEPTED is answer.entry.state


async def test_the_wait_for_a_settlement_is_bounded(
    ledger: Ledger, block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ihuyi_voice.store.sql.limits.SETTLE_TIMEOUT", 0.05)
    with pytest.raises(LedgerError, match="did not answer in time"):
        await ledger.settle("k", "t", EntryState.ACCEPTED)
    block.release()


async def test_without_a_thread_a_claim_fails(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(thread: threading.Thread) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    with monkeypatch.context() as full:
        full.setattr("threading.Thread.start", fail)
        with pytest.raises(LedgerError, match="no thread can be started"):
            await claim(ledger)
    await claimed(ledger)


async def test_closing_in_the_ledgers_own_thread_does_not_deadlock(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finalizer may run in any thread."""
    writer = ledger._writer
    closed_in: list[str] = []

    def close_inside() -> float:
        ledger.close()
        closed_in.append(threading.current_thread().name)
        return 0.0

    monkeypatch.setattr(writer.thread, "clock", close_inside)
    await claimed(ledger)
    assert await asyncio.to_thread(writer.thread.ended.wait, 10)
    assert {"ihuyi-voice-ledger"} == set(closed_in)
