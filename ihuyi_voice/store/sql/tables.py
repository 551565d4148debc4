"""The store's tables and its SQL statements.

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
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    and_,
    bindparam,
    literal_column,
    null,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects import mysql

from ..answer import NO_ANSWER, StoredAnswer
from ..entry import REPEATABLE, UNSETTLED, Entry, EntryState, Fingerprint
from ..limits import Start

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import ColumnElement, Dialect
    from sqlalchemy.dialects import postgresql, sqlite
    from sqlalchemy.types import TypeEngine

    from ..entry import Settlement

# MySQL's TEXT ends at 64 KiB.
_LONG_TEXT = Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
# Texts are compared byte by byte, as in the other databases.
_IN_MYSQL: dict[str, Any] = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
    "mariadb_engine": "InnoDB",
    "mariadb_charset": "utf8mb4",
    "mariadb_collate": "utf8mb4_bin",
}


class _Key(TypeDecorator[str]):
    """An idempotency key; bytes in MySQL, whose collations ignore blanks at the end of a text."""

    impl = String(255)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name in ("mysql", "mariadb"):
            # A character has at most 4 bytes.
            return dialect.type_descriptor(mysql.VARBINARY(255 * 4))
        return dialect.type_descriptor(String(255))

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | bytes | None:
        return value.encode() if value and dialect.name in ("mysql", "mariadb") else value

    def process_result_value(self, value: str | bytes | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - as the base class
        return value.decode() if isinstance(value, bytes) else value


metadata: MetaData = MetaData()
meta: Table = Table(
    "ihuyi_voice_meta",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", Text, nullable=False),
    **_IN_MYSQL,
)
calls: Table = Table(
    "ihuyi_voice_calls",
    metadata,
    Column("key", _Key, primary_key=True),
    Column("digest", String(32), nullable=False),
    Column("hashed_with", String(8), nullable=False),
    Column("mobile", String(16), nullable=False),
    Column("state", String(8), nullable=False),
    # Only releases before schema 5 write an answer into these three; see `NO_OLDER_ANSWER`.
    Column("code", BigInteger),
    Column("msg", _LONG_TEXT, nullable=False),
    Column("voice_id", String(32)),
    Column("token", String(32), nullable=False),
    Column("claimed_at", Double, nullable=False),
    Column("live_until", Double, nullable=False),
    Column("changed_at", Double, nullable=False),
    # A `StoredAnswer` as JSON; null until the claim is settled.
    Column("answer", _LONG_TEXT),
    **_IN_MYSQL,
)
starts: Table = Table(
    "ihuyi_voice_starts",
    metadata,
    # The keyed hash of a number.
    Column("number", String(32), primary_key=True),
    # Its starts that a limit may still need, see `encode`.
    Column("starts", _LONG_TEXT, nullable=False),
    Column("expires_at", Double, nullable=False, index=True),
    **_IN_MYSQL,
)
verifications: Table = Table(
    "ihuyi_voice_verifications",
    metadata,
    # The fields of `store.verifications.Record`.
    Column("id", String(32), primary_key=True),
    Column("purpose", String(64), nullable=False),
    Column("binding", String(32), nullable=False),
    Column("subject", String(32), nullable=False),
    Column("hashed_with", String(8), nullable=False),
    Column("mobile", String(16), nullable=False),
    Column("status", String(24), nullable=False),
    Column("length", Integer, nullable=False),
    Column("expires_at", Double, nullable=False, index=True),
    Column("attempts_left", Integer, nullable=False),
    Column("sends", Integer, nullable=False),
    Column("resend_at", Double, nullable=False),
    Column("call", String(16), nullable=False),
    Column("is_decoy", Integer, nullable=False),
    Column("token", String(32), nullable=False),
    **_IN_MYSQL,
)
jobs: Table = Table(
    "ihuyi_voice_jobs",
    metadata,
    # The fields of `store.jobs.values.JobRecord`.
    Column("name", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("rate", Double),
    Column("next_start", Double, nullable=False),
    Column("rows_total", BigInteger, nullable=False),
    Column("rows_done", BigInteger, nullable=False),
    Column("is_enqueued", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("stopped_by", _LONG_TEXT, nullable=False),
    Column("canary", String(8), nullable=False),
    Column("canary_until", Double, nullable=False),
    Column("canary_token", String(32), nullable=False),
    **_IN_MYSQL,
)
job_outcomes: Table = Table(
    "ihuyi_voice_job_outcomes",
    metadata,
    # The job, and the fields of `store.jobs.values.JobOutcome`.
    Column("job", String(64), primary_key=True),
    Column("index", BigInteger, primary_key=True, autoincrement=False),
    # Of the job, when it was recorded.
    Column("generation", Integer, nullable=False),
    Column("status", String(16), nullable=False),
    Column("mobile", String(16), nullable=False),
    Column("code", BigInteger),
    Column("msg", _LONG_TEXT, nullable=False),
    Column("voice_id", String(32)),
    Column("at", Double, nullable=False),
    **_IN_MYSQL,
)
_c = calls.c

ENTRY = (
    _c.key,
    _c.digest,
    _c.hashed_with,
    _c.mobile,
    _c.state,
    _c.token,
    _c.claimed_at,
    _c.live_until,
    _c.answer,
    _c.code,
    _c.msg,
    _c.voice_id,
)
IS_UNSETTLED = _c.state.in_([state.value for state in UNSETTLED])
IS_REPEATABLE = _c.state.in_([state.value for state in REPEATABLE])

# A claim sets these, and a person's record does. So where they contain an answer, a release
# before schema 5 has settled the last claim; such a process may run on after an upgrade.
NO_OLDER_ANSWER: dict[str, ColumnElement[Any]] = {
    "code": null(),
    "msg": literal_column("''"),
    "voice_id": null(),
}

FIND = select(*ENTRY).where(_c.key.in_(bindparam("keys", expanding=True)))
# The holder of the token knows the outcome, even where a person has recorded another one.
# One exception: a call that a person saw placed stays accepted, or it could ring again.
# The names of the other parameters say which columns are set.
_ACCEPTED: ColumnElement[str] = literal_column(f"'{EntryState.ACCEPTED.value}'")
SETTLE = update(calls).where(
    _c.key == bindparam("its_key"),
    _c.token == bindparam("its_token"),
    or_(_c.state != _ACCEPTED, bindparam("its_state", type_=String) == _ACCEPTED),
)
SETTLED_COLUMNS = ("state", "answer", "changed_at", "live_until")


# A claim whose number turned out to be over its limit: nothing was sent.
UNDO_CLAIM = (
    update(calls)
    .where(_c.key == bindparam("its_key"), _c.token == bindparam("its_token"))
    .values(
        state=EntryState.NOT_SENT.value,
        answer=StoredAnswer(msg="over the limit of its number").to_json(),
    )
)


def is_free(new: Mapping[str, ColumnElement[Any]]) -> ColumnElement[bool]:
    """Whether an existing entry may be claimed by a new row; `new` has the row's columns."""
    # Literals: a parameter here would be needed in each row.
    states = ", ".join(f"'{state.value}'" for state in REPEATABLE)
    # The rule of `Entry.matches`, for entries that may be claimed again.
    same = or_(
        and_(_c.hashed_with == new["hashed_with"], _c.digest == new["digest"]),
        and_(_c.hashed_with != new["hashed_with"], _c.mobile == new["mobile"]),
    )
    return and_(text(f"{calls.name}.state IN ({states})"), same)


def claiming(
    statement: sqlite.Insert | postgresql.Insert,
) -> sqlite.Insert | postgresql.Insert:
    """One statement for a whole batch: the database decides which process sends."""
    new = statement.excluded
    return statement.values(
        state=literal_column(f"'{EntryState.CLAIMED.value}'"),
        answer=null(),
        **NO_OLDER_ANSWER,
    ).on_conflict_do_update(
        index_elements=["key"],
        set_={column.name: new[column.name] for column in _c if column is not _c.key},
        where=is_free(dict(new)),
    )


def storable_text(text: str) -> str:
    """The gateway's message, without NUL and lone surrogates: PostgreSQL refuses them."""
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\0")


def storable_code(code: int | None) -> int | None:
    """The gateway's code; None where no database can store it."""
    return code if code is not None and -(2**63) <= code < 2**63 else None


def overtaken(settlement: Settlement, existing: Entry) -> bool:
    """Whether `SETTLE` leaves the existing entry unchanged."""
    if existing.token != settlement.token:
        return True
    return existing.state is EntryState.ACCEPTED and settlement.state is not EntryState.ACCEPTED


def entry_of(row: Sequence[Any]) -> Entry:
    """The entry of a row that has the columns `ENTRY`."""
    key, digest, hashed_with, mobile, state, token, claimed_at, live_until, *answer = row
    fingerprint = Fingerprint(digest, hashed_with)
    stored = _answer_of(EntryState(state), *answer)
    return Entry(key, fingerprint, mobile, EntryState(state), stored, token, claimed_at, live_until)


def _answer_of(
    state: EntryState, answer: str | None, code: int | None, msg: str, voice_id: str | None
) -> StoredAnswer:
    if code is not None or msg or voice_id is not None:
        return StoredAnswer(code, msg, voice_id)
    # A release before schema 5 leaves the answer to the last claim when it claims the key.
    if answer is None or state is EntryState.CLAIMED:
        return NO_ANSWER
    return StoredAnswer.from_json(answer)


def encode(of_number: Sequence[Start]) -> str:
    """The starts of a number, as they are stored: `1764230400.25 token`, one to a line."""
    return "\n".join(f"{start.at!r} {start.token}" for start in of_number)


def decode(text: str) -> tuple[Start, ...]:
    """The starts that `encode` has stored."""
    return tuple(Start(float(at), token) for at, _, token in map(_parts, text.splitlines()))


def _parts(line: str) -> tuple[str, str, str]:
    return line.partition(" ")
