"""Run CI's sessions, two at a time, and print what each took.

    python3 .ci/side_by_side.py NAME=COMMAND...

Each COMMAND is a line of bash. The sessions begin in the order given: the longest
come first, so that both lanes end at about the same time. What a session prints is
printed when it ends, in one piece. After the first failure no other session begins;
the one that runs beside it comes to its end.

A session that wants to be alone, such as `once_more.py`, finds in the environment its name
in CI_SESSION and a folder in CI_LANES. There, `running/` has a file for each session that
runs, and no session begins while the file `turn` is locked.

The closing lines are the summary: seconds and result of each session, and its tests.
The exit status is 0 only if every session has passed.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LANES = 2
"""CI's machine has two cores, and most tests wait more than they work."""

# pytest's closing line: `==== 3 passed, 1 skipped in 0.12s ====`.
_closing = re.compile(r"^=+ (.*\b(?:passed|failed|error).* in [0-9.]+s.*?) =+$", re.MULTILINE)


@dataclass
class Session:
    """One session and its result."""

    name: str
    command: str
    result: str = "not begun"
    seconds: float = 0.0
    tests: str = ""

    def run(self, lanes: Path, output: IO[str]) -> bool:
        """Run the session; return whether it passed."""
        began = time.monotonic()
        status = subprocess.call(
            ["bash", "-euo", "pipefail", "-c", self.command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "CI_LANES": str(lanes), "CI_SESSION": self.name},
        )
        self.seconds = time.monotonic() - began
        self.result = "passed" if status == 0 else f"FAILED (exit status {status})"
        output.seek(0)
        self.tests = ", then ".join(_closing.findall(output.read()))
        return status == 0

    def __str__(self) -> str:
        tests = f": {self.tests}" if self.tests else ""
        return f"{self.seconds:5.0f} s  {self.name} {self.result}{tests}"


class Lanes:
    """Distributes the sessions over the lanes."""

    def __init__(self, sessions: list[Session], folder: Path) -> None:
        self._folder = folder
        (folder / "running").mkdir()
        self._left = list(reversed(sessions))
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self.failed = False

    def run(self) -> None:
        """Run until no session is left or one has failed."""
        threads = [threading.Thread(target=self._lane) for _ in range(LANES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _lane(self) -> None:
        while session := self._next():
            with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
                passed = session.run(self._folder, output)
                self._running(session).unlink(missing_ok=True)
                output.seek(0)
                with self._lock:
                    self.failed = self.failed or not passed
                    self._say(f"{session.name} {session.result}")
                    sys.stdout.writelines(output)
                    sys.stdout.flush()

    def _next(self) -> Session | None:
        with (self._folder / "turn").open("wb") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            with self._lock:
                if self.failed or not self._left:
                    return None
                session = self._left.pop()
                self._running(session).touch()
                self._say(f"{session.name} begins: {session.command}")
                return session

    def _running(self, session: Session) -> Path:
        return self._folder / "running" / session.name

    def _say(self, text: str) -> None:
        print(f"\n=== {text} (after {time.monotonic() - self._began:.0f} s)", flush=True)


def main(arguments: list[str]) -> int:
    """Return the exit status."""
    split = (argument.split("=", 1) for argument in arguments)
    sessions = [Session(name, command) for name, command in split]
    with tempfile.TemporaryDirectory() as folder:
        Lanes(sessions, Path(folder)).run()
    print("\n=== summary", *sessions, sep="\n", flush=True)
    return int(any(session.result != "passed" for session in sessions))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
