"""`ihuyi-voice bulk` and the bulk run of the demo: what is sent, said, written and returned."""

from __future__ import annotations

import csv
import itertools
import json
import os
import pty
import queue
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from contextlib import contextmanager
from fcntl import ioctl
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from ihuyi_voice._pipeline import Pipeline
from ihuyi_voice.cli.app import app
from ihuyi_voice.cli.bulk import progress as bulk_progress
from ihuyi_voice.cli.bulk.consent import question as question_about
from ihuyi_voice.sandbox import Attempt, Chaos, SandboxGateway

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from typer.testing import Result

    from ihuyi_voice import SubmitResult

A, B, C = "13912345678", "13812345678", "13712345678"
BLACKLISTED = "13800000000"
STATUSES = {"accepted", "refused", "unknown", "not_sent", "limited", "invalid", "replayed"}
COLUMNS = ["line", "mobile", "status", "code", "voice_id", "detail", "idempotency_key"]

ADVICE = "each row is a call of its own: delete the rows that must not ring their number again"

Rows = list[tuple[str, str]]


class Gateway(SandboxGateway):
    """A sandbox whose submits can be waited for."""

    def __init__(self) -> None:
        self._arrivals: queue.SimpleQueue[Attempt] = queue.SimpleQueue()
        super().__init__(blacklist=[BLACKLISTED], on_attempt=self._arrivals.put)
        self.netloc = ""

    def wait_for(self, count: int, fault: str | None = None) -> None:
        """Until so many more submits were taken that met this fault, or none."""
        while count:
            count -= self._arrivals.get(timeout=30).fault == fault

    def at_the_balance_query(self, act: Callable[[], object]) -> None:
        """Do this when the next request is taken, which is the balance query."""

        def clock() -> float:
            self.clock = time.time
            act()
            return time.time()

        self.clock = clock

    def after_the_balance_query(self, **chaos: Any) -> None:
        """Let the chaos in for the submits alone."""
        self.at_the_balance_query(lambda: setattr(self, "chaos", Chaos(**chaos)))


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """A gateway that the environment points to."""
    gateway = Gateway()
    with gateway.serve_in_thread() as url:
        gateway.netloc = url.removeprefix("http://")
        monkeypatch.setenv("IHUYI_VOICE_BASE_URL", url)
        monkeypatch.setenv("IHUYI_VOICE_API_ID", "sandbox")
        monkeypatch.setenv("IHUYI_VOICE_API_KEY", "sandbox-key")
        yield gateway


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.csv"


def bulk(*arguments: str | Path, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, ["bulk", *map(str, arguments)], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def write(path: Path, rows: Rows) -> None:
    path.write_text("mobile,content\n" + "".join(f"{m},{c}\n" for m, c in rows))


def many(count: int) -> Rows:
    """Rows of which no two have the same number or code."""
    return [(f"139{n:08d}", f"{n:06d}") for n in range(count)]


def placed(gateway: SandboxGateway) -> list[tuple[str, str]]:
    return [(call.mobile, call.content) for call in gateway.calls]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_json_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def statuses(path: Path) -> Counter[object]:
    return Counter(line["status"] for line in read_json_lines(path))


def flat(text: str) -> str:
    """Without the lines and padding of a table."""
    return re.sub(r"[\s│┃]+", " ", text)


# --- a run -------------------------------------------------------------------


def test_each_row_is_placed_and_the_table_says_so(gateway: Gateway, path: Path) -> None:
    rows = many(30)
    write(path, rows)
    result = bulk(path, "--yes")
    assert 0 == result.exit_code
    assert sorted(rows) == sorted(placed(gateway))
    assert re.search(r"outcome.*code.*meaning.*rows", result.stdout)
    assert "accepted the phone rings 30" in flat(result.stdout)
    first, balance, progress = result.stderr.splitlines()
    assert f"{path}: 30 rows, 0 bad, 0 duplicate numbers" == first
    assert "to send 30, balance 1000" == balance
    assert re.fullmatch(r"30/30  accepted 30  refused 0  unknown 0  \d+/s  0 s left", progress), (
        progress
    )


def test_the_table_has_a_row_for_each_status_and_code(gateway: Gateway, path: Path) -> None:
    gateway.failing_mobiles = {B}
    write(path, [(A, "1125")] * 3 + [(BLACKLISTED, "1125"), (B, "1125"), ("139", "1125")])
    result = bulk(path, "--yes")
    assert 3 == result.exit_code
    table = flat(result.stdout)
    assert "accepted the phone rings 2" in table
    assert "limited over the limit for this number: nothing was sent 1" in table
    assert "refused 4030 the mobile number is blacklisted 1" in table
    assert re.search(r"refused 0 [^0-9]+ 1 ", table)
    assert "invalid a bad row: nothing was sent 1" in table


def test_a_refusal_by_a_code_that_no_table_has(gateway: Gateway, path: Path) -> None:
    write(path, many(2))
    gateway.after_the_balance_query(code=9999)
    result = bulk(path, "--yes")
    assert 3 == result.exit_code
    assert "refused 9999 the voice product documents no such code 2" in flat(result.stdout)


def test_some_are_unknown(gateway: Gateway, path: Path) -> None:
    write(path, [*many(3), (BLACKLISTED, "112500")])
    gateway.after_the_balance_query(close_after_placing=1.0)
    result = bulk(path, "--yes")
    assert 6 == result.exit_code
    assert "unknown the phone may have rung: do not repeat blindly 4" in flat(result.stdout)
    assert 3 == len(gateway.calls)


def test_json_for_machines(gateway: Gateway, path: Path) -> None:
    write(path, [(A, "1125")] * 3 + [(BLACKLISTED, "1125"), ("139", "1125")])
    result = bulk(path, "--yes", "--json")
    assert (3, 1) == (result.exit_code, result.stdout.count("\n"))
    assert json.loads(result.stdout) == dict.fromkeys(STATUSES, 0) | {
        "rows": 5,
        "accepted": 2,
        "limited": 1,
        "refused": 1,
        "invalid": 1,
        "codes": {"4030": 1},
        "stopped": "",
        "interrupted": False,
        "unrecorded": 0,
    }


def test_standard_input(gateway: Gateway) -> None:
    result = bulk("-", "--yes", stdin=f"{A},1125\n{B},0042\n")
    assert (0, {(A, "1125"), (B, "0042")}) == (result.exit_code, set(placed(gateway)))
    assert result.stderr.startswith("standard input: 2 rows, ")


def test_a_file_of_bad_rows_alone(gateway: Gateway, path: Path) -> None:
    write(path, [("139", "1125")] * 3)
    out = path.with_name("out.jsonl")
    result = bulk(path, "--yes", "--json", "--out", out)
    assert (3, 3) == (result.exit_code, json.loads(result.stdout)["invalid"])
    assert {"invalid": 3} == statuses(out)
    assert [] == gateway.attempts


def test_as_a_new_user_would(gateway: Gateway, path: Path) -> None:
    """A file saved by a spreadsheet: a BOM, a bad row, a duplicate and an empty line."""
    text = f"mobile;content\r\n{A};1125\r\n1391234567;1125\r\n\r\n{A};4829\r\n{B};0042\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert 2 == bulk(path, "--dry-run").exit_code
    unasked = bulk(path)
    assert (2, []) == (unasked.exit_code, gateway.attempts)
    out = path.with_name("out.csv")
    result = bulk(path, "--yes", "--out", out)
    assert 3 == result.exit_code
    dry = bulk(path, "--dry-run").stderr
    assert unasked.stderr.startswith(dry)
    assert result.stderr.startswith(dry)
    assert dry == (
        f"{path}: 4 rows, 1 bad, 1 duplicate number\n"
        "  line 3: mobile must be a mainland number: 1, then 3-9, then nine digits;"
        " it has 10 digits\n"
        "  line 5 repeats the number of line 2: both are sent\n"
        f"{ADVICE}\n"
    )
    assert {(A, "1125"), (A, "4829"), (B, "0042")} == set(placed(gateway))
    assert 3 == len(gateway.attempts)
    assert {"2": "accepted", "3": "invalid", "5": "accepted", "6": "accepted"} == {
        line["line"]: line["status"] for line in read_csv(out)
    }


# --- before sending ----------------------------------------------------------


def test_what_is_said_before_sending(gateway: Gateway, path: Path) -> None:
    gateway.balance = 2
    bad = "".join("none,1125,,x\n" for _ in range(7))
    path.write_text(
        f"mobile,content,idempotency_key,user id\n{A},,,1\n{A},,,2\n{B},1125,k,3\n{C},1125,,4\n"
        f"{bad}"
    )
    out = path.with_name("out.csv")
    options = ("--yes", "--partial", "--draw-codes", "--out", out, "--concurrency", "1")
    result = bulk(path, *options, "--store", "none")
    problem = (
        "mobile must be a mainland number: 1, then 3-9, then nine digits; it has characters other"
        " than digits"
    )
    drawn = (
        "rows without content: 2; the command draws a code for each, and writes it into the"
        " --out file"
    )
    keys = (
        "rows with an idempotency_key: 1; within this file a key is sent once, across runs nothing"
        " remembers it with --store none"
    )
    assert [
        f"{path}: 11 rows, 7 bad, 1 duplicate number",
        *(f"  line {line}: {problem}" for line in range(6, 11)),
        "  and 2 more",
        "  line 3 repeats the number of line 2: both are sent",
        ADVICE,
        "ignored columns: user id",
        drawn,
        keys,
        "to send 4, balance 2",
        "the balance is 2 short: the run will stop when it is used up",
    ] == result.stderr.splitlines()[:-1]
    assert 2 == len(gateway.calls)


def test_it_does_not_ask_without_a_terminal(gateway: Gateway, path: Path) -> None:
    write(path, many(2))
    out = path.with_name("out.csv")
    result = bulk(path, "--out", out, stdin="y\n")
    assert (2, "") == (result.exit_code, result.stdout)
    assert result.stderr.endswith("there is no terminal to ask on; give --yes to send\n")
    assert ([], False) == (gateway.attempts, out.exists())


@pytest.mark.parametrize(("answer", "calls"), [("y", 2), ("n", 0), ("", 0)])
def test_it_asks_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, gateway: Gateway, path: Path, answer: str, calls: int
) -> None:
    """And once for the key, which it needs twice: for the balance and for the run."""
    monkeypatch.delenv("IHUYI_VOICE_API_KEY")
    write(path, many(2))
    screen = Screen("bulk", str(path))
    screen.wait_for("API key of account sandbox (IHUYI_VOICE_API_KEY is not set): ")
    screen.type("sandbox-key\n")
    screen.wait_for(f"Place 2 calls via {gateway.netloc}? [y/N]: ")
    screen.type(f"{answer}\n")
    text = screen.read_to_end()
    assert (0, calls) == (screen.status, len(gateway.attempts))
    assert 1 == text.count("API key of account")
    assert "sandbox-key" not in text
    assert ("nothing was sent" in text) == (not calls)


@pytest.mark.measures_processes
def test_the_question_says_that_a_number_repeats(gateway: Gateway, path: Path) -> None:
    # Seven more rows for the first number: five of them are listed.
    write(path, [(A, "1125"), *((A, f"{n:04d}") for n in range(7)), (B, "0042")])
    screen = Screen("bulk", str(path))
    screen.wait_for("7 rows call a number that an earlier row of the file calls too.\r\nPlace 9 ")
    screen.type("n\n")
    text = screen.read_to_end()
    assert 5 == text.count("repeats the number of line 2: both are sent")
    assert "line 3 repeats" in text
    assert ("  and 2 more", True) == (re.findall(r"  and \d+ more", text)[0], ADVICE in text)
    assert (0, []) == (screen.status, gateway.attempts)


# --- codes that may be wrong ---------------------------------------------------


def test_codes_of_mixed_lengths_are_not_sent_by_yes_alone(gateway: Gateway, path: Path) -> None:
    """As when a spreadsheet made 42917 of 042917."""
    write(path, [(A, "482913"), (B, "42917"), (C, "771050")])
    warning = (
        "the codes differ in length: 1 of 5 digits, 2 of 6 digits. A spreadsheet drops leading"
        " zeros: 0042 becomes 42, and the phone would read out a wrong code"
    )
    result = bulk(path, "--yes")
    assert (2, []) == (result.exit_code, gateway.attempts)
    assert warning in result.stderr.splitlines()
    assert result.stderr.endswith(
        "ihuyi-voice: nothing was sent: the codes differ in length, so leading zeros may be lost:"
        " correct the file, or give --allow-mixed-lengths if the codes are correct\n"
    )
    dry = bulk(path, "--dry-run")
    assert (2, True) == (dry.exit_code, warning in dry.stderr)
    assert 0 == bulk(path, "--dry-run", "--allow-mixed-lengths").exit_code
    allowed = bulk(path, "--yes", "--allow-mixed-lengths")
    assert (0, 3) == (allowed.exit_code, len(gateway.calls))
    assert warning in allowed.stderr


@pytest.mark.measures_processes
@pytest.mark.parametrize(("answer", "calls"), [("y", 2), ("n", 0)])
def test_doubts_are_asked_about_on_a_terminal(
    gateway: Gateway, path: Path, answer: str, calls: int
) -> None:
    gateway.balance = 2
    write(path, [(A, "482913"), (B, "42917"), (C, "771050")])
    screen = Screen("bulk", str(path))
    screen.wait_for(f"Place 3 calls via {gateway.netloc}? [y/N]: ")
    assert 2 == len(re.findall(r"^Careful: the ", screen.text(), re.MULTILINE))
    screen.type(f"{answer}\n")
    screen.read_to_end()
    assert (3 if calls else 0, calls) == (screen.status, len(gateway.calls))


def test_yes_never_waits_for_an_answer_even_on_a_terminal(gateway: Gateway, path: Path) -> None:
    gateway.balance = 2
    write(path, [(A, "482913"), (B, "429170"), (C, "771050")])
    screen = Screen("bulk", str(path), "--yes")
    text = screen.read_to_end()
    assert (2, []) == (screen.status, gateway.attempts)
    assert "nothing was sent: the balance of 2 is too small for 3 calls" in text
    assert "[y/N]" not in text


def test_a_balance_that_is_too_small_is_not_used_by_yes_alone(gateway: Gateway, path: Path) -> None:
    gateway.balance = 3
    write(path, many(5))
    result = bulk(path, "--yes")
    assert (2, []) == (result.exit_code, gateway.attempts)
    assert result.stderr.endswith(
        "ihuyi-voice: nothing was sent: the balance of 3 is too small for 5 calls: top it up, send"
        " fewer rows with --limit, or give --partial to send until it is used up\n"
    )
    assert 0 == bulk(path, "--yes", "--limit", "3").exit_code
    gateway.reset()
    gateway.balance = 3
    options = ("--yes", "--partial", "--concurrency", "1", "--job", "again")
    assert 3 == bulk(path, *options).exit_code
    assert 3 == len(gateway.calls)


def test_both_doubts_are_named(gateway: Gateway, path: Path) -> None:
    gateway.balance = 1
    write(path, [(A, "482913"), (B, "42917")])
    result = bulk(path, "--yes")
    assert (2, []) == (result.exit_code, gateway.attempts)
    assert all(option in result.stderr for option in ("--allow-mixed-lengths", "--partial"))
    assert 2 == bulk(path, "--yes", "--partial").exit_code
    assert 2 == bulk(path, "--yes", "--allow-mixed-lengths").exit_code
    assert [] == gateway.attempts


def test_drawing_codes_needs_a_file_to_write_them_to(gateway: Gateway, path: Path) -> None:
    path.write_text(f"mobile\n{A}\n")
    undrawn = bulk(path, "--yes")
    assert (2, True) == (undrawn.exit_code, "--draw-codes" in undrawn.stderr)
    nowhere = bulk(path, "--yes", "--draw-codes")
    assert 2 == nowhere.exit_code
    assert nowhere.stderr.endswith(
        "nothing was sent: --draw-codes needs --out, the only place that gets the codes\n"
    )
    assert 0 == bulk(path, "--dry-run", "--draw-codes").exit_code
    assert [] == gateway.attempts
    out = path.with_name("out.csv")
    assert 0 == bulk(path, "--yes", "--draw-codes", "--out", out).exit_code
    assert [call.content for call in gateway.calls] == [line["content"] for line in read_csv(out)]


def test_an_empty_cell_is_a_bad_row(gateway: Gateway, path: Path) -> None:
    write(path, [(A, "1125"), (B, "")])
    result = bulk(path, "--yes")
    assert (3, [(A, "1125")]) == (result.exit_code, placed(gateway))
    assert "  line 3: it has no content (the code to read out); --draw-codes draws" in result.stderr


@pytest.mark.parametrize("text", ["", "mobile,content\n", "[]"])
def test_a_file_without_rows_is_an_error(gateway: Gateway, path: Path, text: str) -> None:
    path.write_text(text)
    for option in ("--yes", "--dry-run"):
        result = bulk(path, option)
        assert (2, "") == (result.exit_code, result.stdout)
        assert f"ihuyi-voice: {path} has no rows: nothing to send\n" == result.stderr


def test_the_columns_of_an_export(gateway: Gateway, path: Path) -> None:
    """What is read out is the code, and neither number nor code becomes a key."""
    path.write_text(f"phone,user_id,code\n{A},424242,1125\n{B},434343,0042\n")
    out = path.with_name("out.csv")
    result = bulk(path, "--yes", "--store", path.with_name("calls.db"), "--out", out)
    assert (0, {(A, "1125"), (B, "0042")}) == (result.exit_code, set(placed(gateway)))
    assert "ignored columns: user_id\n" in result.stderr
    assert all(line["idempotency_key"].startswith("row:") for line in read_csv(out))
    columns = ("--mobile-column", "phone", "--content-column", "2")
    twice = bulk(path, "--yes", *columns, "--key-column", "USER_ID")
    assert (2, True) == (twice.exit_code, "must name different columns" in twice.stderr)
    gateway.clear()
    assert 0 == bulk(path, "--yes", *columns).exit_code
    assert {(A, "424242"), (B, "434343")} == set(placed(gateway))


def test_many_ignored_columns_are_counted(gateway: Gateway, path: Path) -> None:
    names = ",".join(f"c{n}" for n in range(25))
    path.write_text(f"mobile,content,{names}\n{A},1125\n")
    result = bulk(path, "--dry-run")
    assert "ignored columns: c0, c1, " in result.stderr
    assert "c18, c19 and 5 more\n" in result.stderr


def test_keys_that_tell_are_named(gateway: Gateway, path: Path) -> None:
    path.write_text(f"mobile,content,idempotency_key\n{A},1125,login {A}\n{B},0042,k\n")
    result = bulk(path, "--dry-run")
    assert "rows whose idempotency_key contains their number or code: 1; keys are" in result.stderr


def test_a_file_of_a_chinese_excel(gateway: Gateway, path: Path) -> None:
    path.write_bytes(f"手机号,验证码\n{A},0042\n".encode("gbk"))
    result = bulk(path, "--yes")
    assert (2, True) == (result.exit_code, "give --encoding gbk" in result.stderr)
    assert 2 == bulk(path, "--yes", "--encoding", "klingon").exit_code
    assert [] == gateway.attempts
    assert 0 == bulk(path, "--yes", "--encoding", "gbk").exit_code
    assert [(A, "0042")] == placed(gateway)


def test_problems_of_an_array_are_named_by_item(gateway: Gateway, path: Path) -> None:
    path.write_text(f'[{{"mobile": "{A}", "code": "1125"}}, {{"mobile": "1", "code": "1125"}}]')
    result = bulk(path, "--yes")
    assert (3, [(A, "1125")]) == (result.exit_code, placed(gateway))
    assert "\n  item 2: mobile must be" in result.stderr


@pytest.mark.parametrize(
    ("url", "question"),
    [
        ("https://api.voice.ihuyi.com", "via api.voice.ihuyi.com: {phones}. Go on?"),
        ("http://10.0.0.1:8765", "via 10.0.0.1:8765: {phones}. Go on?"),
        ("http://127.0.0.1:8765", "via 127.0.0.1:8765?"),
        ("http://[::1]:8765", "via [::1]:8765?"),
        ("http://localhost", "via localhost?"),
    ],
)
def test_the_question_names_the_gateway(url: str, question: str) -> None:
    several = question.format(phones="real phones ring")
    assert f"Place 500 calls {several}" == question_about(500, url)
    one = question.format(phones="a real phone rings")
    assert f"Place 1 call {one}" == question_about(1, url)


@pytest.mark.parametrize(
    ("rows", "status"), [([(A, "1125"), (B, "0042")], 0), ([(A, "1125"), (B, "x")], 2)]
)
def test_a_dry_run_needs_no_account_and_sends_nothing(
    monkeypatch: pytest.MonkeyPatch, gateway: Gateway, path: Path, rows: Rows, status: int
) -> None:
    monkeypatch.delenv("IHUYI_VOICE_API_KEY")
    monkeypatch.delenv("IHUYI_VOICE_API_ID")
    gateway.at_the_balance_query(lambda: pytest.fail("it was asked"))
    write(path, rows)
    out = path.with_name("out.csv")
    result = bulk(path, "--dry-run", "--out", out)
    assert (status, "") == (result.exit_code, result.stdout)
    assert result.stderr.startswith(f"{path}: {len(rows)} rows, {status // 2} bad, ")
    assert ([], False) == (gateway.attempts, out.exists())


@pytest.mark.parametrize("yes", [True, False])
def test_no_credentials(monkeypatch: pytest.MonkeyPatch, path: Path, yes: bool) -> None:
    monkeypatch.delenv("IHUYI_VOICE_API_ID", raising=False)
    write(path, many(2))
    result = bulk(path, *["--yes"] * yes)
    assert (2, "") == (result.exit_code, result.stdout)
    assert result.stderr.endswith(
        "ihuyi-voice: no API ID: set IHUYI_VOICE_API_ID, or give --api-id\n"
    )


def test_a_file_that_cannot_be_read(gateway: Gateway, path: Path) -> None:
    missing = bulk(path, "--yes")
    assert (2, "", f"ihuyi-voice: cannot read {path}: No such file or directory\n") == (
        missing.exit_code,
        missing.stdout,
        missing.stderr,
    )
    path.write_bytes(f"mobile\n{A}\n".encode() + "姓名\n".encode("gbk"))
    gbk = bulk(path, "--yes")
    assert (2, "") == (gbk.exit_code, gbk.stdout)
    assert "it looks like GBK" in gbk.stderr
    assert [] == gateway.attempts


@pytest.mark.parametrize(
    "option",
    [
        ("--rate", "0"),
        ("--rate", "inf"),
        ("--rate", "nan"),
        ("--concurrency", "0"),
        ("--limit", "0"),
        ("--timeout", "0"),
        ("--base-url", "ftp://host"),
    ],
)
def test_a_bad_option(gateway: Gateway, path: Path, option: tuple[str, str]) -> None:
    write(path, many(2))
    result = bulk(path, "--yes", *option)
    assert (2, "") == (result.exit_code, result.stdout)
    assert option[0].strip("-").replace("-", "_") in result.stderr.replace("-", "_")
    assert [] == gateway.attempts


def test_without_a_balance_nothing_is_sent(
    monkeypatch: pytest.MonkeyPatch, gateway: Gateway, path: Path
) -> None:
    write(path, many(2))
    out = path.with_name("out.csv")

    def refusal(*arguments: str) -> str:
        result = bulk(path, "--yes", "--out", out, *arguments)
        assert (2, "") == (result.exit_code, result.stdout)
        assert ([], False) == (gateway.attempts, out.exists())
        last: str = result.stderr.splitlines()[-1]
        return last

    gateway.frozen = True
    assert refusal().startswith(
        "ihuyi-voice: nothing was sent: the balance is not known: the gateway refused"
    )
    gateway.frozen = False
    gateway.chaos = Chaos(html_502=1.0)
    assert "no phone was involved" in refusal()
    monkeypatch.setenv("IHUYI_VOICE_API_KEY", "wrong-key")
    gateway.chaos = Chaos()
    assert "code 405" in refusal()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert "not sent" in refusal("--base-url", url)


# --- how it sends ------------------------------------------------------------


def test_limit(gateway: Gateway, path: Path) -> None:
    write(path, [(A, "1125"), ("none", "1125"), (B, "1125"), (C, "1125")])
    result = bulk(path, "--yes", "--limit", "3")
    assert {(A, "1125"), (B, "1125")} == set(placed(gateway))
    assert result.stderr.startswith(f"{path}: 3 rows, 1 bad, ")


@pytest.mark.parametrize("limit", [1, 7])
def test_concurrency(
    monkeypatch: pytest.MonkeyPatch, gateway: Gateway, path: Path, limit: int
) -> None:
    write(path, many(40))
    gateway.after_the_balance_query(latency=0.01)
    send, running, seen = Pipeline.send, 0, []

    async def spy(self: Pipeline, *arguments: Any) -> SubmitResult:
        nonlocal running
        running += 1
        seen.append(running)
        try:
            return await send(self, *arguments)
        finally:
            running -= 1

    monkeypatch.setattr(Pipeline, "send", spy)
    assert 0 == bulk(path, "--yes", "--concurrency", str(limit)).exit_code
    assert (1, limit, 40) == (min(seen), max(seen), len(seen))


def test_rate(gateway: Gateway, path: Path) -> None:
    write(path, many(11))
    began = time.time()
    assert 0 == bulk(path, "--yes", "--rate", "40").exit_code
    # Ten intervals of 25 ms, less what starts may catch up after a hold-up.
    assert 0.14 < gateway.attempts[-1].time - began < 5.0


def test_wait_for_quota(monkeypatch: pytest.MonkeyPatch, gateway: Gateway, path: Path) -> None:
    write(path, [(A, f"{n:04d}") for n in range(5)])
    options = ("--yes", "--json", "--store", "none")
    limited = json.loads(bulk(path, *options).stdout)
    assert (2, 3) == (limited["accepted"], limited["limited"])
    monkeypatch.setattr("ihuyi_voice.quota.MINUTE", 0.3)
    began = time.time()
    waited = bulk(path, *options, "--wait-for-quota")
    assert (0, 5) == (waited.exit_code, json.loads(waited.stdout)["accepted"])
    # Since the start, because a call may arrive long after its place was reserved.
    after = [attempt.time - began for attempt in gateway.attempts[2:]]
    assert (True, True) == (0.29 < after[2], 0.59 < after[4])


def test_a_refusal_of_the_account_stops_the_run(gateway: Gateway, path: Path) -> None:
    gateway.balance = 5
    write(path, many(200))
    options = ("--yes", "--partial", "--concurrency", "2")
    result = bulk(path, *options)
    assert 3 == result.exit_code
    assert (5, True) == (len(gateway.calls), len(gateway.attempts) <= 7)
    assert re.search(
        r"\nStopped before the end, because further rows would end the same way:"
        r" the gateway refused with code 4051",
        result.stdout,
    )
    gateway.reset()
    gateway.balance = 5
    report = json.loads(bulk(path, *options, "--json").stdout)
    assert report["stopped"].startswith("the gateway refused with code 4051")
    assert (5, False) == (report["accepted"], report["interrupted"])


def test_a_gateway_that_fails_midway_stops_the_run(gateway: Gateway, path: Path) -> None:
    write(path, many(500))
    gateway.after_the_balance_query(html_502=1.0)
    result = bulk(path, "--yes", "--concurrency", "5", "--json")
    report = json.loads(result.stdout)
    assert (6, True) == (result.exit_code, 20 <= report["unknown"] <= 25)
    assert report["stopped"].startswith("outcome unknown: HTTP status 502")
    assert len(gateway.attempts) == report["unknown"]


def test_a_file_that_changes_after_the_check_stops_the_run(gateway: Gateway, path: Path) -> None:
    write(path, many(3))
    out = path.with_name("out.jsonl")
    changed = f"{A},1125\nnone,1125\n{B},1125\n".encode() + b"x\n" * 9000 + b"\xff\xff\n"
    gateway.at_the_balance_query(lambda: path.write_bytes(changed))
    result = bulk(path, "--yes", "--json", "--out", out)
    report = json.loads(result.stdout)
    assert 3 == result.exit_code
    assert report["stopped"].startswith(f"{path} is not UTF-8")
    assert {(A, "1125"), (B, "1125")} == set(placed(gateway))
    assert report["rows"] == sum(statuses(out).values())
    assert (2, report["invalid"]) == (statuses(out)["accepted"], statuses(out)["invalid"])


# --- --out -------------------------------------------------------------------


MIXED = [(A, "1125"), (A, "4829"), (A, "7710"), (BLACKLISTED, "5519"), ("139", "6627")]


def check_the_lines(lines: list[dict[str, str]], gateway: Gateway) -> None:
    """One line for each row of `MIXED`; None and "" are the same here."""
    by_line = {int(line["line"]): line for line in lines}
    assert (5, [2, 3, 4, 5, 6]) == (len(lines), sorted(by_line))
    assert ["accepted", "accepted", "limited", "refused", "invalid"] == [
        by_line[n]["status"] for n in range(2, 7)
    ]
    ids = {call.content: call.voice_id for call in gateway.calls}
    assert [ids["1125"], ids["4829"]] == [by_line[n]["voice_id"] for n in (2, 3)]
    assert ["139****5678"] * 3 + ["138****0000", "****"] == [
        by_line[n]["mobile"] for n in range(2, 7)
    ]
    assert "4030" == str(by_line[5]["code"])
    assert not any(by_line[n]["code"] or by_line[n]["detail"] for n in (2, 3))
    assert "the limit of calls to 139****5678 is reached" in by_line[4]["detail"]
    assert "blacklisted" in by_line[5]["detail"]
    assert "it has 3 digits" in by_line[6]["detail"]


@pytest.mark.parametrize("name", ["out.csv", "out", "out.txt"])
def test_out_as_csv(gateway: Gateway, path: Path, name: str) -> None:
    write(path, MIXED)
    out = path.with_name(name)
    assert 3 == bulk(path, "--yes", "--out", out).exit_code
    lines = read_csv(out)
    assert COLUMNS == list(lines[0])
    check_the_lines(lines, gateway)


@pytest.mark.parametrize("name", ["out.jsonl", "out.NDJSON", "out.json"])
def test_out_as_json_lines(gateway: Gateway, path: Path, name: str) -> None:
    write(path, MIXED)
    out = path.with_name(name)
    assert 3 == bulk(path, "--yes", "--out", out).exit_code
    lines = read_json_lines(out)
    assert [COLUMNS] * 5 == [list(line) for line in lines]
    check_the_lines([{k: str(v or "") for k, v in line.items()} for line in lines], gateway)


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_codes_and_numbers_stay_out_of_everything_written(
    gateway: Gateway, path: Path, name: str
) -> None:
    write(path, [*MIXED, (B, "6630")])
    out = path.with_name(name)
    result = bulk(path, "--yes", "--out", out)
    written = out.read_text(encoding="utf-8") + result.stdout + result.stderr
    for secret in (A, B, BLACKLISTED, *(code for _, code in MIXED), "6630", "sandbox-key"):
        assert not re.search(rf"(?<!\d){secret}(?!\d)", written)


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
@pytest.mark.parametrize("option", ["--draw-codes", "--show-codes"])
def test_codes_are_written_when_they_are_asked_for(
    gateway: Gateway, path: Path, name: str, option: str
) -> None:
    write(path, [*MIXED, (B, "" if option == "--draw-codes" else "0042")])
    out = path.with_name(name)
    result = bulk(path, "--yes", "--out", out, option)
    lines = read_csv(out) if name == "out.csv" else read_json_lines(out)
    drawn = next(call.content for call in gateway.calls if call.mobile == B)
    # A bad row's content was not looked at, and is not repeated.
    expected = {"2": "1125", "3": "4829", "4": "7710", "5": "5519", "6": "", "7": drawn}
    assert expected == {str(line["line"]): line["content"] or "" for line in lines}
    assert drawn not in result.stdout + result.stderr
    assert A not in out.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_keys_are_written_down(gateway: Gateway, path: Path, name: str) -> None:
    rows = ((A, "a,b"), (B, "\ud800"), ("1", "姓名"))
    text = (json.dumps({"tel": m, "code": "1125", "idempotency_key": key}) for m, key in rows)
    path.write_text("\n".join(text))
    out = path.with_name(name)
    assert 3 == bulk(path, "--yes", "--out", out).exit_code
    lines = read_csv(out) if name == "out.csv" else read_json_lines(out)
    keys = {str(line["line"]): (line["status"], line["idempotency_key"] or "") for line in lines}
    # Half a character is no key; the row is a bad one.
    expected = {"1": ("accepted", "a,b"), "2": ("invalid", ""), "3": ("invalid", "姓名")}
    assert expected == keys


def test_each_line_is_there_as_soon_as_its_row_is_done(gateway: Gateway, path: Path) -> None:
    write(path, many(30))
    out = path.with_name("out.jsonl")
    seen: list[int] = []
    gateway.on_attempt = lambda _: seen.append(len(read_json_lines(out)))
    assert 0 == bulk(path, "--yes", "--concurrency", "1", "--out", out).exit_code
    assert 30 == len(seen) == len(read_json_lines(out))
    # The line of the row just before may be on its way.
    assert all(n - 2 <= lines <= n for n, lines in enumerate(seen))


def test_an_existing_file_is_not_written_over(gateway: Gateway, path: Path) -> None:
    write(path, many(2))
    gateway.at_the_balance_query(lambda: pytest.fail("it was asked"))
    out = path.with_name("out.csv")
    out.write_text("precious")
    result = bulk(path, "--yes", "--out", out)
    assert (2, "") == (result.exit_code, result.stdout)
    assert f"{out} exists already: give --out a new file" in result.stderr
    assert ("precious", []) == (out.read_text(), gateway.attempts)


def test_a_file_that_cannot_be_made(gateway: Gateway, path: Path) -> None:
    write(path, many(2))
    result = bulk(path, "--yes", "--out", path / "out.csv")
    assert (2, []) == (result.exit_code, gateway.attempts)
    assert result.stderr.endswith(
        f"ihuyi-voice: nothing was sent: cannot write {path}/out.csv: Not a directory\n"
    )


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_a_full_disk_stops_the_run(gateway: Gateway, path: Path, name: str) -> None:
    write(path, many(300))
    out = path.with_name(name)
    with files_of_at_most(2000):
        # Without a store, whose file would be cut off too.
        options = ("--yes", "--concurrency", "4", "--store", "none")
        result = bulk(path, *options, "--out", out, "--json")
    report = json.loads(result.stdout)
    assert (3, "cannot write the outcomes: File too large") == (result.exit_code, report["stopped"])
    assert 10 < report["accepted"] == len(gateway.calls) < 60
    assert 2000 == out.stat().st_size


# --- progress ----------------------------------------------------------------


def test_plain_lines_now_and_then(
    monkeypatch: pytest.MonkeyPatch, gateway: Gateway, path: Path
) -> None:
    now = itertools.count(0.0, 5.0)
    monkeypatch.setattr(bulk_progress, "time", SimpleNamespace(monotonic=lambda: next(now)))
    write(path, many(20))
    result = bulk(path, "--yes", "--concurrency", "1")
    lines = re.findall(
        r"^(\d+)/20  accepted (\d+)  refused 0  unknown 0  \d+/s  \d+ s left$",
        result.stderr,
        re.MULTILINE,
    )
    assert [str(n) for n in range(1, 21)] == [done for done, _ in lines[:-1]]
    assert all(done == accepted for done, accepted in lines)
    assert ("20", "20") == lines[-1]


def test_a_bar_on_a_terminal(gateway: Gateway, path: Path) -> None:
    write(path, [*many(60), (BLACKLISTED, "112500")])
    gateway.after_the_balance_query(latency=0.05)
    screen = Screen("bulk", str(path), "--yes", "--concurrency", "10")
    text = screen.read_to_end()
    assert 3 == screen.status
    shown = re.findall(r"(\d+)% accepted (\d+)  refused ([01])  unknown 0  \d+/s", text)
    percents = [int(percent) for percent, *_ in shown]
    assert sorted(percents) == percents
    # More than the first and the last: it moved.
    assert 2 < len(set(percents))
    assert ("100", "60", "1") == shown[-1]
    assert re.search(r"\d:\d\d:\d\d", text)
    assert "outcome" in text


# --- the demo's bulk run -----------------------------------------------------


def test_the_demo_runs_a_bulk() -> None:
    result = CliRunner().invoke(app, ["demo"])
    assert 0 == result.exit_code
    _, heading, bulk_run = result.stdout.partition("A bulk run of 500 rows, some of them bad:")
    assert heading
    match = re.search(
        r"^500/500  accepted (\d+)  refused (\d+)  unknown (\d+)  \d+/s", bulk_run, re.MULTILINE
    )
    assert match
    accepted, refused, unknown = map(int, match.groups())
    # Five rows are bad, five are to one blacklisted number, of which the limit lets two through.
    assert (2, 490) == (refused, accepted + unknown)
    table = flat(bulk_run)
    for words in (
        f"accepted the phone rings {accepted}",
        f"unknown the phone may have rung: do not repeat blindly {unknown}",
        "invalid a bad row: nothing was sent 5",
        "limited over the limit for this number: nothing was sent 3",
        "refused 4030 the mobile number is blacklisted 2",
    ):
        assert words in table
    assert f"{accepted + unknown + 7} calls were placed." in bulk_run


def test_the_demo_shows_its_bar_on_a_terminal() -> None:
    screen = Screen("demo")
    text = screen.read_to_end()
    assert 0 == screen.status
    assert re.search(r"100% accepted \d+  refused 2  unknown \d+  \d+/s", text)
    assert "calls were placed." in text


# --- the command in a process of its own -------------------------------------


@contextmanager
def running(*arguments: str | Path, command: str = "bulk") -> Iterator[subprocess.Popen[str]]:
    """A command whose output is read; ended after a minute, come what may."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "ihuyi_voice", command, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1"},
    ) as process:
        last = threading.Timer(60, process.kill)
        last.start()
        try:
            yield process
        finally:
            last.cancel()
            process.kill()


class Screen:
    """A command on a terminal of its own, 120 columns wide."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "ihuyi_voice", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "PYTHONUTF8": "1", "TERM": "xterm"},
        )
        os.close(theirs)
        self._last = threading.Timer(60, self._process.kill)
        self._last.start()
        self._bytes = b""

    @property
    def status(self) -> int | None:
        return self._process.returncode

    def wait_for(self, words: str) -> None:
        while words not in self.text():
            assert self._read(), self.text()

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def interrupt(self) -> None:
        """As the terminal does on Ctrl-C, once its program has taken it over."""
        self._process.send_signal(signal.SIGINT)

    def read_to_end(self) -> str:
        """All that was shown, once the command has ended."""
        while self._read():
            pass
        self._process.wait()
        self._last.cancel()
        os.close(self._ours)
        return self.text()

    def interrupt_to_end(self) -> str:
        """Press Ctrl-C until it is heard, and return all that was shown.

        Python does not hear a signal that comes in the instant before a read begins.
        """
        self.interrupt()
        while not select.select([self._ours], [], [], 5)[0]:
            self.interrupt()  # pragma: no cover - seldom
        return self.read_to_end()

    def _read(self) -> bool:
        try:
            more = os.read(self._ours, 65536)
        except OSError:
            # EIO is what Linux answers once no process holds the other side.
            return False
        self._bytes += more
        return True

    def text(self) -> str:
        # Without what moves the cursor and colours the text.
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._bytes.decode("utf-8", "replace"))
