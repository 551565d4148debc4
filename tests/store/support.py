"""Shared functions of the store's tests."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING, cast

from ihuyi_voice.models import mask_mobile
from ihuyi_voice.store.answer import StoredAnswer
from ihuyi_voice.store.entry import Claim, Entry, EntryState, Fingerprints
from ihuyi_voice.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from ihuyi_voice.store.sql.store import SqlStore

MOBILE = "13912345678"
MASKED = "139****5678"
CONTENT = "112578"
API_KEY = "the-account's-api-key"
FINGERPRINTS = Fingerprints(API_KEY)
# Seconds that a claimed request may be sent or settled in these tests, and seconds
# that an abandoned request may still be delivered.
LIVE = 100.0
DELIVERY = 60.0

SETTLED = (EntryState.ACCEPTED, EntryState.REFUSED, EntryState.NOT_SENT)


class Clock:
    """A clock that shows the time it was set to."""

    def __init__(self, time: float = 1_700_000_000.0) -> None:
        self.time = time

    def __call__(self) -> float:
        return self.time


def open_store(
    url: str | os.PathLike[str],
    *,
    create: bool = True,
    patience: float = 2.0,
    clock: Callable[[], float] | None = None,
) -> SqlStore:
    """`Store.open` for a database: with what only such a store has."""
    return cast("SqlStore", Store.open(url, create=create, patience=patience, clock=clock))


async def claim(
    store: SqlStore,
    key: str = "k",
    mobile: str = MOBILE,
    content: str = CONTENT,
    *,
    timeout: float = 10.0,
    live: float = LIVE,
    fingerprints: Fingerprints = FINGERPRINTS,
) -> Claim:
    fingerprint = fingerprints.of(mobile, content)
    deadline = time.monotonic() + timeout
    return await store.claim(key, fingerprint, mask_mobile(mobile), deadline, live)


async def find(store: SqlStore, key: str = "k") -> Entry | None:
    fingerprint = FINGERPRINTS.of(MOBILE, CONTENT)
    return await store.find(key, fingerprint, MASKED, time.monotonic() + 10)


async def claimed(store: SqlStore, key: str = "k", *, live: float = LIVE) -> str:
    """Claim a key that must be free; returns the token."""
    claim_of_it = await claim(store, key, live=live)
    assert claim_of_it.entry is None
    assert claim_of_it.token
    return claim_of_it.token


async def ended(store: SqlStore, state: EntryState, key: str = "k") -> str:
    """Claim a key and settle it; returns the token."""
    token = await claimed(store, key)
    if state is EntryState.ACCEPTED:
        await store.settle(key, token, state, StoredAnswer(2, "提交成功", "900100200"))
    elif state is EntryState.REFUSED:
        await store.settle(key, token, state, StoredAnswer(4051, "剩余条数不足"))
    else:
        await store.settle(key, token, state, StoredAnswer(msg="the connection was reset"))
    return token


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition of other threads or processes that offer no event."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


PRELUDE = """
import asyncio, os, signal, sys, time
from ihuyi_voice.errors import *
from ihuyi_voice.store.answer import *
from ihuyi_voice.store.entry import *
from ihuyi_voice.store.store import Store
from tests.store.support import *
place = sys.argv[1]
"""


def start(place: str, script: str) -> subprocess.Popen[str]:
    """Start an interpreter that runs a script on the place of a store; warnings are errors.

    Args:
        place: of the store.
        script: follows the prelude.
    """
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(script), place],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.getcwd(),  # noqa: PTH109
        },
    )


def run(place: str, script: str) -> tuple[int, str, str]:
    """Run a script; returns its exit status, stdout and stderr."""
    with start(place, script) as process:
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, out, err
