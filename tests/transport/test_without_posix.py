"""Windows has neither `select.poll` nor `os.register_at_fork`: what does their work there."""

from __future__ import annotations

import asyncio
import select
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice import _loops
from tests.inside import quiet_check, without_meminfo
from tests.transport.blocking_server import serving
from tests.transport.loops import LOOPS, MOBILE, client, run

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def _windows(monkeypatch: pytest.MonkeyPatch) -> None:
    without_meminfo(monkeypatch)
    monkeypatch.delattr(select, "poll")


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(("connections", "unasked"), [(1, b""), (2, b"H")])
def test_only_a_clean_connection_is_reused(loop: str, unasked: bytes, connections: int) -> None:
    async def submit_twice() -> None:
        async with client(server.url) as voice:
            await voice.submit(MOBILE, "1125")
            if unasked:
                server.send_unasked()
            await voice.submit(MOBILE, "1126")

    with serving(None) as server:
        server.unasked = unasked
        run(loop, submit_twice)
    assert connections == len(server.connections)


def _unread(ours: socket.socket, theirs: socket.socket) -> None:
    theirs.send(b"x")


def _ended(ours: socket.socket, theirs: socket.socket) -> None:
    theirs.close()


def _closed(ours: socket.socket, theirs: socket.socket) -> None:
    ours.close()
    theirs.close()


@pytest.mark.parametrize("disturb", [_unread, _ended, _closed])
def test_a_connection_is_quiet_until(
    disturb: Callable[[socket.socket, socket.socket], None],
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        is_quiet = quiet_check(ours)
        assert is_quiet()
        disturb(ours, theirs)
        assert not is_quiet()


def test_the_loop_for_greenlets_waits_with_select() -> None:
    ours, theirs = socket.socketpair()
    loop = _loops.new_selector_loop()

    async def receive() -> bytes:
        loop.call_later(0.001, theirs.send, b"x")
        return await loop.sock_recv(ours, 1)

    with ours, theirs:
        ours.setblocking(False)
        assert b"x" == loop.run_until_complete(receive())
    loop.close()
    assert isinstance(loop, asyncio.SelectorEventLoop)


_WITHOUT = """
import os, select, signal
for module, names in (
    (os, ("fork", "forkpty", "register_at_fork", "getuid", "geteuid", "openpty", "mkfifo")),
    (select, ("poll", "epoll")),
    (signal, ("SIGHUP", "SIGALRM", "SIGKILL", "setitimer")),
):
    for name in names:
        delattr(module, name)
import sys
for module in ("fcntl", "grp", "pwd", "resource", "termios", "tty", "uvloop"):
    sys.modules[module] = None
import asyncio
from ihuyi_voice import AsyncVoiceClient, Store, OutcomeUnknownError, SubmitRequest, VoiceClient
from ihuyi_voice.sandbox import Chaos, SandboxGateway
gateway = SandboxGateway()

async def submit(url):
    async with AsyncVoiceClient("sandbox", "sandbox-key", base_url=url) as client:
        for content in ("1125", "1126"):
            await client.submit("13812345678", content)

with gateway.serve_in_thread() as url, Store.open(sys.argv[1]) as store:
    asyncio.run(submit(url))
    with VoiceClient("sandbox", "sandbox-key", base_url=url, store=store) as client:
        client.submit("13912345678", "1125", idempotency_key="a")
        with client.submit_many([SubmitRequest("13712345678", "1125", "b")]) as run:
            print(*(outcome.status.value for outcome in run))
        gateway.chaos = Chaos(close_after_placing=1.0)
        try:
            client.submit("13912345678", "1125", idempotency_key="c")
        except OutcomeUnknownError:
            print(store.summary()["unknown"], gateway.balance)
"""


def test_clients_and_store_work_without_what_windows_lacks(tmp_path: object) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _WITHOUT, f"{tmp_path}/calls.db"],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert ("", "accepted\n1 995\n", 0) == (done.stderr, done.stdout, done.returncode)
