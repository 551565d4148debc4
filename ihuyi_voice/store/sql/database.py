"""The database of a store: opens connections to it, and notices that it was replaced."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from .connection import Connection
from .file import Identity, check_path, identity_of
from .migrations import SCHEMA_VERSION
from .mysql import MySql
from .postgresql import PostgreSql
from .sqlite import Sqlite

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...models import Secret
    from .backend import Backend


class Database:
    """The database of a store.

    Attributes:
        backend: what differs between the databases.
        identity: the SQLite file that was opened; None for a server.
        store_id: the id of the store that was opened.
        is_new: whether opening it created it.
        ahead: by how many seconds the server's clock is ahead of this
            machine's; 0.0 for SQLite, and where the caller has passed a clock.

    Args:
        url: a path or a URL, which may contain a password.
        clock: the caller's clock, instead of the server's; None for the server's.

    Raises:
        ValueError: `url` names no database that a store can be in.
        ModuleNotFoundError: its driver is not installed.
    """

    def __init__(self, url: Secret, clock: Callable[[], float] | None) -> None:
        self.identity: Identity | None = None
        self.store_id: str | None = None
        self.is_new: bool = False
        self.ahead: float = 0.0
        self._clock = clock
        backend = _backend(url)
        if isinstance(backend, Exception):
            raise backend
        self.backend: Backend = backend

    @property
    def place(self) -> str:
        """Its name in messages, without a password."""
        return self.backend.place

    @property
    def path(self) -> str | None:
        """The SQLite file; None for a server."""
        return self.backend.path

    def clock(self) -> float:
        """The store's clock, Unix time in seconds."""
        return (self._clock or time.time)() + self.ahead

    @property
    def asks_server(self) -> bool:
        """Whether the server's clock decides."""
        return self._clock is None

    def open(self, *, create: bool) -> None:
        """Create the store if it is missing and may be created, and upgrade an older one.

        Raises:
            LookupError: there is no store, and none may be created.
            StoreError: it cannot be used.
        """
        path = self.path
        exists = path is None or Path(path).exists()
        if path is not None and (exists or create):
            check_path(Path(path))
        version = 0
        if exists:
            with self.connect(writing=False) as connection:
                version = connection.version
        if not version and not create:
            msg = f"there is no store in {self.place}" if exists else f"there is no {self.place}"
            raise LookupError(msg)
        if version < SCHEMA_VERSION:
            with self.connect() as connection:
                self.is_new = connection.migrate()
            self.connect(writing=False).close()
        if path is not None:
            self.identity = identity_of(path)

    def connect(self, *, writing: bool = True) -> Connection:
        """Open a connection; without `writing`, a read-only file is enough.

        Raises:
            StoreError: it cannot be used.
        """
        return Connection(self, writing=writing)

    def remember(self, store_id: str | None) -> None:
        """Remember the id of the store that was opened; another one in its place is refused."""
        self.store_id = store_id
        if isinstance(self.backend, Sqlite):
            self.backend.exists = store_id is not None


def _backend(url: Secret) -> Backend | Exception:  # noqa: PLR0911 - one for each kind
    """The backend of a path or URL, or the error to raise: this frame holds the password."""
    where = url.reveal()
    if "://" not in where:
        # Absolute, because the working directory may change.
        return Sqlite(os.path.abspath(where))  # noqa: PTH100 - it resolves no links
    # Without the URL and the parser's message, because both may contain a password.
    unreadable = (
        "the store's URL cannot be read; it is like postgresql+psycopg://user@host/database"
    )
    try:
        url_parts = make_url(where)
    except (ArgumentError, ValueError):
        return ValueError(unreadable)
    if "@" in (url_parts.host or ""):
        return ValueError(f"{unreadable}, with %40 for each @ in user or password")
    backend, _, driver = url_parts.drivername.partition("+")
    if backend == "postgresql" and driver in ("", "psycopg"):
        postgresql = PostgreSql(url_parts)
        return postgresql.prepare() or postgresql
    if backend in ("mysql", "mariadb") and driver in ("", "pymysql"):
        mysql = MySql(url_parts)
        return mysql.prepare() or mysql
    if backend != "sqlite" or driver not in ("", "pysqlite"):
        return ValueError(
            "a store is in an SQLite file, PostgreSQL (postgresql+psycopg://...), MySQL or MariaDB"
            f" (mysql+pymysql://...) or Redis (redis://...), not {url_parts.drivername}"
        )
    path = url_parts.database
    if not path or path.startswith((":memory:", "file:")) or url_parts.query or url_parts.host:
        return ValueError(
            "a store in SQLite needs a file and nothing more, like sqlite:///voice.db"
        )
    return Sqlite(os.path.abspath(path))  # noqa: PTH100 - it resolves no links
