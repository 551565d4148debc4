"""What is printed must not change how a command ends: full, closed, broken, or another encoding."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice import OutcomeUnknownError, Store, VoiceClient
from ihuyi_voice.cli.output import LossyFile, guard_streams
from ihuyi_voice.sandbox import Chaos, SandboxGateway

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typing_extensions import Buffer

MOBILE, BLACKLISTED = "13912345678", "13800000000"
KEY = "登录 1"
COMMAND = f"{shlex.quote(sys.executable)} -W error -m ihuyi_voice"

# How the standard streams are unusable, as a shell says it.
UNUSABLE = [">/dev/full", ">&-", "2>&1 | true", "<&- >&- 2>&-"]
# One guard serves all commands, so most of them meet only one or two of these.
FULL, CLOSED = UNUSABLE[0], UNUSABLE[-1]
# Commands with the exit status of their outcome, the calls they place, and what they meet.
COMMANDS = [
    (f"submit {MOBILE} --content 1125", 0, 1, UNUSABLE),
    (f"submit {BLACKLISTED} --json", 3, 0, [FULL]),
    ("balance --fail-below 5000", 7, 0, [CLOSED]),
    ("bulk rows.csv --yes --store calls.db --out out.csv", 3, 1, [FULL, CLOSED]),
    ("store known.db", 6, 0, [FULL]),
    ("demo", 0, 0, [CLOSED]),
]


class Gateway(SandboxGateway):
    """A gateway that knows its URL."""

    url = ""


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway(blacklist=[BLACKLISTED])
    with gateway.serve_in_thread() as gateway.url:
        yield gateway


@pytest.fixture
def folder(gateway: Gateway, tmp_path: Path) -> Path:
    """With rows, and with a store of one unknown call."""
    rows = f"mobile,content\n{MOBILE},1125\n{BLACKLISTED},0042\n139,1125\n"
    (tmp_path / "rows.csv").write_text(rows)
    gateway.chaos = Chaos(close_after_placing=1.0)
    with (
        Store.open(tmp_path / "known.db") as store,
        VoiceClient("sandbox", "sandbox-key", base_url=gateway.url, store=store) as client,
        pytest.raises(OutcomeUnknownError),
    ):
        client.submit(MOBILE, "1125", idempotency_key=KEY)
    gateway.chaos = Chaos()
    gateway.clear()
    return tmp_path


def environment(gateway: Gateway, **more: str) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LC_", "LANG", "PYTHONUTF8", "PYTHONIOENCODING"))
    }
    return {
        **inherited,
        "IHUYI_VOICE_API_ID": "sandbox",
        "IHUYI_VOICE_API_KEY": "sandbox-key",
        "IHUYI_VOICE_BASE_URL": gateway.url,
        **more,
    }


def shell(
    command: str, gateway: Gateway, folder: Path, **more: str
) -> subprocess.CompletedProcess[bytes]:
    """In a shell that returns the status of the command, and not that of what reads it."""
    return subprocess.run(
        ["bash", "-c", f"{COMMAND} {command}; exit ${{PIPESTATUS[0]}}"],
        cwd=folder,
        capture_output=True,
        env=environment(gateway, **more),
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "status", "calls", "unusable"),
    [(*command, unusable) for *command, met in COMMANDS for unusable in met],
)
def test_the_exit_status_is_that_of_the_outcome(  # noqa: PLR0917 - parameters
    gateway: Gateway, folder: Path, command: str, status: int, calls: int, unusable: str
) -> None:
    done = shell(f"{command} {unusable}", gateway, folder)
    assert (status, calls) == (done.returncode, len(gateway.calls)), done.stderr.decode()
    assert b"Traceback" not in done.stdout + done.stderr
    assert b"Exception" not in done.stdout + done.stderr
    if "--out" in command:
        assert 4 == (folder / "out.csv").read_text().count("\n")


@pytest.mark.measures_processes
def test_a_full_output_is_said_on_standard_error(gateway: Gateway, folder: Path) -> None:
    done = shell("balance >/dev/full", gateway, folder)
    assert (
        "ihuyi-voice: standard output could not be written (No space left on device), so part of"
        " it is lost; the exit status is that of the outcome\n"
    ) == done.stderr.decode()
    # A reader that leaves wants no more.
    assert b"" == shell("--help | true", gateway, folder).stderr


@pytest.mark.measures_processes
@pytest.mark.parametrize("unusable", ["", "2>/dev/full", "<&- 2>&-"])
def test_a_sandbox_whose_reader_left_answers(gateway: Gateway, unusable: str) -> None:
    with subprocess.Popen(
        ["bash", "-c", f"exec {COMMAND} sandbox --port 0 {unusable}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=environment(gateway),
    ) as process:
        assert process.stdout is not None
        url = re.findall(r"http://\S+", process.stdout.readline())[0]
        process.stdout.close()
        with VoiceClient("sandbox", "sandbox-key", base_url=url) as client:
            first, second = (int(client.submit(MOBILE, "1125").voice_id or 0) for _ in range(2))
            assert 1 == second - first
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert (0, "") == (process.returncode, said)


# --- encodings ---------------------------------------------------------------

CP1252 = {"PYTHONIOENCODING": "cp1252"}
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize(
    ("command", "status", "encoding"),
    [
        (f"submit {BLACKLISTED} --json", 3, ASCII),
        ("bulk rows.csv --yes --json", 3, CP1252),
        ("store known.db --json", 6, ASCII),
    ],
)
def test_json_is_ascii(
    gateway: Gateway, folder: Path, command: str, status: int, encoding: dict[str, str]
) -> None:
    done = shell(command, gateway, folder, **encoding)
    assert status == done.returncode, done.stderr
    report = json.loads(done.stdout.decode("ascii"))
    if "submit" in command:
        assert "手机号码已被列入黑名单" == report["msg"]
    if "store" in command:
        assert KEY == report["key"]


@pytest.mark.parametrize(
    ("command", "status", "encoding"),
    [
        (f"submit {BLACKLISTED}", 3, CP1252),
        (f"submit {BLACKLISTED}", 3, ASCII),
        ("bulk --help", 0, CP1252),
        ("bulk 号码.csv", 2, ASCII),
    ],
)
def test_text_has_escapes_for_what_the_encoding_lacks(
    gateway: Gateway, folder: Path, command: str, status: int, encoding: dict[str, str]
) -> None:
    done = shell(command, gateway, folder, **encoding)
    assert status == done.returncode, done.stderr
    assert b"Traceback" not in done.stderr
    if command == f"submit {BLACKLISTED}":
        # In an ASCII locale click writes UTF-8.
        encoded = ("手机" if "LC_ALL" in encoding else r"\u624b\u673a").encode()
        assert encoded in done.stderr


# --- the file itself ---------------------------------------------------------


def test_what_cannot_be_written_is_dropped_and_remembered() -> None:
    read, write = os.pipe()
    file = LossyFile(write, "w")
    assert (2, None) == (file.write(b"ab"), file.lost)
    os.close(read)
    assert 3 == file.write(b"abc")
    assert isinstance(file.lost, BrokenPipeError)
    assert 4 == file.write(b"abcd")
    file.close()


def test_a_full_pipe_that_does_not_block_is_waited_for() -> None:
    """As where node or ssh has set the flag on a terminal that is shared."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    script = (
        "import os, sys\n"
        "from ihuyi_voice.cli.output import LossyFile\n"
        "file = LossyFile(1, 'w', closefd=False)\n"
        "data = b'x' * 1_000_000\n"
        "while data: data = data[file.write(data):]\n"
        "sys.exit(file.lost is not None)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=write) as process:
        os.close(write)
        with open(read, "rb") as reader:  # noqa: PTH123 - a descriptor
            assert 1_000_000 == len(reader.read())
        assert 0 == process.wait(timeout=60)


class _WindowsConsoleIO(io.RawIOBase):
    """The name of the raw file that writes Unicode to a Windows console."""

    def __init__(self) -> None:
        self.written = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:
        self.written += bytes(data)
        return len(bytes(data))


def test_a_windows_console_keeps_its_own_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of bytes would be read in the console's code page."""
    raw = _WindowsConsoleIO()
    stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    guard_streams()
    assert stream is sys.stdout
    stream.write("a \N{BALLOT BOX}\n")
    assert b"a \\u2610\n" == raw.written
