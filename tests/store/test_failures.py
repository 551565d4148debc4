"""A database that fails: nothing is sent, everybody is told, and the next one may succeed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from ihuyi_voice.errors import LedgerError
from ihuyi_voice.store.entry import FailureScope
from ihuyi_voice.store.ledger import EntryState, Ledger
from ihuyi_voice.store.sql import file as ledger_file
from ihuyi_voice.store.sql import store as ledger_store
from ihuyi_voice.store.sql.store import Connection

from .support import Clock, claim, claimed, ended, find

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .postgres import PostgresServer

NONE = {"accepted": 0, "refused": 0, "not_sent": 0, "unknown": 0}
NOTHING_SENT = "; nothing was sent, no phone rang"


async def failure(ledger: Ledger, key: str = "new") -> LedgerError:
    """Of a claim; what is said of it is for whoever wants to send."""
    with pytest.raises(LedgerError) as caught:
        await claim(ledger, key)
    assert str(caught.value).endswith(NOTHING_SENT)
    return caught.value


# --- a full disk -------------------------------------------------------------


async def test_a_full_disk(small_disk: Path) -> None:
    with Ledger.open(small_disk / "calls.db") as ledger:
        token = await claimed(ledger)
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        # More than what is left of the block that the log ends in.
        results = await asyncio.gather(
            *(claim(ledger, f"{i:0>200}") for i in range(100)), return_exceptions=True
        )
        failed = [result for result in results if isinstance(result, LedgerError)]
        assert 50 < len(failed)
        assert {True} == {isinstance(error.__cause__, sqlite3.OperationalError) for error in failed}
        filler.unlink()
        # Nothing of it was recorded, and once there is room it goes on.
        await ledger.settle("k", token, EntryState.ACCEPTED)
        assert NONE | {"unknown": 100 - len(failed), "accepted": 1} == ledger.summary()


async def test_a_database_that_may_not_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up = ledger_file._set_up_sqlite

    def limited(connection: sqlite3.Connection) -> None:
        set_up(connection)
        connection.execute("PRAGMA max_page_count = 12").fetchone()

    with Ledger.open(tmp_path / "calls.db") as ledger:
        monkeypatch.setattr(ledger_file, "_set_up_sqlite", limited)
        results = await asyncio.gather(
            *(claim(ledger, f"{i:0>200}") for i in range(300)), return_exceptions=True
        )
        failed = [result for result in results if isinstance(result, LedgerError)]
        assert {f"{tmp_path}/calls.db: the disk is full{NOTHING_SENT}"} == {
            error.reason for error in failed
        }
        # The first transaction is small. Each failure has an exception of its own.
        assert 250 < len({id(error) for error in failed}) == len(failed)
        assert NONE | {"unknown": 300 - len(failed)} == ledger.summary()


# --- read-only ---------------------------------------------------------------


@pytest.mark.parametrize("in_use", [False, True])
async def test_what_is_read_only_can_be_read(
    small_disk: Path, read_only: Callable[[], None], clock: Clock, *, in_use: bool
) -> None:
    path = small_disk / "calls.db"
    with contextlib.ExitStack() as stack:
        with Ledger.open(path, clock=clock) as ledger:
            await ended(ledger, EntryState.UNKNOWN)
            if in_use:
                # Its log stays, with what was recorded last.
                shutil.copytree(small_disk, small_disk / "copy")
                path = small_disk / "copy" / "calls.db"
        read_only()
        ledger = stack.enter_context(Ledger.open(path, clock=clock))
        assert NONE | {"unknown": 1} == ledger.summary()
        assert ["k"] == [claim.key for claim in ledger.unknown()]
        # Without a log the database says no more than that it cannot make one.
        words = "it is read-only" if in_use else "it cannot be opened or created"
        assert f"{path}: {words}{NOTHING_SENT}" == (await failure(ledger)).reason
        with pytest.raises(LedgerError, match=words):
            ledger.resolve("k", placed=True)
        with pytest.raises(LedgerError, match=words):
            ledger.purge(timedelta(0))


# --- locked ------------------------------------------------------------------


async def test_a_file_that_stays_locked(
    in_file: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await claimed(in_file)
    monkeypatch.setattr(ledger_file, "BUSY_TIMEOUT", 0.05)
    path = tmp_path / "calls.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        error = await failure(in_file)
        assert f"{path}: another process keeps it locked{NOTHING_SENT}" == error.reason
        with pytest.raises(LedgerError) as caught:
            await in_file.settle("k", token, EntryState.ACCEPTED)
        # Not of a settlement, whose request was sent.
        assert (
            f"the ledger could not be used: {path}: another process keeps it locked; not recorded"
            " yet: retrying until the program ends" == str(caught.value)
        )
    await in_file.settle("k", token, EntryState.ACCEPTED)
    assert NONE | {"accepted": 1} == in_file.summary()


async def test_a_row_that_stays_locked(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ihuyi_voice.store.sql.limits.BATCH_ROW_TIMEOUT", 0.02)
    monkeypatch.setattr("ihuyi_voice.store.sql.limits.CLAIM_ROW_TIMEOUT", 0.2)
    with Ledger.open(postgres.empty()) as ledger:
        await ended(ledger, EntryState.REFUSED)
        with contextlib.closing(postgres.connect()) as other:
            other.autocommit = False
            other.execute("SELECT * FROM ihuyi_voice_calls FOR UPDATE")
            error = await failure(ledger, "k")
            assert isinstance(error.__cause__, psycopg.errors.LockNotAvailable)
        await claimed(ledger)


# --- lost in mid-run ---------------------------------------------------------


@pytest.fixture
def lose(tmp_path: Path) -> Callable[[str], None]:
    """Ways to lose a file that is in use."""
    path = tmp_path / "calls.db"

    def lose_it(how: str) -> None:
        if how == "deleted":
            path.unlink()
        elif how == "emptied":
            # It stays the same file.
            os.truncate(path, 0)
        elif how == "all deleted":
            for file in tmp_path.iterdir():
                file.unlink()
        elif how == "moved":
            path.rename(tmp_path / "moved.db")
        elif how == "replaced":
            # By an older copy, as one restores a backup.
            shutil.copy(path, tmp_path / "copy.db")
            (tmp_path / "copy.db").replace(path)
        else:
            (tmp_path / f"calls.db-{how}").unlink()

    return lose_it


WAYS = ["deleted", "all deleted", "emptied", "moved", "replaced", "wal", "shm"]


@pytest.mark.parametrize("how", WAYS)
async def test_a_file_that_is_lost(
    in_file: Ledger, lose: Callable[[str], None], how: str, tmp_path: Path
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
        # For good: whatever is there now, it does not know what was claimed.
        with pytest.raises(LedgerError):
            await in_file.settle("k", token, EntryState.ACCEPTED)
        again = await failure(in_file)
    if "deleted" in how or how == "moved":
        # Not that it cannot be opened: whoever reads the last line only must know.
        assert f"{lost}{NOTHING_SENT}" == again.reason
        assert not (tmp_path / "calls.db").exists()


async def test_a_file_that_is_lost_in_the_middle_of_a_commit(
    in_file: Ledger, lose: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check = Connection._check_files

    def lose_it_after_the_first_check(connection: Connection) -> None:
        # The second one, after the commit, finds that it is lost.
        check(connection)
        lose("moved")

    await claimed(in_file)
    monkeypatch.setattr(Connection, "_check_files", lose_it_after_the_first_check)
    await failure(in_file)
    monkeypatch.undo()
    # The claim was committed after all; when the file is back, it is taken back.
    (tmp_path / "moved.db").rename(tmp_path / "calls.db")
    assert NONE | {"unknown": 2} == in_file.summary()
    await claimed(in_file, "other")
    assert NONE | {"unknown": 2, "not_sent": 1} == in_file.summary()


async def test_another_ledger_in_the_same_file(in_file: Ledger, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "calls.db")) as other, other:
        other.execute("UPDATE ihuyi_voice_meta SET value = 'another' WHERE name = 'id'")
    error = await failure(in_file)
    assert "was replaced by another ledger since it was opened; open it again" in error.reason


async def test_tables_that_were_dropped(ledger: Ledger, place: str) -> None:
    await claimed(ledger)
    with contextlib.closing(ledger._store.connect()) as other, other._transaction() as raw:
        raw.exec_driver_sql("DROP TABLE ihuyi_voice_calls")
    assert "ihuyi_voice_calls" in (await failure(ledger)).reason
    with contextlib.closing(ledger._store.connect()) as other, other._transaction() as raw:
        raw.exec_driver_sql("DROP TABLE ihuyi_voice_meta")
    assert "was replaced by another ledger since it was opened" in (await failure(ledger)).reason


async def test_a_server_that_goes_and_comes_back(postgres: PostgresServer) -> None:
    with Ledger.open(postgres.empty()) as ledger:
        token = await claimed(ledger)
        postgres.stop()
        try:
            error = await failure(ledger)
            assert isinstance(error.__cause__, psycopg.OperationalError)
            with pytest.raises(LedgerError):
                await ledger.settle("k", token, EntryState.ACCEPTED)
            with pytest.raises(LedgerError):
                ledger.summary()
        finally:
            postgres.start()
        await ledger.settle("k", token, EntryState.ACCEPTED)
        await claimed(ledger, "new")
        assert NONE | {"accepted": 1, "unknown": 1} == ledger.summary()


async def test_a_connection_that_was_cut_while_idle_is_made_anew(
    postgres: PostgresServer,
) -> None:
    with Ledger.open(postgres.empty()) as ledger:
        token = await claimed(ledger)
        cut(postgres)
        await claimed(ledger, "new")
        cut(postgres)
        await ledger.settle("k", token, EntryState.ACCEPTED)
        assert NONE | {"accepted": 1, "unknown": 1} == ledger.summary()


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
    """Recorded or not, nobody knows: a second try finds it as its own, or it is taken back."""
    apply = Connection.apply
    lost: list[Connection] = []

    def lose_the_answer(connection: Connection, *wishes: Any) -> Any:
        answer = apply(connection, *wishes)
        if len(lost) == tries:
            return answer
        lost.append(connection)
        connection.failure_scope = FailureScope.CONNECTION
        msg = "the answer was lost"
        raise LedgerError(msg)

    monkeypatch.setattr(Connection, "apply", lose_the_answer)
    with Ledger.open(postgres.empty()) as ledger:
        await (claimed(ledger) if tries == 1 else failure(ledger, "k"))
        assert NONE | {"unknown": 1} == ledger.summary()
        await claimed(ledger, "other")
        expected = {"unknown": 2} if tries == 1 else {"unknown": 1, "not_sent": 1}
        assert NONE | expected == ledger.summary()


async def test_what_cannot_be_taken_back_is_tried_again_with_the_next(
    in_file: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = Connection.apply
    ways = ["commit", "fail"]

    def fail(connection: Connection, *wishes: Any) -> Any:
        way = ways.pop(0) if ways else "succeed"
        answer = apply(connection, *wishes) if way != "fail" else None
        if way == "succeed":
            return answer
        msg = "it failed"
        raise LedgerError(msg)

    monkeypatch.setattr(Connection, "apply", fail)
    await failure(in_file, "first")
    assert NONE | {"unknown": 1} == in_file.summary()
    await failure(in_file, "second")
    assert NONE | {"unknown": 1} == in_file.summary()
    await claimed(in_file, "third")
    assert NONE | {"unknown": 1, "not_sent": 1} == in_file.summary()


async def test_a_bug_ends_nobodys_wait(in_file: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Connection, "apply", bug)
    error = await failure(in_file)
    assert f"an unexpected exception (ZeroDivisionError){NOTHING_SENT}" == error.reason
    assert isinstance(error.__cause__, ZeroDivisionError)
    monkeypatch.undo()
    assert (await claim(in_file)).entry is None
    assert await find(in_file) is not None


async def test_a_file_that_nobody_may_open(
    in_file: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(ledger_store, "identity_of", denied)
    error = await failure(in_file)
    assert "[Errno 13] Permission denied (PermissionError)" in error.reason
