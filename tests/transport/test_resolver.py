"""Looking up a host name: bounded, in threads that keep nothing alive."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from ihuyi_voice import NotSentError, SubmitResult
from ihuyi_voice._threads import start_raw_thread
from ihuyi_voice.transport import resolver as resolver_module
from ihuyi_voice.transport.resolver import DaemonResolver
from tests.rogue import ACCEPTED, Connection, Rogue, http_answer
from tests.transport.loops import LOOPS, MOBILE, client, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parents[2]


async def answer(connection: Connection) -> None:
    while await connection.read_request():
        await connection.send(http_answer(ACCEPTED))


@pytest.mark.parametrize("loop", LOOPS)
def test_a_host_name_is_looked_up(loop: str) -> None:
    async def submit() -> SubmitResult:
        async with Rogue(answer).running() as rogue:
            url = rogue.url.replace("127.0.0.1", "localhost")
            async with client(url) as voice:
                return await voice.submit(MOBILE, "1125")

    assert SubmitResult("197362477", "ok", MOBILE) == run(loop, submit)


@pytest.fixture(autouse=True)
def _without_greenlets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that a test imported may have loaded them; they keep the first `getaddrinfo`."""
    for module in ("gevent.monkey", "eventlet.patcher"):
        monkeypatch.delitem(sys.modules, module, raising=False)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Look-ups that hang until the event is set, which the test's end does."""
    let_go = threading.Event()

    def look_up(*_: object) -> list[object]:
        let_go.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield let_go
    let_go.set()


async def test_a_look_up_that_hangs_ends_at_the_deadline(hanging: threading.Event) -> None:
    async with client("http://gateway.invalid", timeout=0.1) as voice:
        with pytest.raises(NotSentError, match="the look-up of the host name did not end"):
            await voice.submit(MOBILE, "1125")


async def test_one_look_up_ends_after_its_time(hanging: threading.Event) -> None:
    looking_up = DaemonResolver(0.05)
    waiting = [asyncio.create_task(looking_up.resolve("gateway.invalid", 80)) for _ in range(8)]
    for task in waiting:
        with pytest.raises(OSError, match=r"the look-up took longer than 0\.05 s"):
            await task
    with pytest.raises(OSError, match="8 earlier look-ups have not ended"):
        await looking_up.resolve("gateway.invalid", 80)
    # When they come back after all, their places are free again.
    hanging.set()
    found: list[object] = [None]
    with anyio.fail_after(60):
        while found:  # pragma: no cover - its rounds are a race
            with contextlib.suppress(OSError):
                found = [*await looking_up.resolve("gateway.invalid", 80)]
            await asyncio.sleep(0)


async def test_only_so_many_look_ups_may_hang(hanging: threading.Event) -> None:
    looking_up = DaemonResolver(60.0)
    waiting = [asyncio.create_task(looking_up.resolve("gateway.invalid")) for _ in range(8)]
    await asyncio.sleep(0)
    with pytest.raises(OSError, match="8 earlier look-ups have not ended"):
        await looking_up.resolve("gateway.invalid")
    hanging.set()
    assert [[]] * 8 == await asyncio.gather(*waiting)
    await looking_up.close()


async def test_a_loop_that_closed_during_the_look_up(hanging: threading.Event) -> None:
    def look_up_and_close() -> None:
        loop = asyncio.new_event_loop()
        with pytest.raises(OSError, match="took longer"):
            loop.run_until_complete(DaemonResolver(0.01).resolve("gateway.invalid"))
        loop.close()

    ended = threading.Event()

    def signaled(run: Callable[[], None]) -> None:
        def run_to_the_end() -> None:
            try:
                run()
            finally:
                ended.set()

        start_raw_thread(run_to_the_end)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolver_module, "start_raw_thread", signaled)
        await asyncio.to_thread(look_up_and_close)
        hanging.set()
        assert await asyncio.to_thread(ended.wait, 60)


async def test_what_the_system_says_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    async with client("http://gateway.invalid", connect_attempts=1) as voice:
        with pytest.raises(NotSentError) as caught:
            await voice.submit(MOBILE, "1125")
    expected = (
        "the host name could not be resolved (gateway.invalid:80):"
        " Temporary failure in name resolution"
    )
    assert expected == caught.value.reason
    assert isinstance(caught.value.__cause__, socket.gaierror)
    assert caught.value.__cause__.__traceback__ is None


async def test_a_name_that_cannot_be_asked_for() -> None:
    with pytest.raises(OSError, match=r"Unicode\w*Error in the look-up"):
        await DaemonResolver(60.0).resolve("a" * 64 + ".invalid", 80)


async def test_a_link_local_address_keeps_its_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", 80, 0, 1)),
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 80, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80)),
        (socket.AF_UNIX, socket.SOCK_STREAM, 0, "", "/nothing/we/can/use"),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)
    monkeypatch.setattr(socket, "getnameinfo", lambda address, _: (f"{address[0]}%lo", "80"))
    results = await DaemonResolver(60.0).resolve("gateway.invalid", 80)
    assert ["fe80::1%lo", "::1", "127.0.0.1"] == [result["host"] for result in results]


async def test_no_further_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    monkeypatch.setattr(resolver_module, "start_raw_thread", refuse)
    async with client("http://gateway.invalid", connect_attempts=1) as voice:
        with pytest.raises(NotSentError, match="can't start new thread"):
            await voice.submit(MOBILE, "1125")


# --- how a process ends ------------------------------------------------------------

HANGS = """
import asyncio, socket, threading
from ihuyi_voice import AsyncVoiceClient, NotSentError, VoiceClient

URL = "http://gateway.invalid"
socket.getaddrinfo = lambda *_: threading.Event().wait()

async def main():
    async with AsyncVoiceClient("id", "key", base_url=URL, timeout=0.2) as voice:
        try:
            await voice.submit("13912345678", "1125")
        except NotSentError:
            print("async")

asyncio.run(main())
with VoiceClient("id", "key", base_url=URL, timeout=0.2) as voice:
    try:
        voice.submit("13912345678", "1125")
    except NotSentError:
        print("blocking")
"""

AFTER_THE_MAIN_THREAD = """
import sys, threading
from ihuyi_voice import NotSentError, VoiceClient

def submit():
    threading.main_thread().join()
    with VoiceClient("id", "key", base_url=sys.argv[1]) as voice:
        try:
            print(voice.submit("13912345678", "1125").voice_id)
        except NotSentError:
            print("refused")

threading.Thread(target=submit).start()
"""


async def output(script: str, *arguments: str) -> list[str]:
    """What a program prints; it has to end by itself."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script, *arguments],
        cwd=HERE,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    return str(done.stdout).split()


async def test_a_look_up_that_hangs_does_not_keep_the_process() -> None:
    assert ["async", "blocking"] == await output(HANGS)


async def test_a_call_after_the_main_thread_has_ended() -> None:
    async with Rogue(answer).running() as rogue:
        url = rogue.url.replace("127.0.0.1", "localhost")
        (end,) = await output(AFTER_THE_MAIN_THREAD, url)
    # Some releases of Python from 3.12 on start no thread by then.
    assert end == "197362477" or (end == "refused" and sys.version_info >= (3, 12))
