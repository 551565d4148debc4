"""The store that `submit` and `bulk` use without any option, over several invocations.

Most invocations run in the process of the test, which saves the start of an interpreter.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from ihuyi_voice import Store, VoiceClient
from ihuyi_voice.cli.app import app
from ihuyi_voice.sandbox import Chaos, SandboxGateway
from ihuyi_voice.store.sql.store import SqlStore
from tests.store.redis_server import running_redis

if TYPE_CHECKING:
    from collections.abc import Iterator

MOBILE, OTHER = "13912345678", "13812345678"
ROWS = f"mobile,content\n{MOBILE},1125\n{OTHER},0042\n"


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[SandboxGateway]:
    """A gateway that the environment points to."""
    gateway = SandboxGateway()
    with gateway.serve_in_thread() as url:
        monkeypatch.setenv("IHUYI_VOICE_BASE_URL", url)
        monkeypatch.setenv("IHUYI_VOICE_API_ID", "sandbox")
        monkeypatch.setenv("IHUYI_VOICE_API_KEY", "sandbox-key")
        yield gateway


@pytest.fixture
def no_store(own_store: Path) -> Path:
    """Where the user's own store will be: there is not even its folder."""
    own_store.unlink()
    own_store.parent.rmdir()
    own_store.parent.parent.rmdir()
    return own_store


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text(ROWS)
    return path


@dataclass(frozen=True)
class Done:
    """How an invocation ended."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> Done:
    """Run the command in this process."""
    before = Path.cwd()
    os.chdir(cwd or before)
    try:
        result = CliRunner().invoke(app, [*map(str, arguments)], env=environment)
    finally:
        os.chdir(before)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


def run_apart(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "ihuyi_voice", *map(str, arguments)],
        env={**os.environ, "PYTHONUTF8": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


# --- where it is -------------------------------------------------------------


def test_the_first_use_creates_the_store_and_says_where(
    gateway: SandboxGateway, no_store: Path
) -> None:
    first = run_apart("submit", MOBILE, "--content", "1125")
    said = f"ihuyi-voice: remembers calls in {no_store}; --store none for no memory\n"
    assert (0, said) == (first.returncode, first.stderr)
    assert 0o700 == stat.S_IMODE(no_store.parent.stat().st_mode)
    second = run_apart("submit", MOBILE, "--content", "1125", "--json")
    assert (0, "") == (second.returncode, second.stderr)
    assert 2 == len(gateway.calls)


def test_the_first_bulk_run_says_where_too(
    gateway: SandboxGateway, no_store: Path, rows: Path
) -> None:
    first = run("bulk", rows, "--yes")
    assert 0 == first.returncode
    assert f"remembers calls in {no_store}; --store none for no memory\n" in first.stderr
    assert "remembers calls" not in run("bulk", rows, "--yes").stderr
    assert 2 == len(gateway.calls)


@pytest.mark.parametrize("command", ["submit", "bulk"])
def test_help_says_where_it_is(command: str, own_store: Path) -> None:
    done = run_apart(command, "--help", COLUMNS="400")
    assert 0 == done.returncode
    assert str(own_store) in done.stdout
    assert "IHUYI_VOICE_STORE" in done.stdout


def test_a_look_creates_no_store(gateway: SandboxGateway, no_store: Path, rows: Path) -> None:
    assert 0 == run("bulk", rows, "--dry-run").returncode
    assert 0 == run("balance").returncode
    assert 2 == run("store", "-").returncode
    assert not no_store.parent.parent.exists()


@pytest.mark.parametrize("how", ["option", "variable"])
def test_none_remembers_nothing(
    gateway: SandboxGateway, no_store: Path, rows: Path, tmp_path: Path, how: str
) -> None:
    option = ("--store", "none") if how == "option" else ()
    variable = {} if option else {"IHUYI_VOICE_STORE": "none"}
    for _ in range(3):
        assert 0 == run("submit", MOBILE, *option, cwd=tmp_path, **variable).returncode
        done = run("bulk", rows, "--yes", *option, cwd=tmp_path, **variable)
        assert (0, False) == (done.returncode, "remembers calls" in done.stderr)
    assert 9 == len(gateway.calls)
    assert not no_store.parent.parent.exists()
    assert ["rows.csv"] == [path.name for path in tmp_path.iterdir()]


def test_none_in_the_variable_is_no_store_for_a_client(
    gateway: SandboxGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IHUYI_VOICE_STORE", "none")
    with VoiceClient.from_env() as client:
        client.submit(MOBILE, "1125")
    assert [] == list(tmp_path.iterdir())
    assert 1 == len(gateway.calls)


def test_another_store_by_option_or_variable(
    gateway: SandboxGateway, no_store: Path, tmp_path: Path
) -> None:
    book = tmp_path / "calls.db"
    first = run("submit", MOBILE, "--store", book)
    new = f"ihuyi-voice: {book}: this store is new: it knows of no earlier call\n"
    assert (0, new) == (first.returncode, first.stderr)
    assert 0 == run("submit", MOBILE, IHUYI_VOICE_STORE=f"sqlite:///{book}").returncode
    assert 5 == run("submit", MOBILE, "--store", book).returncode
    assert 2 == len(gateway.calls)
    assert not no_store.parent.parent.exists()


# --- submit ------------------------------------------------------------------


def test_the_third_call_within_a_minute_is_over_the_limit(gateway: SandboxGateway) -> None:
    statuses = [run("submit", spelt).returncode for spelt in (MOBILE, "139-1234-5678")]
    third = run("submit", "+86 13912345678", "--json")
    assert ([0, 0], 5) == (statuses, third.returncode)
    report = json.loads(third.stdout)
    assert ("limited", False) == (report["status"], report["may_have_rung"])
    assert 0 < report["retry_after"] <= 60
    assert 0 == run("submit", OTHER).returncode
    assert [MOBILE, MOBILE, OTHER] == [call.mobile for call in gateway.calls]


def test_what_was_not_sent_takes_no_place_in_the_limit(gateway: SandboxGateway) -> None:
    for _ in range(3):
        assert 4 == run("submit", MOBILE, IHUYI_VOICE_BASE_URL="http://127.0.0.1:9").returncode
    assert [0, 0, 5] == [run("submit", MOBILE).returncode for _ in range(3)]
    assert 2 == len(gateway.calls)


def test_a_key_rings_once_also_where_the_code_is_drawn(gateway: SandboxGateway) -> None:
    first = run_apart("submit", MOBILE, "--idempotency-key", "login 1")
    again = run_apart("submit", MOBILE, "--idempotency-key", "login 1")
    assert (0, 0) == (first.returncode, again.returncode)
    (call,) = gateway.calls
    outcome = f"  139****5678  code {call.content}  voice id {call.voice_id}\n"
    assert f"accepted{outcome}" == first.stdout
    assert f"accepted earlier{outcome}" == again.stdout
    report = json.loads(run("submit", MOBILE, "--idempotency-key", "login 1", "--json").stdout)
    assert {
        "status": "replayed",
        "may_have_rung": True,
        "mobile": "139****5678",
        "idempotency_key": "login 1",
        "content": call.content,
        "code": 2,
        "msg": "提交成功",
        "voice_id": call.voice_id,
    } == report
    assert re.fullmatch(r"\d{6}", call.content)
    # Another key is another call with another code.
    assert 0 == run("submit", MOBILE, "--idempotency-key", "login 2").returncode
    assert 2 == len({call.content for call in gateway.calls}) == len(gateway.calls)


def test_a_key_of_another_request_is_refused(gateway: SandboxGateway) -> None:
    key = ("--idempotency-key", "k")
    assert 0 == run("submit", MOBILE, "--content", "1125", *key).returncode
    for other in ((OTHER, "--content", "1125"), (MOBILE, "--content", "1126")):
        refused = run("submit", *other, *key)
        assert (2, 1) == (refused.returncode, refused.stderr.count("\n"))
        assert "was used for another mobile or content" in refused.stderr
    assert 1 == len(gateway.calls)


def test_an_unknown_key_is_never_sent_again_until_it_is_resolved(
    gateway: SandboxGateway, own_store: Path
) -> None:
    key = ("--idempotency-key", "login 1")
    gateway.chaos = Chaos(close_after_placing=1.0)
    first = run("submit", MOBILE, *key)
    gateway.chaos = Chaos()
    again = run("submit", MOBILE, *key)
    assert (6, 6) == (first.returncode, again.returncode)
    resolve = f"ihuyi-voice store {own_store} resolve 'login 1' --placed (or --not-placed)"
    for done in (first, again):
        assert resolve in done.stderr
        assert done.stderr.endswith(f"code {gateway.calls[0].content}\n")
    assert "an earlier request with this idempotency key" in again.stderr
    assert 1 == len(gateway.calls)
    assert 6 == run("store", own_store).returncode
    assert 0 == run("store", "-", "resolve", "login 1", "--not-placed").returncode
    assert 0 == run("submit", MOBILE, *key).returncode
    assert 2 == len(gateway.calls)


def test_an_unknown_call_without_a_key_names_no_key(gateway: SandboxGateway) -> None:
    gateway.chaos = Chaos(close_after_placing=1.0)
    done = run("submit", MOBILE)
    assert (6, False) == (done.returncode, "resolve" in done.stderr)


@pytest.mark.parametrize("key", ["", " k", "k\n", "x" * 256])
def test_a_malformed_key_is_refused_before_anything_else(
    gateway: SandboxGateway, no_store: Path, key: str
) -> None:
    done = run("submit", MOBILE, "--idempotency-key", key)
    assert (2, True) == (done.returncode, "idempotency_key" in done.stderr)
    assert not gateway.attempts
    assert not no_store.exists()


def test_a_key_needs_a_store(gateway: SandboxGateway) -> None:
    done = run("submit", MOBILE, "--idempotency-key", "k", "--store", "none")
    assert (2, "ihuyi-voice: --idempotency-key needs a store, and --store is none\n") == (
        done.returncode,
        done.stderr,
    )
    assert not gateway.attempts


# --- a store that fails ------------------------------------------------------


def test_a_store_that_cannot_be_used_sends_nothing(
    gateway: SandboxGateway, own_store: Path, rows: Path
) -> None:
    own_store.write_bytes(b"not a database at all" * 100)
    for command in (("submit", MOBILE), ("bulk", rows, "--yes")):
        done = run(*command)
        assert (4, "") == (done.returncode, done.stdout)
        assert f"the store could not be used: {own_store}: it is not an SQL" in done.stderr
    report = json.loads(run("submit", MOBILE, "--json").stdout)
    assert ("not_sent", False) == (report["status"], report["may_have_rung"])
    assert not gateway.attempts


def test_a_folder_that_cannot_be_created_sends_nothing(
    gateway: SandboxGateway, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    done = run("submit", MOBILE, XDG_STATE_HOME=str(file))
    assert (4, 1) == (done.returncode, done.stderr.count("\n"))
    assert f"the folder {file}/ihuyi-voice cannot be created" in done.stderr
    assert "--store none sends without memory" in done.stderr
    assert not gateway.attempts


def test_a_password_comes_from_the_environment_alone(gateway: SandboxGateway) -> None:
    url = "oracle://joe:hunter2@host/calls"
    typed = run("submit", MOBILE, "--store", url)
    assert (2, True) == (typed.returncode, "no password on the command line" in typed.stderr)
    from_variable = run("submit", MOBILE, IHUYI_VOICE_STORE=url)
    assert (2, True) == (
        from_variable.returncode,
        "a store is the path of an SQLite file, or a URL" in from_variable.stderr,
    )
    assert "hunter2" not in typed.stderr + from_variable.stderr
    assert not gateway.attempts


# --- bulk --------------------------------------------------------------------


def test_the_same_command_again_sends_nothing(gateway: SandboxGateway, rows: Path) -> None:
    assert 0 == run("bulk", rows, "--yes").returncode
    again = run("bulk", rows, "--json")
    assert 0 == again.returncode
    assert re.search(
        r"^2 of 2 rows were called in job rows\.csv on \d{4}-\d\d-\d\d; --job NAME calls them"
        r" again$",
        again.stderr,
        re.MULTILINE,
    )
    report = json.loads(again.stdout)
    earlier = report["earlier"]
    assert (2, "rows.csv", 2, 0) == (
        report["replayed"],
        earlier["job"],
        earlier["accepted"],
        earlier["unknown"],
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", earlier["last_accepted_at"])
    assert 2 == len(gateway.calls)


def test_a_job_is_the_files_name_or_what_the_option_says(
    gateway: SandboxGateway, rows: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere" / "rows.csv"
    elsewhere.parent.mkdir()
    elsewhere.write_text(ROWS)
    renamed = tmp_path / "new.csv"
    renamed.write_text(ROWS)
    assert 0 == run("bulk", rows, "--yes").returncode
    for same in ((elsewhere,), ("rows.csv",), (renamed, "--job", "rows.csv")):
        done = run("bulk", *same, "--yes", cwd=tmp_path)
        assert (0, 2) == (done.returncode, len(gateway.calls))
        assert "2 of 2 rows were called in job rows.csv on " in done.stderr
    done = run("bulk", renamed, "--yes")
    assert (0, 4, False) == (done.returncode, len(gateway.calls), "were called" in done.stderr)
    # Another job calls them again, and the limit of the numbers holds for all jobs.
    done = run("bulk", rows, "--yes", "--job", "december", "--json")
    assert (3, 2, 4) == (done.returncode, json.loads(done.stdout)["limited"], len(gateway.calls))


@pytest.mark.parametrize("job", ["", " ", "a\nb"])
def test_a_job_has_a_name(gateway: SandboxGateway, rows: Path, job: str) -> None:
    done = run("bulk", rows, "--yes", "--job", job)
    assert (2, True) == (done.returncode, "--job needs a name" in done.stderr)
    assert not gateway.attempts


def test_a_file_whose_name_is_no_text_is_a_job_too(gateway: SandboxGateway, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"rows\xff.csv")
    path.write_text(ROWS)
    assert [0, 0] == [run_apart("bulk", path, "--yes").returncode for _ in range(2)]
    assert 2 == len(gateway.calls)


def test_keys_of_ones_own_are_known_in_every_job(gateway: SandboxGateway, tmp_path: Path) -> None:
    path = tmp_path / "keyed.csv"
    path.write_text(f"mobile,content,idempotency_key\n{MOBILE},1125,order 1\n")
    assert 0 == run("bulk", path, "--yes").returncode
    again = run("bulk", path, "--yes", "--job", "another")
    assert 0 == again.returncode
    assert "1 of 1 row was called under its idempotency_key on 2" in again.stderr
    assert "--job NAME" not in again.stderr
    # The same key in a submit.
    done = run("submit", MOBILE, "--content", "1125", "--idempotency-key", "order 1")
    assert (0, True) == (done.returncode, done.stdout.startswith("accepted earlier"))
    assert 1 == len(gateway.calls)


# --- Redis -------------------------------------------------------------------


def test_redis_keeps_the_limit_and_no_keys(gateway: SandboxGateway, rows: Path) -> None:
    with running_redis() as server:
        url = server.url()
        run_bulk = run("bulk", rows, "--yes", "--store", url)
        assert (2, "") == (run_bulk.returncode, run_bulk.stdout)
        assert "keeps the limits of numbers and no keys" in run_bulk.stderr
        keyed = run("submit", MOBILE, "--idempotency-key", "k", "--store", url)
        assert (2, True) == (keyed.returncode, "idempotency_key cannot be kept" in keyed.stderr)
        assert not gateway.attempts
        statuses = [run("submit", MOBILE, "--store", url).returncode for _ in range(3)]
        assert [0, 0, 5] == statuses
        assert 2 == len(gateway.calls)
        upgrade = run("store", url, "upgrade")
        assert (0, True) == (upgrade.returncode, "has no schema" in upgrade.stdout)


def test_a_store_without_keys_is_refused_by_bulk(
    gateway: SandboxGateway, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with Redis, on machines that have none."""
    from tests.cli.test_bulk_command import bulk  # noqa: PLC0415 - its fixtures are not wanted

    monkeypatch.setattr(SqlStore, "known_keys", None)
    done = bulk(rows, "--yes")
    assert (2, True) == (done.exit_code, "keeps the limits of numbers and no keys" in done.stderr)
    assert not gateway.attempts


# --- the demo and the sandbox ------------------------------------------------


def test_the_demo_uses_no_store(no_store: Path, tmp_path: Path) -> None:
    book = tmp_path / "calls.db"
    done = run("demo", IHUYI_VOICE_STORE=str(book))
    assert (0, "") == (done.returncode, done.stderr)
    assert not book.exists()
    assert not no_store.parent.parent.exists()


def test_the_own_store_is_a_store_like_any_other(gateway: SandboxGateway, own_store: Path) -> None:
    run("submit", MOBILE, "--idempotency-key", "k")
    with Store.open(own_store, create=False) as opened:
        assert 1 == opened.summary()["accepted"]
    assert 1 == len(gateway.calls)
