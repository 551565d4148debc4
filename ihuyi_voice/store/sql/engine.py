"""SQLAlchemy engines for SQLite and PostgreSQL, and the settings of each connection.

It parses paths and URLs and sets the timeouts. `connection.py` reads and writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool

from ...errors import LedgerError
from .file import until_free

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    import sqlalchemy
    from sqlalchemy import URL, Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection

    from ...models import Secret

# Seconds until a server counts as failed: to connect, to lock a row that another
# transaction writes, and to execute any statement. Lost packets count too.
CONNECT_TIMEOUT = 5
LOCK_TIMEOUT = 5.0
STATEMENT_TIMEOUT = 10

_OPTIONS: dict[str, object] = {
    "application_name": "ihuyi_voice",
    "client_encoding": "utf8",
    "connect_timeout": CONNECT_TIMEOUT,
    "keepalives_idle": STATEMENT_TIMEOUT,
    "keepalives_interval": CONNECT_TIMEOUT,
    "tcp_user_timeout": STATEMENT_TIMEOUT * 1000,
}


class Server:
    """A PostgreSQL database and its URL; its repr shows no password.

    SQLAlchemy's URL is a tuple, and tools that show variables iterate tuples.

    Attributes:
        place: its name in messages, without a password.
    """

    __slots__ = ("_url", "place")

    def __init__(self, url: URL) -> None:
        self._url = url.set(drivername="postgresql+psycopg")
        # Without the query, because it may contain a password too.
        self.place: str = self._url.set(query={}).render_as_string(hide_password=True)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.place}>"

    def engine(self) -> Engine | ModuleNotFoundError:
        """The engine that opens its connections.

        Without psycopg it returns an error that the caller raises.
        """
        url = self._url
        options = {name: value for name, value in _OPTIONS.items() if name not in url.query}
        try:
            engine = create_engine(
                url,
                poolclass=NullPool,
                hide_parameters=True,
                isolation_level="READ COMMITTED",
                connect_args=options,
            )
        except ImportError as error:
            needed = error.name or f"psycopg, which fails: {error}"
            msg = f"a ledger in PostgreSQL needs {needed}: pip install 'ihuyi-voice[postgresql]'"
            return ModuleNotFoundError(msg, name=error.name)
        event.listen(engine, "connect", _set_up_postgresql)
        return engine


def server_or_path(where: Secret) -> Server | str | ValueError:
    """Parse a path or a URL into a PostgreSQL database or the path of an SQLite file.

    Where it is neither, it returns an error that the caller raises, because
    this frame holds the password.
    """
    text = where.reveal()
    return _read_url(text) if "://" in text else text


def _read_url(text: str) -> Server | str | ValueError:
    # Without the URL and the parser's message, because both may contain a password.
    unreadable = (
        "the ledger's URL cannot be read; it is like postgresql+psycopg://user@host/database"
    )
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        return ValueError(unreadable)
    backend, _, driver = url.drivername.partition("+")
    if backend == "postgresql" and driver in ("", "psycopg"):
        if "@" in (url.host or ""):
            return ValueError(f"{unreadable}, with %40 for each @ in user or password")
        return Server(url)
    if backend != "sqlite" or driver not in ("", "pysqlite"):
        return ValueError(
            "a ledger is an SQLite file or a PostgreSQL database (postgresql+psycopg://...),"
            f" not {url.drivername}"
        )
    if not url.database or url.database.startswith((":memory:", "file:")) or url.query or url.host:
        return ValueError(
            "a ledger in SQLite needs a file and nothing more, like sqlite:///calls.db"
        )
    return url.database


def sqlite_engine(connect: Callable[[], sqlite3.Connection]) -> Engine:
    """An engine that opens connections to an SQLite file."""
    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool, hide_parameters=True)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _begin_sqlite(connection: sqlalchemy.Connection) -> None:
    raw = cast("sqlite3.Connection", connection.connection.dbapi_connection)
    statement: str = connection.info["begin"]
    until_free(lambda: raw.execute(statement))


def check_encoding(place: str, connection: sqlalchemy.Connection) -> None:
    """Refuse a database that cannot store the gateway's messages, which are Chinese."""
    encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
    # SQL_ASCII stores any bytes.
    if encoding not in ("UTF8", "SQL_ASCII"):
        msg = (
            f"{place} has the encoding {encoding}, which cannot store Chinese text: create a"
            " database with ENCODING 'UTF8' TEMPLATE template0"
        )
        raise LedgerError(msg)


def _set_up_postgresql(raw: DBAPIConnection, _: object) -> None:
    cursor = raw.cursor()
    cursor.execute("SET synchronous_commit = on")
    cursor.execute(f"SET lock_timeout = {int(LOCK_TIMEOUT * 1000)}")
    cursor.execute(f"SET statement_timeout = '{STATEMENT_TIMEOUT}s'")
    cursor.execute(f"SET idle_in_transaction_session_timeout = '{STATEMENT_TIMEOUT}s'")
    cursor.close()
    # Otherwise the first rollback undoes the settings.
    raw.commit()
