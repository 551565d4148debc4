"""The backend for a MySQL or MariaDB database: several machines.

The statements keep to what MySQL 8 and MariaDB 10.6 both have, which excludes
RETURNING. How durable a commit is, the server decides alone: it needs
`innodb_flush_log_at_trx_commit = 1`, which is the default.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, event, func, literal_column, select, text
from sqlalchemy.dialects import mysql
from sqlalchemy.pool import NullPool

from ..._extras import needs_extra
from ...errors import StoreError
from ..entry import EntryState
from .backend import FIND_STARTS
from .tables import SETTLE, calls, is_free

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import sqlalchemy
    from sqlalchemy import URL, ColumnElement, Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection

# Seconds until a server counts as failed: to connect, to lock a row that another
# transaction writes, and to send or answer any statement. Lost packets count too.
CONNECT_TIMEOUT = 5
LOCK_TIMEOUT = 5
STATEMENT_TIMEOUT = 10
# Seconds until the server closes a silent connection, so that a machine that has
# disappeared locks nothing for longer. The writer then opens another connection.
IDLE_TIMEOUT = 60

_TIMEOUTS: dict[str, object] = {
    "connect_timeout": CONNECT_TIMEOUT,
    "read_timeout": STATEMENT_TIMEOUT,
    "write_timeout": STATEMENT_TIMEOUT,
}
# Also where the URL says otherwise: what does not fit must fail, and not be changed.
_SETTINGS: dict[str, object] = {
    "charset": "utf8mb4",
    "sql_mode": "STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION",
}
_SET_UP = (
    # SQLAlchemy's reset of a connection does not undo these.
    f"SET SESSION time_zone = '+00:00', innodb_lock_wait_timeout = {LOCK_TIMEOUT},"
    f" lock_wait_timeout = {LOCK_TIMEOUT}, wait_timeout = {IDLE_TIMEOUT}"
)
# The same in every release: it serialises processes that create or change the tables.
_SCHEMA_LOCK = "ihuyi_voice_schema"


def _claim() -> str:
    # Assignments are evaluated from left to right. So the token comes first: it says
    # for the other columns whether the row is claimed now.
    names = [column.name for column in calls.c]
    new: dict[str, ColumnElement[str]] = {name: literal_column(f"VALUES({name})") for name in names}
    free = is_free(new).compile(dialect=mysql.dialect())
    others = [name for name in names if name not in ("key", "token")]
    changes = [
        f"token = IF({free}, VALUES(token), token)",
        *(f"{name} = IF(token = VALUES(token), VALUES({name}), {name})" for name in others),
    ]
    columns = ", ".join(f"`{name}`" for name in names)
    places = ", ".join("%s" for _ in names)
    return (
        f"INSERT INTO {calls.name} ({columns}) VALUES ({places})"  # noqa: S608 - our own names
        f" ON DUPLICATE KEY UPDATE {', '.join(changes)}"
    )


_CLAIM = _claim()
_EMPTY = {
    "state": EntryState.CLAIMED.value,
    "answer": None,
    # As `NO_OLDER_ANSWER`.
    "code": None,
    "msg": "",
    "voice_id": None,
}
# The row of a number without one is created, because what does not exist cannot be
# locked. An update that changes nothing locks the others.
_INSERT_STARTS = "INSERT INTO ihuyi_voice_starts (number, starts, expires_at) VALUES (%s, %s, %s)"
_LOCK_STARTS = f"{_INSERT_STARTS} ON DUPLICATE KEY UPDATE number = VALUES(number)"
_SAVE_STARTS = (
    f"{_INSERT_STARTS} ON DUPLICATE KEY UPDATE"
    " starts = VALUES(starts), expires_at = VALUES(expires_at)"
)
_NOW = select(func.unix_timestamp(func.sysdate(text("6"))))


class MySql:
    """See `Backend`; its repr shows no password.

    SQLAlchemy's URL is a tuple, and tools that show variables iterate tuples.
    """

    def __init__(self, url: URL) -> None:
        self._url = url.set(drivername="mysql+pymysql")
        self.path: str | None = None
        # Without the query, because it may contain a password too.
        self.place: str = self._url.set(query={}).render_as_string(hide_password=True)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.place}>"

    def prepare(self) -> ModuleNotFoundError | None:
        """Make the engine; without PyMySQL, returns an error that the caller raises."""
        url = self._url
        timeouts = {name: value for name, value in _TIMEOUTS.items() if name not in url.query}
        try:
            self._engine = create_engine(
                url,
                poolclass=NullPool,
                hide_parameters=True,
                isolation_level="READ COMMITTED",
                connect_args={**timeouts, **_SETTINGS},
            )
        except ImportError as error:
            needed = error.name or f"PyMySQL, which fails: {error}"
            msg = needs_extra("a store in MySQL or MariaDB", needed, "mysql")
            return ModuleNotFoundError(msg, name=error.name)
        event.listen(self._engine, "connect", _set_up)
        return None

    def engine(self, *, writing: bool) -> Engine:  # noqa: ARG002 - a server has no such difference
        """See `Backend`."""
        return self._engine

    def check(self, connection: sqlalchemy.Connection) -> None:
        """See `Backend`: the tables bring their own character set and engine."""

    @contextlib.contextmanager
    def lock_schema(self, connection: sqlalchemy.Connection) -> Iterator[None]:
        """See `Backend`; after a failure it ends with the connection."""
        locked = select(func.get_lock(_SCHEMA_LOCK, LOCK_TIMEOUT))
        if connection.execute(locked).scalar_one() != 1:
            msg = f"{self.place}: another process has been creating its tables for {LOCK_TIMEOUT} s"
            raise StoreError(msg)
        yield
        # Tables commit by themselves, and rows must not be committed later than the lock ends.
        connection.exec_driver_sql("COMMIT")
        connection.execute(select(func.release_lock(_SCHEMA_LOCK)))

    def now(self, connection: sqlalchemy.Connection) -> float:
        """See `Backend`."""
        return float(connection.execute(_NOW).scalar_one())

    def wait_for_rows(self, connection: sqlalchemy.Connection, seconds: float) -> None:
        """See `Backend`: in whole seconds."""
        whole = max(1, math.ceil(seconds))
        connection.exec_driver_sql(f"SET SESSION innodb_lock_wait_timeout = {whole}")

    def claim(
        self, connection: sqlalchemy.Connection, rows: Sequence[Mapping[str, object]]
    ) -> bool:
        """See `Backend`."""
        names = [column.name for column in calls.c]
        values = [tuple({**_EMPTY, **row}[name] for name in names) for row in rows]
        connection.exec_driver_sql(_CLAIM, values)
        # Which rows changed, the server does not say: the caller finds its own tokens.
        return False

    def settle(
        self, connection: sqlalchemy.Connection, rows: Sequence[Mapping[str, object]]
    ) -> bool:
        """See `Backend`."""
        # SQLAlchemy asks the server to count the rows that already had the values too.
        return connection.execute(SETTLE, rows).rowcount == len(rows)

    def lock_starts(
        self, connection: sqlalchemy.Connection, numbers: Sequence[str]
    ) -> dict[str, str]:
        """See `Backend`."""
        connection.exec_driver_sql(_LOCK_STARTS, [(number, "", 0.0) for number in numbers])
        return {
            row.number: row.starts for row in connection.execute(FIND_STARTS, {"numbers": numbers})
        }

    def save_starts(
        self, connection: sqlalchemy.Connection, rows: Sequence[Mapping[str, object]]
    ) -> None:
        """See `Backend`."""
        values = [(row["number"], row["starts"], row["expires_at"]) for row in rows]
        connection.exec_driver_sql(_SAVE_STARTS, values)


def _set_up(raw: DBAPIConnection, _: object) -> None:
    cursor = raw.cursor()
    cursor.execute(_SET_UP)
    cursor.close()
