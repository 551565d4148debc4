"""Clients that give up a request, one process each: run as `python -m`.

The arguments are a certificate file and the cases, each "way,loop,url". It prints
"ready" when all clients have a connection, sends when it reads a line, prints
"gone" when all have given up, and "whole" when the patient one has its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import ssl
import sys
from functools import partial
from typing import TYPE_CHECKING

import anyio

from ihuyi_voice import AsyncVoiceClient, IhuyiVoiceError, OutcomeUnknownError
from ihuyi_voice._limits import Limits
from tests.inside import within
from tests.transport.loops import LOOPS, recorded_exchanges

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# The content of each client's first request. The second one is given up, and has
# the case's number.
FIRST = "1000"


async def deadline(submit: asyncio.Task[object], _: AsyncVoiceClient) -> None:
    with contextlib.suppress(OutcomeUnknownError):
        await submit


async def cancel(submit: asyncio.Task[object], _: AsyncVoiceClient) -> None:
    submit.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await submit


async def close(submit: asyncio.Task[object], voice: AsyncVoiceClient) -> None:
    await voice.aclose()
    with contextlib.suppress(OutcomeUnknownError):
        await submit


async def leave(_: asyncio.Task[object], __: AsyncVoiceClient) -> None:
    sys.exit()


async def leave_at_once(_: asyncio.Task[object], __: AsyncVoiceClient) -> None:
    os._exit(0)


async def killed(_: asyncio.Task[object], __: AsyncVoiceClient) -> None:  # pragma: no cover
    # No tracer survives this.
    os.kill(os.getpid(), signal.SIGKILL)


async def be_patient(submit: asyncio.Task[object], _: AsyncVoiceClient) -> None:
    await submit


WAYS: dict[str, Callable[[asyncio.Task[object], AsyncVoiceClient], Awaitable[None]]] = {
    "deadline": deadline,
    "cancel": cancel,
    "close": close,
    "leave": leave,
    "leave at once": leave_at_once,
    "killed": killed,
    "patient": be_patient,
}


async def give_up(case: str, number: int, certificate: str, ready: int, go: int) -> None:
    """Connect, wait for the word, send, and give up as the case says."""
    way, _, url = case.split(",")
    trusting = ssl.create_default_context(cafile=certificate)
    voice = AsyncVoiceClient(
        "id",
        "key",
        base_url=url,
        ssl_context=trusting,
        quota=None,
        timeout=0.5 if way == "deadline" else 60.0,
    )
    # A busy machine may need more than four seconds until all are ready.
    within(voice, Limits(keepalive=600.0))
    answered = False
    while not answered:
        # A busy machine may need more than one try.
        with contextlib.suppress(IhuyiVoiceError):
            await voice.submit("13912345678", FIRST)
            answered = True
    os.write(ready, b".")
    # Blocking, so that the connection is idle until then.
    os.read(go, 1)
    exchanges = recorded_exchanges()
    submit: asyncio.Task[object] = asyncio.create_task(voice.submit("13912345678", str(number)))
    while not exchanges:
        assert not submit.done(), submit
        await asyncio.sleep(0)
    (exchange,) = exchanges
    while not exchange.may_have_been_written:  # pragma: no cover - often it already was
        assert not submit.done()
        await asyncio.sleep(0)
    # Up to Python 3.11 the body is written by a task of its own.
    for _ in range(5):
        await asyncio.sleep(0)
    await WAYS[way](submit, voice)


def main() -> None:
    """Fork a process for each case, before any thread or loop."""
    certificate, *cases = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    all_ready, ready = os.pipe()
    go, all_go = os.pipe()
    children: dict[str, list[int]] = {}
    for number, case in enumerate(cases, start=2000):
        way, loop, _ = case.split(",")
        child = os.fork()
        if child == 0:  # pragma: no cover - a fork takes the tracer off this frame
            os.close(all_go)
            body = partial(give_up, case, number, certificate, ready, go)
            anyio.run(body, backend_options={"loop_factory": LOOPS[loop]})
            return
        children.setdefault(way, []).append(child)
    for _ in cases:
        os.read(all_ready, 1)
    patient = children.pop("patient")
    say("ready")
    sys.stdin.readline()
    os.close(all_go)
    for impatient in children.values():
        wait_for(impatient)
    say("gone")
    wait_for(patient)
    say("whole")


def wait_for(children: list[int]) -> None:
    for child in children:
        os.waitpid(child, 0)


def say(word: str) -> None:
    """Report to the test how far it is."""
    print(word, flush=True)  # noqa: T201 - see above


if __name__ == "__main__":
    main()
