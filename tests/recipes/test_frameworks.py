"""The notes of docs/frameworks.md: each block runs, and does what the text beside it says."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice import VoiceClient
from ihuyi_voice.sandbox import Chaos
from ihuyi_voice.testing import VoiceGateway
from tests.recipes.site import GUNICORN, GUNICORN_LOG, Recipe, served

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = Path(__file__).parents[2] / "docs"
ENGLISH, CHINESE = (
    (DOCS / name).read_text(encoding="utf-8") for name in ("frameworks.md", "frameworks.zh-CN.md")
)
# How many blocks each section has; Django's and Flask's recipes are served by test_recipes.py.
SECTIONS = {
    "Django": 1,
    "Django's async views under WSGI": 2,
    "Flask": 1,
    "Notebooks": 2,
    "asyncio.to_thread": 1,
    "gevent and eventlet": 2,
    "fork: gunicorn --preload and multiprocessing": 2,
    "Retries in Celery": 1,
}


def blocks_of(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


BLOCKS = {
    heading: blocks_of(body)
    for heading, _, body in (part.partition("\n") for part in ENGLISH.split("\n## ")[1:])
}


def test_each_section_has_the_blocks_that_are_run() -> None:
    assert SECTIONS == {heading: len(blocks) for heading, blocks in BLOCKS.items() if blocks}
    assert ENGLISH.count("```") == 2 * sum(SECTIONS.values())


def test_both_languages_have_the_same_blocks_and_as_many_points() -> None:
    assert blocks_of(ENGLISH) == blocks_of(CHINESE)
    for mark in (r"^## ", r"^- ", r"^\| ", r"^    \S"):
        english, chinese = (
            len(re.findall(mark, text, re.MULTILINE)) for text in (ENGLISH, CHINESE)
        )
        assert english == chinese, mark


def test_each_link_to_a_section_has_its_section() -> None:
    for text in (ENGLISH, CHINESE):
        headings = {
            re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
            for heading in re.findall(r"^## (.*)", text, re.MULTILINE)
        }
        assert headings == set(re.findall(r"\]\(#(.*?)\)", text))


@pytest.fixture
def gateway() -> Iterator[VoiceGateway]:
    gateway = VoiceGateway()
    with gateway.serve_in_thread() as gateway.url:
        yield gateway


def run(gateway: VoiceGateway, folder: Path, script: str, *options: str, **variables: str) -> str:
    """What the script prints, with the gateway's account in its environment."""
    (folder / "script.py").write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, *options, "script.py"],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)]),
            "IHUYI_VOICE_API_ID": gateway.api_id,
            "IHUYI_VOICE_API_KEY": gateway.api_key,
            "IHUYI_VOICE_BASE_URL": gateway.url,
            **variables,
        },
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def accepted(gateway: VoiceGateway) -> list[str]:
    return sorted(f"accepted: {call.voice_id}" for call in gateway.calls)


# A WSGI server calls the application once for each request, in a thread.
WSGI = """
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from wsgiref.util import setup_testing_defaults

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DEBUG_PROPAGATE_EXCEPTIONS=True,
    ROOT_URLCONF=__name__,
    SECRET_KEY="d" * 50,
)

import views

urlpatterns = [path("call", views.call)]
application = get_wsgi_application()

def post(mobile):
    body = b"mobile=" + mobile.encode()
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/call",
        "HTTP_HOST": "127.0.0.1",
        "CONTENT_TYPE": "application/x-www-form-urlencoded",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": BytesIO(body),
    }
    setup_testing_defaults(environ)
    try:
        return b"".join(application(environ, lambda *_: None)).decode()
    except RuntimeError as error:
        return f"{error}"

MOBILES = ["13912345678", "13812345678", "13712345678"]
"""
ONE_BY_ONE = "print(*map(post, MOBILES), sep='\\n')"
AT_ONCE = "print(*ThreadPoolExecutor(3).map(post, MOBILES), sep='\\n')"


def voice_ids(lines: list[str]) -> list[str]:
    return sorted(json.loads(line)["voice_id"] for line in lines)


def test_an_async_view_under_wsgi_breaks_at_the_second_request(
    gateway: VoiceGateway, tmp_path: Path
) -> None:
    wrong, _ = BLOCKS["Django's async views under WSGI"]
    (tmp_path / "views.py").write_text(wrong, encoding="utf-8")
    first, *others = run(gateway, tmp_path, WSGI + ONE_BY_ONE).splitlines()
    assert [gateway.calls[0].voice_id] == voice_ids([first])
    (said,) = set(others)
    assert said.startswith(
        "this client belongs to another event loop, the one it was first used in"
    )
    assert said.partition(":")[0] in ENGLISH
    assert said.partition(":")[0] in CHINESE
    assert 1 == len(gateway.attempts)


def test_a_sync_view_serves_every_request_and_thread(gateway: VoiceGateway, tmp_path: Path) -> None:
    _, right = BLOCKS["Django's async views under WSGI"]
    (tmp_path / "views.py").write_text(right, encoding="utf-8")
    lines = run(gateway, tmp_path, WSGI + AT_ONCE, "-W", "error").splitlines()
    assert sorted(str(call.voice_id) for call in gateway.calls) == voice_ids(lines)
    assert 3 == len(lines)


def test_an_async_view_with_a_client_for_each_request_works_under_wsgi(
    gateway: VoiceGateway, tmp_path: Path
) -> None:
    wrong, _ = BLOCKS["Django's async views under WSGI"]
    each = wrong.replace("client = AsyncVoiceClient.from_env()  # wrong under WSGI\n", "").replace(
        "    result = await",
        "    async with AsyncVoiceClient.from_env() as client:\n        result = await",
    )
    assert each != wrong
    (tmp_path / "views.py").write_text(each, encoding="utf-8")
    lines = run(gateway, tmp_path, WSGI + ONE_BY_ONE, "-W", "error").splitlines()
    assert 3 == len(voice_ids(lines)) == len(gateway.calls)


# As IPython runs a cell, in its loop that runs already.
NOTEBOOK = """
import ast, asyncio, sys

async def cell():
    with open("cell.py", encoding="utf-8") as file:
        code = compile(file.read(), "cell.py", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    await eval(code, {"__name__": "__main__"})

asyncio.run(cell())
"""


def test_a_notebook_awaits_the_client(gateway: VoiceGateway, tmp_path: Path) -> None:
    block, _ = BLOCKS["Notebooks"]
    (tmp_path / "cell.py").write_text(block, encoding="utf-8")
    first, *rows = run(gateway, tmp_path, NOTEBOOK, "-W", "error").splitlines()
    assert f"accepted: {gateway.calls[0].voice_id}" == first
    assert ["0 accepted", "1 accepted"] == sorted(rows)
    assert 3 == len(gateway.calls)


def test_blocking_code_in_a_notebook_is_refused_and_runs_in_a_thread(
    gateway: VoiceGateway, tmp_path: Path
) -> None:
    _, block = BLOCKS["Notebooks"]
    (tmp_path / "cell.py").write_text(block, encoding="utf-8")
    refused, placed = run(gateway, tmp_path, NOTEBOOK, "-W", "error").splitlines()
    assert refused.startswith("refused, nothing was sent: ")
    assert " would block the event loop that is running in this thread" in refused
    assert [placed] == accepted(gateway)


def test_threads_of_asyncio_share_a_client(gateway: VoiceGateway, tmp_path: Path) -> None:
    (block,) = BLOCKS["asyncio.to_thread"]
    *placed, invalid = run(gateway, tmp_path, block, "-W", "error").splitlines()
    assert accepted(gateway) == sorted(placed)
    assert 2 == len(placed)
    assert "InvalidRequestError, may have rung: False" == invalid


async def test_a_cancellation_does_not_end_a_call_in_a_thread(
    gateway: VoiceGateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.chaos = Chaos(latency=1)
    caplog.set_level("INFO", "ihuyi_voice")
    client = VoiceClient(gateway.api_id, gateway.api_key, base_url=gateway.url)
    call = asyncio.create_task(asyncio.to_thread(client.submit, "13912345678", "1125"))
    while not gateway.attempts:
        await asyncio.sleep(0.001)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.to_thread(client.close)
    # The thread of the call logs it.
    await asyncio.get_running_loop().shutdown_default_executor()
    assert 1 == len(gateway.calls)
    assert "submit 139****5678 accepted" in caplog.text


@pytest.mark.parametrize("framework", ["gevent", "eventlet"])
def test_greenlets_share_a_client(gateway: VoiceGateway, tmp_path: Path, framework: str) -> None:
    if importlib.util.find_spec(framework) is None:  # pragma: no cover - depends on the machine
        pytest.skip(f"{framework} is not installed")
    (block,) = (it for it in BLOCKS["gevent and eventlet"] if f"import {framework}\n" in it)
    # Both warn when they are imported.
    printed = run(gateway, tmp_path, block, "-W", "ignore").splitlines()
    assert accepted(gateway) == sorted(printed)
    assert 3 == len(gateway.calls)


def test_workers_that_are_forked_from_a_program_with_a_client(tmp_path: Path) -> None:
    command = (*GUNICORN, "--preload", "site_login:app")
    recipe = Recipe("docs/frameworks.md", "start_response", command, *GUNICORN_LOG)
    with served(recipe, tmp_path) as site:
        lines = []
        for number, worker in enumerate(site.workers):
            with site.without(worker):
                lines.append(site.get(f"/?mobile=1391234567{number}"))
        assert accepted(site.gateway) == sorted(lines)
        assert 2 == len(lines)
        assert "Traceback" not in site.log()


def test_a_pool_of_processes_that_are_forked(gateway: VoiceGateway, tmp_path: Path) -> None:
    _, block = BLOCKS["fork: gunicorn --preload and multiprocessing"]
    printed = run(gateway, tmp_path, block, "-W", "error").splitlines()
    assert accepted(gateway) == sorted(printed)
    assert 3 == len(gateway.calls)


# The part of Celery's worker that reads a message and runs the task; no pause is waited for.
WORKER = """
import json, os
from celery.exceptions import Retry
from ihuyi_voice import NotSentError
import tasks

def queue():
    return tasks.app.connection_for_read().SimpleQueue("celery")

def run(message):
    headers = message.headers
    args, kwargs, _ = message.payload
    tasks.call.push_request(
        **{name: headers[name] for name in ("id", "expires", "retries", "root_id", "parent_id")},
        args=args, kwargs=kwargs, called_directly=False, delivery_info={}, headers=None,
    )
    try:
        return tasks.call.run(*args, **kwargs)
    finally:
        tasks.call.pop_request()

enqueued = tasks.enqueue("13912345678", "1125")
report = {"id": enqueued.id, "ids": [], "expires": [], "pauses": []}
while "error" not in report:
    message = queue().get(timeout=30)
    report["ids"].append(message.headers["id"])
    report["expires"].append(message.headers["expires"])
    try:
        run(message)
    except Retry as retry:
        report["pauses"].append(retry.when)
    except NotSentError as error:
        report["error"] = type(error).__name__

# The gateway is back, and one message is delivered twice.
tasks.client.cache_clear()
os.environ["IHUYI_VOICE_BASE_URL"] = os.environ["BACK"]
report["placed"] = [run(message) for _ in range(2)]
print(json.dumps(report))
"""


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def test_the_retries_of_the_task_keep_the_schedule_of_the_text(
    gateway: VoiceGateway, tmp_path: Path
) -> None:
    (block,) = BLOCKS["Retries in Celery"]
    (tmp_path / "tasks.py").write_text(block, encoding="utf-8")
    report = json.loads(
        run(
            gateway,
            tmp_path,
            WORKER,
            IHUYI_VOICE_BASE_URL=f"http://127.0.0.1:{closed_port()}",
            BACK=gateway.url,
            BROKER_URL="memory://",
            RESULT_BACKEND="cache+memory://",
            CALLS_STORE=str(tmp_path / "calls.db"),
        )
    )
    pauses = report["pauses"]
    schedule = f"{' + '.join(map(str, pauses))} = {sum(pauses)} "
    assert "2 + 4 + 8 + 16 + 32 + 64 = 126 " == schedule
    assert all(schedule in text for text in (ENGLISH, CHINESE))
    assert "NotSentError" == report["error"]
    assert [report["id"]] * 7 == report["ids"]
    (expiry,) = set(report["expires"])
    assert datetime.fromisoformat(expiry).tzinfo

    (expires,) = map(int, re.findall(r"expires=(\d+)\)", block))
    assert sum(pauses) + 7 * 15 == 231 < expires
    (visibility,) = map(int, re.findall(r'"visibility_timeout": (\d+)', block))
    assert max(pauses) < visibility

    (call,) = gateway.calls
    assert [call.voice_id] * 2 == report["placed"]


# A worker of Celery in a thread, with a task that was enqueued too long ago.
LATE = """
from celery.contrib.testing.worker import start_worker
from celery.exceptions import TaskRevokedError
import tasks

late = tasks.call.apply_async(("13912345678", "1125"), expires=-1)
with start_worker(tasks.app, pool="solo", perform_ping_check=False, shutdown_timeout=60):
    try:
        late.get(timeout=60)
    except TaskRevokedError as error:
        print(type(error).__name__, late.state)
"""


def test_an_expired_task_rings_no_phone(gateway: VoiceGateway, tmp_path: Path) -> None:
    (block,) = BLOCKS["Retries in Celery"]
    (tmp_path / "tasks.py").write_text(block, encoding="utf-8")
    printed = run(
        gateway,
        tmp_path,
        LATE,
        BROKER_URL="memory://",
        RESULT_BACKEND="cache+memory://",
        CALLS_STORE=str(tmp_path / "calls.db"),
    )
    assert "TaskRevokedError REVOKED\n" == printed
    assert not gateway.attempts
    for text in (ENGLISH, CHINESE):
        assert "`REVOKED`" in text
        assert "`TaskRevokedError`" in text
