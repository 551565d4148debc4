"""A quota's store that hangs, fails or ignores cancellation holds up no request."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from ihuyi_voice import (
    AsyncVoiceClient,
    NotSentError,
    OutcomeStatus,
    QuotaExceededError,
    RecipientQuota,
    Store,
    SubmitRequest,
    VoiceClient,
    _limits,
)
from ihuyi_voice.quota import never_waits
from ihuyi_voice.sandbox import SandboxGateway
from ihuyi_voice.store.memory import MemoryLimits
from tests.inside import pipeline_of, slots_of, thread_of, within

if TYPE_CHECKING:
    from pathlib import Path

    from ihuyi_voice._reservations import Reservations
    from ihuyi_voice.store.limits import Windows

MOBILE, CODE = "13912345678", "1125"
NOWHERE = "http://127.0.0.1:1"
DID_NOT_ANSWER = r"^not sent: the quota's store did not answer within 0\.05 s; nothing was written"


IMPATIENT = _limits.Limits(release=0.01)


class Limits:
    """Grants everything, once it is let; says what it was asked.

    Args:
        reserving, releasing: wait for `go` first.
        stubborn: waits on when it is cancelled.
    """

    def __init__(
        self, *, reserving: bool = False, releasing: bool = False, stubborn: bool = False
    ) -> None:
        self.reserving, self.releasing, self.stubborn = reserving, releasing, stubborn
        self.go = asyncio.Event()
        self.asked = asyncio.Event()
        self.released = asyncio.Event()
        self.reserved: list[str] = []
        self.given_back: list[str] = []
        self.cancelled = 0

    async def reserve(self, number: str, token: str, windows: Windows) -> float:
        assert MOBILE == number
        self.asked.set()
        if self.reserving:
            await self._wait()
        self.reserved.append(token)
        return 0.0

    async def release(self, number: str, token: str) -> None:
        assert MOBILE == number
        self.asked.set()
        if self.releasing:
            await self._wait()
        self.given_back.append(token)
        self.released.set()

    async def _wait(self) -> None:
        while not self.go.is_set():
            try:
                await self.go.wait()
            except asyncio.CancelledError:  # noqa: PERF203 - once or twice
                self.cancelled += 1
                if not self.stubborn:
                    raise


def client(limits: Limits, base_url: str = NOWHERE, **options: Any) -> AsyncVoiceClient:
    options = {"timeout": 0.05, "connect_attempts": 1, **options}
    return AsyncVoiceClient(
        "sandbox", "sandbox-key", base_url=base_url, quota=RecipientQuota(store=limits), **options
    )


def reservations(voice: AsyncVoiceClient) -> Reservations:
    opened = pipeline_of(voice).reservations
    assert opened is not None
    return opened


async def until_alone() -> None:
    """Wait until no call of the store goes on in the background."""
    while len(asyncio.all_tasks()) > 1:
        await asyncio.sleep(0)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


# --- reserving ---------------------------------------------------------------


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_reservation_is_waited_for_until_the_deadline(stubborn: bool) -> None:
    store = Limits(reserving=True, stubborn=stubborn)
    gateway = SandboxGateway()
    async with gateway.serve() as url, client(store, url) as voice:
        with pytest.raises(NotSentError, match=DID_NOT_ANSWER) as caught:
            await voice.submit(MOBILE, CODE)
        assert caught.value.__cause__ is None
        await asyncio.sleep(0)
        assert 1 == store.cancelled
        store.go.set()
    assert [] == gateway.attempts


async def test_a_reservation_that_is_made_late_is_given_back() -> None:
    store = Limits(reserving=True, stubborn=True)
    async with client(store) as voice:
        with pytest.raises(NotSentError, match=DID_NOT_ANSWER):
            await voice.submit(MOBILE, CODE)
        store.go.set()
        await asyncio.wait_for(store.released.wait(), 10)
        assert store.reserved == store.given_back
        await until_alone()


async def test_a_store_that_honours_the_cancellation_is_asked_nothing_more() -> None:
    store = Limits(reserving=True)
    async with client(store) as voice:
        with pytest.raises(NotSentError, match=DID_NOT_ANSWER):
            await voice.submit(MOBILE, CODE)
        await until_alone()
    assert [] == store.given_back


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_cancelled_submit_does_not_wait_for_its_store(stubborn: bool) -> None:
    store = Limits(reserving=True, stubborn=stubborn)
    async with client(store, timeout=60.0) as voice:
        task = asyncio.create_task(voice.submit(MOBILE, CODE))
        await store.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)
        store.go.set()
        if stubborn:
            await asyncio.wait_for(store.released.wait(), 10)
        assert store.reserved == store.given_back


async def test_the_wait_for_a_slot_has_what_the_store_leaves_of_the_time() -> None:
    """One deadline for the request, not one for each thing that it waits for."""
    store = Limits(reserving=True)
    async with client(store, timeout=0.3, max_connections=1) as voice:
        slots_of(voice).acquire_nowait()
        began = time.monotonic()
        task = asyncio.create_task(voice.submit(MOBILE, CODE))
        await asyncio.sleep(0.2)
        store.go.set()
        with pytest.raises(NotSentError, match="no slot came free"):
            await task
        waited = time.monotonic() - began
        slots_of(voice).release()
    # With a deadline of its own for the slot it would be half a second.
    assert 0.29 < waited < 0.48


class CancellingStore(Limits):
    """Ends its own calls as if they were cancelled."""

    async def reserve(self, number: str, token: str, windows: Windows) -> float:
        raise asyncio.CancelledError


async def test_a_store_that_cancels_itself_cancels_no_other_task() -> None:
    async with client(CancellingStore(), timeout=10.0) as voice:
        with pytest.raises(NotSentError, match=r"the quota's store failed \(CancelledError\)"):
            await voice.submit(MOBILE, CODE)


class NoStore:
    """No store at all: its calls cannot be awaited, or return no number."""

    def __init__(self, returned: object) -> None:
        self.returned = returned

    def reserve(self, number: str, token: str, windows: object) -> Any:
        return self.returned

    async def release(self, number: str, token: str) -> None:
        """Never asked."""


async def nothing() -> None:
    """What a store without a `return` gives."""


@pytest.mark.parametrize("make", [lambda: None, nothing])
async def test_a_store_that_is_none_means_that_nothing_is_sent(make: Any) -> None:
    async with client(NoStore(make()), timeout=10.0) as voice:  # type: ignore[arg-type]
        with pytest.raises(NotSentError, match=r"the quota's store failed \(TypeError\)"):
            await voice.submit(MOBILE, CODE)


def test_a_blocking_submit_is_not_held_up_either() -> None:
    store = Limits(reserving=True, stubborn=True)
    with closing(
        VoiceClient("id", "key", base_url=NOWHERE, timeout=0.05, quota=RecipientQuota(store=store))
    ) as voice:
        with pytest.raises(NotSentError, match=DID_NOT_ANSWER):
            voice.submit(MOBILE, CODE)
        thread_of(voice).calls.loop.call_soon_threadsafe(store.go.set)


async def test_a_row_of_a_bulk_run_is_not_held_up_either() -> None:
    store = Limits(reserving=True, stubborn=True)
    async with client(store) as voice:
        async with voice.submit_many([(MOBILE, CODE)] * 2) as run:
            outcomes = [outcome async for outcome in run]
        store.go.set()
        await asyncio.wait_for(store.released.wait(), 10)
    assert [OutcomeStatus.NOT_SENT] * 2 == [outcome.status for outcome in outcomes]
    assert all("did not answer" in str(outcome.error) for outcome in outcomes)


async def test_a_claim_whose_store_hangs_is_settled_as_not_sent(tmp_path: Path) -> None:
    limits = Limits(reserving=True)
    with Store.open(tmp_path / "calls.db") as store:
        async with client(limits, store=store, timeout=1.0) as voice:
            with pytest.raises(NotSentError, match="the quota's store did not answer"):
                await voice.submit(MOBILE, CODE, idempotency_key="key")
        assert 1 == store.summary()["not_sent"]


# --- releasing ---------------------------------------------------------------


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_release_is_waited_for_shortly_and_changes_no_outcome(
    stubborn: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store = Limits(releasing=True, stubborn=stubborn)
    async with within(client(store, timeout=10.0), IMPATIENT) as voice:
        with pytest.raises(NotSentError, match="the connection could not be made"):
            await voice.submit(MOBILE, CODE)
        await asyncio.sleep(0)
        assert 1 == store.cancelled
        store.go.set()
        await until_alone()
    warning, failure = warnings_of(caplog)
    assert failure.startswith("submit 139****5678 not_sent ")
    assert (
        "submit 139****5678: nothing was sent, and the quota's store did not give its slot back"
        " (no answer within 0.01 s): the call counts until its window has passed" == warning
    )


class FailingRelease(Limits):
    """Down when something is to be given back."""

    async def release(self, number: str, token: str) -> None:
        raise OSError(111, "secret words")


async def test_a_release_that_fails_is_said_and_changes_no_outcome(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with client(FailingRelease(), timeout=10.0) as voice:
        with pytest.raises(NotSentError, match="the connection could not be made"):
            await voice.submit(MOBILE, CODE)
    warning, _ = warnings_of(caplog)
    assert "(ConnectionRefusedError: Connection refused)" in warning


async def test_a_second_cancellation_does_not_wait_for_the_release() -> None:
    store = Limits(releasing=True)
    async with client(store, timeout=60.0, max_connections=1) as voice:
        slots_of(voice).acquire_nowait()
        task = asyncio.create_task(voice.submit(MOBILE, CODE))
        while not slots_of(voice).statistics().tasks_waiting:
            await asyncio.sleep(0)
        store.asked.clear()
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)
        # It goes on in the background.
        store.go.set()
        await asyncio.wait_for(store.released.wait(), 10)
        assert store.reserved == store.given_back


# --- what never waits ----------------------------------------------------------


class Ours(RecipientQuota):
    """A quota of the caller's own, which may do anything."""


class OurMemory(MemoryLimits):
    """A store of the caller's own."""


@pytest.mark.parametrize(
    ("expected", "quota"),
    [
        (True, RecipientQuota()),
        (True, RecipientQuota(1, 1, MemoryLimits())),
        (False, RecipientQuota(store=OurMemory())),
        (False, Ours()),
    ],
)
async def test_only_this_processs_memory_never_waits(
    expected: bool, quota: RecipientQuota, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task for each reservation would cost more than all the rest of it."""
    assert expected is never_waits(quota)
    async with AsyncVoiceClient("id", "key", base_url=NOWHERE, quota=quota) as voice:
        admitted = pipeline_of(voice).check(SubmitRequest(MOBILE, CODE))
        loop = asyncio.get_running_loop()
        made: list[object] = []
        create_task = loop.create_task

        def counted(coroutine: Any, **options: Any) -> Any:
            made.append(coroutine)
            return create_task(coroutine, **options)

        monkeypatch.setattr(loop, "create_task", counted)
        await reservations(voice).reserve(admitted)
        await reservations(voice).give_back(admitted)
    assert expected is not bool(made)


async def test_a_limit_of_a_store_is_the_limit() -> None:
    class Limiting(Limits):
        async def reserve(self, number: str, token: str, windows: Windows) -> float:
            return 12.5

    async with client(Limiting(), timeout=10.0) as voice:
        with pytest.raises(QuotaExceededError) as caught:
            await voice.submit(MOBILE, CODE)
    assert 12.5 == caught.value.retry_after
