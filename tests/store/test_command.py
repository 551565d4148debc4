"""The command `ihuyi-voice store`: output and exit status."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from ihuyi_voice import Store, StoreError
from ihuyi_voice.cli.app import app
from ihuyi_voice.store.entry import EntryState
from ihuyi_voice.store.sql.store import SqlStore

from .redis_server import running_redis
from .support import DELIVERY, LIVE, Clock, claimed, ended, open_store

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

    from .postgres import PostgresServer

LONG_KEY = "a key as long as a key may be [bold] " * 6


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(app, ["store", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def refused(*arguments: str) -> str:
    result = run(*arguments)
    assert (2, "") == (result.exit_code, result.stdout)
    assert result.stderr.startswith("ihuyi-voice: ")
    return result.stderr.removeprefix("ihuyi-voice: ").rstrip("\n")


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A store with one key in each state; the claims have expired."""
    path = str(tmp_path / "calls.db")
    clock = Clock()

    async def fill(store: SqlStore) -> None:
        for state in (EntryState.ACCEPTED, EntryState.REFUSED, EntryState.NOT_SENT):
            await ended(store, state, state.value)
        await claimed(store, LONG_KEY)
        clock.time += LIVE
        await ended(store, EntryState.UNKNOWN, "unknown")

    with open_store(path, clock=clock) as store:
        asyncio.run(fill(store))
    return path


@pytest.mark.parametrize("action", [[], ["list"]])
@pytest.mark.parametrize("columns", ["20", "80", "400"])
def test_list_shows_unknown_keys_in_full(
    file: str, action: list[str], columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    result = run(file, *action)
    assert 6 == result.exit_code
    assert LONG_KEY in result.stdout
    assert result.stdout.index(LONG_KEY) < result.stdout.index("unknown")
    assert "139****5678" in result.stdout
    assert "its process ended without an outcome" in " ".join(result.stdout.split())
    assert f"ihuyi-voice store {file} resolve KEY... --placed (or --not-placed)" in result.stdout
    assert "accepted" not in result.stdout


def test_a_list_of_many_calls_has_a_line_for_each_and_their_reason_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of keys as a job derives them, after its process was killed."""
    monkeypatch.setenv("COLUMNS", "80")
    keys = [f"row:{n:032x}" for n in range(50)]
    path = str(tmp_path / "calls.db")

    async def fill(store: SqlStore) -> None:
        for key in keys:
            await claimed(store, key)

    with open_store(path, clock=Clock()) as store:
        asyncio.run(fill(store))
    lines = run(path).stdout.splitlines()
    assert 80 >= max(map(len, lines[:53]))
    assert ["key", *keys] == [line.split()[0] for line in lines[:51]]
    assert {" now"} == {line[-4:] for line in lines[1:51]}
    assert [
        "",
        "why: its process ended without an outcome",
        "These phones may have rung. Look each up on the account's page, then record it:",
        f"  ihuyi-voice store {path} resolve KEY... --placed (or --not-placed)",
        "If all were placed, or none was, this resolves all of them (or --not-placed):",
    ] == lines[51:-1]
    # The line resolves all of them.
    command = f"ihuyi-voice store {path}"
    assert f"  {command} --json | {command} resolve - --placed" == lines[-1]
    listed = run(path, "--json").stdout
    result = CliRunner().invoke(app, ["store", path, "resolve", "-", "--placed"], input=listed)
    assert (0, 50) == (result.exit_code, result.stdout.count("recorded as placed"))
    assert "no unknown calls\n" == run(path).stdout


def test_one_call_needs_no_line_for_all(tmp_path: Path) -> None:
    path = str(tmp_path / "calls.db")
    with open_store(path, clock=Clock()) as store:
        asyncio.run(claimed(store, "k"))
    assert run(path).stdout.endswith(
        f"  ihuyi-voice store {path} resolve KEY... --placed (or --not-placed)\n"
    )


def test_list_as_json(file: str) -> None:
    result = run(file, "--json")
    assert 6 == result.exit_code
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    assert {"key", "mobile", "claimed_at", "age", "reason", "resolvable_in"} == set(first)
    assert (0, 0) == (first["resolvable_in"], second["resolvable_in"])
    assert (LONG_KEY, "", "2023-11-14T22:13:20+00:00") == (
        first["key"],
        first["reason"],
        first["claimed_at"],
    )
    assert ("unknown", "the connection was reset") == (second["key"], second["reason"])


def test_list_without_unknown_keys(tmp_path: Path) -> None:
    path = str(tmp_path / "calls.db")
    Store.open(path).close()
    result = run(path)
    assert (0, "no unknown calls\n") == (result.exit_code, result.stdout)
    result = run(path, "--json")
    assert (0, "") == (result.exit_code, result.stdout)


def test_summary_counts_every_state(file: str) -> None:
    result = run(file, "summary", "--json")
    assert 0 == result.exit_code
    assert {"accepted": 1, "refused": 1, "not_sent": 1, "unknown": 2} == json.loads(result.stdout)
    result = run(file, "summary")
    assert 0 == result.exit_code
    rows = [line.split()[:2] for line in result.stdout.splitlines()]
    for row in (["accepted", "1"], ["refused", "1"], ["not_sent", "1"], ["unknown", "2"]):
        assert row in rows


@pytest.mark.parametrize(
    ("message", "option", "state"),
    [
        ("recorded as placed; it is never sent again", "--placed", "accepted"),
        ("recorded as not placed; it may be sent again", "--not-placed", "not_sent"),
    ],
)
def test_resolve_records_the_outcome(file: str, message: str, option: str, state: str) -> None:
    result = run(file, "resolve", "unknown", option)
    assert (0, f"unknown: {message}\n") == (result.exit_code, result.stdout)
    result = run(file, "resolve", LONG_KEY, option, "--json")
    assert {"key": LONG_KEY, "placed": option == "--placed"} == json.loads(result.stdout)
    with Store.open(file) as store:
        assert (3, 0) == (store.summary()[state], store.summary()["unknown"])


def test_keys_that_cannot_be_resolved(file: str, tmp_path: Path) -> None:
    assert "the store has no key 'k'" == refused(file, "resolve", "k", "--placed")
    assert "'accepted' is settled already, as accepted" == refused(
        file, "resolve", "accepted", "--placed"
    )
    with open_store(tmp_path / "calls.db") as store:
        asyncio.run(claimed(store, "k", live=LIVE))
    message = refused(file, "resolve", "k", "--not-placed")
    assert "'k' may still be on its way; it may be resolved in 1" in message
    assert message.endswith(
        " s. Until then the request may still be delivered by the network and ring the phone"
    )


def test_many_keys_are_resolved_each_with_its_result(file: str) -> None:
    keys = ("unknown", "no such", "accepted", LONG_KEY, "unknown")
    result = run(file, "resolve", *keys, "--not-placed")
    said = "recorded as not placed; it may be sent again"
    assert (2, f"unknown: {said}\n{LONG_KEY}: {said}\n") == (result.exit_code, result.stdout)
    assert (
        "ihuyi-voice: the store has no key 'no such'\n"
        "ihuyi-voice: 'accepted' is settled already, as accepted\n"
        "ihuyi-voice: resolved 2 of 4 keys\n"
    ) == result.stderr


def test_keys_from_standard_input_as_they_are_and_as_json(file: str) -> None:
    lines = "unknown\n\n" + json.dumps({"key": LONG_KEY, "age": 1}) + "\nno such\n"
    result = CliRunner().invoke(
        app, ["store", file, "resolve", "-", "--placed", "--json"], input=lines
    )
    assert 2 == result.exit_code
    assert [
        {"key": "unknown", "placed": True},
        {"key": LONG_KEY, "placed": True},
        {"key": "no such", "error": "the store has no key 'no such'"},
    ] == [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("problem", "lines"),
    [
        ("there is no key on standard input", "\n"),
        ("neither a key nor JSON with a key", "{unknown\n"),
        ("neither a key nor JSON with a key", '{"name": "unknown"}\n'),
        ("neither a key nor JSON with a key", '{"key": 1}\n'),
    ],
)
def test_standard_input_without_keys_resolves_nothing(file: str, problem: str, lines: str) -> None:
    lines = lines if "no key" in problem else f"unknown\n{lines}"
    result = CliRunner().invoke(app, ["store", file, "resolve", "-", "--placed"], input=lines)
    assert (2, "", True) == (result.exit_code, result.stdout, problem in result.stderr)
    with Store.open(file) as store:
        assert 2 == store.summary()["unknown"]


def test_the_list_and_a_refused_resolve_name_the_same_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "calls.db")
    clock = Clock(time.time())
    with open_store(path, clock=clock) as store:
        asyncio.run(claimed(store, "k", live=25.0))
    clock.time += 0.5
    monkeypatch.setattr(
        "ihuyi_voice.cli.store_actions.open_store",
        lambda url, *, create: open_store(url, create=create, clock=clock),
    )
    said = run(path).stdout
    assert " in 85 s\n" in said
    assert "all may be resolved in 85 s: until then the network may still deliver" in said
    assert 85 == json.loads(run(path, "--json").stdout)["resolvable_in"]
    assert "it may be resolved in 85 s" in refused(path, "resolve", "k", "--placed")


def test_list_shows_when_a_claim_can_be_resolved(file: str) -> None:
    with open_store(file) as store:
        asyncio.run(claimed(store, "k", live=LIVE))
    *_, last = (json.loads(line) for line in run(file, "--json").stdout.splitlines())
    assert "k" == last["key"]
    assert LIVE < last["resolvable_in"] <= LIVE + DELIVERY
    lines = run(file).stdout.splitlines()
    assert re.search(r" in 1\d+ s +1$", lines[lines.index("k") + 1])
    assert re.search(r" now +2$", lines[lines.index("unknown") + 1])


@pytest.mark.parametrize("age", ["30d", "12h", "15m", "30s"])
def test_purge_deletes_settled_keys(file: str, age: str) -> None:
    result = run(file, "purge", "--older-than", age)
    assert (0, "3 entries deleted\n") == (result.exit_code, result.stdout)
    result = run(file, "purge", "--older-than", age, "--json")
    assert {"purged": 0} == json.loads(result.stdout)
    with Store.open(file) as store:
        assert 2 == store.summary()["unknown"]


def test_purge_deletes_ended_jobs(file: str) -> None:
    with open_store(file) as store:
        store.jobs.create("spring", None)
        store.jobs.cancel("spring")
        store.jobs.create("summer", None)
    # The job, and the three settled keys.
    assert "4 entries deleted\n" == run(file, "purge", "--older-than", "0s").stdout
    with open_store(file) as store:
        assert ["summer"] == store.jobs.names()


def test_purge_keeps_younger_keys(file: str) -> None:
    assert "0 entries deleted\n" == run(file, "purge", "--older-than", "99999d").stdout


@pytest.mark.parametrize("age", ["30", "d", "-1d", "1.5h", "30 d", "٣d", "1w", "1234567d"])
def test_an_age_has_a_unit(file: str, age: str) -> None:
    assert f"--older-than must be like 30d, 12h, 15m or 30s, not {age!r}" == refused(
        file, "purge", f"--older-than={age}"
    )


@pytest.mark.parametrize(
    ("problem", "arguments"),
    [
        ("resolve needs a key, and --placed or --not-placed", ["resolve"]),
        ("resolve needs a key, and --placed or --not-placed", ["resolve", "k"]),
        ("resolve needs a key, and --placed or --not-placed", ["resolve", "--placed"]),
        ("purge needs --older-than, like --older-than 30d", ["purge"]),
        ("a key, --placed and --not-placed go with resolve", ["list", "k"]),
        ("a key, --placed and --not-placed go with resolve", ["summary", "--placed"]),
        ("--older-than goes with purge", ["list", "--older-than", "1d"]),
    ],
)
def test_options_that_exclude_each_other(file: str, problem: str, arguments: list[str]) -> None:
    assert problem == refused(file, *arguments)


@pytest.mark.parametrize("spell", ["{}", "sqlite:///{}"])
def test_the_command_creates_no_file(tmp_path: Path, spell: str) -> None:
    path = tmp_path / "calls.db"
    assert f"there is no {path}" == refused(spell.format(path))
    assert [] == list(tmp_path.iterdir())


def test_an_unusable_store_has_its_own_exit_status(tmp_path: Path) -> None:
    path = tmp_path / "calls.db"
    path.write_text("no database" * 100)
    result = run(str(path))
    assert 4 == result.exit_code
    assert (
        f"ihuyi-voice: the store could not be used: {path}: it is not an SQLite database\n"
        == result.stderr
    )


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://joe:hunter2@host/calls",
        "postgresql://joe:hunter2@host:1234/calls",
        "postgresql://joe:hunter2@/calls?host=/tmp",
        "postgresql://joe:@host/calls",
        "postgresql://joe@host/calls?password=hunter2",
        "postgresql://joe@host/calls?host=/tmp&password=hunter2",
        "postgresql://joe:hun/ter2@host/calls",
        "postgresql://joe:hun?ter2@host/calls",
    ],
)
def test_a_password_is_not_taken_from_the_command_line(url: str) -> None:
    message = refused(url)
    assert message.startswith("no password on the command line, where other users can read it")
    assert "PGPASSWORD" in message
    assert "IHUYI_VOICE_STORE" in message
    assert "hun" not in message


def test_a_url_of_another_database() -> None:
    message = refused("oracle://joe@host/db")
    assert "a store is the path of an SQLite file, or a URL that begins with" in message


def test_a_store_on_a_server(postgres: PostgresServer) -> None:
    url = postgres.empty()
    with open_store(url, clock=Clock()) as store:
        asyncio.run(ended(store, EntryState.UNKNOWN))
    assert 6 == run(url).exit_code
    assert "0 entries deleted\n" == run(url, "purge", "--older-than", "0s").stdout
    assert 0 == run(url, "resolve", "k", "--placed").exit_code
    assert "no unknown calls\n" == run(url).stdout


def test_the_command_in_a_process(file: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "ihuyi_voice", "store", file, "summary", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)
    assert 2 == json.loads(done.stdout)["unknown"]


def test_upgrade_runs_the_steps_that_are_missing(file: str) -> None:
    """From the schema of the release that kept keys and no limits."""
    with closing(sqlite3.connect(file)) as other, other:
        for table in ("starts", "verifications", "jobs", "job_outcomes"):
            other.execute(f"DROP TABLE ihuyi_voice_{table}")
        other.execute("ALTER TABLE ihuyi_voice_calls DROP COLUMN answer")
        other.execute("UPDATE ihuyi_voice_meta SET value = '1' WHERE name = 'schema'")
    result = run(file, "upgrade")
    assert (0, f"{file}: schema version 5\n") == (result.exit_code, result.stdout)
    with closing(sqlite3.connect(file)) as other:
        assert [] == other.execute("SELECT * FROM ihuyi_voice_starts").fetchall()
        assert [("5",)] == other.execute(
            "SELECT value FROM ihuyi_voice_meta WHERE name = 'schema'"
        ).fetchall()
    assert {"schema_version": 5} == json.loads(run(file, "upgrade", "--json").stdout)
    assert {"accepted": 1, "refused": 1, "not_sent": 1, "unknown": 2} == json.loads(
        run(file, "summary", "--json").stdout
    )


def test_upgrade_refuses_a_newer_store_and_creates_none(file: str, tmp_path: Path) -> None:
    assert "there is no" in refused(str(tmp_path / "mistyped.db"), "upgrade")
    assert not (tmp_path / "mistyped.db").exists()
    with closing(sqlite3.connect(file)) as other, other:
        other.execute("UPDATE ihuyi_voice_meta SET value = '99' WHERE name = 'schema'")
    result = run(file, "upgrade")
    assert (4, True) == (result.exit_code, "newer release (schema 99)" in result.stderr)


def test_a_store_in_redis_has_nothing_to_list_or_upgrade() -> None:
    with running_redis() as server:
        url = server.url()
        assert "no unknown calls\n" == run(url).stdout
        assert {"schema_version": None} == json.loads(run(url, "upgrade", "--json").stdout)
        assert "has no schema: there is nothing to upgrade" in run(url, "upgrade").stdout
        assert "keeps no idempotency keys" in refused(url, "resolve", "k", "--placed")


def test_a_hyphen_is_the_store_that_the_variable_names(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IHUYI_VOICE_STORE", f"sqlite:///{file}")
    result = run("-", "summary", "--json")
    assert 2 == json.loads(result.stdout)["unknown"]
    assert f"store: {file}\n" == result.stderr


def test_without_an_argument_it_lists_the_store_of_submit_and_bulk(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IHUYI_VOICE_STORE", file)
    result = run()
    assert (6, f"store: {file}\n") == (result.exit_code, result.stderr)
    assert LONG_KEY in result.stdout
    assert "ihuyi-voice store - resolve KEY..." in result.stdout


def test_an_action_without_a_store_says_where_the_store_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = "name the store before the action: ihuyi-voice store - summary"
    assert message == refused("summary")
    # A store may have such a name.
    Store.open("summary").close()
    assert "no unknown calls\n" == run("summary").stdout


def test_help_names_every_action() -> None:
    result = run("--help")
    assert 0 == result.exit_code
    for word in ("list", "summary", "resolve", "purge", "upgrade", "--older-than", "PGPASSWORD"):
        assert word in result.stdout


def test_a_database_that_fails_during_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "calls.db"
    Store.open(path).close()

    def fail(_: SqlStore) -> None:
        msg = "the disk is gone"
        raise StoreError(msg)

    monkeypatch.setattr(SqlStore, "unknown", fail)
    result = run(str(path))
    assert (4, True) == (result.exit_code, "the disk is gone" in result.stderr)
