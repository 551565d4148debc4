"""CI runs the tests that failed once more, alone: `.ci/once_more.py` with real pytest runs."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "once_more.py"

pytestmark = pytest.mark.skipif(
    not SCRIPT.exists(), reason="the wheel is tested without its repository"
)

# Without the plugins that are installed, pytest starts in half the time.
PYTEST = (sys.executable, "-m", "pytest", "-p", "xdist.plugin")

HEAD = """
import os, pathlib, pytest

def first_run(name):
    path = pathlib.Path(__file__).with_name(name)
    with path.open("a") as file:
        file.write("run\\n")
    return path.read_text().count("run") == 1
"""


class Run:
    """One run of the script, and what is left of it."""

    def __init__(self, folder: Path, test: str, *pytest: str, more: tuple[str, ...] = ()) -> None:
        (folder / "pytest.ini").touch()
        (folder / "test_it.py").write_text(HEAD + test)
        self.folder = folder
        # Neither the options nor the lanes of the CI that runs this test. Nothing that is
        # measured runs here, and with coverage each process takes twice as long to start.
        of_ci = ("PYTEST_", "CI_", "COVERAGE_")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(of_ci)}
        done = subprocess.run(
            [sys.executable, SCRIPT, *more, "fake", *(pytest or PYTEST)],
            cwd=folder,
            env={
                **environment,
                "CI_FLAKY": str(folder / "listed"),
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
        )
        self.status = done.returncode
        self.output = done.stdout

    @property
    def flaky(self) -> list[str]:
        listed = self.folder / "listed"
        return listed.read_text().splitlines() if listed.exists() else []

    def runs(self, name: str) -> int:
        return (self.folder / name).read_text().count("run")


def test_a_test_that_fails_once_runs_again_and_is_listed_as_flaky(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        """
@pytest.mark.parametrize("word", ["a b", "c::d", "[é"])
def test_flaky(word): assert not first_run("flaky" + word[0])
def test_good(): first_run("good")
""",
        *PYTEST,
        "-n2",
    )
    assert (0, 1) == (run.status, run.runs("good")), run.output
    assert [2, 2, 2] == [run.runs("flaky" + letter) for letter in "ac["]
    assert [
        "FLAKY: test_it.py::test_flaky[[\\xe9] (in fake)",
        "FLAKY: test_it.py::test_flaky[a b] (in fake)",
        "FLAKY: test_it.py::test_flaky[c::d] (in fake)",
    ] == run.flaky
    assert run.output.endswith("\n".join(run.flaky) + "\n")
    assert "3 failed, 1 passed" in run.output
    assert "3 passed" in run.output


def test_a_second_failure_fails_the_run(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        """
def test_flaky(): assert not first_run("flaky")
def test_bad(): first_run("bad"); assert False
""",
    )
    assert (1, 2, []) == (run.status, run.runs("bad"), run.flaky), run.output
    assert 2 == run.runs("flaky")


def test_all_good_runs_once_whatever_failed_before(tmp_path: Path) -> None:
    before = Run(tmp_path, "def test_gone(): assert False")
    assert 1 == before.status
    run = Run(tmp_path, "def test_good(): first_run('good')")
    assert (0, 1, []) == (run.status, run.runs("good"), run.flaky), run.output


def test_a_worker_that_crashes_fails_the_test_that_it_ran(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        """
def test_crash():
    if first_run("crash"): os._exit(3)
def test_good(): first_run("good")
""",
        *PYTEST,
        "-n2",
    )
    assert 0 == run.status, run.output
    assert ["FLAKY: test_it.py::test_crash (in fake)"] == run.flaky
    assert 1 == run.runs("good")


@pytest.mark.parametrize("where", ["", "yield"])
def test_a_fixture_that_fails_once_is_flaky_too(tmp_path: Path, where: str) -> None:
    run = Run(
        tmp_path,
        f"""
@pytest.fixture
def broken():
    {where}
    assert not first_run("broken")
def test_it(broken): pass
""",
    )
    assert (0, ["FLAKY: test_it.py::test_it (in fake)"]) == (run.status, run.flaky), run.output


@pytest.mark.parametrize(
    ("status", "test"),
    [
        (1, "@pytest.mark.parametrize('n', range(11))\ndef test_many(n): assert not first_run(n)"),
        (None, "first_run('collected'); raise OSError"),
        (2, "def test_bad(): pytest.exit('no more')"),
        (5, ""),
    ],
    ids=["many", "collection", "interrupted", "no tests"],
)
def test_what_is_not_timing_fails_at_once(tmp_path: Path, status: int | None, test: str) -> None:
    test = test.replace("first_run(n)", "first_run(str(n))")
    # In a worker, as in CI.
    run = Run(tmp_path, test, *PYTEST, "-n1")
    assert status in (run.status, None)
    assert 0 != run.status
    assert [] == run.flaky
    assert "once more" not in run.output


def test_a_crash_of_pytest_itself_fails_at_once(tmp_path: Path) -> None:
    run = Run(tmp_path, "def test_crash():\n    if first_run('crash'): os._exit(7)", *PYTEST, "-n0")
    assert (7, 1) == (run.status, run.runs("crash"))


def test_a_failure_of_no_test_fails_at_once(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "def pytest_sessionfinish(session): session.exitstatus = 1"
    )
    run = Run(tmp_path, "def test_good(): pass", *PYTEST, "-n0")
    assert (1, []) == (run.status, run.flaky)
    assert run.output.endswith("fake: pytest failed, but no test did\n")


def test_a_failed_test_that_does_not_run_again_fails_the_run(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        """
@pytest.mark.parametrize("n", [first_run("collected")])
def test_it(n): assert not n
""",
        *PYTEST,
        "-n0",
    )
    assert (1, []) == (run.status, run.flaky)
    assert run.output.endswith("fake: not run a second time: test_it.py::test_it[True]\n")


def test_a_command_that_does_more_than_pytest_says_how_to_run_it_again(tmp_path: Path) -> None:
    test = "def test_flaky(): assert not first_run('flaky')"
    command = f"echo set up; {shlex.join(PYTEST)} -n0"
    run = Run(tmp_path, test, "bash", "-c", command, more=("--again", shlex.join(PYTEST)))
    assert (0, 2, 1) == (run.status, run.runs("flaky"), run.output.count("set up\n")), run.output

    failed = Run(tmp_path, test, "bash", "-c", "exit 1", more=("--again", shlex.join(PYTEST)))
    assert (1, 2, 1) == (failed.status, failed.runs("flaky"), len(failed.flaky))


def test_the_cache_may_be_elsewhere(tmp_path: Path) -> None:
    more = (f"--cache={tmp_path / 'elsewhere'}",)
    run = Run(tmp_path, "def test_flaky(): assert not first_run('flaky')", more=more)
    assert (0, 1) == (run.status, len(run.flaky))
    assert (tmp_path / "elsewhere" / "v").exists()
    assert not (tmp_path / ".pytest_cache").exists()
