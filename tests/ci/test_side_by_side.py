"""CI's sessions, two at a time: `.ci/side_by_side.py` with real commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "side_by_side.py"

pytestmark = pytest.mark.skipif(
    not SCRIPT.exists(), reason="the wheel is tested without its repository"
)


FLAKY = """
import os, pathlib

def test_flaky():
    running = sorted(os.listdir(os.environ["CI_LANES"] + "/running"))
    with pathlib.Path("log").open("a+") as log:
        print(running, file=log)
        log.seek(0)
        assert 2 == len(log.readlines())
"""


def run(folder: Path, *sessions: str, go_after: str = "") -> tuple[int, str, list[str]]:
    """The exit status, all that was printed, and the summary without seconds.

    Once a line with `go_after` is printed, there is a file named `go`.
    """
    output = ""
    environment = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("PYTEST_", "COVERAGE_", "CI_FLAKY"))
    }
    with subprocess.Popen(
        [sys.executable, SCRIPT, *sessions],
        cwd=folder,
        env={**environment, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            output += line
            if go_after in line:
                (folder / "go").touch()
    _, _, summary = output.partition("\n=== summary\n")
    lines = [re.sub(r"^ *[0-9]+ s  ", "", line) for line in summary.splitlines()]
    return running.returncode, output, lines


def test_two_sessions_run_at_a_time(tmp_path: Path) -> None:
    # Each ends only when the other has begun.
    subprocess.run(["mkfifo", tmp_path / "pipe"], check=True)
    status, output, summary = run(
        tmp_path, "one=echo hello >pipe", "two=cat pipe", "three=echo '== 7 passed in 0.12s =='"
    )
    assert (0, ["one passed", "two passed", "three passed: 7 passed in 0.12s"]) == (status, summary)
    assert "=== two begins: cat pipe (after " in output
    assert re.search(r"^=== two passed \(after \d+ s\)\nhello\n", output, flags=re.MULTILINE)


def test_after_a_failure_no_other_session_begins(tmp_path: Path) -> None:
    # The first fails when the second has begun.
    subprocess.run(["mkfifo", tmp_path / "pipe"], check=True)
    status, output, summary = run(
        tmp_path,
        "bad=cat pipe; false; echo not reached",
        "beside=echo why >pipe; until [[ -e go ]]; do sleep 0.01; done",
        "later=touch later",
        go_after="bad FAILED",
    )
    assert 1 == status
    assert ["bad FAILED (exit status 1)", "beside passed", "later not begun"] == summary
    assert "why" in output
    assert "\nnot reached\n" not in output
    assert not (tmp_path / "later").exists()


def test_each_run_of_pytest_is_in_the_summary(tmp_path: Path) -> None:
    closing = "'==== 1 failed, 2 passed in 0.50s ====' '====== 1 passed in 70.10s (0:01:10) ======'"
    _, _, summary = run(tmp_path, f"tests=printf '%s\\n' {closing} '=== no such line ==='")
    assert [
        "tests passed: 1 failed, 2 passed in 0.50s, then 1 passed in 70.10s (0:01:10)"
    ] == summary


def test_tests_that_failed_run_again_when_no_other_session_runs(tmp_path: Path) -> None:
    # Each fails first, together with the other; the second time no other session may run.
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pytest.ini").touch()
        (tmp_path / name / "test_it.py").write_text(FLAKY)
    subprocess.run(["mkfifo", tmp_path / "pipe"], check=True)
    program = shlex.join([sys.executable, str(SCRIPT.with_name("once_more.py"))])
    pytest = shlex.join([sys.executable, "-m", "pytest", "-p", "xdist.plugin"])
    status, output, summary = run(
        tmp_path,
        f"one=cd one; echo >../pipe; {program} one {pytest}",
        f"two=cd two; cat ../pipe; {program} two {pytest}",
        "three=touch three",
    )
    assert 0 == status, output
    assert ["one", "two"] == re.findall(
        r"^FLAKY: .* \(in (.*)\)$", "\n".join(sorted(output.splitlines())), re.MULTILINE
    )
    assert ["['one']", "['two']"] == sorted(
        (tmp_path / name / "log").read_text().splitlines()[1] for name in ("one", "two")
    )
    assert "three passed" == summary[2]
