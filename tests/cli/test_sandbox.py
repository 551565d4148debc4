"""`ihuyi-voice sandbox`: its accounts, what it prints, and a reader that never reads."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from ihuyi_voice import AuthenticationError, VoiceClient
from ihuyi_voice.cli import sandbox_output
from ihuyi_voice.cli.app import app
from ihuyi_voice.cli.sandbox_output import Output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typer.testing import Result

MOBILE = "13912345678"
DEADLINE = 60.0
HEADERS = "Host: localhost\r\nConnection: close\r\n\r\n"
CREDENTIALS = ("IHUYI_VOICE_API_ID", "IHUYI_VOICE_API_KEY")


@pytest.fixture(autouse=True)
def _no_account_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["sandbox", *arguments])


@contextmanager
def running(
    *options: str, lines: int = 4, stdout: int = subprocess.PIPE, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The command, once it has printed its first lines."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "ihuyi_voice", "sandbox", "--port", "0", *options],
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=os.environ | environment,
        pipesize=4096,
    ) as process:
        try:
            assert process.stdout is not None
            yield process, [process.stdout.readline().rstrip("\n") for _ in range(lines)]
        finally:
            process.kill()


def stopped(process: subprocess.Popen[str]) -> list[str]:
    """What it printed after its first lines."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE)
    assert (0, "") == (process.returncode, err)
    return out.splitlines()


def url_in(lines: list[str]) -> str:
    return lines[0].split()[3]


def without_times(lines: list[str]) -> list[str]:
    return [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in lines]


def exchange(url: str, request: bytes) -> bytes:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE) as connection:
        connection.sendall(request)
        return connection.makefile("rb").read()


# --- accounts ---------------------------------------------------------------------


def accepts(url: str, account: str, key: str) -> bool:
    with VoiceClient(account, key, base_url=url) as client:
        try:
            client.query_balance()
        except AuthenticationError:
            return False
    return True


def test_several_accounts_and_no_key_is_printed() -> None:
    options = ("--account", "VM 1", "--account", "VM2", "--key", "first-k", "--key", "second-k")
    with running(*options, lines=5) as (process, lines):
        url = url_in(lines)
        assert accepts(url, "VM 1", "first-k")
        assert accepts(url, "VM2", "second-k")
        assert not accepts(url, "VM2", "first-k")
        assert not accepts(url, "sandbox", "sandbox-key")
        printed = lines + stopped(process)
    assert "  export IHUYI_VOICE_API_ID='VM 1'" == lines[2]
    assert "  # IHUYI_VOICE_API_KEY: the key that you gave; it is not shown" == lines[3]
    assert "  # more accounts: VM2" == lines[4]
    assert "-k" not in "".join(printed)


@pytest.mark.measures_processes
def test_the_account_of_the_environment_is_taken() -> None:
    with running(IHUYI_VOICE_API_ID="VM3", IHUYI_VOICE_API_KEY="third-k") as (process, lines):
        assert accepts(url_in(lines), "VM3", "third-k")
        assert "  export IHUYI_VOICE_API_ID=VM3" == lines[2]
        assert "third-k" not in "".join(lines + stopped(process))


@pytest.mark.measures_processes
def test_an_option_counts_before_the_environment_and_one_key_is_for_all_accounts() -> None:
    options = ("--account", "A", "--account", "B")
    with running(*options, lines=5, IHUYI_VOICE_API_ID="VM3") as (process, lines):
        url = url_in(lines)
        assert ["A", "B"] == [a for a in ("A", "B", "VM3") if accepts(url, a, "sandbox-key")]
        assert "  export IHUYI_VOICE_API_KEY=sandbox-key" == lines[3]
        stopped(process)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("one --key for all", ["--key", "a", "--key", "b"]),
        ("one --key for all", [*("--account", "A") * 3, *("--key", "a") * 2]),
        ("each --account once", ["--account", "A", "--account", "A"]),
        ("api_id must be a str", ["--account", ""]),
        ("accounts must map", ["--account", "A", "--account", ""]),
    ],
)  # fmt: skip
def test_accounts_that_do_not_fit_are_refused(words: str, options: list[str]) -> None:
    result = run(*options)
    assert 2 == result.exit_code
    assert words in result.stderr
    assert 1 == result.stderr.count("\n")


def test_a_port_in_use_names_the_option() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("--port", str(port))
    assert 1 == result.exit_code
    assert (
        f"ihuyi-voice: port {port} of 127.0.0.1 is in use: give another one with --port, or"
        " --port 0 for a free one\n"
    ) == result.stderr


def test_another_reason_is_given_as_it_is() -> None:
    result = run("--port", "0", "--host", "192.0.2.1")
    assert 1 == result.exit_code
    assert "cannot listen on 192.0.2.1 port 0: " in result.stderr
    assert "--port," not in result.stderr


# --- what is printed --------------------------------------------------------------


def test_every_request_is_printed_without_its_secrets() -> None:
    secret = "f00-b4r"
    query = f"account=sandbox&password={secret}"
    with running() as (process, lines):
        url = url_in(lines)
        with VoiceClient("sandbox", "sandbox-key", base_url=url) as client:
            client.query_balance()
        submit = f"/webservice/voice.php?method=Submit&{query}&mobile={MOBILE}&content=语 音"
        for line in (
            f"GET /webservice/sms.php?{query} HTTP/1.1",
            f"\x1b[2JGET /?{query}",
            f"GET {submit} HTTP/1.1",
        ):
            assert secret.encode() not in exchange(url, f"{line}\r\n{HEADERS}".encode())
        printed = without_times(stopped(process))
    assert [
        "balance query answered 2",
        (
            "unknown 'GET /webservice/sms.php?account=sandbox&password=********'  404: Not Found:"
            " the gateway answers at /webservice/voice.php"
        ),
        "unreadable ''  400: it is not HTTP: its first line is not METHOD TARGET HTTP/1.1",
        r"refused 405: wrong API key  mobile '13912345678'  content '\u8bed \u97f3'",
        "0 placed of 1 submit",
    ] == printed


@pytest.mark.measures_processes
def test_quiet_prints_the_url_and_the_count_alone() -> None:
    with running("--quiet") as (process, lines):
        with VoiceClient("sandbox", "sandbox-key", base_url=url_in(lines)) as client:
            client.submit(MOBILE, "1125")
            client.query_balance()
        assert ["1 placed of 1 submit"] == stopped(process)


def test_refusals_in_xml_may_have_line_breaks() -> None:
    with running("--multiline-refusals") as (process, lines):
        line = "GET /webservice/voice.php?method=GetNum HTTP/1.1"
        answer = exchange(url_in(lines), f"{line}\r\n{HEADERS}".encode())
        assert b"<code>\r\n401\r\n</code>\r\n<msg>\r\n" in answer
        stopped(process)


# --- a reader that never reads ----------------------------------------------------


def test_an_output_that_is_not_read_does_not_block_the_gateway() -> None:
    """The pipe holds 4 KiB: the lines of these submits are many times longer."""
    with running() as (process, lines):
        with VoiceClient("sandbox", "sandbox-key", base_url=url_in(lines)) as client:
            encoded = "content=" + "x" * 2000
            form = f"account=sandbox&password=sandbox-key&mobile={MOBILE}&{encoded}"
            head = f"Host: a\r\nConnection: close\r\nContent-Length: {len(form)}\r\n"
            head += "Content-Type: application/x-www-form-urlencoded\r\n\r\n"
            request = f"POST /webservice/voice.php?method=Submit HTTP/1.1\r\n{head}{form}"
            for _ in range(50):
                assert b"<code>4070</code>" in exchange(url_in(lines), request.encode())
            assert client.submit(MOBILE, "1125").voice_id
        process.send_signal(signal.SIGINT)
        # Without reading: it must end although its output is full.
        assert 0 == process.wait(timeout=DEADLINE)
        assert process.stderr is not None
        assert "" == process.stderr.read()


def test_lines_beyond_the_bound_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_output, "MOST_HELD", 2)
    writing, read, written = Event(), Event(), list[str]()

    def write(line: str) -> None:
        writing.set()
        assert read.wait(DEADLINE)
        written.append(line)

    output = Output(write)
    output.print("1")
    assert writing.wait(DEADLINE)
    for line in ("2", "3", "4", "5"):
        output.print(line)
    read.set()
    output.close()
    assert ["1", "... 2 lines were left out: nothing read the output", "2", "3"] == written


def test_one_line_is_counted_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_output, "MOST_HELD", 0)
    written = list[str]()
    output = Output(written.append)
    output.print("1")
    monkeypatch.setattr(sandbox_output, "MOST_HELD", 1)
    output.print("2")
    output.close()
    assert ["2", "... 1 line was left out: nothing read the output"] == written


def test_the_end_does_not_wait_for_a_write_that_does_not_end() -> None:
    read, written = Event(), Event()

    def write(_: str) -> None:
        read.wait(DEADLINE)
        written.set()

    output = Output(write, patience=0.01)
    output.print("1")
    output.close()
    assert not written.is_set()
    read.set()
    assert written.wait(DEADLINE)
    output.close()
