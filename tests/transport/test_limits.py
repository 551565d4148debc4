"""At the system's limits, and which loop runs in the thread of our own."""

from __future__ import annotations

import asyncio
import errno
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from ihuyi_voice import NotSentError
from ihuyi_voice._loops import fast_loop_factory
from tests.inside import refuse_sockets
from tests.transport.loops import LOOPS, MOBILE, client, run

HERE = Path(__file__).parents[2]

NO_FILE_LEFT = """
import os, resource, sys
from ihuyi_voice import NotSentError
from tests.transport.loops import MOBILE, client, run

async def main():
    async with client("http://127.0.0.1:9", connect_attempts=1) as voice:
        # Loads whatever is loaded at the first use.
        for limit in (None, 0):
            if limit is not None:
                highest = os.dup(0)
                os.close(highest)
                resource.setrlimit(resource.RLIMIT_NOFILE, (highest, highest))
            try:
                await voice.submit(MOBILE, "1125")
            except NotSentError as error:
                print(error.reason)

run(sys.argv[1], main)
"""


@pytest.mark.parametrize("loop", LOOPS)
def test_no_file_descriptor_left(loop: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_FILE_LEFT, loop],
        cwd=HERE,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert [
        "the connection could not be made to 127.0.0.1:9: Connection refused",
        "the connection could not be made to 127.0.0.1:9: Too many open files",
    ] == done.stdout.splitlines()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
@pytest.mark.parametrize("loop", LOOPS)
def test_no_socket_left(loop: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "no")

    async def submit() -> None:
        async with client("http://127.0.0.1:9", connect_attempts=1) as voice:
            await voice.submit(MOBILE, "1125")

    refuse_sockets(monkeypatch, refuse)
    with pytest.raises(NotSentError, match="could not be made") as caught:
        run(loop, submit)
    assert isinstance(caught.value.__cause__, OSError)
    assert number == caught.value.__cause__.errno


@pytest.mark.parametrize("version", ["0.22.1", "0.9", "unheard of", ""])
def test_an_older_uvloop_is_not_used(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("uvloop")
    fake.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "uvloop", fake)
    assert fast_loop_factory() is asyncio.new_event_loop


def test_asyncios_loop_without_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert fast_loop_factory() is asyncio.new_event_loop


def test_uvloop_looks_names_up_without_its_own_threads() -> None:
    async def look_up() -> list[object]:
        return list(await asyncio.get_running_loop().getaddrinfo("localhost", 80))

    assert run("uvloop", look_up)


@pytest.mark.parametrize("version", ["0.23.0", "0.23.0.dev1", "0.100", "1.0.0"])
def test_a_newer_uvloop_is_used(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(__version__=version, Loop=object)
    monkeypatch.setitem(sys.modules, "uvloop", fake)
    assert fast_loop_factory() is not asyncio.new_event_loop
