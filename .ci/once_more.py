"""Run a pytest command; run the tests that failed once more, alone.

    python .ci/once_more.py [--cache DIR] [--again PYTEST] NAME COMMAND...

COMMAND is a complete pytest command, such as `python -m pytest tests`. If at most
`MOST` tests fail, it runs a second time for those tests only, in one process. Where
COMMAND does more than that, PYTEST is the command of the second run.

Tests that pass the second time are flaky: they are printed, and added to the file
that the environment variable CI_FLAKY names. The exit status is 0 only if each test
has passed. Everything else fails at once: a collection error, a usage error, an
interruption, a crash of pytest itself, a failure that belongs to no test.

"Alone" is without other tests of the same command and, under `side_by_side.py`, without
other sessions: the second run waits until those that run have ended, and none begins.

A worker of pytest-xdist that crashes fails the test that it ran.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST = 10
"""More failures than this are not timing."""

TESTS_FAILED = 1
"""pytest's exit status when all tests were collected and run, and some failed."""


def main(arguments: list[str]) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cache", type=Path, help="pytest's cache directory; not an option of it")
    parser.add_argument("--again", type=shlex.split, help="pytest's part of COMMAND")
    parser.add_argument("name")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    command: list[str] = given.command
    # Without --cache, COMMAND runs exactly as given.
    cache = given.cache or Path(".pytest_cache")
    if given.cache:
        command = [*command, "-o", f"cache_dir={cache.absolute()}"]
    # Failures of an earlier run are none of this one.
    shutil.rmtree(cache, ignore_errors=True)

    status = subprocess.call(command)
    if status != TESTS_FAILED:
        return status
    failed = _failed(cache)
    if not failed:
        print(f"{given.name}: pytest failed, but no test did")
        return status
    if len(failed) > MOST or not all("::" in test for test in failed):
        return status

    print(f"\n{given.name}: once more, alone: {' '.join(failed)}", flush=True)
    command = [*(given.again or command), "--last-failed", "--last-failed-no-failures=none", "-n0"]
    with _alone():
        again = subprocess.call(command)
    # A test that passes is removed from the cache; one that was not run stays.
    if again == 0 and (left := _failed(cache)):
        print(f"{given.name}: not run a second time: {' '.join(left)}")
        return status
    if again == 0:
        _report([f"FLAKY: {test} (in {given.name})" for test in failed])
    return again


def _failed(cache: Path) -> list[str]:
    """The tests that pytest recorded as failed and that have not passed since."""
    recorded = cache / "v" / "cache" / "lastfailed"
    if not recorded.exists():
        return []
    return sorted(json.loads(recorded.read_text(encoding="utf-8")))


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Wait for the other sessions that run; let none begin; see `side_by_side.py`."""
    if "CI_LANES" not in os.environ:
        yield
        return
    lanes = Path(os.environ["CI_LANES"])
    ours = lanes / "running" / os.environ["CI_SESSION"]
    # Another session that wants to be alone does not wait for this one meanwhile.
    ours.unlink()
    with (lanes / "turn").open("wb") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        while any((lanes / "running").iterdir()):
            time.sleep(0.1)
        ours.touch()
        yield


def _report(lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    print(text, end="", flush=True)
    if flaky := os.environ.get("CI_FLAKY"):
        with Path(flaky).open("a", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
