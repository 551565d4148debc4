"""The place of a ledger, an SQLite file or a PostgreSQL database: opens connections to it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import LedgerError
from .connection import Connection
from .engine import Server, server_or_path, sqlite_engine
from .file import Identity, check_path, identity_of, lost, open_for_reading, open_for_writing
from .tables import CLAIM_IN_POSTGRESQL, CLAIM_IN_SQLITE

if TYPE_CHECKING:
    import sqlite3

    from sqlalchemy import Engine, Executable

    from ...models import Secret


class Store:
    """The place of a ledger: opens connections, and detects that the ledger was replaced.

    Attributes:
        place: its name in messages, without a password.
        path: the SQLite file; None for PostgreSQL.
        claim_statement: the statement that claims, for this database.
        identity: the file that was opened; None for PostgreSQL.
        ledger_id: the id of the ledger that was opened.
        is_new: whether opening it created it.

    Args:
        where: a path or a URL, which may contain a password.

    Raises:
        ValueError: `where` names neither an SQLite file nor a PostgreSQL
            database.
        ModuleNotFoundError: psycopg is not installed.
    """

    def __init__(self, where: Secret) -> None:
        self.path: str | None = None
        self.identity: Identity | None = None
        self.ledger_id: str | None = None
        self.is_new: bool = False
        self.claim_statement: Executable = CLAIM_IN_SQLITE
        found = server_or_path(where)
        if isinstance(found, ValueError):
            raise found
        if not isinstance(found, Server):
            # Absolute, because the working directory may change.
            self.path = os.path.abspath(found)  # noqa: PTH100 - it resolves no links
            self.place: str = self.path
            return
        self.place = found.place
        self.claim_statement = CLAIM_IN_POSTGRESQL
        engine = found.engine()
        if isinstance(engine, ModuleNotFoundError):
            raise engine
        self._postgresql = engine

    def open(self, *, create: bool) -> None:
        """Create the ledger if it is missing and may be created, and check that it can be read.

        Raises:
            LookupError: there is no ledger, and none may be created.
            LedgerError: it cannot be used.
        """
        exists = self.path is None or Path(self.path).exists()
        if self.path is not None and (exists or create):
            check_path(Path(self.path))
        if exists:
            self.connect(writing=False).close()
        if self.ledger_id is None and not create:
            msg = f"there is no ledger in {self.place}" if exists else f"there is no {self.place}"
            raise LookupError(msg)
        if self.ledger_id is None:
            with self.connect() as connection:
                self.is_new = connection.create_schema()
            self.connect(writing=False).close()
        if self.path is not None:
            self.identity = identity_of(self.path)

    def connect(self, *, writing: bool = True) -> Connection:
        """Open a connection; without `writing`, a read-only file is enough.

        Raises:
            LedgerError: it cannot be used.
        """
        return Connection(self, writing=writing)

    def engine(self, *, writing: bool) -> Engine:
        """The engine that opens connections."""
        path = self.path
        if path is None:
            return self._postgresql

        def connect() -> sqlite3.Connection:
            if self.ledger_id is not None and not Path(path).exists():
                raise LedgerError(lost(path))
            if writing:
                return open_for_writing(path, create=self.ledger_id is None)
            return open_for_reading(path)

        return sqlite_engine(connect)
