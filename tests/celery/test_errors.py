"""Errors come out of a Celery worker as they went in, with Celery's default settings.

Its JSON backend stores class, module and `args` of an exception, and rebuilds
it as `cls(*args)` in the process that asks for the result.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
NEEDED = {
    "Redis's server: apt-get install redis-server": shutil.which("redis-server"),
    "Celery: pip install 'celery[redis]'": importlib.util.find_spec("celery"),
}
MISSING = [what for what, found in NEEDED.items() if found is None]

CUSTOMER = """
from ihuyi_voice.errors import IhuyiVoiceError
from tests.celery.errors import ERRORS, app, fail

classes = {IhuyiVoiceError}
for cls in tuple(classes):
    classes |= set(cls.__subclasses__())
classes |= {sub for cls in classes for sub in cls.__subclasses__()}
assert classes == {type(error) for error in ERRORS}, classes

assert "json" == app.conf.result_serializer == app.conf.task_serializer
results = [fail.delay(index) for index in range(len(ERRORS))]
for error, result in zip(ERRORS, results):
    raised = result.get(timeout=60, propagate=False)
    for name in ("__class__", "args", "may_have_rung", "__dict__"):
        assert getattr(error, name) == getattr(raised, name), (name, error, raised)
    assert str(error) == str(raised), (error, raised)
    assert error == raised
    try:
        result.get()
    except type(error) as raised:
        assert error == raised
    else:
        raise AssertionError("it did not raise")
print(len(ERRORS), "errors")
"""


@pytest.fixture(autouse=True, scope="module")
def needs() -> None:
    if MISSING:  # pragma: no cover - depends on the machine
        reason = f"not installed: {', '.join(MISSING)}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """Of a worker and its customer, with a broker of their own."""
    with contextlib.ExitStack() as ended:
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
        end = time.monotonic() + 20
        while not socket.exists():
            assert time.monotonic() < end
            time.sleep(0.005)
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "REDIS_URL": f"redis+socket://{socket}",
        }
        program = [sys.executable, "-m", "celery", "-A", "tests.celery.errors", "worker"]
        worker = ended.enter_context(
            subprocess.Popen(
                [*program, "-c", "1", "--without-mingle", "--without-gossip"],
                cwd=folder,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        ended.callback(worker.wait, 30)
        ended.callback(worker.terminate)
        yield environment


@pytest.mark.measures_processes
def test_every_error_that_a_worker_raises_arrives_equal(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CUSTOMER],
        env=environment,
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )
    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout.endswith(" errors\n")
