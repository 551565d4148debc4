"""Fixtures: stores in SQLite files, and in the PostgreSQL and MariaDB servers of the tests."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from .support import Clock, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ihuyi_voice.store.sql.store import SqlStore

    from .mariadb import MariaDbServer
    from .postgres import PostgresServer


@pytest.fixture
def mariadb_url(mariadb: MariaDbServer) -> str:
    """The URL of a database without a store."""
    return mariadb.empty()


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The place of a store that does not exist yet, in each of the databases."""
    if request.param == "sqlite":
        return str(tmp_path / "calls.db")
    name = "postgres" if request.param == "postgresql" else "mariadb"
    server: PostgresServer | MariaDbServer = request.getfixturevalue(name)
    return server.empty()


@pytest.fixture(autouse=True)
def _no_last_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing a store does not retry settlements that can never be recorded."""
    monkeypatch.setattr("ihuyi_voice.store.writer.bounds.LAST_RETRIES", 0.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(place: str, clock: Clock) -> Iterator[SqlStore]:
    with open_store(place, patience=0.1, clock=clock) as opened:
        yield opened


@pytest.fixture
def in_file(tmp_path: Path, clock: Clock) -> Iterator[SqlStore]:
    """A store in SQLite, for tests about files."""
    with open_store(tmp_path / "calls.db", patience=0.1, clock=clock) as opened:
        yield opened


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that is a file system of 256 KiB."""
    if os.geteuid() != 0:  # pragma: no cover - depends on who runs the tests
        pytest.skip("only root mounts a file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def read_only(small_disk: Path) -> Callable[[], None]:
    """Makes the small disk read-only, also for root."""

    def remount() -> None:
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)

    return remount
