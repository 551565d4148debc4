"""Serve a recipe for a web framework by two workers of a real server, in their own processes."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode
from urllib.request import urlopen

from ihuyi_voice.testing import VoiceGateway

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
MOBILE = "13912345678"
# A worker that the test has stopped must not be taken for dead.
UVICORN = ("uvicorn", "--workers", "2", "--port", "0", "--timeout-worker-healthcheck", "100")
GUNICORN = ("gunicorn", "-w", "2", "-b", "127.0.0.1:0", "-t", "100")


@dataclass(frozen=True)
class Recipe:
    """One framework's block, and how it is served as the module `site_login`."""

    page: str
    mark: str
    command: tuple[str, ...]
    address: str
    worker: str
    ready: str
    takes_json: bool = False

    def block(self) -> str:
        text = (ROOT / self.page).read_text(encoding="utf-8")
        blocks: list[str] = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        (block,) = (block for block in blocks if self.mark in block)
        return block


UVICORN_LOG = (
    r"Uvicorn running on http://127\.0\.0\.1:(\d+)",
    r"Started server process \[(\d+)\]",
    "Application startup complete",
)
GUNICORN_LOG = (
    r"Listening at: http://127\.0\.0\.1:(\d+)",
    r"Booting worker with pid: (\d+)",
    "Booting worker",
)


def until(condition: Callable[[], object], what: Callable[[], str]) -> None:
    """Wait for what other processes do and offer no event for."""
    end = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.01)


@dataclass
class Site:
    """A recipe that is being served."""

    recipe: Recipe
    log_file: Path
    gateway: VoiceGateway
    port: int = 0
    workers: tuple[int, ...] = ()

    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")

    def wait_until_it_serves(self, server: subprocess.Popen[bytes]) -> None:
        until(
            lambda: (
                server.poll() is not None or len(re.findall(self.recipe.ready, self.log())) == 2
            ),
            self.log,
        )
        assert server.poll() is None, self.log()
        (port,) = re.findall(self.recipe.address, self.log())
        self.port = int(port)
        self.workers = tuple(map(int, re.findall(self.recipe.worker, self.log())))
        assert len(self.workers) == 2

    def post(self, path: str, **fields: str) -> tuple[int, dict[str, object], str | None]:
        """Status, body and `Retry-After`; each request has a connection of its own."""
        if self.recipe.takes_json:
            body, kind = json.dumps(fields), "application/json"
        else:
            body, kind = urlencode(fields), "application/x-www-form-urlencoded"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        assert answer.getheader("Content-Type") == "application/json", (text, self.log())
        return answer.status, json.loads(text), answer.getheader("Retry-After")

    def get(self, path: str) -> str:
        """The body; each request has a connection of its own."""
        with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            text: str = answer.read().decode()
        return text

    def start(self, mobile: str = MOBILE) -> tuple[int, dict[str, object], str | None]:
        return self.post("/login/start", mobile=mobile)

    def check(self, id_: object, code: str, mobile: str = MOBILE) -> int:
        status, body, _ = self.post("/login/check", id=str(id_), code=code, mobile=mobile)
        assert {"approved": status == 200} == body
        return status

    @contextmanager
    def without(self, worker: int) -> Iterator[None]:
        """Stop a worker meanwhile, so that the other one serves."""
        try:
            until(lambda: self._stops_without_the_store(worker), self.log)
            yield
        finally:
            os.kill(worker, signal.SIGCONT)

    def _stops_without_the_store(self, worker: int) -> bool:
        """Stop it, unless it is in a transaction: it records a call after it has answered."""
        os.kill(worker, signal.SIGSTOP)
        # The state is the field after the name, which is in parentheses.
        stat = Path(f"/proc/{worker}/stat")
        until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", self.log)
        store = sqlite3.connect(self.log_file.with_name("voice.db"), timeout=0)
        try:
            store.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:  # pragma: no cover - depends on the moment
            os.kill(worker, signal.SIGCONT)
            return False
        finally:
            store.close()
        return True


@contextmanager
def served(recipe: Recipe, folder: Path) -> Iterator[Site]:
    """Serve the recipe by its own server, with a new gateway and a new store."""
    (folder / "site_login.py").write_text(recipe.block(), encoding="utf-8")
    gateway = VoiceGateway()
    log_file = folder / "log"
    with gateway.serve_in_thread() as url, log_file.open("wb") as log:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)]),
            "IHUYI_VOICE_API_ID": gateway.api_id,
            "IHUYI_VOICE_API_KEY": gateway.api_key,
            "IHUYI_VOICE_BASE_URL": url,
            "IHUYI_VOICE_STORE": str(folder / "voice.db"),
            "VERIFY_KEY": "k" * 32,
            "DJANGO_SECRET_KEY": "d" * 50,
        }
        server = subprocess.Popen(
            [sys.executable, "-m", *recipe.command],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Workers that the server leaves behind are ended with it.
            start_new_session=True,
        )
        try:
            site = Site(recipe, log_file, gateway)
            site.wait_until_it_serves(server)
            yield site
            server.terminate()
            server.wait(timeout=60)
        finally:
            # Ended here at the latest, with every worker.
            _kill_group(server.pid)
            server.wait(timeout=60)


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
