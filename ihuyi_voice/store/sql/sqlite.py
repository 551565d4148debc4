"""The backend for an SQLite file: the processes of one machine.

One writer at a time has the whole file, so there are no row locks.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sqlalchemy import create_engine, event
from sqlalchemy.dialects import sqlite
from sqlalchemy.pool import NullPool

from ...errors import StoreError
from ..entry import NewClaim
from .file import lost, open_for_reading, open_for_writing, until_free
from .tables import SETTLE, SETTLED_COLUMNS, calls, claiming, starts

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Mapping, Sequence

    import sqlalchemy
    from sqlalchemy import Engine, Insert, Update


def _save_starts() -> sqlite.Insert:
    new = sqlite.insert(starts)
    return new.on_conflict_do_update(
        index_elements=["number"],
        set_={"starts": new.excluded.starts, "expires_at": new.excluded.expires_at},
    )


def _text(statement: Insert | Update, *parameters: str) -> str:
    """A statement for the driver itself: SQLAlchemy's own work takes longer than SQLite's."""
    compiled = statement.compile(
        dialect=sqlite.dialect(paramstyle="named"), column_keys=list(parameters)
    )
    return str(compiled)


_CLAIM = _text(claiming(sqlite.insert(calls)), *NewClaim._fields, "changed_at")
_SETTLE = _text(SETTLE, *SETTLED_COLUMNS)
_STARTS_COLUMNS = ("number", "starts", "expires_at")
_PLACES = "(:number, :starts, :expires_at)"
_SAVE_STARTS = _text(_save_starts(), *_STARTS_COLUMNS)
_FIND_STARTS = f"SELECT number, starts FROM {starts.name} WHERE number IN "  # noqa: S608 - our own name


class Sqlite:
    """See `Backend`.

    Attributes:
        exists: whether the store was found or created, so that its file must
            not be created a second time.
    """

    def __init__(self, path: str) -> None:
        self.path: str | None = path
        self.place: str = path
        self.exists: bool = False
        self._path = path

    def engine(self, *, writing: bool) -> Engine:
        """See `Backend`."""

        def connect() -> sqlite3.Connection:
            if self.exists and not Path(self._path).exists():
                raise StoreError(lost(self._path))
            if writing:
                return open_for_writing(self._path, create=not self.exists)
            return open_for_reading(self._path)

        engine = create_engine(
            "sqlite://", creator=connect, poolclass=NullPool, hide_parameters=True
        )
        event.listen(engine, "begin", _begin)
        return engine

    def check(self, connection: sqlalchemy.Connection) -> None:
        """See `Backend`; `check_path` has checked the file."""

    @contextlib.contextmanager
    def lock_schema(self, connection: sqlalchemy.Connection) -> Iterator[None]:  # noqa: ARG002 - its transaction holds the file
        """See `Backend`."""
        yield

    def now(self, connection: sqlalchemy.Connection) -> None:
        """See `Backend`: all processes are on this machine."""

    def wait_for_rows(self, connection: sqlalchemy.Connection, seconds: float) -> None:
        """See `Backend`: there are no row locks."""

    def claim(
        self, connection: sqlalchemy.Connection, rows: Sequence[Mapping[str, object]]
    ) -> bool:
        """See `Backend`."""
        return _raw(connection).executemany(_CLAIM, rows).rowcount == len(rows)

    def settle(
        self, connection: sqlalchemy.Connection, rows: Sequence[Mapping[str, object]]
    ) -> bool:
        """See `Backend`."""
        return _raw(connection).executemany(_SETTLE, rows).rowcount == len(rows)

    def lock_starts(
        self, connection: sqlalchemy.Connection, numbers: Sequence[str]
    ) -> dict[str, str]:
        """See `Backend`: the transaction has the whole file."""
        # One statement: each execution gives the GIL to the event loop, and waits for it again.
        places = ", ".join("?" * len(numbers))
        return dict(_raw(connection).execute(f"{_FIND_STARTS}({places})", numbers).fetchall())

    def save_starts(
        self, connection: sqlalchemy.Connection, rows: Sequence[Mapping[str, object]]
    ) -> None:
        """See `Backend`."""
        # One statement, as in `lock_starts`; a batch stays below SQLite's 32,766 parameters.
        places = ", ".join(["(?, ?, ?)"] * len(rows))
        values = [row[column] for row in rows for column in _STARTS_COLUMNS]
        _raw(connection).execute(_SAVE_STARTS.replace(_PLACES, places), values)


def _raw(connection: sqlalchemy.Connection) -> sqlite3.Connection:
    return cast("sqlite3.Connection", connection.connection.dbapi_connection)


def _begin(connection: sqlalchemy.Connection) -> None:
    raw = _raw(connection)
    statement: str = connection.info["begin"]
    until_free(lambda: raw.execute(statement))
