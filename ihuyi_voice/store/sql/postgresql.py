"""The backend for a PostgreSQL database: several machines."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, event, func, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.pool import NullPool

from ..._extras import needs_extra
from ...errors import StoreError
from .backend import SAVE_STARTS, milliseconds
from .tables import SETTLE, calls, claiming, starts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import sqlalchemy
    from sqlalchemy import URL, Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection

# Seconds until a server counts as failed: to connect, to lock a row that another
# transaction writes, and to execute any statement. Lost packets count too.
CONNECT_TIMEOUT = 5
LOCK_TIMEOUT = 5.0
STATEMENT_TIMEOUT = 10

# Any number, the same in every release: it serialises processes that create or change the tables.
_ADVISORY_LOCK = 4_805_719_362

_CLAIM = claiming(postgresql.insert(calls)).returning(calls.c.key)


def _lock_starts() -> sqlalchemy.Executable:
    # The row of a number without one is created, because what does not exist cannot be
    # locked. An update that changes nothing locks the others.
    new = postgresql.insert(starts)
    return new.on_conflict_do_update(
        index_elements=["number"], set_={"number": new.excluded.number}
    ).returning(starts.c.number, starts.c.starts)


def _options() -> dict[str, object]:
    """Those of libpq, where the URL does not set them."""
    return {
        "application_name": "ihuyi_voice",
        "client_encoding": "utf8",
        "connect_timeout": CONNECT_TIMEOUT,
        "keepalives_idle": STATEMENT_TIMEOUT,
        "keepalives_interval": CONNECT_TIMEOUT,
        "tcp_user_timeout": STATEMENT_TIMEOUT * 1000,
    }


# A server waits without any of these time limits for the rest of a batch of statements whose
# client was cut off in its middle, and the batch keeps its locks. So the server asks such a
# client whether it is there. Before release 12 there is no `tcp_user_timeout`.
_SET_UP = f"""
    SET synchronous_commit = on;
    SET lock_timeout = {int(LOCK_TIMEOUT * 1000)};
    SET statement_timeout = '{STATEMENT_TIMEOUT}s';
    SET idle_in_transaction_session_timeout = '{STATEMENT_TIMEOUT}s';
    SET tcp_keepalives_idle = {STATEMENT_TIMEOUT};
    SET tcp_keepalives_interval = {CONNECT_TIMEOUT};
    SET tcp_keepalives_count = 2;
    SELECT set_config(name, '{STATEMENT_TIMEOUT * 1000}', false)
        FROM pg_settings WHERE name = 'tcp_user_timeout'
"""  # noqa: S608 - our own numbers

_LOCK_STARTS = _lock_starts()
_NOW = select(func.extract("epoch", func.clock_timestamp()))


class PostgreSql:
    """See `Backend`; its repr shows no password.

    SQLAlchemy's URL is a tuple, and tools that show variables iterate tuples.
    """

    def __init__(self, url: URL) -> None:
        self._url = url.set(drivername="postgresql+psycopg")
        self.path: str | None = None
        # Without the query, because it may contain a password too.
        self.place: str = self._url.set(query={}).render_as_string(hide_password=True)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.place}>"

    def prepare(self) -> ModuleNotFoundError | None:
        """Make the engine; without psycopg, returns an error that the caller raises."""
        url = self._url
        options = {name: value for name, value in _options().items() if name not in url.query}
        try:
            self._engine = create_engine(
                url,
                poolclass=NullPool,
                hide_parameters=True,
                isolation_level="READ COMMITTED",
                connect_args=options,
            )
        except ImportError as error:
            needed = error.name or f"psycopg, which fails: {error}"
            msg = needs_extra("a store in PostgreSQL", needed, "postgresql")
            return ModuleNotFoundError(msg, name=error.name)
        event.listen(self._engine, "connect", _set_up)
        return None

    def engine(self, *, writing: bool) -> Engine:  # noqa: ARG002 - a server has no such difference
        """See `Backend`."""
        return self._engine

    def check(self, connection: sqlalchemy.Connection) -> None:
        """See `Backend`: it must be able to store the gateway's messages, which are Chinese."""
        encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
        # SQL_ASCII stores any bytes.
        if encoding not in ("UTF8", "SQL_ASCII"):
            msg = (
                f"{self.place} has the encoding {encoding}, which cannot store Chinese text:"
                " create a database with ENCODING 'UTF8' TEMPLATE template0"
            )
            raise StoreError(msg)

    @contextlib.contextmanager
    def lock_schema(self, connection: sqlalchemy.Connection) -> Iterator[None]:
        """See `Backend`: until the transaction ends."""
        connection.execute(select(func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
        yield

    def now(self, connection: sqlalchemy.Connection) -> float:
        """See `Backend`."""
        return float(connection.execute(_NOW).scalar_one())

    def wait_for_rows(self, connection: sqlalchemy.Connection, seconds: float) -> None:
        """See `Backend`."""
        connection.exec_driver_sql(f"SET lock_timeout = {milliseconds(seconds)}")

    def claim(
        self, connection: sqlalchemy.Connection, rows: Sequence[Mapping[str, object]]
    ) -> bool:
        """See `Backend`."""
        return len(connection.execute(_CLAIM, rows).all()) == len(rows)

    def settle(
        self, connection: sqlalchemy.Connection, rows: Sequence[Mapping[str, object]]
    ) -> bool:
        """See `Backend`."""
        return connection.execute(SETTLE, rows).rowcount == len(rows)

    def lock_starts(
        self, connection: sqlalchemy.Connection, numbers: Sequence[str]
    ) -> dict[str, str]:
        """See `Backend`."""
        rows = [{"number": number, "starts": "", "expires_at": 0.0} for number in numbers]
        return {row.number: row.starts for row in connection.execute(_LOCK_STARTS, rows)}

    def save_starts(
        self, connection: sqlalchemy.Connection, rows: Sequence[Mapping[str, object]]
    ) -> None:
        """See `Backend`."""
        connection.execute(SAVE_STARTS, [{**row, "its_number": row["number"]} for row in rows])


def _set_up(raw: DBAPIConnection, _: object) -> None:
    cursor = raw.cursor()
    cursor.execute(_SET_UP)
    cursor.close()
    # Otherwise the first rollback undoes the settings.
    raw.commit()
