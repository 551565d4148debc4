"""Run CI's sessions, two at a time, and print what each took.

    python3 .ci/side_by_side.py NAME=COMMAND...

Each COMMAND is a line of bash. The sessions begin in the order given: the longest
come first, so that both lanes end at about the same time. What a session prints is
printed when it ends, in one piece. After the first failure no other session begins;
the one that runs beside it comes to its end.

The closing lines are the summary: seconds and result of each session, and its tests.
The exit status is 0 only if every session has passed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import IO

LANES = 2
"""CI's machine has two cores, and most tests wait more than they work."""

# pytest's closing line: `==== 3 passed, 1 skipped in 0.12s ====`.
_closing = re.compile(r"^=+ (.*\b(?:passed|failed|error).* in [0-9.]+s.*?) =+$", re.MULTILINE)


@dataclass
class Session:
    """One session and what came of it."""

    name: str
    command: str
    result: str = "not begun"
    seconds: float = 0.0
    tests: str = ""

    def run(self, output: IO[str]) -> bool:
        """Run it to its end; whether it passed."""
        began = time.monotonic()
        status = subprocess.call(
            ["bash", "-euo", "pipefail", "-c", self.command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
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
    """The sessions, and who runs which."""

    def __init__(self, sessions: list[Session]) -> None:
        self._left = list(reversed(sessions))
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self.failed = False

    def run(self) -> None:
        """Run until none is left or one has failed."""
        threads = [threading.Thread(target=self._lane) for _ in range(LANES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _lane(self) -> None:
        while session := self._next():
            with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
                passed = session.run(output)
                output.seek(0)
                with self._lock:
                    self.failed = self.failed or not passed
                    self._say(f"{session.name} {session.result}")
                    sys.stdout.writelines(output)
                    sys.stdout.flush()

    def _next(self) -> Session | None:
        with self._lock:
            if self.failed or not self._left:
                return None
            session = self._left.pop()
            self._say(f"{session.name} begins: {session.command}")
            return session

    def _say(self, text: str) -> None:
        print(f"\n=== {text} (after {time.monotonic() - self._began:.0f} s)", flush=True)


def main(arguments: list[str]) -> int:
    """Return the exit status."""
    split = (argument.split("=", 1) for argument in arguments)
    sessions = [Session(name, command) for name, command in split]
    lanes = Lanes(sessions)
    lanes.run()
    print("\n=== summary", *sessions, sep="\n", flush=True)
    return int(any(session.result != "passed" for session in sessions))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
