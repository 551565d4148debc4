"""A failing database: nothing is sent, every waiting task fails, and later ones may succeed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from ihuyi_voice.errors import StoreError
from ihuyi_voice.store.entry import EntryState, FailureScope
from ihuyi_voice.store.sql import connection as store_connection
from ihuyi_voice.store.sql import file as store_file
from ihuyi_voice.store.sql.connection import Connection
from tests.inside import after_each_check, at_each_connection, transaction_in

from .support import Clock, claim, claimed, ended, find, open_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ihuyi_voice.store.sql.store import SqlStore

    from .postgres import PostgresServer

NONE = {"accepted": 0, "refused": 0, "not_sent": 0, "unknown": 0}
NOTHING_SENT = "; nothing was sent, no phone rang"


async def failure(store: SqlStore, key: str = "new") -> StoreError:
    """The error of a claim that fails; its message says that nothing was sent."""
    with pytest.raises(StoreError) as caught:
        await claim(store, key)
    assert str(caught.value).endswith(NOTHING_SENT)
    return caught.value


# --- a full disk -------------------------------------------------------------


async def test_a_full_disk(small_disk: Path) -> None:
    with open_store(small_disk / "calls.db") as store:
        token = await claimed(store)
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        # More than fits into the rest of the log's last block.
        results = await asyncio.gather(
            *(claim(store, f"{i:0>200}") for i in range(100)), return_exceptions=True
        )
        failed = [result for result in results if isinstance(result, StoreError)]
        assert 50 < len(failed)
        assert {True} == {isinstance(error.__cause__, sqlite3.OperationalError) for error in failed}
        filler.unlink()
        # No failed claim was recorded, and the store works once there is space.
        await store.settle("k", token, EntryState.ACCEPTED)
        assert NONE | {"unknown": 100 - len(failed), "accepted": 1} == store.summary()


async def test_a_database_that_cannot_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(tmp_path / "calls.db") as store:
        at_each_connection(monkeypatch, "PRAGMA max_page_count = 12")
        results = await asyncio.gather(
            *(claim(store, f"{i:0>200}") for i in range(300)), return_exceptions=True
        )
        failed = [result for result in results if isinstance(result, StoreError)]
        assert {f"{tmp_path}/calls.db: the disk is full{NOTHING_SENT}"} == {
            error.reason for error in failed
        }
        # The first batch is small. Each failed claim has its own exception.
        assert 250 < len({id(error) for error in failed}) == len(failed)
        assert NONE | {"unknown": 300 - len(failed)} == store.summary()


# --- read-only ---------------------------------------------------------------


@pytest.mark.parametrize("in_use", [False, True])
async def test_a_store_on_a_read_only_disk_can_be_read(
    small_disk: Path, read_only: Callable[[], None], clock: Clock, *, in_use: bool
) -> None:
    path = small_disk / "calls.db"
    with contextlib.ExitStack() as stack:
        with open_store(path, clock=clock) as store:
            await ended(store, EntryState.UNKNOWN)
            if in_use:
                # Its write-ahead log still holds the last records.
                shutil.copytree(small_disk, small_disk / "copy")
                path = small_disk / "copy" / "calls.db"
        read_only()
        store = stack.enter_context(open_store(path, clock=clock))
        assert NONE | {"unknown": 1} == store.summary()
        assert ["k"] == [claim.key for claim in store.unknown()]
        # Without a log SQLite reports only that it cannot create one.
        message = "it is read-only" if in_use else "it cannot be opened or created"
        assert f"{path}: {message}{NOTHING_SENT}" == (await failure(store)).reason
        with pytest.raises(StoreError, match=message):
            store.resolve("k", placed=True)
        with pytest.raises(StoreError, match=message):
            store.purge(timedelta(0))


# --- locked ------------------------------------------------------------------


async def test_a_reservation_waits_no_longer_than_its_deadline(
    in_file: SqlStore, tmp_path: Path
) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "calls.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        # Before SQLite gives up, whose message is another one.
        with pytest.raises(StoreError, match=f"did not answer in time{NOTHING_SENT}$"):
            await in_file.reserve("n", "late", ((1, 60.0),), deadline=time.monotonic() + 0.1)
    # It took no place.
    assert 0.0 == await in_file.reserve("n", "next", ((1, 60.0),))


async def test_a_file_that_stays_locked(
    in_file: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await claimed(in_file)
    monkeypatch.setattr(store_file, "BUSY_TIMEOUT", 0.05)
    path = tmp_path / "calls.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        error = await failure(in_file)
        assert f"{path}: another process keeps it locked{NOTHING_SENT}" == error.reason
        with pytest.raises(StoreError) as caught:
            await in_file.settle("k", token, EntryState.ACCEPTED)
        # A settlement's error does not say that nothing was sent.
        assert (
            f"the store could not be used: {path}: another process keeps it locked; not recorded"
            " yet: retrying until the program ends" == str(caught.value)
        )
    await in_file.settle("k", token, EntryState.ACCEPTED)
    assert NONE | {"accepted": 1} == in_file.summary()


async def test_a_row_that_stays_locked(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ihuyi_voice.store.writer.bounds.BATCH_ROW_TIMEOUT", 0.02)
    monkeypatch.setattr("ihuyi_voice.store.writer.bounds.CLAIM_ROW_TIMEOUT", 0.2)
    with open_store(postgres.empty()) as store:
        await ended(store, EntryState.REFUSED)
        with contextlib.closing(postgres.connect()) as other:
            other.autocommit = False
            other.execute("SELECT * FROM ihuyi_voice_calls FOR UPDATE")
            error = await failure(store, "k")
            assert isinstance(error.__cause__, psycopg.errors.LockNotAvailable)
        await claimed(store)


# --- lost in mid-run ---------------------------------------------------------


@pytest.fixture
def lose(tmp_path: Path) -> Callable[[str], None]:
    """Loses a file that is in use, in one of several ways."""
    path = tmp_path / "calls.db"

    def lose_it(how: str) -> None:
        if how == "deleted":
            path.unlink()
        elif how == "emptied":
            # The file keeps its identity.
            os.truncate(path, 0)
        elif how == "all deleted":
            for file in tmp_path.iterdir():
                file.unlink()
        elif how == "moved":
            path.rename(tmp_path / "moved.db")
        elif how == "replaced":
            # By an older copy, like a restored backup.
            shutil.copy(path, tmp_path / "copy.db")
            (tmp_path / "copy.db").replace(path)
        else:
            (tmp_path / f"calls.db-{how}").unlink()

    return lose_it


WAYS = ["deleted", "all deleted", "emptied", "moved", "replaced", "wal", "shm"]


@pytest.mark.parametrize("how", WAYS)
async def test_a_lost_file(
    in_file: SqlStore, lose: Callable[[str], None], how: str, tmp_path: Path
) -> None:
    token = await claimed(in_file)
    lose(how)
    error = await failure(in_file)
    name = f"calls.db-{how}" if how in ("wal", "shm") else "calls.db"
    lost = (
        f"{tmp_path}/{name} was deleted, emptied or replaced while it was in use: without it every"
        " call would be placed again. Put the file back, and then open it again"
    )
    assert f"{lost}{NOTHING_SENT}" == error.reason
    if how not in ("wal", "shm"):
        # Permanently: another file at the path does not know the claims.
        with pytest.raises(StoreError):
            await in_file.settle("k", token, EntryState.ACCEPTED)
        again = await failure(in_file)
    if "deleted" in how or how == "moved":
        # The later errors also say that the file is lost, not only that it cannot be opened.
        assert f"{lost}{NOTHING_SENT}" == again.reason
        assert not (tmp_path / "calls.db").exists()


async def test_a_file_that_is_lost_during_a_commit(
    in_file: SqlStore, lose: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await claimed(in_file)
    # The second check, after the commit, finds that the file is lost.
    after_each_check(monkeypatch, lambda: lose("moved"))
    await failure(in_file)
    monkeypatch.undo()
    # The claim was committed all the same; once the file is back, it is reverted.
    (tmp_path / "moved.db").rename(tmp_path / "calls.db")
    assert NONE | {"unknown": 2} == in_file.summary()
    await claimed(in_file, "other")
    assert NONE | {"unknown": 2, "not_sent": 1} == in_file.summary()


async def test_another_store_in_the_same_file(in_file: SqlStore, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "calls.db")) as other, other:
        other.execute("UPDATE ihuyi_voice_meta SET value = 'another' WHERE name = 'id'")
    error = await failure(in_file)
    assert "was replaced by another store since it was opened; open it again" in error.reason


async def test_dropped_tables(store: SqlStore, place: str) -> None:
    await claimed(store)
    with transaction_in(store) as raw:
        raw.exec_driver_sql("DROP TABLE ihuyi_voice_calls")
    assert "ihuyi_voice_calls" in (await failure(store)).reason
    with transaction_in(store) as raw:
        raw.exec_driver_sql("DROP TABLE ihuyi_voice_meta")
    assert "was replaced by another store since it was opened" in (await failure(store)).reason


async def test_a_server_that_restarts(postgres: PostgresServer) -> None:
    with open_store(postgres.empty()) as store:
        token = await claimed(store)
        postgres.stop()
        try:
            error = await failure(store)
            assert isinstance(error.__cause__, psycopg.OperationalError)
            with pytest.raises(StoreError):
                await store.settle("k", token, EntryState.ACCEPTED)
            with pytest.raises(StoreError):
                store.summary()
        finally:
            postgres.start()
        await store.settle("k", token, EntryState.ACCEPTED)
        await claimed(store, "new")
        assert NONE | {"accepted": 1, "unknown": 1} == store.summary()


async def test_a_connection_that_was_closed_while_idle_is_reopened(
    postgres: PostgresServer,
) -> None:
    with open_store(postgres.empty()) as store:
        token = await claimed(store)
        cut(postgres)
        await claimed(store, "new")
        cut(postgres)
        await store.settle("k", token, EntryState.ACCEPTED)
        assert NONE | {"accepted": 1, "unknown": 1} == store.summary()


def cut(postgres: PostgresServer) -> None:
    with contextlib.closing(postgres.connect()) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name = 'ihuyi_voice'"
        )


@pytest.mark.parametrize("tries", [1, 2])
async def test_a_commit_whose_answer_was_lost(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, tries: int
) -> None:
    """The commit may have succeeded: the retry recognises its claim, or the claim is reverted."""
    apply = Connection.apply
    lost: list[Connection] = []

    def lose_the_answer(connection: Connection, *operations: Any) -> Any:
        answer = apply(connection, *operations)
        if len(lost) == tries:
            return answer
        lost.append(connection)
        connection.failure_scope = FailureScope.CONNECTION
        msg = "the answer was lost"
        raise StoreError(msg)

    monkeypatch.setattr(Connection, "apply", lose_the_answer)
    with open_store(postgres.empty()) as store:
        await (claimed(store) if tries == 1 else failure(store, "k"))
        assert NONE | {"unknown": 1} == store.summary()
        await claimed(store, "other")
        expected = {"unknown": 2} if tries == 1 else {"unknown": 1, "not_sent": 1}
        assert NONE | expected == store.summary()


async def test_a_failed_reverting_is_retried_with_the_next_batch(
    in_file: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = Connection.apply
    ways = ["commit", "fail"]

    def fail(connection: Connection, *operations: Any) -> Any:
        way = ways.pop(0) if ways else "succeed"
        answer = apply(connection, *operations) if way != "fail" else None
        if way == "succeed":
            return answer
        msg = "it failed"
        raise StoreError(msg)

    monkeypatch.setattr(Connection, "apply", fail)
    await failure(in_file, "first")
    assert NONE | {"unknown": 1} == in_file.summary()
    await failure(in_file, "second")
    assert NONE | {"unknown": 1} == in_file.summary()
    await claimed(in_file, "third")
    assert NONE | {"unknown": 1, "not_sent": 1} == in_file.summary()


async def test_an_unexpected_exception_ends_every_wait(
    in_file: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Connection, "apply", bug)
    error = await failure(in_file)
    assert f"an unexpected exception (ZeroDivisionError){NOTHING_SENT}" == error.reason
    assert isinstance(error.__cause__, ZeroDivisionError)
    monkeypatch.undo()
    assert (await claim(in_file)).entry is None
    assert await find(in_file) is not None


async def test_a_file_without_permission(
    in_file: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(store_connection, "identity_of", denied)
    error = await failure(in_file)
    assert "[Errno 13] Permission denied (PermissionError)" in error.reason
