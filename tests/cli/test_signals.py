"""Signals: Ctrl-C, docker stop, systemd, a lost ssh. What is in flight is recorded."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from ihuyi_voice.cli.account import run_async
from ihuyi_voice.cli.app import app
from ihuyi_voice.cli.bulk.progress import Tally, _without_advice
from ihuyi_voice.cli.bulk.summary import Summary
from ihuyi_voice.cli.signals import Interrupted, Interruptions, woken_by_signals
from ihuyi_voice.errors import BulkStoppedError, NotSentError, OutcomeUnknownError
from ihuyi_voice.models import BulkReport, OutcomeStatus
from ihuyi_voice.sandbox import Chaos
from tests.cli.test_bulk_command import (
    STATUSES,
    Gateway,
    Screen,
    bulk,
    many,
    placed,
    read_json_lines,
    running,
    statuses,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typer.testing import Result

    from tests.cli.test_bulk_command import Rows

MOBILE = "13912345678"
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
STOPPING = "Stopping: requests in flight finish first. Ctrl-C again stops at once."


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    gateway = Gateway()
    with gateway.serve_in_thread() as url:
        gateway.netloc = url.removeprefix("http://")
        monkeypatch.setenv("IHUYI_VOICE_BASE_URL", url)
        monkeypatch.setenv("IHUYI_VOICE_API_ID", "sandbox")
        monkeypatch.setenv("IHUYI_VOICE_API_KEY", "sandbox-key")
        yield gateway


@pytest.fixture(autouse=True)
def _as_from_a_terminal() -> Iterator[None]:
    """Under nohup, or in the background of a script, some of them are ignored, here and below."""
    earlier = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in earlier.items():
        signal.signal(number, handler)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.csv"


def check_against_the_record(
    rows: Rows, report: dict[str, Any], out: Path, gateway: Gateway
) -> None:
    """What is said of each row is what the gateway did, and the sums agree."""
    lines = read_json_lines(out)
    by_line = {line["line"]: line["status"] for line in lines}
    assert len(by_line) == len(lines) == report["rows"] == sum(report[s] for s in STATUSES)
    assert {s: report[s] for s in STATUSES if report[s]} == statuses(out)
    assert report["left"] == len(rows) - report["rows"] + report["not_sent"]
    seen = Counter((a.mobile, a.content) for a in gateway.attempts)
    assert 1 == max(seen.values())
    called = set(placed(gateway))
    for line, row in enumerate(rows, 2):
        status = by_line.get(line)
        assert status in {"accepted", "unknown", "not_sent", None}
        if status == "accepted":
            assert row in called
        elif status != "unknown":
            assert row not in seen
    assert report["accepted"] + report["unknown"] >= len(called)


# --- bulk ----------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_finishes_what_is_in_flight(
    gateway: Gateway, path: Path, number: signal.Signals
) -> None:
    rows = many(900)
    write(path, rows)
    out = path.with_name("out.jsonl")
    gateway.after_the_balance_query(latency=1.0)
    options = ("--yes", "--json", "--concurrency", "20", "--out", out, "--store", "none")
    with running(path, *options) as process:
        gateway.wait_for(20)
        process.send_signal(number)
        began = time.monotonic()
        stdout, stderr = process.communicate(timeout=30)
    assert (3, True) == (process.returncode, time.monotonic() - began < 10)
    assert STOPPING in stderr
    report = json.loads(stdout)
    assert (True, "", 0) == (report["interrupted"], report["stopped"], report["unknown"])
    assert 20 <= report["accepted"] == len(gateway.attempts) < 60
    check_against_the_record(rows, report, out, gateway)
    last = stderr.splitlines()[-1]
    assert last.startswith(f"Rows left: {report['left']} of 900. To continue, remove from {path}")
    assert f"would call {report['accepted']} phones a second time" in last


@pytest.mark.measures_processes
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGHUP, signal.SIGHUP),
        (signal.SIGHUP, signal.SIGTERM),
    ],
)
def test_the_second_signal_stops_at_once(
    gateway: Gateway, path: Path, first: signal.Signals, second: signal.Signals
) -> None:
    rows = many(900)
    write(path, rows)
    out = path.with_name("out.jsonl")
    gateway.after_the_balance_query(latency=0.02)
    options = ("--yes", "--json", "--concurrency", "20", "--out", out, "--store", "none")
    with running(path, *options) as process:
        gateway.wait_for(50)
        gateway.chaos = Chaos(no_answer=1.0)
        # All twenty are held, and the fifteen seconds of the timeout have begun.
        gateway.wait_for(20, "no_answer")
        process.send_signal(first)
        said = ""
        while STOPPING not in said:
            said += process.stderr.readline()  # type: ignore[union-attr]
            assert process.poll() is None, said
        process.send_signal(second)
        began = time.monotonic()
        stdout, stderr = process.communicate(timeout=30)
    assert (6, True) == (process.returncode, time.monotonic() - began < 5)
    assert "Stopping at once: phones of requests in flight may have rung." in stderr
    report = json.loads(stdout)
    assert (True, "", 20) == (report["interrupted"], report["stopped"], report["unknown"])
    assert report["accepted"] + 20 == len(gateway.attempts)
    assert 30 <= report["accepted"] < 900
    check_against_the_record(rows, report, out, gateway)
    assert f"Unknown rows: 20, listed in {out} with the status unknown." in stderr


def test_a_lost_terminal_hangs_up_twice_and_that_is_one_signal(
    gateway: Gateway, path: Path
) -> None:
    """By its shell and by the kernel, one right after the other."""
    write(path, many(200))
    gateway.after_the_balance_query(latency=1.0)
    with running(path, "--yes", "--json", "--concurrency", "20") as process:
        gateway.wait_for(20)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGHUP)
        stdout, stderr = process.communicate(timeout=30)
    report = json.loads(stdout)
    assert (3, 0) == (process.returncode, report["unknown"])
    assert 20 <= report["accepted"] == len(gateway.attempts)
    assert "Stopping at once: phones of requests in flight may have rung." not in stderr


def test_under_nohup_a_hang_up_is_ignored(gateway: Gateway, path: Path) -> None:
    write(path, many(40))
    gateway.after_the_balance_query(latency=0.1)
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with running(path, "--yes", "--json", "--concurrency", "10") as process:
            gateway.wait_for(10)
            process.send_signal(signal.SIGHUP)
            stdout, _ = process.communicate(timeout=30)
    finally:
        signal.signal(signal.SIGHUP, earlier)
    report = json.loads(stdout)
    assert (0, 40, False) == (process.returncode, report["accepted"], report["interrupted"])


def test_with_the_loop_of_asyncio_too(
    gateway: Gateway, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(path.parent), *_python_path())))
    (path.parent / "uvloop.py").write_text("raise ImportError\n")
    write(path, many(200))
    gateway.after_the_balance_query(latency=1.0)
    with running(path, "--yes", "--json", "--concurrency", "20") as process:
        gateway.wait_for(20)
        process.send_signal(signal.SIGTERM)
        stdout, _ = process.communicate(timeout=30)
    report = json.loads(stdout)
    assert (3, True, 0) == (process.returncode, report["interrupted"], report["unknown"])
    assert 20 <= report["accepted"] == len(gateway.attempts) < 60


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def test_an_interrupted_run_goes_on_with_its_store(
    gateway: Gateway, path: Path, tmp_path: Path
) -> None:
    write(path, many(100))
    book = tmp_path / "the calls.db"
    gateway.after_the_balance_query(latency=0.5)
    with running(path, "--yes", "--concurrency", "5", "--store", book) as process:
        gateway.wait_for(5)
        process.send_signal(signal.SIGTERM)
        stdout, _ = process.communicate(timeout=30)
    assert 3 == process.returncode
    *_, interrupted, last = stdout.splitlines()
    assert "Interrupted before the end." == interrupted
    left = 100 - len(gateway.calls)
    assert last == (
        f"Rows left: {left} of 100. To continue, run the same command again:"
        " no phone that rang, or may have rung, is called again."
    )
    gateway.chaos = Chaos()
    assert 0 == bulk(path, "--yes", "--store", book).exit_code
    assert Counter(many(100)) == Counter(placed(gateway))


# --- before anything is sent -----------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_during_the_balance_query_sends_nothing(
    gateway: Gateway, path: Path, number: signal.Signals
) -> None:
    write(path, many(3))
    asked = threading.Event()
    gateway.chaos = Chaos(no_answer=1.0)
    gateway.at_the_balance_query(asked.set)
    with running(path, "--yes") as process:
        assert asked.wait(30)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=30)
    assert (128 + number, "") == (process.returncode, stdout)
    assert stderr.endswith("ihuyi-voice: interrupted: nothing was sent\n")
    assert [] == gateway.attempts


@pytest.mark.measures_processes
@pytest.mark.parametrize(
    ("key", "prompt"),
    [
        ("sandbox-key", "[y/N]: "),
        ("", "API key of account sandbox (IHUYI_VOICE_API_KEY is not set): "),
    ],
    ids=["question", "key"],
)
def test_ctrl_c_at_a_prompt_sends_nothing(
    gateway: Gateway, path: Path, monkeypatch: pytest.MonkeyPatch, key: str, prompt: str
) -> None:
    monkeypatch.setenv("IHUYI_VOICE_API_KEY", key)
    write(path, many(3))
    for command in (("bulk", str(path)), ("submit", MOBILE), ("balance",)):
        if command[0] != "bulk" and key:
            continue
        screen = Screen(*command)
        screen.wait_for(prompt)
        text = screen.interrupt_to_end()
        assert 130 == screen.status
        assert text.endswith("ihuyi-voice: interrupted: nothing was sent\r\n")
        assert "Traceback" not in text
    assert [] == gateway.attempts


# --- one submit, one balance query ----------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_submit_is_an_unknown_outcome(
    gateway: Gateway, number: signal.Signals
) -> None:
    gateway.chaos = Chaos(no_answer=1.0)
    with running(MOBILE, "--content", "1125", "--json", command="submit") as process:
        gateway.wait_for(1, "no_answer")
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=30)
    assert (6, "") == (process.returncode, stderr)
    report = json.loads(stdout)
    assert ("unknown", True) == (report["status"], report["may_have_rung"])
    assert "interrupted while the request was on its way" in report["error"]


def test_a_signal_during_a_balance_query(gateway: Gateway) -> None:
    asked = threading.Event()
    gateway.chaos = Chaos(no_answer=1.0)
    gateway.at_the_balance_query(asked.set)
    with running(command="balance") as process:
        assert asked.wait(30)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=30)
    assert (143, "") == (process.returncode, stdout)
    assert "ihuyi-voice: interrupted: nothing was sent\n" == stderr


def test_what_is_known_stays_when_the_end_is_interrupted(
    gateway: Gateway, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the client is closed, the store is, or the outcome is printed."""

    def interrupt(*_: object, **__: object) -> None:
        raise Interrupted(signal.SIGTERM)

    write(path, many(3))
    book = path.with_name("calls.db")
    with monkeypatch.context() as broken:
        broken.setattr("ihuyi_voice.cli.submit_call.json.dumps", interrupt)
        assert 0 == run("submit", MOBILE, "--json").exit_code
        assert 0 == bulk(path, "--yes", "--json").exit_code
    with monkeypatch.context() as broken:
        broken.setattr("ihuyi_voice.VoiceClient.__exit__", interrupt)
        submitted = run("submit", MOBILE, "--json")
        assert (0, "accepted") == (submitted.exit_code, json.loads(submitted.stdout)["status"])
        refused = run("submit", "13800000000", "--json")
        assert (3, "refused") == (refused.exit_code, json.loads(refused.stdout)["status"])
    with monkeypatch.context() as broken:
        broken.setattr("ihuyi_voice.Store.__exit__", interrupt)
        closed = bulk(path, "--yes", "--json", "--store", book)
        assert (0, 3) == (closed.exit_code, json.loads(closed.stdout)["accepted"])


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


# --- what is said at the end ---------------------------------------------------


def tally(**counts: int) -> Tally:
    made = Tally(interrupted=True)
    for name, count in counts.items():
        made.counts[OutcomeStatus[name.upper()], None] = count
    return made


def next_steps(done: Tally, out: Path | None, store: str | None) -> list[str]:
    return Summary(done, 1000, "rows.csv", out, store).next_steps()


def test_what_to_do_next_speaks_of_the_run(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    done = tally(accepted=777, unknown=3, not_sent=20)
    done.stopped, done.stopped_by_row = "not sent: connection refused", True
    stopped, interrupted, unknown, last = next_steps(done, out, "my calls.db")
    assert stopped == (
        "Stopped before the end, because further rows would end the same way: not sent: connection"
        " refused"
    )
    assert "Interrupted before the end." == interrupted
    assert "Unknown rows: 3, listed by: ihuyi-voice store 'my calls.db'." == unknown
    assert last == (
        "Rows left: 220 of 1000. To continue, run the same command again with a new --out file: no"
        " phone that rang, or may have rung, is called again."
    )
    *_, unknown, last = next_steps(done, None, None)
    assert unknown == (
        "Unknown rows: 3, not listed, because there was no --out and --store was none."
    )
    assert last == (
        "Rows left: 220 of 1000. Do not run rows.csv again unchanged: it would call 780 phones a"
        " second time. Only the account's page shows which. Without --store none you only repeat"
        " the same command."
    )
    assert (
        "No phone was called: run the same command again."
        in next_steps(tally(not_sent=20), None, None)[-1]
    )
    for store in ("calls.db", None):
        for where in (out, None):
            lines = next_steps(done, where, store)
            assert not any("repeating is safe" in line for line in lines)
    done = tally(accepted=5, unknown=1)
    done.interrupted = False
    assert [f"Unknown rows: 1, listed in {out} with the status unknown."] == next_steps(
        done, out, None
    )


def test_a_gateway_that_goes_away_stops_the_run_with_a_message_about_the_run(
    gateway: Gateway, path: Path
) -> None:
    """777 accepted calls, and then nothing can be sent."""
    write(path, many(900))
    with running(path, "--yes", "--concurrency", "10", "--store", "none") as process:
        gateway.wait_for(200)
        gateway.chaos = Chaos(close_before_reading=1.0)
        stdout, _ = process.communicate(timeout=60)
    assert 6 == process.returncode
    assert "repeating is safe" not in stdout
    last = stdout.splitlines()[-1]
    left = re.findall(r"^Rows left: (\d+) of 900\. Do not run ", last)
    assert 0 < int(left[0]) <= 700


# --- the signals themselves ----------------------------------------------------


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interruptions():
        assert all(signal.getsignal(number) not in before for number in SIGNALS)
        with pytest.raises(Interrupted) as caught:
            signal.raise_signal(signal.SIGTERM)
        assert 143 == caught.value.status
    assert before == [signal.getsignal(number) for number in SIGNALS]


def test_a_thread_takes_no_signals_over() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    seen: list[object] = []

    def enter() -> None:
        with Interruptions():
            seen.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert before == seen


async def test_collected_signals_come_in_order_and_can_be_forgotten() -> None:
    with Interruptions() as signals, signals.collecting():
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
        assert signal.SIGHUP == await signals.next()
        signals.forget(signal.SIGHUP)
        assert signal.SIGTERM == await signals.next()


def test_a_signal_that_reaches_another_thread_ends_the_wait_of_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    main_thread = threading.get_ident()
    ended, in_time = threading.Event(), []

    def send(loop: asyncio.AbstractEventLoop) -> None:
        while sys._current_frames()[main_thread].f_code.co_name != "select":
            time.sleep(0.001)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        in_time.append(ended.wait(20))
        loop.call_soon_threadsafe(ended.set)

    async def number() -> int:
        sender = threading.Thread(target=send, args=[asyncio.get_running_loop()])
        sender.start()
        try:
            return await signals.next()
        finally:
            ended.set()
            sender.join()

    with Interruptions() as signals, signals.collecting():
        assert signal.SIGTERM == run_async(number)
    assert [True] == in_time


def test_a_loop_in_another_thread_is_woken_by_no_signal() -> None:
    done: list[bool] = []

    async def enter() -> None:
        with woken_by_signals():
            done.append(True)

    thread = threading.Thread(target=asyncio.run, args=[enter()])
    thread.start()
    thread.join()
    assert [True] == done


def test_a_platform_without_hang_up() -> None:
    script = (
        "import signal; hang_up = signal.SIGHUP; del signal.SIGHUP\n"
        "from ihuyi_voice.cli.bulk import progress\n"
        "from ihuyi_voice.cli.signals import Interruptions\n"
        "numbers = [signal.SIGINT, signal.SIGTERM, hang_up]\n"
        "before = [signal.getsignal(number) for number in numbers]\n"
        "with Interruptions():\n"
        "    now = [signal.getsignal(number) for number in numbers]\n"
        "assert [False, False, True] == [a == b for a, b in zip(before, now)]\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(
    ("number", "command"),
    [
        (signal.SIGINT, ["submit", MOBILE]),
        (signal.SIGTERM, ["bulk", "rows.csv", "--yes"]),
        (signal.SIGHUP, ["submit", MOBILE]),
    ],
)
def test_a_signal_while_the_interpreter_exits_replaces_no_exit_status(
    gateway: Gateway, tmp_path: Path, number: signal.Signals, command: list[str]
) -> None:
    (tmp_path / "rows.csv").write_text("mobile,content\n13912345678,1125\n")
    program = (
        "import atexit, os, sys\n"
        f"atexit.register(os.kill, os.getpid(), {int(number)})\n"
        "from ihuyi_voice.__main__ import main\n"
        "main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, *command],
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (0, b"") == (ended.returncode, ended.stderr if command[0] == "submit" else b"")
    assert 1 == len(placed(gateway))


def test_the_cause_of_a_stop_gives_no_advice_for_one_row() -> None:
    report = BulkReport(dict.fromkeys(OutcomeStatus, 0), 0.0)
    unknown = BulkStoppedError(OutcomeUnknownError("no answer"), report)
    assert "outcome unknown: no answer" == _without_advice(unknown)
    assert "not sent: no host" == _without_advice(BulkStoppedError(NotSentError("no host"), report))
