"""Opening and closing: valid places, and the errors for all others."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ihuyi_voice.errors import NotSentError, StoreError
from ihuyi_voice.store.entry import EntryState
from ihuyi_voice.store.sql import file as store_file
from ihuyi_voice.store.sql.migrations import SCHEMA_VERSION
from tests.inside import database_of, raw

from .support import Clock, claim, claimed, ended, find, open_store, run, start

if TYPE_CHECKING:
    from collections.abc import Callable

    from ihuyi_voice.store.sql.store import SqlStore

    from .postgres import PostgresServer


NEWER = str(SCHEMA_VERSION + 1)


def refusal(where: str | os.PathLike[str]) -> str:
    with pytest.raises(StoreError) as caught:
        open_store(where)
    error = caught.value
    assert isinstance(error, NotSentError)
    assert not error.may_have_rung
    return str(error).removeprefix("the store could not be used: ")


def change(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "calls.db"


def there(path: Path) -> list[str]:
    """The names of the files in the folder of a store."""
    return sorted(entry.name for entry in path.parent.iterdir())


def make(path: Path) -> Path:
    open_store(path).close()
    return path


# --- valid places ------------------------------------------------------------


async def test_records_are_there_after_reopening(place: str) -> None:
    with open_store(place) as store:
        await ended(store, EntryState.ACCEPTED)
    with open_store(place) as store:
        answer = await claim(store)
    assert answer.entry is not None
    assert EntryState.ACCEPTED is answer.entry.state


def test_create_false_creates_no_store(place: str) -> None:
    with pytest.raises(LookupError, match=r"^there is no ") as caught:
        open_store(place, create=False)
    assert "password" not in str(caught.value)
    # The first call has not created it either.
    with pytest.raises(LookupError, match=r"^there is no "):
        open_store(place, create=False)
    open_store(place).close()
    open_store(place, create=False).close()


def test_an_encoding_without_chinese_is_refused(postgres: PostgresServer) -> None:
    message = refusal(postgres.encoded("LATIN1"))
    assert "has the encoding LATIN1, which cannot store Chinese text" in message


async def test_an_encoding_that_stores_any_bytes_is_accepted(postgres: PostgresServer) -> None:
    with open_store(postgres.encoded("SQL_ASCII")) as store:
        await ended(store, EntryState.REFUSED)
        entry = await find(store)
    assert entry is not None
    assert "剩余条数不足" == entry.answer.msg


def test_create_false_leaves_another_database_unchanged(path: Path) -> None:
    change(path, "CREATE TABLE customers (name TEXT)")
    before = path.read_bytes()
    with pytest.raises(LookupError, match=f"^there is no store in {path}$"):
        open_store(path, create=False)
    assert before == path.read_bytes()


@pytest.mark.parametrize(
    "spell", [str, Path, "sqlite:///{}".format, "sqlite+pysqlite:///{}".format]
)
async def test_a_file_is_named_by_path_or_url(path: Path, spell: Callable[[Path], Any]) -> None:
    with open_store(spell(path)) as store:
        await claimed(store)
        assert f"<SqlStore {path} open>" == repr(store)
    assert f"<SqlStore {path} closed>" == repr(store)
    assert ["calls.db"] == there(path)


async def test_unusual_file_names(tmp_path: Path) -> None:
    for name in ("a?b#c%20d.db", "呼叫 db", ":memory:"):
        with open_store(tmp_path / name) as store:
            await claimed(store)
        assert name in there(tmp_path / name)


@pytest.fixture
def link(path: Path, tmp_path: Path) -> Path:
    link = tmp_path / "elsewhere" / "link.db"
    link.parent.mkdir()
    link.symlink_to(make(path))
    return link


async def test_a_link_leads_to_a_store(path: Path, link: Path) -> None:
    with open_store(link) as store:
        await claimed(store)
    with open_store(path) as store:
        assert 1 == store.summary()["unknown"]


async def test_a_relative_path_keeps_the_folder_of_its_opening(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    with open_store("calls.db") as store:
        monkeypatch.chdir("/")
        await claimed(store)
    assert ["calls.db"] == there(path)


async def test_other_tables_are_left_unchanged(path: Path) -> None:
    change(path, "CREATE TABLE calls (key)", "INSERT INTO calls VALUES (1)")
    with open_store(path) as store:
        await claimed(store)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert [(1,)] == connection.execute("SELECT * FROM calls").fetchall()
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        names = ("meta", "calls", "starts", "verifications", "jobs", "job_outcomes")
        ours = {f"ihuyi_voice_{name}" for name in names}
        assert {"calls"} | ours == {name for (name,) in tables}


def test_an_empty_file_becomes_a_store(path: Path) -> None:
    path.touch()
    with open_store(path) as store:
        asyncio.run(claimed(store))


@pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg"])
async def test_postgresql_means_psycopg(postgres: PostgresServer, driver: str) -> None:
    url = postgres.empty().replace("postgresql+psycopg", driver)
    with open_store(url) as store:
        await claimed(store)
        assert "<SqlStore postgresql+psycopg://postgres@/postgres open>" == repr(store)


async def test_a_password_is_hidden(postgres: PostgresServer) -> None:
    url = postgres.empty().replace("postgres@", "postgres:hunter2@") + "&sslpassword=hunter2"
    with open_store(url) as store:
        await claimed(store)
        assert "hunter2" not in repr(store)
        assert "postgres:***@" in repr(store)


def test_a_commit_is_on_the_disk_when_it_returns(path: Path) -> None:
    make(path)
    with contextlib.closing(store_file.open_for_writing(str(path), create=False)) as connection:
        assert ("wal",) == connection.execute("PRAGMA journal_mode").fetchone()
        assert (2,) == connection.execute("PRAGMA synchronous").fetchone()


def test_a_servers_own_setting_does_not_weaken_a_commit(postgres: PostgresServer) -> None:
    postgres.empty()
    with contextlib.closing(postgres.connect()) as connection:
        connection.execute("ALTER DATABASE postgres SET synchronous_commit = off")
        try:
            with open_store(postgres.url) as store, database_of(store).connect() as opened:
                # A rollback must not undo the setting.
                raw(opened).rollback()
                setting = raw(opened).exec_driver_sql("SHOW synchronous_commit").scalar_one()
        finally:
            connection.execute("ALTER DATABASE postgres RESET synchronous_commit")
    assert "on" == setting


async def test_two_processes_create_the_store_at_once(place: str) -> None:
    script = """
        sys.stdin.read(1)
        with open_store(place) as store:
            print(len(asyncio.run(claimed(store, str(os.getpid())))))
    """
    with contextlib.ExitStack() as stack:
        both = [stack.enter_context(start(place, script)) for _ in range(2)]
        for process in both:
            assert process.stdin is not None
            process.stdin.write("x")
            process.stdin.flush()
        ends = [process.communicate(timeout=60) for process in both]
    assert [("32\n", "")] * 2 == ends
    with open_store(place) as store:
        assert 2 == store.summary()["unknown"]


# --- errors ------------------------------------------------------------------


def test_not_a_database(path: Path) -> None:
    path.write_text("mobile,content\n" * 100)
    assert f"{path}: it is not an SQLite database" == refusal(path)


def test_a_folder(tmp_path: Path) -> None:
    assert f"{tmp_path} is a folder" == refusal(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "none" / "calls.db"
    assert f"{path} cannot be created, because there is no folder {path.parent}" == refusal(path)


def test_a_newer_schema(path: Path) -> None:
    change(make(path), "UPDATE ihuyi_voice_meta SET value = value + 1 WHERE name = 'schema'")
    assert f"{path} was written by a newer release (schema {NEWER}): update ihuyi-voice" == refusal(
        path
    )


@pytest.mark.parametrize(
    ("version", "statement"),
    [
        ("0", "UPDATE ihuyi_voice_meta SET value = '0' WHERE name = 'schema'"),
        ("ours", "UPDATE ihuyi_voice_meta SET value = 'ours' WHERE name = 'schema'"),
        ("", "DELETE FROM ihuyi_voice_meta WHERE name = 'schema'"),
    ],
)
def test_a_schema_of_another_program(path: Path, version: str, statement: str) -> None:
    change(make(path), statement)
    assert (
        f"{path} has tables of another program, or of an unknown release (schema {version!r})"
        == refusal(path)
    )


def test_a_newer_schema_on_a_server(postgres: PostgresServer) -> None:
    open_store(postgres.empty()).close()
    with contextlib.closing(postgres.connect()) as connection:
        connection.execute("UPDATE ihuyi_voice_meta SET value = %s WHERE name = 'schema'", [NEWER])
    assert f"was written by a newer release (schema {NEWER})" in refusal(postgres.url)


def test_a_file_that_is_locked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_file, "BUSY_TIMEOUT", 0.05)
    with contextlib.closing(sqlite3.connect(make(path), isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        other.execute("CREATE TABLE other (a)")
        assert f"{path}: another process keeps it locked" == refusal(path)


def test_a_new_file_on_a_read_only_disk(small_disk: Path, read_only: Callable[[], None]) -> None:
    read_only()
    path = small_disk / "calls.db"
    assert f"{path}: it cannot be opened or created" == refusal(path)


def test_a_disk_without_room(small_disk: Path) -> None:
    with contextlib.suppress(OSError):
        (small_disk / "full").write_bytes(b"x" * 300_000)
    path = small_disk / "calls.db"
    assert f"{path}: " in refusal(path)


def test_a_server_that_does_not_run(tmp_path: Path) -> None:
    text = refusal(f"postgresql+psycopg://joe:hunter2@/calls?host={tmp_path}")
    assert text.startswith("postgresql+psycopg://joe:***@/calls: connection ")
    assert "\n" not in text
    assert "hunter2" not in text


def test_a_missing_database(postgres: PostgresServer) -> None:
    text = refusal(postgres.url.replace("@/postgres", "@/nothing"))
    assert 'database "nothing" does not exist' in text


def test_an_sqlite_version_that_is_too_old(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 9))
    assert "needs SQLite 3.35 or newer, and this Python has" in refusal(path)


def test_a_database_without_a_write_ahead_log(monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = sqlite3.connect(":memory:", isolation_level=None)
    monkeypatch.setattr(sqlite3, "connect", lambda *_, **__: in_memory)
    with pytest.raises(
        sqlite3.NotSupportedError, match=r"cannot use a write-ahead log there, only memory"
    ):
        store_file.open_for_writing("/a/share", create=True)


@pytest.mark.parametrize(
    "where",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///calls.db?mode=ro",
        "sqlite:///file:calls.db",
        "mssql://joe@host/calls",
        "postgresql+asyncpg://joe@host/calls",
        "postgresql+psycopg2://joe@host/calls",
        "sqlite+aiosqlite:///calls.db",
        "://",
        "postgresql://joe:hunter2@host:port/calls",
    ],
)
def test_a_url_of_another_database_is_a_value_error(where: str) -> None:
    with pytest.raises(ValueError, match="store") as caught:
        open_store(where)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("patience", [-1, float("inf"), float("nan")])
def test_patience_is_a_number_of_seconds(path: Path, patience: float) -> None:
    with pytest.raises(ValueError, match="patience must be a finite number of seconds"):
        open_store(path, patience=patience)


@pytest.mark.parametrize("patience", ["2", None, True])
def test_patience_is_a_number(path: Path, patience: Any) -> None:
    with pytest.raises(TypeError, match="patience is in seconds, an int or a float"):
        open_store(path, patience=patience)


# --- without the extras ------------------------------------------------------


def without(module: str, where: str, path: Path) -> str:
    script = f"""
        import sys
        sys.modules[{module!r}] = None
        from ihuyi_voice.store.store import Store
        try:
            Store.open({where!r})
        except ImportError as error:
            print(error)
    """
    status, out, err = run(str(path), script)
    assert (0, "") == (status, err)
    return out


def test_without_sqlalchemy(path: Path) -> None:
    expected = (
        "this store needs sqlalchemy: pip install 'ihuyi-voice[store]', or '.[store]' in a"
        " checkout\n"
    )
    assert expected == without("sqlalchemy", str(path), path)


def test_without_psycopg(path: Path) -> None:
    expected = (
        "a store in PostgreSQL needs psycopg: pip install 'ihuyi-voice[postgresql]', or"
        " '.[postgresql]' in a checkout\n"
    )
    assert expected == without("psycopg", "postgresql+psycopg://joe@host/calls", path)


@pytest.mark.measures_processes
def test_another_missing_module_is_reported_unchanged(path: Path) -> None:
    status, out, err = run(
        str(path),
        """
        sys.modules["ihuyi_voice.store.sql.file"] = None
        try:
            Store.open(place)
        except ImportError as error:
            print(error)
        """,
    )
    assert (0, "import of ihuyi_voice.store.sql.file halted; None in sys.modules\n", "") == (
        status,
        out,
        err,
    )


def test_importing_the_module_imports_no_extra() -> None:
    script = "import ihuyi_voice.store.store, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert set() == {"sqlalchemy", "psycopg"} & set(done.stdout.split())


# --- closing -----------------------------------------------------------------


async def test_a_closed_store_raises(in_file: SqlStore) -> None:
    await claimed(in_file)
    in_file.close()
    in_file.close()
    with pytest.raises(RuntimeError, match="this store is closed"):
        await claim(in_file)
    with pytest.raises(RuntimeError, match="this store is closed"):
        await in_file.settle("k", "t", EntryState.ACCEPTED)
    for call in (in_file.unknown, in_file.summary):
        with pytest.raises(RuntimeError, match="this store is closed"):
            call()


def test_an_unused_store_can_be_closed(path: Path) -> None:
    open_store(path).close()
    assert ["calls.db"] == there(path)


async def test_closing_leaves_one_file(path: Path) -> None:
    with open_store(path) as store:
        await claimed(store)
        assert ["calls.db", "calls.db-shm", "calls.db-wal"] == there(path)
    assert ["calls.db"] == there(path)


async def test_a_store_without_references_closes_itself(path: Path) -> None:
    store = open_store(path)
    await claimed(store)
    del store
    gc.collect()
    assert ["calls.db"] == there(path)


def test_the_end_of_the_program_closes_the_store(path: Path) -> None:
    script = """
        store = open_store(place)
        asyncio.run(claimed(store))
    """
    assert (0, "", "") == run(str(path), script)
    assert ["calls.db"] == there(path)


def test_options_are_attributes(path: Path) -> None:
    clock = Clock()
    with open_store(path, patience=5, clock=clock) as store:
        assert (5, clock()) == (store.patience, store.clock())
    with open_store(path) as store:
        assert 2.0 == store.patience


async def test_a_file_with_two_names_is_refused(tmp_path: Path) -> None:
    """SQLite uses another log for the other name, so each name misses the other's claims."""
    one = tmp_path / "one.db"
    with open_store(one) as store:
        await claimed(store)
    os.link(one, tmp_path / "two.db")
    with (
        open_store(tmp_path / "two.db") as store,
        pytest.raises(StoreError, match="has 2 names"),
    ):
        await claimed(store)
