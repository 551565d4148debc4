"""Fixtures of bulk jobs: a site with a broker, a store and workers."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from celery import Celery

from ihuyi_voice.celery import BulkJobs
from ihuyi_voice.sandbox import SandboxGateway

from .site import ROOT, Site, check_needs, until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def place(tmp_path: Path) -> str:
    """The URL of the store."""
    return str(tmp_path / "calls.db")


@pytest.fixture
def site(tmp_path: Path, place: str) -> Iterator[Site]:
    check_needs()
    gateway = SandboxGateway()
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
            "CALLS_STORE": place,
            "IHUYI_VOICE_API_ID": "sandbox",
            "IHUYI_VOICE_API_KEY": "sandbox-key",
            "IHUYI_VOICE_BASE_URL": url,
        }
        app = Celery("bulk", broker=environment["REDIS_URL"])
        jobs = BulkJobs(app, store=place)
        yield Site(tmp_path, socket, environment, jobs, gateway, ended)
