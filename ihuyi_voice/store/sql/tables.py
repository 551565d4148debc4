"""The ledger's tables and the statements that need no connection: what is stored, and the rules.

The rules stand in the statements, so that the database decides and not this
process: which claim succeeds, and which settlement counts. `ledger_store.py`
runs them.

Stored of a request are its key, a keyed hash, the masked number, what became
of it and when: never its content, its full number or an API key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    MetaData,
    String,
    Table,
    Text,
    and_,
    bindparam,
    literal_column,
    null,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from ..entry import REPEATABLE, UNSETTLED, Entry, EntryState, Fingerprint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Executable

    from ..entry import Settlement

# Stored with the tables; a file with another one is refused.
SCHEMA_VERSION = 1

metadata: MetaData = MetaData()
meta: Table = Table(
    "ihuyi_voice_meta",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", Text, nullable=False),
)
calls: Table = Table(
    "ihuyi_voice_calls",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("digest", String(32), nullable=False),
    Column("hashed_with", String(8), nullable=False),
    Column("mobile", String(16), nullable=False),
    Column("state", String(8), nullable=False),
    Column("code", BigInteger),
    Column("msg", Text, nullable=False),
    Column("voice_id", String(32)),
    Column("token", String(32), nullable=False),
    Column("claimed_at", Double, nullable=False),
    Column("live_until", Double, nullable=False),
    Column("changed_at", Double, nullable=False),
)
_c = calls.c

ENTRY = (
    _c.key,
    _c.digest,
    _c.hashed_with,
    _c.mobile,
    _c.state,
    _c.code,
    _c.msg,
    _c.voice_id,
    _c.token,
    _c.claimed_at,
    _c.live_until,
)
IS_UNSETTLED = _c.state.in_([state.value for state in UNSETTLED])
IS_REPEATABLE = _c.state.in_([state.value for state in REPEATABLE])

FIND = select(*ENTRY).where(_c.key.in_(bindparam("keys", expanding=True)))
# The token's holder knows best, even where a person recorded something meanwhile;
# but what a person saw placed is not to be rung again because the holder knows less.
# What is set is taken from the names of the parameters.
SETTLE = update(calls).where(
    _c.key == bindparam("its_key"),
    _c.token == bindparam("its_token"),
    or_(
        _c.state != EntryState.ACCEPTED.value,
        bindparam("its_state") == EntryState.ACCEPTED.value,
    ),
)


def _claim_statement(statement: sqlite.Insert | postgresql.Insert) -> Executable:
    """One statement for a whole batch: the database alone decides who sends."""
    new = statement.excluded
    # Literal, because parameters here would have to be the same for all rows.
    states = ", ".join(f"'{state.value}'" for state in REPEATABLE)
    # The rule of `Entry.stands_for`, for those that may be repeated.
    same = or_(
        and_(_c.hashed_with == new.hashed_with, _c.digest == new.digest),
        and_(_c.hashed_with != new.hashed_with, _c.mobile == new.mobile),
    )
    return (
        statement.values(
            state=literal_column(f"'{EntryState.CLAIMED.value}'"),
            code=null(),
            msg=literal_column("''"),
            voice_id=null(),
        )
        .on_conflict_do_update(
            index_elements=["key"],
            set_={column.name: new[column.name] for column in _c if column is not _c.key},
            where=and_(text(f"{calls.name}.state IN ({states})"), same),
        )
        .returning(_c.key)
    )


CLAIM_IN_SQLITE = _claim_statement(sqlite.insert(calls))
CLAIM_IN_POSTGRESQL = _claim_statement(postgresql.insert(calls))


def overtaken(settlement: Settlement, standing: Entry) -> bool:
    """The rule of `SETTLE`."""
    if standing.token != settlement.token:
        return True
    return standing.state is EntryState.ACCEPTED and settlement.state is not EntryState.ACCEPTED


def entry_of(row: Sequence[Any]) -> Entry:
    """The entry in a row of the columns `ENTRY`."""
    key, digest, hashed_with, mobile, state, *rest = row
    return Entry(key, Fingerprint(digest, hashed_with), mobile, EntryState(state), *rest)
