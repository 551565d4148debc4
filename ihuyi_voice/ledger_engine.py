"""What makes the ledger's connections: SQLAlchemy engines for either kind of database.

How a place is named, and what is set on each connection: who is waited for,
and for how long. What is read and written over it is `ledger_store.py`'s
business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool

from .errors import LedgerError
from .ledger_file import until_free

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    import sqlalchemy
    from sqlalchemy import URL, Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection

# Seconds until a server that does not answer counts as failed: connecting,
# waiting for a row that another one writes, any one statement, lost packets.
CONNECT_TIMEOUT = 5
LOCK_TIMEOUT = 5.0
STATEMENT_TIMEOUT = 10


def url_or_path(where: str) -> tuple[URL | None, str]:
    """The URL of a PostgreSQL database, or None and the path of an SQLite file.

    Raises:
        ValueError: it names neither.
    """
    if "://" not in where:
        return None, where
    try:
        url = make_url(where)
    except (ArgumentError, ValueError):
        # Neither the URL nor the parser's words, which may hold a password.
        msg = "the ledger's URL cannot be read; it is like postgresql+psycopg://user@host/database"
        raise ValueError(msg) from None
    backend, _, driver = url.drivername.partition("+")
    if backend == "postgresql" and driver in ("", "psycopg"):
        return url.set(drivername="postgresql+psycopg"), ""
    if backend != "sqlite" or driver not in ("", "pysqlite"):
        msg = (
            "a ledger is an SQLite file or a PostgreSQL database (postgresql+psycopg://...),"
            f" not {url.drivername}"
        )
        raise ValueError(msg)
    if not url.database or url.database.startswith((":memory:", "file:")) or url.query or url.host:
        msg = "a ledger in SQLite needs a file and nothing more, like sqlite:///calls.db"
        raise ValueError(msg)
    return None, url.database


def sqlite_engine(connect: Callable[[], sqlite3.Connection]) -> Engine:
    """What makes connections to an SQLite file, one by one."""
    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool, hide_parameters=True)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _begin_sqlite(connection: sqlalchemy.Connection) -> None:
    raw = cast("sqlite3.Connection", connection.connection.dbapi_connection)
    statement: str = connection.info["begin"]
    until_free(lambda: raw.execute(statement))


def postgresql_engine(url: URL) -> Engine:
    """What makes connections to a PostgreSQL database, one by one.

    Raises:
        ModuleNotFoundError: psycopg is not installed.
    """
    defaults: dict[str, object] = {
        "application_name": "ihuyi_voice",
        "client_encoding": "utf8",
        "connect_timeout": CONNECT_TIMEOUT,
        "keepalives_idle": STATEMENT_TIMEOUT,
        "tcp_user_timeout": STATEMENT_TIMEOUT * 1000,
    }
    try:
        engine = create_engine(
            url,
            poolclass=NullPool,
            hide_parameters=True,
            isolation_level="READ COMMITTED",
            connect_args={name: value for name, value in defaults.items() if name not in url.query},
        )
    except ModuleNotFoundError as error:
        msg = f"a ledger in PostgreSQL needs {error.name}: pip install 'ihuyi-voice[postgresql]'"
        raise ModuleNotFoundError(msg, name=error.name) from error
    event.listen(engine, "connect", _set_up_postgresql)
    return engine


def check_encoding(place: str, connection: sqlalchemy.Connection) -> None:
    """Refuse a database that cannot hold what the gateway says, which is Chinese."""
    encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
    # SQL_ASCII takes whatever bytes come.
    if encoding not in ("UTF8", "SQL_ASCII"):
        msg = (
            f"{place} has the encoding {encoding}, in which Chinese cannot be written: create a"
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
    # Or the first rollback would take them back.
    raw.commit()
