"""A settlement that fails is retried until it is recorded or the program ends.

What fails because of one key delays no other key.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sqlite3
import time
from typing import TYPE_CHECKING, Any

import pytest

from ihuyi_voice.errors import StoreError
from ihuyi_voice.models import Unrecorded
from ihuyi_voice.store.entry import EntryState
from ihuyi_voice.store.sql import file as store_file
from ihuyi_voice.store.sql import postgresql
from ihuyi_voice.store.writer import bounds
from tests.inside import writer_of

from .support import claim, claimed, ended, find, open_store, start, until
from .test_processes import in_child

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import psycopg

    from ihuyi_voice.store.sql.store import SqlStore

    from .postgres import PostgresServer

NONE = {"accepted": 0, "refused": 0, "not_sent": 0, "unknown": 0}
RETRYING = "not recorded yet: retrying until the program ends"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another connection locks the whole SQLite file."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


@contextlib.contextmanager
def row_locked(postgres: PostgresServer, key: str) -> Iterator[psycopg.Connection]:
    """Another session locks one row."""
    with contextlib.closing(postgres.connect()) as other:
        other.autocommit = False
        other.execute("SELECT * FROM ihuyi_voice_calls WHERE key = %s FOR UPDATE", [key])
        yield other


async def settle(
    store: SqlStore,
    key: str,
    token: str,
    unrecorded: Unrecorded,
    state: EntryState = EntryState.ACCEPTED,
) -> str:
    """Settle a key; returns why it is not recorded yet, or "" when it is."""
    try:
        await store.settle(key, token, state, unrecorded=unrecorded)
    except StoreError as error:
        return error.reason
    return ""


def state(store: SqlStore, key: str = "k") -> EntryState | None:
    return store.known([key]).get(key)


# --- the database ------------------------------------------------------------


@pytest.mark.parametrize("patient", [False, True])
async def test_a_settlement_is_recorded_after_a_long_lock(
    in_file: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, patient: bool
) -> None:
    """The caller sees the database fail, or stops waiting before that."""
    module, name = (store_file, "BUSY_TIMEOUT") if patient else (bounds, "SETTLE_TIMEOUT")
    monkeypatch.setattr(module, name, 0.05)
    token = await claimed(in_file)
    unrecorded = Unrecorded()
    with locked(tmp_path / "calls.db"):
        reason = await settle(in_file, "k", token, unrecorded)
        why = "another process keeps it locked" if patient else "it did not answer in time"
        assert reason.endswith(f"{why}; {RETRYING}")
        assert 1 == unrecorded.count
        if patient:
            # The settlement fails more than once.
            await until(lambda: writer_of(in_file).thread.transactions.back_off > 0.1)
        assert EntryState.CLAIMED is state(in_file)
    await until(lambda: state(in_file) is EntryState.ACCEPTED)
    await until(lambda: not unrecorded.count)


async def test_every_failed_settlement_is_recorded_once_the_database_works(
    in_file: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_file, "BUSY_TIMEOUT", 0.02)
    # The retries need more than one transaction.
    monkeypatch.setattr(bounds, "MAX_RETRIES_PER_BATCH", 7)
    tokens = [await claimed(in_file, str(n)) for n in range(20)]
    unrecorded = Unrecorded()
    with locked(tmp_path / "calls.db"):
        reasons = await asyncio.gather(
            *(settle(in_file, str(n), token, unrecorded) for n, token in enumerate(tokens))
        )
    assert [RETRYING] * 20 == [reason[-len(RETRYING) :] for reason in reasons]
    await until(lambda: in_file.summary() == NONE | {"accepted": 20})
    await until(lambda: not unrecorded.count)


async def test_settlements_are_recorded_once_the_server_is_back(postgres: PostgresServer) -> None:
    with open_store(postgres.empty()) as store:
        token = await claimed(store)
        unrecorded = Unrecorded()
        postgres.stop()
        try:
            assert (await settle(store, "k", token, unrecorded)).endswith(RETRYING)
            # The claim does not wait for the server again.
            with pytest.raises(StoreError, match="nothing was sent"):
                await claim(store, "other")
        finally:
            postgres.start()
        await until(lambda: not unrecorded.count)
        assert EntryState.ACCEPTED is state(store)


async def test_a_retried_settlement_precedes_a_claim_of_the_same_key(
    in_file: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_file, "BUSY_TIMEOUT", 0.02)
    # Nothing is retried without a new operation.
    monkeypatch.setattr(bounds, "FIRST_BACK_OFF", 3600.0)
    monkeypatch.setattr(bounds, "MAX_BACK_OFF", 3600.0)
    in_file.patience = 0.0
    tokens = {key: await claimed(in_file, key) for key in ("placed", "refused")}
    unrecorded = Unrecorded()
    with locked(tmp_path / "calls.db"):
        await settle(in_file, "placed", tokens["placed"], unrecorded)
        await settle(in_file, "refused", tokens["refused"], unrecorded, EntryState.REFUSED)
        with pytest.raises(StoreError):
            await claim(in_file, "placed")
    assert 2 == unrecorded.count
    answer = await claim(in_file, "placed")
    assert answer.entry is not None
    assert EntryState.ACCEPTED is answer.entry.state
    # The same transaction recorded the other key, so it may be sent again.
    assert 0 == unrecorded.count
    await claimed(in_file, "refused")


async def test_the_last_of_two_failed_settlements_counts(
    in_file: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_file, "BUSY_TIMEOUT", 0.02)
    monkeypatch.setattr(bounds, "SETTLE_TIMEOUT", 60.0)
    token = await claimed(in_file)
    unrecorded = Unrecorded()
    with locked(tmp_path / "calls.db"):
        for known in (EntryState.UNKNOWN, EntryState.REFUSED):
            # The second settlement is not tried before the first, and its caller gets an error too.
            assert await settle(in_file, "k", token, unrecorded, known)
    await until(lambda: not unrecorded.count)
    assert EntryState.REFUSED is state(in_file)


async def test_a_cancelled_settlement_counts_until_it_is_recorded(
    in_file: SqlStore, tmp_path: Path
) -> None:
    token = await claimed(in_file)
    unrecorded = Unrecorded()
    with locked(tmp_path / "calls.db"):
        settling = asyncio.create_task(settle(in_file, "k", token, unrecorded))
        await until(writer_of(in_file).at_work.locked)
        settling.cancel()
        await asyncio.wait([settling])
        assert 1 == unrecorded.count
    await until(lambda: not unrecorded.count)
    assert EntryState.ACCEPTED is state(in_file)


async def test_an_overtaken_settlement_stays_unrecorded(
    in_file: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_file, "BUSY_TIMEOUT", 0.02)
    token = await claimed(in_file)
    unrecorded = Unrecorded()
    path = tmp_path / "calls.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        await settle(in_file, "k", token, unrecorded)
        other.execute("UPDATE ihuyi_voice_calls SET token = 'another'")
        other.execute("COMMIT")
    await until(lambda: not writer_of(in_file).thread.backlog.retries)
    await find(in_file)
    assert (1, EntryState.CLAIMED) == (unrecorded.count, state(in_file))


async def test_the_number_of_kept_settlements_is_bounded(
    in_file: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_file, "BUSY_TIMEOUT", 0.02)
    monkeypatch.setattr(bounds, "MAX_KEPT", 1)
    tokens = [await claimed(in_file, key) for key in ("a", "b")]
    unrecorded = Unrecorded()
    with locked(tmp_path / "calls.db"):
        assert (await settle(in_file, "a", tokens[0], unrecorded)).endswith(RETRYING)
        assert (await settle(in_file, "b", tokens[1], unrecorded)).endswith(
            "not recorded: too many others wait to be, so its key stays unknown"
        )
    await until(lambda: state(in_file, "a") is EntryState.ACCEPTED)
    # The writer counts after its commit has returned.
    await until(lambda: unrecorded.count == 1)
    assert EntryState.CLAIMED is state(in_file, "b")


async def test_a_failing_clock_loses_no_outcome(in_file: SqlStore) -> None:
    token = await claimed(in_file)

    def fail() -> float:
        raise ZeroDivisionError

    writer_of(in_file).thread.clock = fail
    await in_file.settle("k", token, EntryState.ACCEPTED)
    assert EntryState.ACCEPTED is state(in_file)


@pytest.mark.parametrize("moment", [float("nan"), float("inf"), "soon", None])
async def test_a_clock_that_returns_no_time_is_a_store_error(
    tmp_path: Path, moment: object
) -> None:
    moments = [1_700_000_000.0]
    with open_store(tmp_path / "calls.db", clock=lambda: moments[-1]) as store:
        moments.append(moment)  # type: ignore[arg-type]
        with pytest.raises(StoreError, match="its clock failed"):
            await claim(store)


@pytest.mark.parametrize("moment", [float("nan"), float("inf"), "soon", None])
def test_a_store_with_a_clock_that_returns_no_time_is_not_opened(
    tmp_path: Path, moment: Any
) -> None:
    with pytest.raises(StoreError, match="its clock failed"):
        open_store(tmp_path / "calls.db", clock=lambda: moment)


# --- one row -----------------------------------------------------------------


async def test_a_locked_row_delays_no_other_settlement(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "BATCH_ROW_TIMEOUT", 0.05)
    keys = [str(n) for n in range(10)]
    with open_store(postgres.empty()) as store:
        tokens = [await claimed(store, key) for key in keys]
        unrecorded = Unrecorded()
        settling = dict.fromkeys(keys, "")
        with row_locked(postgres, "3"):
            ends = await asyncio.gather(
                *(
                    settle(store, key, token, unrecorded)
                    for key, token in zip(keys, tokens, strict=True)
                )
            )
            settling = dict(zip(keys, ends, strict=True))
            reason = settling.pop("3")
            assert "lock timeout" in reason
            assert reason.endswith(RETRYING)
            assert {""} == set(settling.values())
            assert NONE | {"accepted": 9, "unknown": 1} == store.summary()
            # Later operations do not wait for the row either.
            await ended(store, EntryState.ACCEPTED, "later")
            assert 1 == unrecorded.count
        await until(lambda: not unrecorded.count)
        assert NONE | {"accepted": 11} == store.summary()


async def test_a_locked_row_delays_no_other_claim(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "BATCH_ROW_TIMEOUT", 0.05)
    monkeypatch.setattr(bounds, "CLAIM_ROW_TIMEOUT", 60.0)
    with open_store(postgres.empty()) as store:
        await ended(store, EntryState.REFUSED)
        with row_locked(postgres, "k"):
            waiting = [asyncio.create_task(claim(store, timeout=60.0)) for _ in range(2)]
            others = [asyncio.create_task(claim(store, str(n))) for n in range(10)]
            looking = asyncio.create_task(find(store))
            assert {None} == {answer.entry for answer in await asyncio.gather(*others)}
            assert await looking is not None
            cancelled = asyncio.create_task(claim(store, timeout=60.0))
            await until(lambda: len(writer_of(store).thread.backlog.singles) > 0)
            cancelled.cancel()
            await asyncio.wait([cancelled])
            assert not any(task.done() for task in waiting)
        # One claim succeeds, and the other waits for its settlement in vain.
        answers = await asyncio.gather(*waiting)
        assert [False, True] == sorted(answer.entry is None for answer in answers)


async def test_a_claim_whose_row_stays_locked_fails(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "BATCH_ROW_TIMEOUT", 0.02)
    monkeypatch.setattr(bounds, "CLAIM_ROW_TIMEOUT", 0.2)
    with open_store(postgres.empty()) as store:
        await ended(store, EntryState.REFUSED)
        with row_locked(postgres, "k"):
            answers = await asyncio.gather(
                *(claim(store, key) for key in ("k", "other")), return_exceptions=True
            )
            assert isinstance(answers[0], StoreError)
            assert "lock timeout" in str(answers[0])
            assert not isinstance(answers[1], BaseException)


async def test_many_locked_rows_delay_no_other_key(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "BATCH_ROW_TIMEOUT", 0.02)
    # Each round tries only the first of them.
    monkeypatch.setattr(bounds, "MAX_SECONDS_ON_SINGLES", 0.0001)
    keys = [str(n) for n in range(20)]
    with open_store(postgres.empty()) as store:
        tokens = [await claimed(store, key) for key in keys]
        unrecorded = Unrecorded()
        with contextlib.closing(postgres.connect()) as other:
            other.autocommit = False
            other.execute("SELECT * FROM ihuyi_voice_calls FOR UPDATE")
            settling = [
                asyncio.create_task(settle(store, key, token, unrecorded))
                for key, token in zip(keys, tokens, strict=True)
            ]
            await until(lambda: len(writer_of(store).thread.backlog.singles) >= 19)
            await claimed(store, "another")
        await asyncio.gather(*settling)
        await until(lambda: not unrecorded.count)
        assert NONE | {"accepted": 20, "unknown": 1} == store.summary()


async def test_a_server_that_stops_while_keys_are_tried_alone(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "BATCH_ROW_TIMEOUT", 0.02)
    with open_store(postgres.empty()) as store:
        tokens = {key: await claimed(store, key) for key in ("a", "b")}
        unrecorded = Unrecorded()
        with row_locked(postgres, "a"):
            await asyncio.gather(
                *(settle(store, key, token, unrecorded) for key, token in tokens.items())
            )
            assert 1 == unrecorded.count
            postgres.stop()
        try:
            await until(lambda: writer_of(store).thread.transactions.away_until > 0)
        finally:
            postgres.start()
        await until(lambda: not unrecorded.count)
        assert NONE | {"accepted": 2} == store.summary()


TRIGGER = """
CREATE TRIGGER no_bad_key BEFORE {} ON ihuyi_voice_calls WHEN NEW.key = 'bad'
BEGIN SELECT RAISE(ABORT, 'no such key here'); END
"""


@contextlib.contextmanager
def refusing(path: Path, event: str) -> Iterator[None]:
    """A trigger in the SQLite file refuses to write one key."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(TRIGGER.format(event))
        yield
        other.execute("DROP TRIGGER no_bad_key")


async def test_a_settlement_that_the_database_refuses_fails_alone(
    in_file: SqlStore, tmp_path: Path
) -> None:
    tokens = {key: await claimed(in_file, key) for key in ("a", "bad", "c")}
    unrecorded = Unrecorded()
    with refusing(tmp_path / "calls.db", "UPDATE"):
        ends = await asyncio.gather(
            *(settle(in_file, key, token, unrecorded) for key, token in tokens.items()),
            claimed(in_file, "d"),
        )
        assert ["", ""] == [ends[0], ends[2]]
        assert "no such key here" in ends[1]
        assert NONE | {"accepted": 2, "unknown": 2} == in_file.summary()
        assert 1 == unrecorded.count
    await until(lambda: not unrecorded.count)
    assert NONE | {"accepted": 3, "unknown": 1} == in_file.summary()


async def test_a_claim_that_the_database_refuses_fails_alone(
    in_file: SqlStore, tmp_path: Path
) -> None:
    await find(in_file)
    with refusing(tmp_path / "calls.db", "INSERT"):
        ends = await asyncio.gather(
            *(claim(in_file, key) for key in ("a", "bad", "c")), return_exceptions=True
        )
    assert isinstance(ends[1], StoreError)
    assert ["a", "c"] == sorted(entry.key for entry in in_file.unknown())


# --- the end of the program --------------------------------------------------


async def test_closing_retries_failed_settlements(
    in_file: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_file, "BUSY_TIMEOUT", 0.02)
    monkeypatch.setattr(bounds, "LAST_RETRIES", 60.0)
    # There is no retry before the store is closed.
    monkeypatch.setattr(bounds, "FIRST_BACK_OFF", 3600.0)
    token = await claimed(in_file)
    unrecorded = Unrecorded()
    with locked(tmp_path / "calls.db"):
        await settle(in_file, "k", token, unrecorded)
        monkeypatch.setattr(bounds, "FIRST_BACK_OFF", 0.01)
        writer_of(in_file).thread.transactions.back_off = 0.0
        closing = asyncio.create_task(asyncio.to_thread(in_file.close))
        await until(lambda: writer_of(in_file).thread.transactions.back_off > 0)
    await closing
    assert 0 == unrecorded.count
    with open_store(tmp_path / "calls.db") as again:
        assert NONE | {"accepted": 1} == again.summary()


async def test_closing_waits_a_bounded_time_for_a_failing_database(
    in_file: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_file, "BUSY_TIMEOUT", 0.02)
    monkeypatch.setattr(bounds, "LAST_RETRIES", 0.05)
    token = await claimed(in_file)
    unrecorded = Unrecorded()
    with locked(tmp_path / "calls.db"):
        await settle(in_file, "k", token, unrecorded)
        in_file.close()
        assert writer_of(in_file).thread.ended.is_set()
    assert 1 == unrecorded.count


async def test_closing_fails_claims_that_wait_for_a_row(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "BATCH_ROW_TIMEOUT", 0.02)
    monkeypatch.setattr(bounds, "LAST_RETRIES", 0.05)
    with open_store(postgres.empty()) as store:
        await ended(store, EntryState.REFUSED)
        with row_locked(postgres, "k"):
            waiting = asyncio.create_task(claim(store, timeout=60.0))
            await until(lambda: len(writer_of(store).thread.backlog.singles) > 0)
            await asyncio.to_thread(store.close)
            with pytest.raises(StoreError, match="closed; nothing was sent"):
                await waiting


EXIT = """
    import sqlite3
    from ihuyi_voice.store.sql import file as store_file
    store_file.BUSY_TIMEOUT = 0.02
    store = open_store(place)
    token = asyncio.run(claimed(store))
    print("claimed")
    sys.stdin.readline()
    try:
        asyncio.run(store.settle("k", token, EntryState.ACCEPTED))
    except Exception as error:
        print(error)
    {end}
"""


@pytest.mark.parametrize(
    ("end", "status", "known"),
    [
        ("print('ends')", 0, EntryState.ACCEPTED),
        # A killed process retries nothing: a person resolves the key.
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, EntryState.CLAIMED),
    ],
)
def test_the_end_of_the_program_retries_failed_settlements(
    tmp_path: Path, end: str, status: int, known: EntryState
) -> None:
    path = tmp_path / "calls.db"
    with start(str(path), EXIT.format(end=end)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert "claimed\n" == process.stdout.readline()
        with locked(path):
            process.stdin.write("\n")
            process.stdin.flush()
            assert RETRYING in process.stdout.readline()
            if not status:
                assert "ends\n" == process.stdout.readline()
        _, err = process.communicate(timeout=60)
    assert (status, "") == (process.returncode, err)
    with open_store(path) as store:
        assert known is state(store)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_a_forked_child_leaves_settlements_to_its_parent(
    in_file: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_file, "BUSY_TIMEOUT", 0.02)
    monkeypatch.setattr(bounds, "FIRST_BACK_OFF", 3600.0)
    token = await claimed(in_file)
    unrecorded = Unrecorded()
    with locked(tmp_path / "calls.db"):
        await settle(in_file, "k", token, unrecorded)

    def try_it() -> str:
        asyncio.new_event_loop().run_until_complete(claimed(in_file, "child"))
        in_file.close()
        return str(writer_of(in_file).thread.backlog.retries)

    assert "deque([])" == await asyncio.to_thread(in_child, try_it)
    assert EntryState.CLAIMED is state(in_file)
    await claimed(in_file, "parent")
    assert (0, EntryState.ACCEPTED) == (unrecorded.count, state(in_file))


# --- blocking calls ----------------------------------------------------------


def test_a_blocking_call_waits_a_bounded_time_for_another(
    in_file: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ihuyi_voice.store.writer.bounds.TURN_TIMEOUT", 0.01)
    with (
        writer_of(in_file).at_work_aside,
        pytest.raises(StoreError, match=r"another call has used it for more than 0\.01 s"),
    ):
        in_file.summary()
    assert NONE == in_file.summary()


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait is bounded; the shortest timeout of libpq is two seconds."""
    monkeypatch.setattr(postgresql, "CONNECT_TIMEOUT", 2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(StoreError, match="timeout"):
            open_store(f"postgresql://joe@127.0.0.1:{port}/calls")
        assert time.monotonic() - began < 30
