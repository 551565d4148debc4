"""The ledger's tables and its SQL statements.

The statements contain the rules: which claim succeeds, and which settlement
counts. So the database decides, and no process. `connection.py` executes them.

A row holds the key, a keyed hash, the masked mobile, the outcome and the times
of a request. It never holds the content, the whole mobile or an API key.
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

# Stored with the tables; a ledger with another version is refused.
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
# The holder of the token knows the outcome, even where a person has recorded another one.
# One exception: a call that a person saw placed stays accepted, or it could ring again.
# The names of the other parameters say which columns are set.
SETTLE = update(calls).where(
    _c.key == bindparam("its_key"),
    _c.token == bindparam("its_token"),
    or_(
        _c.state != EntryState.ACCEPTED.value,
        bindparam("its_state") == EntryState.ACCEPTED.value,
    ),
)


def _claim_statement(statement: sqlite.Insert | postgresql.Insert) -> Executable:
    """One statement for a whole batch: the database decides which process sends."""
    new = statement.excluded
    # Literals: a parameter here would be needed in each row.
    states = ", ".join(f"'{state.value}'" for state in REPEATABLE)
    # The rule of `Entry.matches`, for entries that may be claimed again.
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


def overtaken(settlement: Settlement, existing: Entry) -> bool:
    """Whether `SETTLE` leaves the existing entry unchanged."""
    if existing.token != settlement.token:
        return True
    return existing.state is EntryState.ACCEPTED and settlement.state is not EntryState.ACCEPTED


def entry_of(row: Sequence[Any]) -> Entry:
    """The entry of a row that has the columns `ENTRY`."""
    key, digest, hashed_with, mobile, state, *rest = row
    return Entry(key, Fingerprint(digest, hashed_with), mobile, EntryState(state), *rest)
