"""A store of an earlier release is upgraded in place, and a newer one is refused."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

import pymysql
import pytest

from ihuyi_voice.errors import StoreError
from ihuyi_voice.store.entry import EntryState
from ihuyi_voice.store.sql.migrations import SCHEMA_VERSION

from .support import claim, find, open_store, start

if TYPE_CHECKING:
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

OPEN = """
print("ready", flush=True)
sys.stdin.readline()
with open_store(place, create=False) as store:
    print(store.is_new, store.id, sorted(claim.key for claim in store.unknown()))
"""


@pytest.fixture
def old(place: str, request: pytest.FixtureRequest) -> str:
    """The place of a store that the release with schema 1 wrote."""
    if "://" in place:
        postgres: PostgresServer = request.getfixturevalue("postgres")
        with contextlib.closing(postgres.connect()) as connection:
            connection.execute(_SCHEMA_1.encode())
    else:
        with contextlib.closing(sqlite3.connect(place)) as file:
            file.executescript(_SCHEMA_1)
    return place


# That release had no stores in MySQL.
@pytest.mark.parametrize("place", ["sqlite", "postgresql"], indirect=True)
async def test_two_processes_that_upgrade_at_once_still_know_the_keys(old: str) -> None:
    with start(old, OPEN) as one, start(old, OPEN) as other:
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
    with open_store(old, patience=0, clock=lambda: 1_700_000_001.0) as store:
        replayed = await claim(store, "accepted")
        assert replayed.entry is not None
        assert "900100200" == replayed.entry.voice_id
        unknown = await claim(store, "unknown")
        assert unknown.entry is not None
        assert EntryState.UNKNOWN is unknown.entry.state
        assert (await claim(store, "refused")).token
        assert await find(store, "never") is None
        with store._database.connect() as connection:
            assert SCHEMA_VERSION == connection.version


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
