"""The numbered steps from an empty database to the tables of this release.

Opening a store runs the steps that it lacks, in order, under a lock. A step
that a release has shipped never changes: what later releases need is a new
step. In MySQL each statement commits by itself, so a step must do no harm where
it ran halfway before.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect, select, update
from sqlalchemy.schema import CreateColumn

from ...errors import StoreError
from .tables import calls, job_outcomes, jobs, meta, metadata, starts, verifications

if TYPE_CHECKING:
    from collections.abc import Callable

    import sqlalchemy
    from sqlalchemy import Column, Table


def _create(*tables: Table) -> Callable[[sqlalchemy.Connection], None]:
    return lambda connection: metadata.create_all(connection, tables=tables)


def _add(column: Column[Any]) -> Callable[[sqlalchemy.Connection], None]:
    """Add a column to its table; a table that a step of this release has created has it."""

    def step(connection: sqlalchemy.Connection) -> None:
        table = column.table
        if column.name in {there["name"] for there in inspect(connection).get_columns(table.name)}:
            return
        definition = CreateColumn(column).compile(dialect=connection.dialect)
        connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {definition}")

    return step


_STEPS = (
    # 1: idempotency keys.
    _create(meta, calls),
    # 2: limits per number.
    _create(starts),
    # 3: verifications.
    _create(verifications),
    # 4: jobs of several machines.
    _create(jobs, job_outcomes),
    # 5: all that is known of an answer in one column.
    _add(calls.c.answer),
)

SCHEMA_VERSION = len(_STEPS)
"""The number of the last step."""


def facts_of(connection: sqlalchemy.Connection) -> dict[str, str]:
    """What the store says of itself; empty where there is none."""
    if not inspect(connection).has_table(meta.name):
        return {}
    return {row.name: row.value for row in connection.execute(select(meta))}


def version_of(facts: dict[str, str], place: str) -> int:
    """The last step that a store has run; 0 for none.

    Raises:
        StoreError: this release cannot read it.
    """
    version = facts.get("schema", "") if facts else "0"
    if not version.isdecimal() or (facts and version == "0"):
        msg = (
            f"{place} has tables of another program, or of an unknown release (schema {version!r})"
        )
        raise StoreError(msg)
    if int(version) > SCHEMA_VERSION:
        msg = f"{place} was written by a newer release (schema {version}): update ihuyi-voice"
        raise StoreError(msg)
    return int(version)


def migrate(connection: sqlalchemy.Connection, place: str) -> bool:
    """Run the steps that are missing. The caller holds the schema's lock.

    Returns:
        Whether there was no store before.
    """
    facts = facts_of(connection)
    version = version_of(facts, place)
    for step in _STEPS[version:]:
        step(connection)
    if not facts:
        connection.execute(
            meta.insert(),
            [
                {"name": "schema", "value": str(SCHEMA_VERSION)},
                {"name": "id", "value": secrets.token_hex(8)},
            ],
        )
    elif version < SCHEMA_VERSION:
        connection.execute(
            update(meta).where(meta.c.name == "schema").values(value=str(SCHEMA_VERSION))
        )
    return not facts
