"""What was given up is not delivered later: the connection is reset, its bytes are dropped."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from ihuyi_voice import AsyncVoiceClient, OutcomeUnknownError
from ihuyi_voice.transport.base import Exchange
from tests.transport.blocking_server import BlockingServer, serving
from tests.transport.giving_up import FIRST, WAYS
from tests.transport.loops import LOOPS, MOBILE, client, contexts, run
from tests.transport.wire import ADDRESS, Wire, laid_wire

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parents[2]
TLS = contexts("127.0.0.1")


# --- over a wire that breaks just before the write -------------------------------


@pytest.fixture
def wire() -> Iterator[Wire]:
    with laid_wire() as laid:
        yield laid


@contextlib.contextmanager
def program(namespace: str, module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A module of the tests, run in a namespace until the block is left."""
    process = subprocess.Popen(
        ["ip", "netns", "exec", namespace, sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=HERE,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.measures_processes
def test_nothing_is_delivered_once_the_wire_is_whole_again(wire: Wire, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert(ADDRESS)
    certificate, key, trusted = (str(tmp_path / name) for name in ("cert", "key", "trusted"))
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(trusted)
    with program(wire.far, "tests.transport.far_server", ADDRESS, certificate, key) as server:
        urls = line(server).split()
        cases = list(itertools.product(WAYS, LOOPS, urls))
        with program(
            wire.near, "tests.transport.giving_up", trusted, *map(",".join, cases)
        ) as clients:
            assert clients.stdin is not None
            assert "ready" == line(clients)
            wire.cut()
            print(file=clients.stdin, flush=True)
            assert "gone" == line(clients)
            wire.heal()
            # What the patient ones wrote was retransmitted: at about the same
            # moment, the others' would have been.
            assert "whole" == line(clients)
            time.sleep(1.0)
        # Closes its input.
        arrived, _ = server.communicate(timeout=60)
    delivered = {cases[int(content) - 2000] for content in arrived.split() if content != FIRST}
    assert {case for case in cases if case[0] == "patient"} == delivered


# --- on loopback ------------------------------------------------------------------


async def at_the_deadline(submit: asyncio.Task[object], _: AsyncVoiceClient) -> None:
    with pytest.raises(OutcomeUnknownError):
        await submit


async def by_a_cancellation(submit: asyncio.Task[object], _: AsyncVoiceClient) -> None:
    submit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submit


async def by_closing(submit: asyncio.Task[object], voice: AsyncVoiceClient) -> None:
    await voice.aclose()
    with pytest.raises(OutcomeUnknownError):
        await submit


@pytest.fixture(params=["plain", "TLS"])
def server(request: pytest.FixtureRequest) -> Iterator[BlockingServer]:
    with serving(TLS[0] if request.param == "TLS" else None) as serving_:
        serving_.silent = True
        yield serving_


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("way", [at_the_deadline, by_a_cancellation, by_closing])
def test_the_connection_is_reset_by_the_time_the_outcome_is_known(
    server: BlockingServer, loop: str, way: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchanges: list[Exchange] = []

    class Recorded(Exchange):
        def __init__(self, deadline: float, began: float | None = None) -> None:
            super().__init__(deadline, began)
            exchanges.append(self)

    async def give_up() -> None:
        timeout = 0.5 if way is at_the_deadline else 60.0
        async with client(server.url, ssl_context=TLS[1], timeout=timeout) as voice:
            submit = asyncio.create_task(voice.submit(MOBILE, "1125"))
            await asyncio.to_thread(server.arrived.acquire)
            await way(submit, voice)
            assert exchanges[0].reset
            # The loop has not turned since.
            (connection,) = server.connections
            error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            assert errno.ECONNRESET == error

    monkeypatch.setattr("ihuyi_voice._pipeline.Exchange", Recorded)
    run(loop, give_up)


# --- in a forked child ---------------------------------------------------------------

FORKING = """
import asyncio, gc, os, select, socket, ssl, sys
from tests.inside import resetting_socket
from tests.transport.loops import MOBILE, client, run

loop, url, trusted = sys.argv[1:]

async def main():
    # Below those of the connections; closed, its number is free for the child.
    below = open(os.devnull)
    # Known before the connections, and closed while something still refers to it.
    closed = resetting_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ()))
    voice = client(url, ssl_context=ssl.create_default_context(cafile=trusted), timeout=60.0)
    submits = [asyncio.create_task(voice.submit(MOBILE, content)) for content in ("1125", "1126")]
    await submits[0]
    # Not by blocking the loop, which has the other request still to send.
    while not select.select([0], [], [], 0)[0]:
        await asyncio.sleep(0.01)
    sys.stdin.readline()
    number = closed.fileno()
    closed.close()
    # Its number is the pipe's now, which the child keeps.
    alive, end = os.pipe()
    assert number in (alive, end)
    if loop == "asyncio":
        below.close()
    if os.fork() == 0:
        has_pipe = os.path.sameopenfile(alive, end)
        os.close(end)
        del voice, submits
        opened = [open(os.devnull) for _ in range(50)]
        gc.collect()
        for file in opened:
            os.fstat(file.fileno())
        print("forked" if has_pipe else "forked without the pipe", flush=True)
        os.read(alive, 1)
        os._exit(0)
    sys.stdin.readline()
    # Over the connection that was idle while the child was made.
    assert (await voice.submit(MOBILE, "1127")).voice_id == "971127"
    submits[1].cancel()
    try:
        await submits[1]
    except asyncio.CancelledError:
        print("cancelled", flush=True)
    # The pipe ends with this process.
    sys.stdin.read()

run(loop, main)
"""


@pytest.mark.measures_processes
@pytest.mark.parametrize("loop", LOOPS)
def test_a_forked_child_holds_no_connection_of_its_parent(
    server: BlockingServer, loop: str, tmp_path: Path
) -> None:
    trusted = tmp_path / "trusted"
    TLS[2].cert_pem.write_to_path(str(trusted))
    server.silent = False
    server.unanswered.add("1126")
    with subprocess.Popen(
        [sys.executable, "-c", FORKING, loop, server.url, str(trusted)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=HERE,
    ) as process:
        assert process.stdin is not None
        for _ in range(2):
            assert server.arrived.acquire(timeout=60)
        # To the parent, whose child is made while one request is on its way.
        print(file=process.stdin, flush=True)
        assert "forked" == line(process)
        print(file=process.stdin, flush=True)
        assert "cancelled" == line(process)
        # The child lives on, and the connection is over all the same.
        assert {errno.ECONNRESET, 0} == {
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            for connection in server.connections
        }
    assert 2 == len(server.connections)
