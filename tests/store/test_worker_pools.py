"""Workers that other programs start share one store: gunicorn, Celery, the shell.

Each worker makes its client as the README shows. The gateway is the test's, so
that its record says what reached it.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice.sandbox import SandboxGateway

from .redis_server import running_redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NUMBERS = ("13912345678", "13812345678")
# The default limit within a minute.
ALLOWED = 2
WORKERS = 3
SUBMITS = 40

WSGI = """
import os
from functools import cache
from ihuyi_voice import QuotaExceededError, VoiceClient

@cache
def client():
    return VoiceClient.from_env()

def app(environ, start_response):
    try:
        client().submit(environ["QUERY_STRING"], "1125")
        end = "accepted"
    except QuotaExceededError:
        end = "limited"
    start_response("200 OK", [("X-Worker", str(os.getpid()))])
    return [end.encode()]
"""

TASKS = """
import os
from functools import cache
from celery import Celery
from ihuyi_voice import QuotaExceededError, VoiceClient

app = Celery("pool", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
app.conf.update(worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True)

@cache
def client():
    return VoiceClient.from_env()

@app.task
def call(mobile):
    try:
        client().submit(mobile, "1125")
    except QuotaExceededError:
        return "limited", os.getpid()
    return "accepted", os.getpid()
"""

CUSTOMER = f"""
from collections import Counter
from pool import call
tasks = [call.delay(mobile) for _ in range({SUBMITS} // 2) for mobile in {NUMBERS!r}]
ends = [task.get(timeout=100) for task in tasks]
print(Counter(end for end, _ in ends), len({{worker for _, worker in ends}}))
"""


@pytest.fixture
def gateway() -> Iterator[tuple[SandboxGateway, str]]:
    gateway = SandboxGateway()
    with gateway.serve_in_thread() as url:
        yield gateway, url


@pytest.fixture
def environment(gateway: tuple[SandboxGateway, str], tmp_path: Path) -> dict[str, str]:
    """What each worker is started with."""
    return {
        **os.environ,
        "IHUYI_VOICE_API_ID": "sandbox",
        "IHUYI_VOICE_API_KEY": "sandbox-key",
        "IHUYI_VOICE_BASE_URL": gateway[1],
        "IHUYI_VOICE_STORE": str(tmp_path / "voice.db"),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH")))),
    }


@contextlib.contextmanager
def running(
    command: list[str], environment: dict[str, str], folder: Path
) -> Iterator[Callable[[str], str]]:
    """A server with its workers; gives a function that waits for a pattern in its log."""
    log = folder / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment,
            cwd=folder,
            stdout=out,
            stderr=subprocess.STDOUT,
            # A group of its own, to be ended as a whole.
            start_new_session=True,
        )

    def wait_for(pattern: str) -> str:
        end = time.monotonic() + 60
        while (match := re.search(pattern, log.read_text())) is None:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.02)
        return match[1]

    try:
        yield wait_for
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def check_that_the_limit_held(gateway: SandboxGateway) -> None:
    assert dict.fromkeys(NUMBERS, ALLOWED) == Counter(call.mobile for call in gateway.attempts)


def needs(module: str) -> None:
    if importlib.util.find_spec(module) is None:  # pragma: no cover - depends on the machine
        pytest.skip(f"{module} is not installed: pip install {module}")


def test_three_workers_of_gunicorn(
    gateway: tuple[SandboxGateway, str], environment: dict[str, str], tmp_path: Path
) -> None:
    needs("gunicorn")
    (tmp_path / "site_of_calls.py").write_text(WSGI)
    command = ["gunicorn", "-w", str(WORKERS), "-b", "127.0.0.1:0", "site_of_calls:app"]
    with running(command, environment, tmp_path) as wait_for:
        port = int(wait_for(r"Listening at: http://127\.0\.0\.1:(\d+)"))

        def ask(n: int) -> tuple[str, str | None]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            with contextlib.closing(connection):
                connection.request("GET", f"/?{NUMBERS[n % 2]}")
                answer = connection.getresponse()
                return answer.read().decode(), answer.getheader("X-Worker")

        with ThreadPoolExecutor(SUBMITS) as pool:
            ends = list(pool.map(ask, range(SUBMITS)))
    assert {"accepted": 2 * ALLOWED, "limited": SUBMITS - 2 * ALLOWED} == Counter(
        end for end, _ in ends
    )
    assert len({worker for _, worker in ends}) > 1
    check_that_the_limit_held(gateway[0])


def test_a_pool_of_three_in_celery(
    gateway: tuple[SandboxGateway, str], environment: dict[str, str], tmp_path: Path
) -> None:
    needs("celery")
    (tmp_path / "pool.py").write_text(TASKS)
    command = ["celery", "-A", "pool", "worker", "-c", str(WORKERS), "-l", "INFO"]
    options = ["--without-mingle", "--without-gossip", "--without-heartbeat"]
    with running_redis() as server:
        environment["BROKER"] = server.empty()
        with running([*command, *options], environment, tmp_path) as wait_for:
            wait_for(r"(ready)\.")
            done = subprocess.run(
                [sys.executable, "-c", CUSTOMER],
                env=environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=110,
                check=False,
            )
    accepted, limited = 2 * ALLOWED, SUBMITS - 2 * ALLOWED
    counted = f"Counter({{'limited': {limited}, 'accepted': {accepted}}})"
    assert (counted, "") == (done.stdout.rpartition(" ")[0], done.stderr)
    assert int(done.stdout.rpartition(" ")[2]) > 1
    check_that_the_limit_held(gateway[0])


def test_five_commands_at_once(
    gateway: tuple[SandboxGateway, str], environment: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "ihuyi_voice", "submit", "--content", "1125"]
    with contextlib.ExitStack() as stack:
        commands = []
        for n in range(5):
            process = subprocess.Popen(
                [*command, NUMBERS[n % 2]],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            commands.append(stack.enter_context(process))
            stack.callback(process.kill)
        statuses = Counter(process.wait(100) for process in commands)
    # 5: the limit of the number is reached.
    assert {0: 2 * ALLOWED, 5: 5 - 2 * ALLOWED} == statuses
    check_that_the_limit_held(gateway[0])
