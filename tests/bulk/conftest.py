"""Fixtures for bulk runs: a time limit for each test, and checks of the event loop."""

from __future__ import annotations

import asyncio
import asyncio.constants
import logging
import signal
import sys
from typing import TYPE_CHECKING

import pytest
from blockbuster import blockbuster_ctx

from tests.bulk.spies import Gateway, no_thread_is_left, own_tasks, threads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

# Seconds; no test comes near it.
DEADLINE = 20


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    # The last resort: as Ctrl-C, it also ends a test that blocks its loop.
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(2 * DEADLINE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ihuyi_voice")


@pytest.fixture
async def watched(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Asyncio's debug mode, no blocking call, nothing left running."""
    # Of each callback it keeps where that was created, ten frames deep: most of the time.
    monkeypatch.setattr(asyncio.constants, "DEBUG_STACK_DEPTH", 1)
    loop = asyncio.get_running_loop()
    # Where coverage is measured it takes too long; the runs on other Pythons have it.
    loop.set_debug(sys.gettrace() is None)
    # SystemExit: no code under test can take it for its own timeout.
    deadline = loop.call_later(DEADLINE, sys.exit, f"the test took more than {DEADLINE} s")
    tasks, before = own_tasks(), threads()
    with blockbuster_ctx("ihuyi_voice") as blocking:
        # Coverage takes a lock of its own inside each function.
        blocking.functions["threading.Lock.acquire"].can_block_in(
            "coverage/collector.py", {"lock_data"}
        )
        yield
    deadline.cancel()
    assert tasks == own_tasks()
    assert no_thread_is_left(before)


@pytest.fixture
async def gateway(watched: None) -> AsyncIterator[Gateway]:
    """A gateway on loopback that accepts everything, or holds the answers that a test chooses."""
    gateway = Gateway()
    async with gateway.running_server():
        yield gateway
