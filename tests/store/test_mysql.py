"""What only MySQL and MariaDB have: settings, missing driver, deadlocks, hidden passwords."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import pymysql
import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from ihuyi_voice.errors import StoreError
from ihuyi_voice.store.entry import FailureScope
from ihuyi_voice.store.sql import mysql
from ihuyi_voice.store.sql.failures import describe, scope_of
from tests.inside import database_of, raw

from .support import open_store, start

if TYPE_CHECKING:
    from .mariadb import MariaDbServer

# Each process asks for starts of the same numbers, in the opposite order, with keys that
# both want too.
CONTEND = """
from ihuyi_voice.store.limits import Limited
ours = sys.stdin.readline().split()
async def main(store):
    numbers = [f"{n:032x}" for n in range(20)]
    fingerprint = FINGERPRINTS.of(MOBILE, CONTENT)
    granted = 0
    async def one(number, i):
        key = f"{number}-{i}"
        claim = await store.claim(
            key, fingerprint, MASKED, time.monotonic() + 60, LIVE, Limited(number, ((2, 3600.0),))
        )
        return 1 if claim.token else 0
    order = numbers if ours[0] == "a" else numbers[::-1]
    for i in range(4):
        granted += sum(await asyncio.gather(*(one(number, i) for number in order)))
    return granted
with open_store(place, patience=0) as store:
    print(asyncio.run(main(store)))
"""


@pytest.mark.parametrize("place", ["postgresql", "mariadb"], indirect=True)
def test_two_processes_over_the_same_numbers_and_keys(place: str) -> None:
    open_store(place).close()
    with start(place, CONTEND) as one, start(place, CONTEND) as other:
        for process, name in ((one, "a\n"), (other, "b\n")):
            assert process.stdin is not None
            process.stdin.write(name)
            process.stdin.flush()
        results = [process.communicate(timeout=100) for process in (one, other)]
    assert ["", ""] == [err for _, err in results]
    assert 40 == sum(int(out) for out, _ in results)


def test_the_clock_and_the_settings_are_the_servers(mariadb_url: str) -> None:
    with open_store(mariadb_url.replace("mysql+pymysql", "mariadb+pymysql")) as store:
        assert abs(time.time() - store.clock()) < 5
        with database_of(store).connect() as connection:
            rows = (
                raw(connection)
                .exec_driver_sql(
                    "SELECT @@sql_mode, @@time_zone, @@character_set_connection, @@tx_isolation"
                )
                .one()
            )
        assert ("STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION", "+00:00", "utf8mb4") == tuple(rows)[:3]
        assert "READ-COMMITTED" == rows[3]


def test_a_password_is_hidden(mariadb: MariaDbServer) -> None:
    url = mariadb.url_of("stranger:s3cret-word")
    with pytest.raises(StoreError) as caught:
        open_store(url)
    assert "s3cret-word" not in f"{caught.value!r} {caught.value}"
    backend = mysql.MySql(make_url(url))
    assert f"<MySql {url.replace('s3cret-word', '***')}>" == repr(backend)


@pytest.mark.parametrize(
    ("error", "scope"),
    [
        (pymysql.OperationalError(1205, "Lock wait timeout"), FailureScope.ROW_LOCK),
        (pymysql.OperationalError(1213, "Deadlock"), FailureScope.ROW_LOCK),
        (pymysql.OperationalError(2013, "Lost connection"), FailureScope.CONNECTION),
        (pymysql.OperationalError(1644, "raised by a trigger"), FailureScope.KEY),
        (pymysql.OperationalError(1142, "denied"), FailureScope.DATABASE),
        (pymysql.InterfaceError("no code"), FailureScope.DATABASE),
        (pymysql.InterfaceError(), FailureScope.DATABASE),
    ],
)
def test_what_an_error_means(error: pymysql.Error, scope: FailureScope) -> None:
    assert scope is scope_of(OperationalError("", {}, error))


def test_an_error_is_described_by_its_text_and_code() -> None:
    assert "Deadlock (OperationalError 1213)" == describe(
        pymysql.OperationalError(1213, "Deadlock")
    )


def test_a_missing_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymysql", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ihuyi-voice\[mysql\]'"):
        open_store("mysql://user@host/database")


def test_a_schema_lock_that_another_process_keeps(
    mariadb_url: str, mariadb: MariaDbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql, "LOCK_TIMEOUT", 0)
    connection = mariadb.connect()
    connection.cursor().execute("SELECT GET_LOCK('ihuyi_voice_schema', 0)")
    with pytest.raises(StoreError, match="another process has been creating its tables"):
        open_store(mariadb_url)
    connection.close()
