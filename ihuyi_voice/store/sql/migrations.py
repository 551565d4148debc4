"""The numbered steps from an empty database to the tables of this release.

Opening a store runs the steps that it lacks, in order, under a lock. A step
that a release has shipped never changes: what later releases need is a new
step. In MySQL each statement commits by itself, so a step must do no harm where
it ran halfway before.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from sqlalchemy import inspect, select, update

from ...errors import StoreError
from .tables import calls, job_outcomes, jobs, meta, metadata, starts, verifications

if TYPE_CHECKING:
    import sqlalchemy
    from sqlalchemy import Table

_TABLES_OF_STEP: tuple[tuple[Table, ...], ...] = (
    # 1: idempotency keys.
    (meta, calls),
    # 2: limits per number.
    (starts,),
    # 3: verifications.
    (verifications,),
    # 4: jobs of several machines.
    (jobs, job_outcomes),
)

SCHEMA_VERSION = len(_TABLES_OF_STEP)
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
    for tables in _TABLES_OF_STEP[version:]:
        metadata.create_all(connection, tables=tables)
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
