"""Every code block of the README is run, in both languages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ihuyi_voice.sandbox import SandboxGateway

ROOT = Path(__file__).parent.parent
README = "\n".join(
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")
)
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
# What needs a worker of Celery or a web server is run by tests/celery and tests/recipes.
SERVED = ("Celery(", "FastAPI(", "get_asgi_application(", "Flask(")
PYTHON = [
    block
    for language, block in BLOCKS
    if language == "python" and not any(mark in block for mark in SERVED)
]
# The two commands of the set-up install from the package index: `.ci/run` runs them.
SETUP = sorted({block.strip() for language, block in BLOCKS if "-m venv" in block})
SHELL = [block for language, block in BLOCKS if language == "sh" and "-m venv" not in block]


def test_every_block_is_of_a_kind_that_is_run() -> None:
    assert {"python", "sh"} == {language for language, _ in BLOCKS}
    assert [1] * len(SERVED) == [sum(mark in block for _, block in BLOCKS) for mark in SERVED]
    assert (16, 4, 2) == (len(PYTHON), len(SHELL), len(SETUP))


@pytest.mark.skipif(
    not (ROOT / ".ci" / "run").exists(), reason="the wheel is tested without its repository"
)
def test_ci_runs_the_two_commands_of_the_set_up_as_the_readme_has_them() -> None:
    assert SETUP[0].endswith("ihuyi-voice demo")
    assert SETUP[1].endswith("pytest")
    run = (ROOT / ".ci" / "run").read_text()
    assert all(command in run for command in SETUP)


def environment(url: str, folder: Path) -> dict[str, str]:
    bin_folder = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": bin_folder + os.pathsep + os.environ["PATH"],
        "IHUYI_VOICE_API_ID": "sandbox",
        "IHUYI_VOICE_API_KEY": "sandbox-key",
        "IHUYI_VOICE_BASE_URL": url,
        "XDG_STATE_HOME": str(folder / "state"),
        "PYTHONUTF8": "1",
    }


@pytest.mark.parametrize("block", PYTHON)
def test_the_python_runs(block: str, tmp_path: Path) -> None:
    script = tmp_path / "test_readme.py"
    command = [sys.executable, "-W", "error"]
    if with_pytest := "(voice_gateway)" in block:
        command += ["-m", "pytest", "-q", "-p", "no:asyncio"]
        script.write_text(block, encoding="utf-8")
    else:
        tests = re.findall(r"^def (test_\w+)", block, re.MULTILINE)
        script.write_text(block + "".join(f"\n{name}()" for name in tests), encoding="utf-8")
    gateway = SandboxGateway()
    with gateway.serve_in_thread() as url:
        done = subprocess.run(
            [*command, str(script)],
            env=environment(url, tmp_path),
            cwd=tmp_path,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
    assert (0, "") == (done.returncode, done.stderr), done.stdout
    if with_pytest:
        assert f"{block.count('def test_')} passed" in done.stdout
        assert not gateway.calls
    elif "from_env" in block:
        assert len(gateway.calls) == (2 if "submit_many" in block else 1)
        assert "accepted" in done.stdout or gateway.calls[0].voice_id in done.stdout
        assert "999" in done.stdout or "query_balance" not in block


@pytest.mark.parametrize("block", SHELL)
def test_the_shell_commands_run(block: str, tmp_path: Path) -> None:
    gateway = SandboxGateway()
    with gateway.serve_in_thread() as url:
        done = subprocess.run(
            ["bash", "-eu", "-c", block.replace("http://127.0.0.1:8765", url)],
            env=environment("http://nowhere.invalid" if "export" in block else url, tmp_path),
            cwd=tmp_path,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert len(gateway.calls) == block.count("submit ") + block.count("\\n1")
    assert ("balance" not in block) or "1000\n" in done.stdout
