"""What differs between the databases: one `Backend` for each."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import bindparam, select, update

from .tables import starts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    import sqlalchemy
    from sqlalchemy import Engine

_s = starts.c
FIND_STARTS = select(_s.number, _s.starts).where(
    _s.number.in_(bindparam("numbers", expanding=True))
)
SAVE_STARTS = (
    update(starts)
    .where(_s.number == bindparam("its_number"))
    .values(starts=bindparam("starts"), expires_at=bindparam("expires_at"))
)


class Backend(Protocol):
    """A kind of database: how it is reached, and the statements that only it has.

    Attributes:
        place: its name in messages, without a password.
        path: the SQLite file; None for a server.
    """

    place: str
    path: str | None

    def engine(self, *, writing: bool) -> Engine:
        """The engine that opens connections; without `writing`, to a read-only file too."""

    def check(self, connection: sqlalchemy.Connection) -> None:
        """Refuse a database that cannot hold a store, with a `StoreError`."""

    def lock_schema(self, connection: sqlalchemy.Connection) -> AbstractContextManager[None]:
        """Let no other process create or change tables within the block."""

    def now(self, connection: sqlalchemy.Connection) -> float | None:
        """The server's clock, Unix time in seconds; None where this machine's counts."""

    def wait_for_rows(self, connection: sqlalchemy.Connection, seconds: float) -> None:
        """Wait at most so many seconds for each row that another transaction locks."""

    def claim(
        self, connection: sqlalchemy.Connection, rows: Sequence[Mapping[str, object]]
    ) -> bool:
        """Claim the keys that are free.

        Args:
            connection: in a transaction.
            rows: the columns of `calls` that a new claim sets, by key in order.

        Returns:
            True when all are claimed. False when some may not be: the rows
            that have the token of their claim are.
        """

    def settle(
        self, connection: sqlalchemy.Connection, rows: Sequence[Mapping[str, object]]
    ) -> bool:
        """Execute `SETTLE`; returns whether it has changed or confirmed every row."""

    def lock_starts(
        self, connection: sqlalchemy.Connection, numbers: Sequence[str]
    ) -> dict[str, str]:
        """The starts of the numbers, which no other transaction changes until this one ends.

        Args:
            connection: in a transaction.
            numbers: in order, so that no two transactions wait for each other.
        """

    def save_starts(
        self, connection: sqlalchemy.Connection, rows: Sequence[Mapping[str, object]]
    ) -> None:
        """Write the `starts` and `expires_at` of each `number`, all of which were locked."""


def milliseconds(seconds: float) -> int:
    """Whole milliseconds, at least one for anything above 0."""
    return math.ceil(seconds * 1000)
