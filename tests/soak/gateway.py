"""A sandbox in another process, with a record that is independent of the sender."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING
from urllib.request import Request, urlopen

if TYPE_CHECKING:
    from collections.abc import Iterator


class Sandbox:
    """A running sandbox; counts the submits that it prints.

    Attributes:
        url: where it is reached.
        taken: how many submits it has received so far.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.taken = 0
        self._news = threading.Condition()

    def control(self, method: str, what: str, body: object = None) -> object:
        return control(self.url, method, what, body)

    def wait_until_taken(self, count: int, seconds: float, sender: subprocess.Popen[str]) -> bool:
        """Whether it received so many submits in time, and before the sender ended."""
        end = time.monotonic() + seconds
        with self._news:
            while self.taken < count and time.monotonic() < end and sender.poll() is None:
                # The end of the sender does not notify this condition: poll it.
                self._news.wait(0.05)
            return self.taken >= count

    def count(self, output: IO[str]) -> None:
        """Read its output until it ends, also so that the pipe does not fill."""
        for line in output:
            if "  mobile " in line:
                with self._news:
                    self.taken += 1
                    self._news.notify_all()


@contextmanager
def sandbox(balance: int, *options: str) -> Iterator[Sandbox]:
    command = [sys.executable, "-m", "ihuyi_voice", "sandbox", "--port", "0"]
    with subprocess.Popen(
        [*command, "--balance", str(balance), *options],
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None
        match = re.search(r"http://\S+", process.stdout.readline())
        assert match
        running = Sandbox(match[0])
        counting = threading.Thread(target=running.count, args=[process.stdout])
        counting.start()
        try:
            yield running
        finally:
            process.terminate()
            counting.join()


def control(url: str, method: str, what: str, body: object = None) -> object:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(f"{url}/_sandbox/{what}", data, method=method)) as answer:
        return json.load(answer)
