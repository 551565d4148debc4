"""A store of an earlier release is upgraded in place, and a newer one is refused."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

import pymysql
import pytest

from ihuyi_voice.errors import StoreError
from ihuyi_voice.store.answer import NO_ANSWER, StoredAnswer
from ihuyi_voice.store.entry import EntryState
from ihuyi_voice.store.sql.migrations import SCHEMA_VERSION
from tests.inside import database_of

from .support import claim, claimed, ended, find, open_store, start

if TYPE_CHECKING:
    from collections.abc import Callable

    from ihuyi_voice.store.sql.store import SqlStore

    from .mariadb import MariaDbServer
    from .postgres import PostgresServer

# What the release with schema 1 wrote: a call of each state. In SQLite and PostgreSQL it
# differs by the name of a type.
_SCHEMA_1 = """
CREATE TABLE ihuyi_voice_calls (
    "key" VARCHAR(255) NOT NULL, digest VARCHAR(32) NOT NULL, hashed_with VARCHAR(8) NOT NULL,
    mobile VARCHAR(16) NOT NULL, state VARCHAR(8) NOT NULL, code BIGINT, msg TEXT NOT NULL,
    voice_id VARCHAR(32), token VARCHAR(32) NOT NULL, claimed_at DOUBLE PRECISION NOT NULL,
    live_until DOUBLE PRECISION NOT NULL, changed_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY ("key"));
INSERT INTO ihuyi_voice_calls VALUES
('accepted','6c86b8a2e7f46a3aaf8a5631ede69d71','fba6f1ac','139****5678','accepted',2,'提交成功',
 '900100200','65978ee4a080d615b442dbfa35e6aa23',1700000000.0,1700000000.0,1700000000.0),
('refused','6c86b8a2e7f46a3aaf8a5631ede69d71','fba6f1ac','139****5678','refused',4051,
 '剩余条数不足',NULL,'3a3529cbeb76facb34b5bb5c0b8a6d64',1700000000.0,1700000000.0,1700000000.0),
('claimed','6c86b8a2e7f46a3aaf8a5631ede69d71','fba6f1ac','139****5678','claimed',NULL,'',NULL,
 '65d90c77451075ebde832381a42d013b',1700000000.0,1700000100.0,1700000000.0),
('unknown','6c86b8a2e7f46a3aaf8a5631ede69d71','fba6f1ac','139****5678','unknown',NULL,
 'the connection was reset',NULL,'f7f96848c10c2e54c36bc6e84f94bfee',1700000000.0,1700000060.0,
 1700000000.0);
CREATE TABLE ihuyi_voice_meta (
    name VARCHAR(32) NOT NULL, value TEXT NOT NULL, PRIMARY KEY (name));
INSERT INTO ihuyi_voice_meta VALUES ('schema','1'), ('id','780a0a24d48f91cb');
"""

# What the releases up to schema 3 wrote: the last one with an answer in three columns.
_SCHEMA_3 = (
    _SCHEMA_1.partition("CREATE TABLE ihuyi_voice_meta")[0]
    + """
CREATE TABLE ihuyi_voice_meta (
    name VARCHAR(32) NOT NULL, value TEXT NOT NULL, PRIMARY KEY (name));
INSERT INTO ihuyi_voice_meta VALUES ('schema','3'), ('id','780a0a24d48f91cb');
CREATE TABLE ihuyi_voice_starts (
    number VARCHAR(32) NOT NULL, starts TEXT NOT NULL, expires_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (number));
CREATE INDEX ix_ihuyi_voice_starts_expires_at ON ihuyi_voice_starts (expires_at);
CREATE TABLE ihuyi_voice_verifications (
    id VARCHAR(32) NOT NULL, purpose VARCHAR(64) NOT NULL, binding VARCHAR(32) NOT NULL,
    subject VARCHAR(32) NOT NULL, hashed_with VARCHAR(8) NOT NULL, mobile VARCHAR(16) NOT NULL,
    status VARCHAR(24) NOT NULL, length INTEGER NOT NULL, expires_at DOUBLE PRECISION NOT NULL,
    attempts_left INTEGER NOT NULL, sends INTEGER NOT NULL, resend_at DOUBLE PRECISION NOT NULL,
    call VARCHAR(16) NOT NULL, is_decoy INTEGER NOT NULL, token VARCHAR(32) NOT NULL,
    PRIMARY KEY (id));
CREATE INDEX ix_ihuyi_voice_verifications_expires_at ON ihuyi_voice_verifications (expires_at);
"""
)

OPEN = """
print("ready", flush=True)
sys.stdin.readline()
with open_store(place, create=False) as store:
    print(store.is_new, store.id, sorted(claim.key for claim in store.unknown()))
"""


@pytest.fixture
def execute(place: str, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Executes statements of another release in the database at `place`."""
    if place.startswith("postgresql"):
        postgres: PostgresServer = request.getfixturevalue("postgres")

        def in_postgresql(script: str) -> None:
            with contextlib.closing(postgres.connect()) as connection:
                connection.execute(script.encode())

        return in_postgresql
    if place.startswith("mysql"):
        mariadb: MariaDbServer = request.getfixturevalue("mariadb")

        def in_mysql(script: str) -> None:
            # The types that the releases have there for keys, and for each text.
            script = script.replace('"key" VARCHAR(255)', '"key" VARBINARY(1020)')
            script = script.replace("));", ")) DEFAULT CHARSET utf8mb4 COLLATE utf8mb4_bin;")
            with contextlib.closing(mariadb.connect()) as connection:
                cursor = connection.cursor()
                cursor.execute("USE store")
                cursor.execute("SET sql_mode = 'ANSI_QUOTES'")
                for statement in filter(str.strip, script.split(";")):
                    cursor.execute(statement.replace(" call ", ' "call" '))

        return in_mysql

    def in_file(script: str) -> None:
        with contextlib.closing(sqlite3.connect(place)) as file:
            file.executescript(script)

    return in_file


@pytest.mark.parametrize(
    ("place", "schema"),
    [
        # The release with schema 1 had no stores in MySQL.
        ("sqlite", _SCHEMA_1),
        ("postgresql", _SCHEMA_1),
        ("sqlite", _SCHEMA_3),
        ("postgresql", _SCHEMA_3),
        ("mariadb", _SCHEMA_3),
    ],
    indirect=["place"],
)
async def test_two_processes_that_upgrade_at_once_still_know_the_keys(
    place: str, schema: str, execute: Callable[[str], None]
) -> None:
    execute(schema)
    with start(place, OPEN) as one, start(place, OPEN) as other:
        for process in (one, other):
            assert process.stdout is not None
            assert "ready\n" == process.stdout.readline()
        for process in (one, other):
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        for process in (one, other):
            assert ("False 780a0a24d48f91cb ['claimed', 'unknown']\n", "") == process.communicate(
                timeout=60
            )
    with open_store(place, patience=0, clock=lambda: 1_700_000_001.0) as store:
        replayed = await claim(store, "accepted")
        assert replayed.entry is not None
        assert StoredAnswer(2, "提交成功", "900100200") == replayed.entry.answer
        unknown = await claim(store, "unknown")
        assert unknown.entry is not None
        assert EntryState.UNKNOWN is unknown.entry.state
        assert StoredAnswer(msg="the connection was reset") == unknown.entry.answer
        under_way = await find(store, "claimed")
        assert under_way is not None
        assert NO_ANSWER == under_way.answer
        assert (await claim(store, "refused")).token
        assert await find(store, "never") is None
        with database_of(store).connect() as connection:
            assert SCHEMA_VERSION == connection.version


def test_a_store_that_another_process_has_upgraded_is_not_changed(place: str) -> None:
    """A process waited for the lock of the schema, and then finds nothing to do."""
    with open_store(place) as store:
        with database_of(store).connect() as connection:
            assert not connection.migrate()
        # A store with another id would be refused here.
        with database_of(store).connect() as connection:
            assert SCHEMA_VERSION == connection.version


async def test_a_process_of_an_earlier_release_that_is_still_running(
    place: str, execute: Callable[[str], None]
) -> None:
    """It opened the store before the upgrade, and knows three columns of an answer."""
    with open_store(place) as store:
        await ended(store, EntryState.REFUSED)
        execute(
            "UPDATE ihuyi_voice_calls SET state = 'claimed', code = NULL, msg = '',"
            " voice_id = NULL, token = 'older'"
        )
        assert NO_ANSWER == await answer_of(store)
        execute(
            "UPDATE ihuyi_voice_calls SET state = 'accepted', code = 2, msg = 'ok', voice_id = '9'"
        )
        assert StoredAnswer(2, "ok", "9") == await answer_of(store)


async def test_a_claim_after_one_of_an_earlier_release_has_an_answer_of_its_own(
    place: str, execute: Callable[[str], None]
) -> None:
    with open_store(place) as store:
        await ended(store, EntryState.REFUSED)
        execute("UPDATE ihuyi_voice_calls SET code = 4051, msg = 'no', voice_id = '9'")
        token = await claimed(store)
        assert NO_ANSWER == await answer_of(store)
        await store.settle("k", token, EntryState.ACCEPTED, StoredAnswer(2, "ok"))
        assert StoredAnswer(2, "ok") == await answer_of(store)


def test_a_persons_record_replaces_the_answer_of_an_earlier_release(
    place: str, execute: Callable[[str], None]
) -> None:
    execute(_SCHEMA_3)
    with open_store(place) as store:
        store.resolve("unknown", placed=True)
        assert (
            StoredAnswer(msg="recorded by hand: placed")
            == store.entries(["unknown"])["unknown"].answer
        )


async def test_the_answer_of_a_release_with_other_fields(
    place: str, execute: Callable[[str], None]
) -> None:
    with open_store(place) as store:
        await ended(store, EntryState.ACCEPTED)
        execute("""UPDATE ihuyi_voice_calls SET answer = '{"voice_id": "9", "newer": [7]}'""")
        assert StoredAnswer(None, "", "9") == await answer_of(store)


async def answer_of(store: SqlStore) -> StoredAnswer:
    entry = await find(store)
    assert entry is not None
    return entry.answer


def test_a_user_of_postgresql_who_may_not_create_tables(postgres: PostgresServer) -> None:
    postgres.empty()
    with contextlib.closing(postgres.connect()) as connection:
        connection.execute("CREATE ROLE reader LOGIN")
    url = postgres.url.replace("postgres@", "reader@")
    with pytest.raises(StoreError, match="run `ihuyi-voice store URL upgrade` once"):
        open_store(url)


def test_a_user_of_mysql_who_may_not_create_tables(mariadb: MariaDbServer) -> None:
    mariadb.empty()
    with contextlib.suppress(pymysql.OperationalError):
        mariadb.execute("CREATE USER reader@localhost")
    mariadb.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON store.* TO reader@localhost")
    with pytest.raises(StoreError, match="run `ihuyi-voice store URL upgrade` once"):
        open_store(mariadb.url_of("reader"))
    open_store(mariadb.url).close()
    # Once the tables are there, it may use them.
    open_store(mariadb.url_of("reader")).close()


def test_a_newer_schema_in_mysql(mariadb_url: str, mariadb: MariaDbServer) -> None:
    open_store(mariadb_url).close()
    mariadb.execute("UPDATE store.ihuyi_voice_meta SET value = '99' WHERE name = 'schema'")
    with pytest.raises(StoreError, match=r"was written by a newer release \(schema 99\)"):
        open_store(mariadb_url)
