"""The commands as a shell sees them: output, errors, exit status."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest
import typer
from rich.cells import cell_len
from typer.testing import CliRunner

from ihuyi_voice import BlockedMobileError, QuotaExceededError, VoiceClient
from ihuyi_voice.cli.account import EXIT_STATUSES, Account
from ihuyi_voice.cli.app import app
from ihuyi_voice.sandbox import Chaos, SandboxGateway

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typer.testing import Result

MOBILE = "13912345678"


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[SandboxGateway]:
    """A gateway that the environment points to."""
    gateway = SandboxGateway(blacklist=["13800000000"])
    with gateway.serve_in_thread() as url:
        monkeypatch.setenv("IHUYI_VOICE_BASE_URL", url)
        monkeypatch.setenv("IHUYI_VOICE_API_ID", "sandbox")
        monkeypatch.setenv("IHUYI_VOICE_API_KEY", "sandbox-key")
        yield gateway


def run(*arguments: str, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, arguments, input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def one_line(text: str) -> str:
    assert text.count("\n") == 1, text
    return text.rstrip("\n")


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "ihuyi_voice", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1"},
    )


# --- submit ------------------------------------------------------------------


def test_a_drawn_code_is_printed_and_placed(gateway: SandboxGateway) -> None:
    result = run("submit", "+86 139-1234-5678")
    assert result.exit_code == 0
    match = re.fullmatch(
        r"accepted  139\*\*\*\*5678  code (\d{6})  voice id (\d+)", one_line(result.stdout)
    )
    assert match
    assert [(MOBILE, match[1], match[2])] == [
        (call.mobile, call.content, call.voice_id) for call in gateway.calls
    ]


def test_a_given_code_is_placed_and_not_repeated(gateway: SandboxGateway) -> None:
    result = run("submit", MOBILE, "--content", "1125")
    assert re.fullmatch(r"accepted  139\*\*\*\*5678  voice id \d+", one_line(result.stdout))
    assert gateway.calls[0].content == "1125"


def test_json_for_machines(gateway: SandboxGateway) -> None:
    accepted = json.loads(run("submit", MOBILE, "--content", "1125", "--json").stdout)
    assert accepted == {
        "status": "accepted",
        "may_have_rung": True,
        "mobile": "139****5678",
        "code": 2,
        "msg": "提交成功",
        "voice_id": gateway.calls[0].voice_id,
    }
    refused = run("submit", "13800000000", "--json")
    assert json.loads(refused.stdout) == {
        "status": "refused",
        "may_have_rung": False,
        "mobile": "138****0000",
        "error": "the gateway refused with code 4030: the mobile number is blacklisted"
        " (its text: '手机号码已被列入黑名单'); no phone rang",
        "code": 4030,
        "msg": "手机号码已被列入黑名单",
    }


@pytest.mark.parametrize(
    ("mobile", "content", "words"),
    [
        ("1391234567", "1125", "it has 10 digits"),
        ("１３９12345678", "1125", "not ASCII"),
        (MOBILE, "12ab", "characters other than digits"),
        (MOBILE, "", "it is empty"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_sent(
    gateway: SandboxGateway, mobile: str, content: str, words: str
) -> None:
    result = run("submit", mobile, "--content", content)
    assert (2, "") == (result.exit_code, result.stdout)
    assert words in one_line(result.stderr)
    assert gateway.attempts == []


def test_a_refusal(gateway: SandboxGateway) -> None:
    result = run("submit", "13800000000")
    assert (3, "") == (result.exit_code, result.stdout)
    assert "code 4030" in one_line(result.stderr)


def test_nothing_sent(monkeypatch: pytest.MonkeyPatch, gateway: SandboxGateway) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("IHUYI_VOICE_BASE_URL", f"http://127.0.0.1:{bound.getsockname()[1]}")
        result = run("submit", MOBILE)
    assert (4, "") == (result.exit_code, result.stdout)
    assert "nothing was written, no phone rang" in one_line(result.stderr)


def test_an_unknown_outcome_prints_the_drawn_code(gateway: SandboxGateway) -> None:
    gateway.chaos = Chaos(close_after_placing=1.0)
    result = run("submit", MOBILE)
    assert (6, "") == (result.exit_code, result.stdout)
    line = one_line(result.stderr)
    assert "the phone may have rung, do not repeat this blindly" in line
    assert line.endswith(f"code {gateway.calls[0].content}")


def test_over_the_limit(monkeypatch: pytest.MonkeyPatch, gateway: SandboxGateway) -> None:
    def exceeded(*_: object, **__: object) -> None:
        raise QuotaExceededError(masked, 12.0)

    masked = "139****5678"

    monkeypatch.setattr(VoiceClient, "submit", exceeded)
    result = run("submit", MOBILE, "--json")
    assert result.exit_code == 5
    assert json.loads(result.stdout)["retry_after"] == 12.0
    assert gateway.attempts == []


def test_ctrl_c_during_a_submit_is_an_unknown_outcome(gateway: SandboxGateway) -> None:
    gateway.chaos = Chaos(no_answer=1.0)
    with start("submit", MOBILE, "--content", "1125") as process:
        while not gateway.attempts:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (6, "") == (process.returncode, out)
    assert "interrupted while the request was on its way" in one_line(err)


def test_every_outcome_has_an_exit_status_of_its_own() -> None:
    assert len(EXIT_STATUSES) == len(set(EXIT_STATUSES.values())) == 6


# --- balance -----------------------------------------------------------------


def test_balance(gateway: SandboxGateway) -> None:
    plain = run("balance")
    assert (0, "1000\n", "") == (plain.exit_code, plain.stdout, plain.stderr)
    assert json.loads(run("balance", "--json").stdout) == {"remaining": 1000}
    assert run("balance", "--fail-below", "1000").exit_code == 0
    below = run("balance", "--fail-below", "1001")
    assert (7, "1000\n") == (below.exit_code, below.stdout)
    assert gateway.attempts == []


def test_a_refused_balance_query(monkeypatch: pytest.MonkeyPatch, gateway: SandboxGateway) -> None:
    monkeypatch.setenv("IHUYI_VOICE_API_KEY", "wrong-key")
    result = run("balance")
    assert (3, "") == (result.exit_code, result.stdout)
    assert "code 405" in one_line(result.stderr)
    assert result.stderr.startswith("ihuyi-voice: the balance is not known: ")
    as_json = run("balance", "--json")
    assert {"status", "error"} == set(json.loads(as_json.stdout))
    assert (3, "refused") == (as_json.exit_code, json.loads(as_json.stdout)["status"])
    assert "wrong-key" not in result.stderr + as_json.stdout
    assert gateway.attempts == []


def test_a_balance_query_that_reaches_nothing(
    monkeypatch: pytest.MonkeyPatch, gateway: SandboxGateway
) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        monkeypatch.setenv("IHUYI_VOICE_BASE_URL", f"http://{address}")
        result = run("balance")
    assert (4, "") == (result.exit_code, result.stdout)
    assert one_line(result.stderr) == (
        f"ihuyi-voice: not sent: the connection could not be made to {address}: Connection refused;"
        " the balance is not known, which does not mean that it is 0; nothing was written,"
        " repeating is safe"
    )


# --- credentials -------------------------------------------------------------


@pytest.mark.parametrize("command", [["submit", MOBILE], ["balance"]])
def test_unset_credentials_are_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, gateway: SandboxGateway, command: list[str]
) -> None:
    monkeypatch.delenv("IHUYI_VOICE_API_KEY")
    no_key = run(*command)
    assert (2, "") == (no_key.exit_code, no_key.stdout)
    assert one_line(no_key.stderr) == (
        "ihuyi-voice: no API key: set IHUYI_VOICE_API_KEY, or give --api-key-file"
    )
    monkeypatch.delenv("IHUYI_VOICE_API_ID")
    no_id = run(*command)
    assert one_line(no_id.stderr) == (
        "ihuyi-voice: no API ID: set IHUYI_VOICE_API_ID, or give --api-id"
    )
    assert gateway.attempts == []


def test_the_key_from_a_file(
    monkeypatch: pytest.MonkeyPatch, gateway: SandboxGateway, tmp_path: Path
) -> None:
    monkeypatch.delenv("IHUYI_VOICE_API_KEY")
    path = tmp_path / "key"
    path.write_text("sandbox-key\n")
    assert run("balance", "--api-key-file", str(path)).stdout == "1000\n"
    path.write_text("")
    assert "api_key is empty" in one_line(run("balance", "--api-key-file", str(path)).stderr)
    path.write_bytes(b"\xff\xfe")
    assert "cannot read" in one_line(run("balance", "--api-key-file", str(path)).stderr)
    path.unlink()
    assert "cannot read" in one_line(run("balance", "--api-key-file", str(path)).stderr)
    assert gateway.balance == 1000


def test_the_key_from_a_prompt_that_does_not_show_it(
    monkeypatch: pytest.MonkeyPatch, gateway: SandboxGateway
) -> None:
    monkeypatch.delenv("IHUYI_VOICE_API_KEY")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "ihuyi_voice", "balance"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        # A session of its own, so that the terminal is not this test's.
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        # What is typed before the prompt is thrown away.
        expected = "API key of account sandbox (IHUYI_VOICE_API_KEY is not set): "
        prompt = process.stderr.read(len(expected))
        os.write(ours, b"sandbox-key\n")
        out, err = process.communicate(timeout=20)
    os.close(theirs)
    os.close(ours)
    assert (0, "1000\n") == (process.returncode, out)
    assert expected == prompt
    assert "sandbox-key" not in out + err
    assert gateway.balance == 1000


def test_the_api_id_from_a_prompt(monkeypatch: pytest.MonkeyPatch, gateway: SandboxGateway) -> None:
    """It is asked for once, before the key, which belongs to it."""
    monkeypatch.delenv("IHUYI_VOICE_API_ID")
    monkeypatch.delenv("IHUYI_VOICE_API_KEY")
    monkeypatch.setattr("ihuyi_voice.cli.account.sys.stdin", SimpleNamespace(isatty=lambda: True))
    asked = []

    def prompt(text: str, *, hide_input: bool = False, err: bool) -> str:
        asked.append((text, hide_input, err))
        return "sandbox-key" if hide_input else " sandbox "

    monkeypatch.setattr(typer, "prompt", prompt)
    Account(None, None, os.environ["IHUYI_VOICE_BASE_URL"], 15.0).client(VoiceClient).close()
    assert [
        ("API ID (IHUYI_VOICE_API_ID is not set)", False, True),
        ("API key of account sandbox (IHUYI_VOICE_API_KEY is not set)", True, True),
    ] == asked
    assert [] == gateway.attempts


def test_there_is_no_option_for_the_key(gateway: SandboxGateway) -> None:
    assert run("balance", "--api-key", "sandbox-key").exit_code == 2
    assert gateway.balance == 1000


def test_a_bad_base_url(gateway: SandboxGateway) -> None:
    result = run("balance", "--base-url", "http://host/path")
    assert result.exit_code == 2
    assert "base_url must be scheme and host alone" in one_line(result.stderr)
    assert gateway.balance == 1000


# --- sandbox and demo --------------------------------------------------------


def test_the_sandbox_prints_its_url_and_logs_each_call() -> None:
    with start("sandbox", "--port", "0", "--balance", "5", "--blacklist", "13800000000") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        match = re.match(r"sandbox gateway on (http://127\.0\.0\.1:\d+) ", lines[0])
        assert match
        assert f"  export IHUYI_VOICE_BASE_URL={match[1]}\n" == lines[1]
        assert "  export IHUYI_VOICE_API_ID=sandbox\n" == lines[2]
        assert "  export IHUYI_VOICE_API_KEY=sandbox-key\n" == lines[3]
        with VoiceClient("sandbox", "sandbox-key", base_url=match[1]) as client:
            client.submit(MOBILE, "1125")
            assert client.query_balance().remaining == 4
            with pytest.raises(BlockedMobileError):
                client.submit("13800000000", "1125")
        with urlopen(match[1] + "/_sandbox/calls") as answer:
            assert json.load(answer)[0]["mobile"] == MOBILE
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (0, "") == (process.returncode, err)
    placed, asked, refused, total = out.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d  balance query answered 2", asked)
    assert re.fullmatch(r"\d\d:\d\d:\d\d  placed \d+  mobile '13912345678'  content '1125'", placed)
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d  refused 4030: blacklisted  mobile '13800000000'  content '1125'", refused
    )
    assert total == "1 placed of 2 submits"


def test_the_sandbox_pushes_receipts_and_counts_what_it_no_longer_remembers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as receiver:
        receiver.settimeout(20)
        receipt_url = f"http://127.0.0.1:{receiver.getsockname()[1]}/secret"
        options = ("--receipt-url", receipt_url, "--receipt-delay", "0", "--keep", "1")
        with start("sandbox", "--port", "0", *options) as process:
            assert process.stdout is not None
            url = process.stdout.readline().split()[3]
            with VoiceClient("sandbox", "sandbox-key", base_url=url) as client:
                client.submit(MOBILE, "1125")
                client.submit("13912345679", "1125")
            pushed, _ = receiver.accept()
            with pushed:
                assert pushed.recv(65_536).startswith(b"POST /secret HTTP/1.1")
            with urlopen(url + "/_sandbox/calls") as answer:
                assert ["13912345679"] == [call["mobile"] for call in json.load(answer)]
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
    assert (0, "") == (process.returncode, err)
    assert out.endswith("2 placed of 2 submits\n")


@pytest.mark.measures_processes
@pytest.mark.parametrize(
    ("expected", "host"),
    [(1, "0.0.0.0"), (0, "localhost")],  # noqa: S104 - what is warned about
)
def test_a_sandbox_that_others_can_reach_says_so_on_stderr(expected: int, host: str) -> None:
    with start("sandbox", "--port", "0", "--host", host) as process:
        assert process.stdout is not None
        for _ in range(4):
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (expected, expected) == (err.count("\n"), err.count("other machines can reach"))
    assert process.returncode == 0


def test_a_sandbox_whose_terminal_is_gone_answers_all_the_same() -> None:
    with start("sandbox", "--port", "0") as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[3]
        for _ in range(3):
            process.stdout.readline()
        process.stdout.close()
        with VoiceClient("sandbox", "sandbox-key", base_url=url) as client:
            first, second = (int(client.submit(MOBILE, "1125").voice_id or 0) for _ in range(2))
            assert 1 == second - first
        process.terminate()
        process.wait(timeout=20)


_LIKE_WINDOWS = """
import asyncio, signal, sys
del signal.SIGHUP
def refuse(*_):
    raise NotImplementedError
asyncio.unix_events._UnixSelectorEventLoop.add_signal_handler = refuse
sys.modules["uvloop"] = None
from ihuyi_voice.__main__ import main
main()
"""


def test_ctrl_c_ends_a_sandbox_whose_loop_has_no_signal_handlers() -> None:
    """As on Windows."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _LIKE_WINDOWS, "sandbox", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None
        for _ in range(4):
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (0, "0 placed of 0 submits\n", "") == (process.returncode, out, err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_sandbox_that_a_script_started_in_the_background(
    number: signal.Signals,
) -> None:
    """A shell without job control starts such a job with SIGINT ignored."""
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start("sandbox", "--port", "0")
    finally:
        signal.signal(signal.SIGINT, earlier)
    with process:
        assert process.stdout is not None
        for _ in range(4):
            process.stdout.readline()
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (0, "0 placed of 0 submits\n", "") == (process.returncode, out, err)


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    refused = run("sandbox", "--port", port)
    assert (2, "") == (refused.exit_code, refused.stdout)


def test_a_sandbox_that_cannot_start_says_why() -> None:
    bad = run("sandbox", "--balance", "-1")
    assert bad.exit_code == 2
    assert "balance" in one_line(bad.stderr)
    not_a_url = run("sandbox", "--receipt-url", "ftp://127.0.0.1/")
    assert (2, True) == (not_a_url.exit_code, "receipt_url" in one_line(not_a_url.stderr))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        busy = run("sandbox", "--port", port)
    assert busy.exit_code == 1
    assert one_line(busy.stderr) == (
        f"ihuyi-voice: port {port} of 127.0.0.1 is in use: give another one with --port, or --port"
        " 0 for a free one"
    )
    # An address for documentation, which no machine has.
    other = run("sandbox", "--host", "192.0.2.1", "--port", "0")
    assert other.exit_code == 1
    assert "cannot listen on 192.0.2.1 port 0: " in one_line(other.stderr)


def test_the_demo_shows_every_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with start("demo") as process:
        out, err = process.communicate(timeout=60)
    assert 80 >= max(map(cell_len, out.splitlines()))
    assert (0, "") == (process.returncode, err)
    for status in EXIT_STATUSES:
        assert f" {status.value} " in out
    assert "500/500  accepted 483  refused 2  unknown 7 " in out
    text = " ".join(out.split())
    assert "The balance was 1000 and is 503: 497 calls were placed." in text
    assert "487 accepted calls (3 of the tables, 1 of the login, 483 of the bulk run)" in text
    assert "and 10 calls with an unknown outcome" in text
    assert "500 requests reached the gateway: 497 were placed, 3 refused. Each came once" in text
    assert "13912345678" not in out
    # Three phones, which the masked numbers tell apart.
    assert 3 == len(set(re.findall(r"136\*{4}\d{4} +unknown", out)))
    said = out.partition("What the exceptions say:\n")[2].partition("A login")[0]
    assert ["3", "4", "5", "7", "8", "9", "10"] == re.findall(r"^ +(\d+)  \w", said, re.MULTILINE)
    assert {" " * 5} == {
        line[:5] for line in said.splitlines() if line and not re.match(r" +\d+  ", line)
    }


def test_the_demo_fits_80_columns_in_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    with start("demo") as process:
        out, err = process.communicate(timeout=60)
    assert (0, "") == (process.returncode, err)
    assert 80 >= max(map(cell_len, out.splitlines()))
    for row in (
        "一分钟内的第三次",
        "应答是代理的 502 页面",
        "余额原为 1000，现为 503：拨出了 497 次呼叫。",
        "手机号已被列入黑名单",
    ):
        assert row in out


def test_the_demo_shows_a_login() -> None:
    result = run("demo")
    assert 0 == result.exit_code
    login = result.stdout.partition("A login of 186****5678:")[2].partition("A bulk run")[0]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in login.splitlines()]
    rows = [row for row in rows if row]
    code = rows[1][2]
    assert re.fullmatch(r"\d( \d){5}", code)
    assert [
        ["start", "", "pending"],
        ["the phone reads out", "", code],
        ["check a wrong code", f"{(int(code.replace(' ', '')) + 1) % 10**6:06d}", "not approved"],
        ["check the code", code, "approved"],
        ["check the code again", code.replace(" ", ""), "not approved"],
    ] == rows
    assert "18612345678" not in result.stdout


# --- help --------------------------------------------------------------------


@pytest.mark.parametrize("command", ["submit", "balance", "sandbox", "demo"])
def test_help(command: str) -> None:
    assert command in run("--help").stdout
    result = run(command, "--help")
    assert result.exit_code == 0
    assert len(result.stdout) > 100


@pytest.mark.measures_processes
@pytest.mark.parametrize(
    ("expected", "locale"),
    [
        (
            (
                "the command line needs an extra: pip install 'ihuyi-voice[cli]', or '.[cli]' in a"
                " checkout\n"
            ),
            "C.UTF-8",
        ),
        (
            "命令行需要可选依赖：pip install 'ihuyi-voice[cli]'，或在克隆目录中安装 '.[cli]'\n",
            "zh_CN.UTF-8",
        ),
    ],
)
def test_without_its_extra_the_command_says_what_it_needs(expected: str, locale: str) -> None:
    script = (
        "import sys; sys.modules['typer'] = None; from ihuyi_voice.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "LC_ALL": locale, "PYTHONUTF8": "1"},
    )
    assert (1, "", expected) == (done.returncode, done.stdout, done.stderr)


def test_a_module_of_its_own_that_is_missing_is_not_taken_for_the_extra() -> None:
    script = (
        "import sys; sys.modules['ihuyi_voice.cli.bulk.command'] = None; sys.argv += ['bulk', 'x'];"
        " from ihuyi_voice.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, encoding="utf-8", check=False
    )
    assert (1, "") == (done.returncode, done.stdout)
    assert "ihuyi_voice.cli.bulk" in done.stderr
    assert "pip install" not in done.stderr
