"""The README's recipe: a Celery worker is killed in mid-task, and the broker delivers again.

Workers, customer and broker are processes of their own; only the gateway, and
so its record, is the test's.
"""

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice import Store
from ihuyi_voice.sandbox import Chaos, SandboxGateway

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
RECIPE = Path(__file__).with_name("calls.py").read_text(encoding="utf-8")
NEEDED = {
    "Redis's server: apt-get install redis-server": shutil.which("redis-server"),
    "Celery: pip install 'celery[redis]'": importlib.util.find_spec("celery"),
}
MISSING = [what for what, found in NEEDED.items() if found is None]

CUSTOMER = """
from tests.celery.calls import call
result = call.delay("13912345678", "1125")
print(result.id, flush=True)
try:
    print("placed as", result.get(timeout=100))
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(autouse=True, scope="module")
def needs() -> None:
    if MISSING:  # pragma: no cover - depends on the machine
        reason = f"not installed: {', '.join(MISSING)}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def until(condition: Callable[[], object]) -> None:
    """Wait for what other processes do and offer no event for."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@dataclass
class Shop:
    """Who has calls placed, and by whom."""

    folder: Path
    socket: Path
    environment: dict[str, str]
    # Ends the processes that are left at the end.
    ended: contextlib.ExitStack
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def held(self) -> Path:
        return self.folder / "held"

    def customer(self) -> subprocess.Popen[str]:
        """Has one call placed, says its task's id, waits for what becomes of it and says that."""
        customer = self.ended.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", CUSTOMER],
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                encoding="utf-8",
            )
        )
        self.ended.callback(customer.kill)
        return customer

    def worker(self, *, held: bool = False) -> subprocess.Popen[bytes]:
        number = len(self.workers) + 1
        program = [sys.executable, "-m", "celery", "-A", "tests.celery.held", "worker"]
        # Of two greetings that would take seconds, neither is to the point.
        options = ["-c", "1", "-n", f"{number}@here", "--without-mingle", "--without-gossip"]
        with (self.folder / f"worker {number}").open("wb") as said:
            worker = self.ended.enter_context(
                subprocess.Popen(
                    [*program, *options, "-l", "INFO"],
                    cwd=self.folder,
                    env=self.environment | ({"HELD": str(self.held)} if held else {}),
                    stdout=said,
                    stderr=subprocess.STDOUT,
                    # A group of its own, to be killed as a whole.
                    start_new_session=True,
                )
            )
        self.ended.callback(stop, worker)
        self.workers.append(worker)
        return worker

    def wait_until_overdue(self) -> None:
        """Wait until the broker takes the task for lost: it learns of no worker's death."""
        # Counts the tasks that were delivered a second ago, or earlier.
        script = "return redis.call('ZCOUNT', 'unacked_index', 0, redis.call('TIME')[1] - 1)"
        ask = ["redis-cli", "-s", str(self.socket), "EVAL", script, "0"]
        until(lambda: b"1\n" == subprocess.run(ask, check=True, stdout=subprocess.PIPE).stdout)

    def said(self) -> str:  # pragma: no cover - see below
        """What the workers said, for who has to find out why a test failed."""
        return "\n".join(
            (self.folder / f"worker {n + 1}").read_text() for n in range(len(self.workers))
        )


def kill(worker: subprocess.Popen[bytes]) -> None:
    """All of its processes at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def stop(worker: subprocess.Popen[bytes]) -> None:
    """As its operator does, but do not wait for long."""
    worker.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.wait(10)
    kill(worker)


@pytest.fixture
def gateway() -> SandboxGateway:
    return SandboxGateway()


@pytest.fixture
def shop(gateway: SandboxGateway, tmp_path: Path) -> Iterator[Shop]:
    with contextlib.ExitStack() as ended:
        url = ended.enter_context(gateway.serve_in_thread())
        # A socket's path has to be short.
        folder = ended.enter_context(tempfile.TemporaryDirectory(prefix="redis-", dir="/tmp"))
        socket = Path(folder, "socket")
        options = ["--port", "0", "--unixsocket", str(socket), "--dir", folder]
        redis = ended.enter_context(
            subprocess.Popen(
                ["redis-server", *options, "--save", "", "--appendonly", "no"],
                stdout=subprocess.DEVNULL,
            )
        )
        ended.callback(redis.kill)
        until(socket.exists)
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "REDIS_URL": f"redis+socket://{socket}",
            "IHUYI_VOICE_STORE": str(tmp_path / "calls.db"),
            "IHUYI_VOICE_API_ID": "sandbox",
            "IHUYI_VOICE_API_KEY": "sandbox-key",
            "IHUYI_VOICE_BASE_URL": url,
        }
        yield Shop(tmp_path, socket, environment, ended)


def result_of(customer: subprocess.Popen[str]) -> tuple[str, str]:
    """The task's id and its result."""
    out, _ = customer.communicate(timeout=110)
    task, end = out.splitlines()
    return task, end


def summary(shop: Shop) -> dict[str, int]:
    with Store.open(shop.folder / "calls.db") as store:
        return {state: count for state, count in store.summary().items() if count}


def test_killed_while_its_request_is_at_the_gateway(shop: Shop, gateway: SandboxGateway) -> None:
    gateway.chaos = Chaos(latency=60)
    customer = shop.customer()
    first = shop.worker()
    until(lambda: gateway.attempts)
    kill(first)
    gateway.chaos = Chaos()
    shop.wait_until_overdue()
    shop.worker()
    task, end = result_of(customer)
    assert "OutcomeUnknownError" == end.partition(" ")[0], shop.said()
    assert "an earlier request with this idempotency key: it was claimed and never settled" in end
    assert 1 == len(gateway.attempts)
    with Store.open(shop.folder / "calls.db") as store:
        assert [task] == [claim.key for claim in store.unknown()]


def test_killed_between_settling_and_acknowledging(shop: Shop, gateway: SandboxGateway) -> None:
    customer = shop.customer()
    first = shop.worker(held=True)
    until(shop.held.exists)
    kill(first)
    shop.wait_until_overdue()
    shop.worker()
    _, end = result_of(customer)
    (attempt,) = gateway.attempts
    assert f"placed as {attempt.voice_id}" == end, shop.said()
    assert {"accepted": 1} == summary(shop)


@pytest.mark.measures_processes
def test_only_the_process_that_calls_is_killed(shop: Shop, gateway: SandboxGateway) -> None:
    """As the kernel does to a process out of memory; Celery delivers again by itself."""
    customer = shop.customer()
    worker = shop.worker(held=True)
    until(shop.held.exists)
    os.kill(int(shop.held.read_text()), signal.SIGKILL)
    _, end = result_of(customer)
    (attempt,) = gateway.attempts
    assert f"placed as {attempt.voice_id}" == end, shop.said()
    assert {"accepted": 1} == summary(shop)
    assert worker.poll() is None


def test_the_readme_shows_this_program() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    (shown,) = (block for block in blocks if "Celery(" in block)
    # The README has one blank line where this file has two.
    assert shown == RECIPE.replace("\n\n\n", "\n\n")
