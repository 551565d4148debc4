"""A broker, a store and workers for the tests of bulk jobs."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from celery import Celery

from ihuyi_voice.celery import BulkJobs, JobState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ihuyi_voice.celery import JobStatus
    from ihuyi_voice.sandbox import SandboxGateway

ROOT = Path(__file__).parents[2]
NEEDED = {
    "Redis's server: apt-get install redis-server": shutil.which("redis-server"),
    "Celery: pip install 'celery[redis]'": importlib.util.find_spec("celery"),
}
MISSING = [what for what, found in NEEDED.items() if found is None]
ENDED = (JobState.COMPLETED, JobState.STOPPED, JobState.CANCELED)
CODE = "7351"


def check_needs() -> None:
    """Skip the test where a program is missing; in CI it fails."""
    if MISSING:  # pragma: no cover - depends on the machine
        reason = f"not installed: {', '.join(MISSING)}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def until(condition: Callable[[], object], seconds: float = 60, *, every: float = 0.01) -> None:
    """Wait for what other processes do and offer no event for.

    Args:
        condition: is checked again and again.
        seconds: after which the test fails.
        every: seconds between two checks; longer where a check is work for a server.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(every)


def row(index: int) -> tuple[str, str]:
    return f"139{index:08d}", CODE


def rows(count: int) -> Iterator[tuple[str, str]]:
    return map(row, range(count))


class Broker:
    """A Redis server, which keeps its messages when it is stopped and started again.

    Attributes:
        socket: where it is reached.
    """

    def __init__(self, folder: Path) -> None:
        self.socket: Path = folder / "socket"
        self._folder = folder

    def start(self) -> None:
        options = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self._folder)]
        self._process = subprocess.Popen(
            # No test depends on data that survives a crash of the machine.
            ["redis-server", *options, "--save", "", "--appendonly", "yes", "--appendfsync", "no"],
            stdout=subprocess.DEVNULL,
        )
        until(self.answers)

    def answers(self) -> bool:
        try:
            return self.socket.exists() and self.ask("return 1") == 1
        except redis.exceptions.ConnectionError:  # pragma: no cover - it depends on its start
            return False

    def ask(self, script: str) -> int:
        """Run a script there; returns its number."""
        with redis.Redis(unix_socket_path=str(self.socket)) as client:
            return int(client.eval(script, 0))

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)


@dataclass
class Site:
    """A broker, a store, and workers."""

    folder: Path
    broker: Broker
    environment: dict[str, str]
    jobs: BulkJobs
    gateway: SandboxGateway
    ended: contextlib.ExitStack
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def worker(self, processes: int = 1) -> subprocess.Popen[bytes]:
        """Start a worker, with so many processes that send."""
        number = len(self.workers) + 1
        program = [sys.executable, "-m", "celery", "-A", "tests.celery.bulk", "worker"]
        options = ["-n", f"{number}@here", "--without-mingle", "--without-gossip"]
        with (self.folder / f"worker {number}").open("wb") as log:
            worker = self.ended.enter_context(
                subprocess.Popen(
                    [*program, "-c", str(processes), *options, "-l", "INFO"],
                    cwd=self.folder,
                    env=self.environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        self.ended.callback(stop, worker)
        self.workers.append(worker)
        return worker

    def wait_until_lost(self) -> None:
        """Wait until the broker may deliver again what dead workers have not acknowledged.

        Workers look for such messages when they start, and then every 100 seconds only.
        """
        until(lambda: all_overdue(self), every=0.1)

    def status_at_end(self, job: str = "spring") -> JobStatus:
        until(lambda: self.jobs.status(job).state in ENDED, 100, every=0.05)
        return self.jobs.status(job)

    def calls(self) -> Counter[str]:
        """How often the gateway accepted a call to each number."""
        return Counter(call.mobile for call in self.gateway.calls)

    def events(self) -> list[tuple[float, str, str]]:
        """What the workers reported of the rows of the chunks that ended.

        Returns:
            When each row began, in seconds since the epoch, its outcome, and its number.
        """
        lines = [
            line.split()
            for path in self.folder.glob("events of *")
            for line in path.read_text().splitlines()
        ]
        return [(float(began), status, mobile) for began, status, mobile in lines]

    def said(self) -> str:
        return "\n".join(path.read_text() for path in self.folder.glob("worker *"))


@contextlib.contextmanager
def running_site(
    folder: Path, place: str, gateway: SandboxGateway, url: str, visibility_timeout: int = 2
) -> Iterator[Site]:
    """A site while the block runs; its workers and its broker end with it.

    Args:
        folder: for the workers' logs.
        place: the URL of the store.
        gateway: is served already.
        url: where workers reach the gateway.
        visibility_timeout: seconds after which the broker delivers a chunk again.
    """
    check_needs()
    with contextlib.ExitStack() as ended:
        # A socket's path has to be short.
        data = ended.enter_context(tempfile.TemporaryDirectory(prefix="redis-", dir="/tmp"))
        broker = Broker(Path(data))
        broker.start()
        ended.callback(broker.stop)
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "REDIS_URL": f"redis+socket://{broker.socket}",
            "VISIBILITY_TIMEOUT": str(visibility_timeout),
            "CALLS_STORE": place,
            "IHUYI_VOICE_API_ID": "sandbox",
            "IHUYI_VOICE_API_KEY": "sandbox-key",
            "IHUYI_VOICE_BASE_URL": url,
        }
        app = Celery("bulk", broker=environment["REDIS_URL"])
        jobs = BulkJobs(app, store=place)
        yield Site(folder, broker, environment, jobs, gateway, ended)


def taken_by(site: Site, count: int) -> None:
    """Wait until the gateway has taken so many requests."""
    until(lambda: site.gateway.taken >= count)


def kill(worker: subprocess.Popen[bytes]) -> None:
    """All of its processes at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def stop(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.wait(20)
    kill(worker)


def shows_code(said: str) -> bool:
    """Whether the code of all rows is there, and not as a part of a number or of a task's id."""
    return re.search(rf"(?<![\w*.-]){CODE}(?![\w-])", said) is not None


def waiting_messages(site: Site) -> int:
    """How many messages are in the broker, delivered ones included."""
    return site.broker.ask("return redis.call('LLEN', 'celery') + redis.call('HLEN', 'unacked')")


def all_overdue(site: Site) -> bool:
    """Whether the broker takes all workers for lost that have a message."""
    seconds = site.environment["VISIBILITY_TIMEOUT"]
    since = f"redis.call('TIME')[1] - {seconds}"
    return not site.broker.ask(f"return redis.call('ZCOUNT', 'unacked_index', {since}, '+inf')")
