"""Programs in other languages do with the sandbox what they do with the real gateway.

Each program here sends what a known program for this gateway sends, and reads the
answer as that one does. It prints `code msg id`, one line for each request.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice.sandbox import SandboxGateway

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
MOBILE, CONTENT = "13912345678", "0042"
ACCOUNT, KEY = "VM00000001", "d41d8cd98f00b204e9800998ecf8427e"
# A JVM or a compiler on a loaded machine.
DEADLINE = 120.0

PROGRAMS = [
    ("php", "vendor_sample.php"),
    ("php", "raw_query.php"),
    ("php", "multipart.php"),
    ("javac", "VendorSample.java"),
    ("javac", "QueryPost.java"),
    ("g++", "format_in_query.cpp"),
    ("perl", "comma_in_type.pl"),
    ("node", "fetch.mjs"),
]


@pytest.fixture
def gateway() -> SandboxGateway:
    return SandboxGateway(api_id=ACCOUNT, api_key=KEY, balance=20023)


@pytest.fixture
def url(gateway: SandboxGateway) -> Iterator[str]:
    with gateway.serve_in_thread() as url:
        yield url


def command(program: str, name: str, folder: Path) -> list[str]:
    """How to run one of the programs; it is compiled first where that takes a step of its own."""
    if which(program) is None and not os.environ.get("CI"):  # pragma: no cover - not in CI
        pytest.skip(f"{program} is not installed; .ci/run names its Debian package")
    source = str(HERE / name)
    if program == "javac":
        # `java` compiles a single source file by itself, with javac's module.
        return ["java", "-XX:TieredStopAtLevel=1", source]
    if program == "g++":
        subprocess.run(["g++", "-o", folder / "program", source], check=True, timeout=DEADLINE)
        return [str(folder / "program")]
    return [program, source]


def run(command: list[str], *arguments: str) -> list[str]:
    done = subprocess.run(
        [*command, *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=DEADLINE,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout.splitlines()


@pytest.mark.parametrize(("program", "name"), PROGRAMS)
def test_it_places_a_call_and_reads_a_refusal(
    program: str, name: str, gateway: SandboxGateway, url: str, tmp_path: Path
) -> None:
    runs = command(program, name, tmp_path)
    placed, *rest = run(runs, url, ACCOUNT, KEY, MOBILE, CONTENT)
    (call,) = gateway.calls
    assert (MOBILE, CONTENT) == (call.mobile, call.content)
    assert f"2 提交成功 {call.voice_id}" == placed
    assert ([], ["2 查询成功 20022"])[name == "multipart.php"] == rest
    refused = run(runs, url, ACCOUNT, KEY, MOBILE, "42")[0]
    assert "4070 语音验证码内容必须为4-6位数字 0" == refused
    assert 1 == len(gateway.calls)
    assert KEY not in repr((gateway.attempts, gateway.others))


def test_curl_posts_a_form_of_parts(gateway: SandboxGateway, url: str) -> None:
    fields = {"account": ACCOUNT, "password": KEY, "mobile": MOBILE, "content": CONTENT}
    parts = [argument for field in fields.items() for argument in ("-F", "=".join(field))]
    curl = ["curl", "--silent", "--show-error", "--noproxy", "*", *parts]
    (answer,) = run(curl, f"{url}/webservice/voice.php?method=Submit&format=json")
    (call,) = gateway.calls
    assert f'{{"code":2,"msg":"提交成功","voiceid":"{call.voice_id}"}}' == answer
