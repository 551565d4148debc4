"""Every code block of the README is run, and prints what the README shows.

The blocks of the two languages are the same.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ihuyi_voice.sandbox import SandboxGateway

ROOT = Path(__file__).parent.parent
ENGLISH, CHINESE = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall(ENGLISH)
# What needs a worker of Celery or a web server is run by tests/celery and tests/recipes.
SERVED = ("Celery(", "FastAPI(")
PYTHON = [
    block
    for language, block in BLOCKS
    if language == "python" and not any(mark in block for mark in SERVED)
]
# The two commands of the set-up install from the package index: `.ci/run` runs them.
SETUP = sorted({block.strip() for language, block in BLOCKS if "-m venv" in block})
SHELL = [block for language, block in BLOCKS if language == "sh" and "-m venv" not in block]
_PRINTS = "# prints: "


def test_every_block_is_of_a_kind_that_is_run() -> None:
    assert {"python", "sh"} == {language for language, _ in BLOCKS}
    assert [1] * len(SERVED) == [sum(mark in block for _, block in BLOCKS) for mark in SERVED]
    assert (8, 2, 2) == (len(PYTHON), len(SHELL), len(SETUP))


def test_both_languages_have_the_same_blocks_sections_and_tables() -> None:
    assert BLOCKS == BLOCK.findall(CHINESE)
    for mark in ("\n## ", "\n### ", "\n|", "\n- ", "\n"):
        assert ENGLISH.count(mark) == CHINESE.count(mark), mark


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["English", "Chinese"])
def test_a_readme_is_short_and_its_links_lead_somewhere(text: str) -> None:
    assert len(text.splitlines()) < 350
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)]+)\)", BLOCK.sub("", text)):
        if target.startswith("#"):
            assert target[1:] in anchors
        elif (ROOT / "docs").is_dir():  # pragma: no branch - the wheel is tested without them
            assert (ROOT / target).exists(), target


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


def shown(lines: list[str]) -> list[str]:
    """Lines in a fixed order, without ids, which differ from run to run."""
    return sorted(re.sub(r"\b[0-9a-f]{16,32}\b|\b\d{9}\b", "ID", line.strip()) for line in lines)


def assert_prints(block: str, output: str) -> None:
    expected = [line[len(_PRINTS) :] for line in block.splitlines() if line.startswith(_PRINTS)]
    assert expected, "a block must not end silently"
    assert shown(expected) == shown([line for line in output.splitlines() if line.strip()])


@pytest.mark.parametrize("block", PYTHON)
def test_the_python_runs(block: str, tmp_path: Path) -> None:
    script = tmp_path / "test_readme.py"
    command = [sys.executable, "-W", "error"]
    if with_pytest := "(voice_gateway)" in block:
        command += ["-m", "pytest", "-q", "-p", "no:asyncio"]
    script.write_text(block, encoding="utf-8")
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
        return
    assert_prints(block, done.stdout)
    if "from_env" in block:
        assert len(gateway.calls) == (2 if "submit_many(rows" in block else 1)


@pytest.mark.parametrize("block", SHELL)
def test_the_shell_commands_run(block: str, tmp_path: Path) -> None:
    gateway = SandboxGateway()
    with gateway.serve_in_thread() as url:
        is_set = "export IHUYI_VOICE_BASE_URL" in block
        done = subprocess.run(
            ["bash", "-eu", "-c", block.replace("http://127.0.0.1:8765", url)],
            env=environment("http://nowhere.invalid" if is_set else url, tmp_path),
            cwd=tmp_path,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert_prints(block, done.stdout)
    assert len(gateway.calls) == block.count("submit ") + block.count("\\n1")
