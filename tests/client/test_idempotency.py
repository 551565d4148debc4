"""A submit with a key: placed once, however often it is submitted, whatever fails in the store.

Each test counts what reached the gateway, over real sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import logging
import os
import pickle
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ihuyi_voice import (
    AsyncVoiceClient,
    AuthenticationError,
    GatewayError,
    InvalidRequestError,
    NotSentError,
    OutcomeUnknownError,
    QuotaExceededError,
    RecipientQuota,
    StoreError,
    SubmitRequest,
    SubmitResult,
    VoiceClient,
)
from ihuyi_voice.sandbox import Attempt, Chaos, SandboxGateway
from ihuyi_voice.store.entry import EntryState
from ihuyi_voice.store.memory import MemoryLimits
from ihuyi_voice.store.sql import file as store_file
from ihuyi_voice.store.sql.connection import Connection
from ihuyi_voice.transport.aiohttp import AiohttpTransport
from tests.bulk.spies import Gateway, mobile, until
from tests.client.test_secrets import (
    CODE,
    KEY,
    MASKED,
    MOBILE,
    NOW,
    Witness,
    echoing,
    hang_up,
    leaks,
    shown,
)
from tests.inside import at_each_connection, slots_of, writer_of
from tests.rogue import Connection as Socket
from tests.rogue import Rogue
from tests.store.support import Clock, open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from ihuyi_voice.models import Answer
    from ihuyi_voice.store.sql.store import SqlStore

NONE = {"accepted": 0, "refused": 0, "not_sent": 0, "unknown": 0}
PLACED = SubmitResult("197362477", "ok", MOBILE)
REFUSED = b'{"code":0,"msg":"failed","voiceid":"0"}'
WRONG_KEY = b'{"code":405,"msg":"no","voiceid":"0"}'
NOT_LISTENING = "http://127.0.0.1:9"
OTHER = "13812345678"

KINDS = ("asyncio", "blocking")
SYNC_OPTIONS = {"api_id": "sandbox", "api_key": "sandbox-key", "timeout": 10.0}


async def submit(
    kind: str,
    url: str,
    store: SqlStore | None,
    key: Any = "k",
    *,
    mobile: str = MOBILE,
    content: str = CODE,
    **options: Any,
) -> SubmitResult:
    """One submit by a client of its own."""
    options = {**SYNC_OPTIONS, "base_url": url, "store": store, "quota": None, **options}
    if kind == "asyncio":
        async with AsyncVoiceClient(**options) as voice:
            return await voice.submit(mobile, content, idempotency_key=key)

    def block() -> SubmitResult:
        with VoiceClient(**options) as voice:
            return voice.submit(mobile, content, idempotency_key=key)

    return await asyncio.to_thread(block)


def client(url: str, store: SqlStore | None, **options: Any) -> AsyncVoiceClient:
    return AsyncVoiceClient(
        **{**SYNC_OPTIONS, "base_url": url, "store": store, "quota": None, **options}
    )


def state(store: SqlStore, key: str = "k") -> EntryState | None:
    return store.known([key]).get(key)


def one_a_minute() -> RecipientQuota:
    return RecipientQuota(per_minute=1, per_day=None)


@pytest.fixture(autouse=True)
def _no_last_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be recorded any more is not waited for at the end of a test."""
    monkeypatch.setattr("ihuyi_voice.store.writer.bounds.LAST_RETRIES", 0.0)


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    gateway = Gateway()
    async with gateway.running_server():
        yield gateway


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "calls.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqlStore]:
    with open_store(path, patience=5.0) as opened:
        yield opened


@pytest.fixture
def impatient(path: Path) -> Iterator[SqlStore]:
    """It does not wait for a claim that is on its way."""
    with open_store(path, patience=0.0) as opened:
        yield opened


# --- accepted ----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_the_same_key_again_gives_the_stored_result(
    gateway: Gateway, store: SqlStore, kind: str
) -> None:
    first = await submit(kind, gateway.url, store)
    again = await submit(kind, gateway.url, store, mobile=f"+86 {MOBILE}")
    assert (PLACED, PLACED) == (first, again)
    assert (False, True) == (first.replayed, again.replayed)
    assert [MOBILE] == gateway.mobiles


async def test_another_key_is_another_call(gateway: Gateway, store: SqlStore) -> None:
    for key in ("a", "b"):
        assert not (await submit("asyncio", gateway.url, store, key)).replayed
    assert [MOBILE] * 2 == gateway.mobiles


async def test_it_is_known_to_a_store_opened_later(gateway: Gateway, path: Path) -> None:
    for replayed in (False, True):
        with open_store(path) as store:
            assert replayed is (await submit("asyncio", gateway.url, store)).replayed
    assert [MOBILE] == gateway.mobiles


async def test_a_replay_takes_no_place_in_the_quota(gateway: Gateway, store: SqlStore) -> None:
    quota = RecipientQuota(per_minute=2, per_day=None)
    async with client(gateway.url, store, quota=quota) as voice:
        for replayed in (False, True, True, True):
            assert replayed is (await voice.submit(MOBILE, CODE, idempotency_key="k")).replayed
        assert not (await voice.submit(MOBILE, CODE, idempotency_key="other")).replayed
        with pytest.raises(QuotaExceededError):
            await voice.submit(MOBILE, CODE, idempotency_key="third")
    assert [MOBILE] * 2 == gateway.mobiles


# --- accepted, and the number's quota is exhausted ---------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_the_store_is_read_before_a_limit_is_reported(
    gateway: Gateway, store: SqlStore, kind: str
) -> None:
    quota = one_a_minute()
    await submit(kind, gateway.url, store, quota=quota)
    again = await submit(kind, gateway.url, store, quota=quota)
    assert (PLACED, True) == (again, again.replayed)
    with pytest.raises(QuotaExceededError) as limited:
        await submit(kind, gateway.url, store, "new", quota=quota)
    assert 59 < limited.value.retry_after <= 60
    assert [MOBILE] == gateway.mobiles
    # Nothing was sent under it.
    assert EntryState.NOT_SENT is state(store, "new")


async def test_over_the_limit_and_known_to_have_failed(gateway: Gateway, store: SqlStore) -> None:
    gateway.answer = lambda _: REFUSED
    quota = one_a_minute()
    with pytest.raises(GatewayError):
        await submit("asyncio", gateway.url, store, quota=quota)
    with pytest.raises(QuotaExceededError):
        await submit("asyncio", gateway.url, store, quota=quota)
    assert EntryState.NOT_SENT is state(store)


async def test_over_the_limit_and_unknown(gateway: Gateway, store: SqlStore) -> None:
    gateway.answer = lambda _: None
    quota = one_a_minute()
    for earlier in (False, True):
        with pytest.raises(OutcomeUnknownError) as unknown:
            await submit("asyncio", gateway.url, store, quota=quota)
        assert earlier is unknown.value.earlier
    assert [MOBILE] == gateway.mobiles


async def test_over_the_limit_with_the_key_of_another_number_or_content(
    gateway: Gateway, store: SqlStore
) -> None:
    quota = one_a_minute()
    await submit("asyncio", gateway.url, store, quota=quota)
    with pytest.raises(InvalidRequestError, match="was used for another mobile or content"):
        await submit("asyncio", gateway.url, store, content="4321", quota=quota)


async def test_over_the_limit_and_the_store_fails(
    gateway: Gateway, store: SqlStore, path: Path
) -> None:
    quota = one_a_minute()
    await submit("asyncio", gateway.url, store, quota=quota)
    os.unlink(path)  # noqa: PTH108
    with pytest.raises(StoreError):
        await submit("asyncio", gateway.url, store, quota=quota)
    assert [MOBILE] == gateway.mobiles


async def test_over_the_limit_a_request_without_a_key_is_limited(
    gateway: Gateway, path: Path
) -> None:
    quota = one_a_minute()
    with open_store(path) as store:
        assert not (await submit("asyncio", gateway.url, store, None, quota=quota)).replayed
        with pytest.raises(QuotaExceededError):
            await submit("asyncio", gateway.url, store, None, quota=quota)


# --- unknown -----------------------------------------------------------------


async def reset(connection: Socket) -> None:
    await connection.read_request()
    connection.reset()


@pytest.mark.parametrize("kind", KINDS)
async def test_an_unknown_outcome_is_never_sent_again(store: SqlStore, kind: str) -> None:
    async with Rogue(reset).running() as rogue:
        errors = []
        for _ in range(3):
            with pytest.raises(OutcomeUnknownError) as unknown:
                await submit(kind, rogue.url, store)
            errors.append(unknown.value)
        assert 1 == rogue.submits
    assert [False, True, True] == [error.earlier for error in errors]
    assert [True] * 3 == [error.may_have_rung for error in errors]
    first, second, _ = errors
    assert f"an earlier request with this idempotency key: {first.reason}" == second.reason
    assert EntryState.UNKNOWN is state(store)


async def test_a_claim_that_was_never_settled_says_so(
    gateway: Gateway, impatient: SqlStore, path: Path
) -> None:
    gateway.hold()
    async with client(gateway.url, impatient) as voice:
        first = asyncio.create_task(voice.submit(MOBILE, CODE, idempotency_key="k"))
        await gateway.arrived(1)
        with (
            open_store(path, patience=0.0) as another_process,
            pytest.raises(OutcomeUnknownError) as unknown,
        ):
            await submit("asyncio", gateway.url, another_process)
        assert unknown.value.earlier
        assert unknown.value.reason == (
            "an earlier request with this idempotency key: it was claimed and never settled"
        )
        gateway.release()
        assert PLACED == await first
    assert (await submit("asyncio", gateway.url, impatient)).replayed
    assert [MOBILE] == gateway.mobiles


@pytest.mark.parametrize("native", [False, True])
async def test_cancelled_after_the_write_it_is_unknown(
    gateway: Gateway, store: SqlStore, native: bool
) -> None:
    gateway.hold()
    async with client(gateway.url, store) as voice:
        await cancelled(voice, lambda: gateway.arrived(1), native=native)
        assert EntryState.UNKNOWN is state(store)
        gateway.release()
        with pytest.raises(OutcomeUnknownError) as unknown:
            await voice.submit(MOBILE, CODE, idempotency_key="k")
    assert unknown.value.earlier
    assert [MOBILE] == gateway.mobiles


@pytest.mark.parametrize("native", [False, True])
async def test_cancelled_before_the_write_it_is_not_sent(
    gateway: Gateway, store: SqlStore, native: bool
) -> None:
    """The request has its claim and waits for the only slot."""
    gateway.hold()
    quota = RecipientQuota(per_minute=2, per_day=None)
    async with client(gateway.url, store, max_connections=1, quota=quota) as voice:
        other = asyncio.create_task(voice.submit(OTHER, CODE, idempotency_key="other"))
        await gateway.arrived(1)
        slots = slots_of(voice)
        for _ in range(4):
            waiting = lambda: until(lambda: slots.statistics().tasks_waiting == 1)  # noqa: E731
            await cancelled(voice, waiting, native=native)
            assert EntryState.NOT_SENT is state(store)
        gateway.release()
        assert not (await other).replayed
        assert not (await voice.submit(MOBILE, CODE, idempotency_key="k")).replayed
    assert [OTHER, MOBILE] == gateway.mobiles


async def test_cancelled_just_when_it_is_claimed_it_is_not_sent(
    gateway: Gateway, store: SqlStore
) -> None:
    """The claim is in the file, and the task has not resumed yet."""
    quota = one_a_minute()
    async with client(gateway.url, store, quota=quota) as voice:
        task = asyncio.create_task(voice.submit(MOBILE, CODE, idempotency_key="k"))
        await until(lambda: writer_of(store).thread.started)
        while state(store) is not EntryState.CLAIMED:
            # The loop is blocked meanwhile.
            pass
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: state(store) is EntryState.NOT_SENT)
        assert [] == gateway.mobiles
        assert not (await voice.submit(MOBILE, CODE, idempotency_key="k")).replayed


async def cancelled(voice: AsyncVoiceClient, reached: Callable[[], Any], *, native: bool) -> None:
    """Start a submit, wait for `reached`, and cancel it."""
    if native:
        task = asyncio.create_task(voice.submit(MOBILE, CODE, idempotency_key="k"))
        await reached()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return
    async with anyio.create_task_group() as group:

        async def send() -> None:
            await voice.submit(MOBILE, CODE, idempotency_key="k")

        group.start_soon(send)
        await reached()
        group.cancel_scope.cancel()


async def test_cancelled_while_it_claims_it_is_not_sent(
    gateway: Gateway, store: SqlStore, path: Path
) -> None:
    quota = one_a_minute()
    async with client(gateway.url, store, quota=quota) as voice:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await cancelled(voice, lambda: until(writer_of(store).at_work.locked), native=True)
        assert not (await voice.submit(MOBILE, CODE, idempotency_key="k")).replayed
    assert [MOBILE] == gateway.mobiles


# --- what may be sent again --------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_a_refusal_may_be_sent_again(gateway: Gateway, store: SqlStore, kind: str) -> None:
    gateway.answer = lambda _: REFUSED
    for _ in range(2):
        with pytest.raises(GatewayError):
            await submit(kind, gateway.url, store)
        assert EntryState.REFUSED is state(store)
    gateway.answer = Gateway().answer
    assert not (await submit(kind, gateway.url, store)).replayed
    assert (await submit(kind, gateway.url, store)).replayed
    assert [MOBILE] * 3 == gateway.mobiles


@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_not_sent_may_be_sent_again(
    gateway: Gateway, store: SqlStore, kind: str
) -> None:
    quota = one_a_minute()
    for _ in range(2):
        with pytest.raises(NotSentError) as not_sent:
            await submit(kind, NOT_LISTENING, store, quota=quota, connect_attempts=1)
        assert not isinstance(not_sent.value, StoreError)
        assert EntryState.NOT_SENT is state(store)
    assert PLACED == await submit(kind, gateway.url, store, quota=quota)


async def test_the_wrong_api_key_and_then_the_right_one(store: SqlStore) -> None:
    sandbox = SandboxGateway()
    async with sandbox.serve() as url:
        with pytest.raises(AuthenticationError):
            await submit("asyncio", url, store, api_key="mistyped")
        result = await submit("asyncio", url, store)
        assert not result.replayed
        # The store can compare the number only with the API key that sent it.
        with pytest.raises(InvalidRequestError, match="or with another API key"):
            await submit("asyncio", url, store, api_key="mistyped")
    assert 1 == len(sandbox.calls)


async def test_a_key_that_a_person_resolved_is_replayed_or_sent_again(
    gateway: Gateway, path: Path
) -> None:
    clock = Clock()
    store = open_store(path, clock=clock)
    # An answer came, so the connection is not reset.
    gateway.answer = lambda _: b"not an answer"
    for key in ("placed", "not placed"):
        with pytest.raises(OutcomeUnknownError):
            await submit("asyncio", gateway.url, store, key)
        with pytest.raises(ValueError, match="may be resolved in 60 s"):
            store.resolve(key, placed=key == "placed")
        clock.time += 60
        store.resolve(key, placed=key == "placed")
    gateway.answer = Gateway().answer
    placed = await submit("asyncio", gateway.url, store, "placed")
    assert (None, True) == (placed.voice_id, placed.replayed)
    assert not (await submit("asyncio", gateway.url, store, "not placed")).replayed
    assert 3 == len(gateway.mobiles)
    store.close()


# --- keys --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("mobile", "content"), [(OTHER, CODE), (MOBILE, "4321")])
async def test_a_key_belongs_to_one_number_and_content(
    gateway: Gateway, store: SqlStore, kind: str, mobile: str, content: str
) -> None:
    quota = one_a_minute()
    await submit(kind, gateway.url, store)
    for _ in range(2):
        with pytest.raises(InvalidRequestError) as invalid:
            await submit(kind, gateway.url, store, mobile=mobile, content=content, quota=quota)
    assert "idempotency_key 'k' was used for another mobile or content" in str(invalid.value)
    assert [MOBILE] == gateway.mobiles


@pytest.mark.parametrize("kind", KINDS)
async def test_a_key_needs_a_store(gateway: Gateway, kind: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^idempotency_key needs a store"):
        await submit(kind, gateway.url, None)
    assert [] == gateway.mobiles


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_may_require_keys(gateway: Gateway, store: SqlStore, kind: str) -> None:
    with pytest.raises(InvalidRequestError, match="this client was made with require_key=True"):
        await submit(kind, gateway.url, store, None, require_key=True)
    assert [] == gateway.mobiles


async def test_by_default_it_requires_none(gateway: Gateway, path: Path) -> None:
    with open_store(path) as store:
        for _ in range(2):
            assert not (await submit("asyncio", gateway.url, store, None)).replayed
        assert {0} == set(store.summary().values())
        for replayed in (False, True):
            assert replayed is (await submit("asyncio", gateway.url, store)).replayed
    assert [MOBILE] * 3 == gateway.mobiles


BAD_KEYS = [
    5,
    True,
    b"k",
    "",
    "k" * 256,
    "a\nb",
    "a\0",
    "\x7f",
    "\ud800",
    "\u2028",
    " ",
    " a",
    "a ",
]


@pytest.mark.parametrize("require_key", [False, True])
async def test_a_bad_key_is_refused(gateway: Gateway, path: Path, require_key: bool) -> None:
    with open_store(path) as store:
        async with client(gateway.url, store, require_key=require_key) as voice:
            for key in BAD_KEYS:
                bad: Any = key
                with pytest.raises(InvalidRequestError, match=r"^idempotency_key "):
                    await voice.submit(MOBILE, CODE, idempotency_key=bad)
    assert [] == gateway.mobiles


@pytest.mark.parametrize("key", ["k" * 255, "a b", "订单-7", "a'; DROP TABLE", "%s{0}[b]"])
async def test_a_key_may_be_any_other_text(gateway: Gateway, store: SqlStore, key: str) -> None:
    for replayed in (False, True):
        assert replayed is (await submit("asyncio", gateway.url, store, key)).replayed


@pytest.mark.parametrize("kind", [AsyncVoiceClient, VoiceClient])
def test_the_place_of_a_store_is_no_store(kind: Any, path: Path) -> None:
    for place in (str(path), path):
        with pytest.raises(TypeError, match=r"pass store=Store\.open\(\.\.\.\)"):
            kind("sandbox", "sandbox-key", store=place)
    assert not path.exists()


# --- the claim comes first ---------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_the_claim_is_in_the_file_when_the_request_arrives(
    store: SqlStore, path: Path, kind: str
) -> None:
    found: list[object] = []

    def look(attempt: Attempt) -> None:
        with contextlib.closing(sqlite3.connect(path)) as other:
            found.extend(
                other.execute("SELECT key, state, mobile, msg FROM ihuyi_voice_calls").fetchall()
            )

    with SandboxGateway(on_attempt=look).serve_in_thread() as url:
        result = await submit(kind, url, store)
    assert [("k", "claimed", MASKED, "")] == found
    with contextlib.closing(sqlite3.connect(path)) as other:
        ((state, answer),) = other.execute("SELECT state, answer FROM ihuyi_voice_calls").fetchall()
    assert "accepted" == state
    assert {"code": 2, "msg": result.msg, "voice_id": result.voice_id} == json.loads(answer)


# --- a database that fails before the send -----------------------------------


class Broken:
    """Ways to break the file of a store that was used before, each with its words."""

    WAYS = ("deleted", "replaced", "locked", "read-only", "full", "a bug")

    def __init__(
        self, path: Path, store: SqlStore, monkeypatch: pytest.MonkeyPatch, stack: Any
    ) -> None:
        self.path = path
        self._store = store
        self._monkeypatch = monkeypatch
        self._stack: contextlib.ExitStack = stack

    def now(self, how: str) -> str:
        """Break it. Returns the text that the error then contains."""
        if how == "deleted":
            self.path.unlink()
            return "was deleted, emptied or replaced while it was in use"
        if how == "replaced":
            aside = self.path.with_name("aside")
            aside.write_bytes(b"not a database" * 1000)
            aside.replace(self.path)
            return "was deleted, emptied or replaced while it was in use"
        if how == "locked":
            self._monkeypatch.setattr(store_file, "BUSY_TIMEOUT", 0.05)
            other = self._stack.enter_context(
                contextlib.closing(sqlite3.connect(self.path, isolation_level=None))
            )
            other.execute("BEGIN IMMEDIATE")
            return "another process keeps it locked"
        if how == "a bug":
            self._monkeypatch.setattr(Connection, "apply", self._bug)
            return "an unexpected exception (ZeroDivisionError)"
        if how == "read-only":
            self._at_each_connection("PRAGMA query_only = 1")
            return "it is read-only"
        self._at_each_connection("PRAGMA max_page_count = 1")
        # It fails when the existing pages are full.
        return "the disk is full"

    def _at_each_connection(self, statement: str) -> None:
        at_each_connection(self._monkeypatch, statement)
        # As a fork does, so that the next transaction reconnects; in no loop's thread.
        writer = writer_of(self._store)
        with writer.at_work, ThreadPoolExecutor(1) as pool:
            pool.submit(writer.thread.transactions.close).result()

    def _bug(self, *_: object) -> None:
        raise ZeroDivisionError


@pytest.fixture
def broken(path: Path, store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broken]:
    with contextlib.ExitStack() as stack:
        yield Broken(path, store, monkeypatch, stack)


@pytest.mark.parametrize("how", Broken.WAYS)
@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_sent_when_the_claim_fails(
    gateway: Gateway, store: SqlStore, broken: Broken, kind: str, how: str
) -> None:
    # Not in the store, which is going to fail.
    quota = RecipientQuota(per_minute=100, per_day=None, store=MemoryLimits())
    await submit(kind, gateway.url, store, "earlier", quota=quota)
    words = broken.now(how)
    sent = 1
    if how == "full":
        # There is room for some more in the pages that there are.
        with contextlib.suppress(StoreError):
            for sent in itertools.count(1):  # pragma: no branch - it has an end
                await submit(kind, gateway.url, store, f"{sent:0>250}", quota=quota)
    with pytest.raises(StoreError) as caught:
        await submit(kind, gateway.url, store, f"{0:0>250}", quota=quota)
    assert words in caught.value.reason
    assert caught.value.reason.endswith("; nothing was sent, no phone rang")
    assert isinstance(caught.value, NotSentError)
    assert [MOBILE] * sent == gateway.mobiles
    # The reservation was released.
    for _ in range(100 - sent):
        await quota.reserve(MOBILE)
    with pytest.raises(QuotaExceededError):
        await quota.reserve(MOBILE)


async def test_its_cause_is_the_databases_own(
    gateway: Gateway, store: SqlStore, broken: Broken
) -> None:
    await submit("asyncio", gateway.url, store, "earlier")
    broken.now("locked")
    with pytest.raises(StoreError) as caught:
        await submit("asyncio", gateway.url, store)
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)


async def test_a_database_that_does_not_answer_in_time(
    gateway: Gateway, store: SqlStore, path: Path
) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="did not answer in time"):
            await submit("asyncio", gateway.url, store, timeout=0.1)
    assert not (await submit("asyncio", gateway.url, store)).replayed
    assert [MOBILE] == gateway.mobiles


# --- a database that fails after the send ------------------------------------

AFTER = ("deleted", "replaced", "locked", "read-only", "a bug")


@pytest.fixture(autouse=True)
def _collect_garbage() -> Iterator[None]:
    """A finalizer that logs must run in its own test, not in a later one."""
    # The collector looks only at what the test makes, not at every module.
    gc.freeze()
    yield
    gc.collect()
    gc.unfreeze()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = [record for record in caplog.records if record.name == "ihuyi_voice"]
    records = [record for record in ours if record.levelno > logging.INFO]
    assert {("ihuyi_voice", logging.WARNING)} >= {(r.name, r.levelno) for r in records}
    return [record.getMessage() for record in records]


@pytest.mark.parametrize("how", AFTER)
@pytest.mark.parametrize("end", ["accepted", "refused", "unknown", "cancelled"])
async def test_the_outcome_stays_when_it_cannot_be_recorded(  # noqa: PLR0917 - fixtures
    gateway: Gateway,
    store: SqlStore,
    broken: Broken,
    caplog: pytest.LogCaptureFixture,
    end: str,
    how: str,
) -> None:
    key = f"{MOBILE}/{CODE}"
    gateway.hold()
    answers = {"accepted": gateway.answer(MOBILE), "refused": REFUSED}
    gateway.answer = lambda _: answers.get(end)
    async with client(gateway.url, store) as voice:
        task = asyncio.create_task(voice.submit(MOBILE, CODE, idempotency_key=key))
        await gateway.arrived(1)
        words = broken.now(how)
        if end == "cancelled":
            task.cancel()
        gateway.release()
        (result,) = await asyncio.gather(task, return_exceptions=True)
    if end == "accepted":
        assert PLACED == result
    elif end == "refused":
        assert isinstance(result, GatewayError)
    elif end == "unknown":
        assert isinstance(result, OutcomeUnknownError)
        assert not result.earlier
    else:
        assert isinstance(result, asyncio.CancelledError)
    said = [line for line in warnings(caplog) if "the store could not record" in line]
    assert 1 == len(said)
    stated = "unknown" if end == "cancelled" else end
    assert said[0].startswith(
        f"submit {MASKED} {stated}: the store could not record it: the store could not be used: "
    )
    assert said[0].endswith("; not recorded yet: retrying until the program ends")
    assert words in said[0]
    assert set() == leaks(caplog.text)


def unrecorded(caplog: pytest.LogCaptureFixture) -> int:
    """How many warnings say that an outcome is not recorded."""
    return sum("the store could not record" in line for line in warnings(caplog))


@pytest.mark.parametrize("how", ["locked", "read-only", "a bug"])
async def test_what_could_not_be_recorded_is_recorded_once_the_store_recovers(
    gateway: Gateway,
    store: SqlStore,
    path: Path,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    gateway.hold()
    async with client(gateway.url, store) as voice:
        task = asyncio.create_task(voice.submit(MOBILE, CODE, idempotency_key="k"))
        await gateway.arrived(1)
        with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
            Broken(path, store, patch, stack).now(how)
            gateway.release()
            assert PLACED == await task
            assert 1 == unrecorded(caplog)
            assert NONE | {"unknown": 1} == store.summary()
            # While it is down the key is not sent again.
            with pytest.raises(StoreError):
                await voice.submit(MOBILE, CODE, idempotency_key="k")
        await until(lambda: state(store) is EntryState.ACCEPTED)
        assert (await voice.submit(MOBILE, CODE, idempotency_key="k")).replayed
    assert 1 == unrecorded(caplog)
    assert [MOBILE] == gateway.mobiles


async def test_a_settlement_that_another_overtook_is_logged_without_its_key(
    gateway: Gateway, store: SqlStore, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """For example the machine slept, a person resolved the claim, and it was claimed again."""
    key = f"{MOBILE}/{CODE}"
    gateway.hold()
    async with client(gateway.url, store) as voice:
        task = asyncio.create_task(voice.submit(MOBILE, CODE, idempotency_key=key))
        await gateway.arrived(1)
        with contextlib.closing(sqlite3.connect(path)) as other, other:
            other.execute("UPDATE ihuyi_voice_calls SET token = 'another'")
        gateway.release()
        assert PLACED == await task
    (said,) = warnings(caplog)
    assert said.endswith(
        f"{path}: another process or person has settled or claimed its key meanwhile; that record"
        " is kept"
    )
    assert set() == leaks(caplog.text)


async def test_a_store_that_is_closed_in_mid_request(
    gateway: Gateway, store: SqlStore, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.hold()
    async with client(gateway.url, store) as voice:
        task = asyncio.create_task(voice.submit(MOBILE, CODE, idempotency_key="k"))
        await gateway.arrived(1)
        store.close()
        gateway.release()
        assert PLACED == await task
    (said,) = warnings(caplog)
    assert said.endswith("the store could not record it: RuntimeError")


async def test_a_log_handler_that_raises_does_not_change_the_outcome(
    gateway: Gateway,
    store: SqlStore,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It raises at the request's line, and at the warning that the store could not record."""

    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.levelno)
            raise OSError

    heard: list[int] = []
    monkeypatch.setattr(logging.getLogger("ihuyi_voice"), "handlers", [Raising()])
    caplog.set_level(logging.INFO, logger="ihuyi_voice")
    gateway.hold()
    async with client(gateway.url, store) as voice:
        task = asyncio.create_task(voice.submit(MOBILE, CODE, idempotency_key="k"))
        await gateway.arrived(1)
        with contextlib.ExitStack() as stack:
            Broken(path, store, monkeypatch, stack).now("deleted")
            gateway.release()
            assert PLACED == await task
    assert [logging.WARNING, logging.INFO] == heard


async def test_a_claim_lasts_longer_than_its_deadline_so_that_it_can_be_settled(
    gateway: Gateway, path: Path
) -> None:
    """Otherwise a person could resolve it as not placed while its answer is being recorded."""
    gateway.hold()
    with open_store(path, clock=lambda: 1_000_000.0) as store:
        async with client(gateway.url, store, timeout=5.0) as voice:
            task = asyncio.create_task(voice.submit(MOBILE, CODE, idempotency_key="k"))
            await gateway.arrived(1)
            with pytest.raises(ValueError, match=r"may be resolved in 7[45] s"):
                store.resolve("k", placed=False)
            gateway.release()
            assert PLACED == await task


@pytest.mark.parametrize("reset", [False, True])
async def test_what_was_reset_may_be_resolved_at_once(
    gateway: Gateway, store: SqlStore, monkeypatch: pytest.MonkeyPatch, *, reset: bool
) -> None:
    """Otherwise the network may still deliver it, and a second call would ring the phone twice."""
    post = AiohttpTransport.post

    async def place_and_reset(*args: Any) -> Answer:
        *_, exchange = args
        try:
            return await post(*args)
        finally:
            exchange.reset = reset

    monkeypatch.setattr(AiohttpTransport, "post", place_and_reset)
    gateway.answer = lambda _: None
    with pytest.raises(OutcomeUnknownError):
        await submit("asyncio", gateway.url, store)
    (claim,) = store.unknown()
    assert reset is (claim.resolvable_in == 0)
    with contextlib.nullcontext() if reset else pytest.raises(ValueError, match=r"in [56]\d s"):
        store.resolve("k", placed=False)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_clock_that_fails_just_before_the_write_means_that_nothing_is_sent(
    gateway: Gateway, store: SqlStore, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    post = AiohttpTransport.post

    def fail() -> float:
        raise ZeroDivisionError

    async def fail_before(*args: Any) -> Answer:
        store.clock = fail  # type: ignore[method-assign]
        return await post(*args)

    monkeypatch.setattr(AiohttpTransport, "post", fail_before)
    with pytest.raises(NotSentError):
        await submit(kind, gateway.url, store)
    # What happened is recorded all the same.
    assert EntryState.NOT_SENT is state(store)
    assert [] == gateway.mobiles


@pytest.mark.parametrize("end", ["accepted", "refused", "unknown"])
async def test_a_bulk_report_counts_the_outcomes_that_are_not_recorded(  # noqa: PLR0917 - fixtures
    gateway: Gateway,
    store: SqlStore,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    end: str,
) -> None:
    # The count does not depend on the log.
    caplog.set_level(logging.CRITICAL, logger="ihuyi_voice")
    gateway.hold()
    answers = {"accepted": gateway.answer(MOBILE), "refused": REFUSED}
    gateway.answer = lambda _: answers.get(end)
    rows = [SubmitRequest(mobile(n), CODE, f"key {n}") for n in range(5)]
    async with client(gateway.url, store) as voice:
        async with voice.submit_many(rows, stop_on=None) as run:
            await gateway.arrived(5)
            assert 0 == run.report.unrecorded
            with monkeypatch.context() as patch, contextlib.ExitStack() as stack:
                Broken(path, store, patch, stack).now("locked")
                gateway.release()
                report = await run.finish()
                assert (5, 5, 5) == (report.total, report.unrecorded, run.report.unrecorded)
        await until(lambda: not run.report.unrecorded)
    assert NONE | {end: 5} == store.summary()


async def test_a_clock_that_fails_once_does_not_stop_the_store(
    gateway: Gateway, path: Path
) -> None:
    wrong: list[float] = []

    def clock() -> float:
        in_settlement = any(frame.name == "settle" for frame in traceback.extract_stack())
        if in_settlement and not wrong:
            wrong.append(0.0)
            raise OSError
        return time.time()

    with open_store(path, clock=clock) as store:
        async with client(gateway.url, store) as voice:
            for key in ("a", "b"):
                assert PLACED == await voice.submit(MOBILE, CODE, idempotency_key=key)
    assert [0.0] == wrong


@pytest.mark.parametrize("kind", KINDS)
async def test_a_store_clock_that_fails_at_the_claim_means_not_sent(
    gateway: Gateway, path: Path, kind: str
) -> None:
    opened = False

    def clock() -> float:
        if opened:
            raise OSError
        return time.time()

    with open_store(path, clock=clock) as store:
        opened = True
        with pytest.raises(StoreError, match=r"its clock failed \(OSError\)") as caught:
            await submit(kind, gateway.url, store)
        assert isinstance(caught.value.__cause__, OSError)
        opened = False
        assert 0 == sum(store.summary().values())
    assert [] == gateway.mobiles


# --- simultaneous requests ---------------------------------------------------


async def test_of_two_tasks_one_rings(gateway: Gateway, store: SqlStore) -> None:
    gateway.hold()
    async with client(gateway.url, store) as voice:
        tasks = [
            asyncio.create_task(voice.submit(MOBILE, CODE, idempotency_key="k")) for _ in range(9)
        ]
        await gateway.arrived(1)
        gateway.release()
        results = await asyncio.gather(*tasks)
    assert [False] + [True] * 8 == sorted(result.replayed for result in results)
    assert {"197362477"} == {result.voice_id for result in results}
    assert [MOBILE] == gateway.mobiles


async def test_of_two_tasks_one_rings_and_the_one_that_cannot_wait_gets_an_error(
    gateway: Gateway, impatient: SqlStore
) -> None:
    gateway.hold()
    async with client(gateway.url, impatient) as voice:
        first = asyncio.create_task(voice.submit(MOBILE, CODE, idempotency_key="k"))
        await gateway.arrived(1)
        with pytest.raises(OutcomeUnknownError) as unknown:
            await voice.submit(MOBILE, CODE, idempotency_key="k")
        assert unknown.value.earlier
        gateway.release()
        assert not (await first).replayed
    assert [MOBILE] == gateway.mobiles


async def test_a_task_that_waits_for_a_refusal_sends_again(
    gateway: Gateway, store: SqlStore
) -> None:
    gateway.hold()
    gateway.answer = lambda _: REFUSED if len(gateway.mobiles) == 1 else b'{"code":2,"msg":"ok"}'
    async with client(gateway.url, store) as voice:
        first = asyncio.create_task(voice.submit(MOBILE, CODE, idempotency_key="k"))
        await gateway.arrived(1)
        second = asyncio.create_task(voice.submit(MOBILE, CODE, idempotency_key="k"))
        await asyncio.sleep(0)
        gateway.release()
        with pytest.raises(GatewayError):
            await first
        assert not (await second).replayed
    assert [MOBILE] * 2 == gateway.mobiles


async def test_of_two_clients_with_stores_of_their_own_one_rings(
    gateway: Gateway, path: Path
) -> None:
    gateway.hold()
    with open_store(path) as one, open_store(path) as other:
        tasks = [
            asyncio.create_task(submit("asyncio", gateway.url, store)) for store in (one, other)
        ]
        await gateway.arrived(1)
        gateway.release()
        results = await asyncio.gather(*tasks)
    assert [False, True] == sorted(result.replayed for result in results)
    assert [MOBILE] == gateway.mobiles


@pytest.mark.parametrize("clients", [1, 2])
def test_of_many_threads_one_rings(store: SqlStore, clients: int) -> None:
    gateway = SandboxGateway(chaos=Chaos(latency=0.05))
    start = threading.Barrier(8)
    with gateway.serve_in_thread() as url, contextlib.ExitStack() as stack:
        voices = [
            stack.enter_context(
                VoiceClient("sandbox", "sandbox-key", base_url=url, store=store, quota=None)
            )
            for _ in range(clients)
        ]

        def send(n: int) -> SubmitResult:
            start.wait()
            return voices[n % clients].submit(MOBILE, CODE, idempotency_key="k")

        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(send, range(8)))
    assert [False] + [True] * 7 == sorted(result.replayed for result in results)
    assert 1 == len(gateway.calls)


# --- a store's life ---------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_it_outlives_its_clients(gateway: Gateway, store: SqlStore, kind: str) -> None:
    for n in range(3):
        await submit(kind, gateway.url, store, str(n))
    assert 3 == store.summary()["accepted"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_closed_store_says_so_and_nothing_is_sent(
    gateway: Gateway, store: SqlStore, kind: str
) -> None:
    quota = one_a_minute()
    store.close()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^this store is closed$"):
            await submit(kind, gateway.url, store, quota=quota)
    assert [] == gateway.mobiles
    await quota.reserve(MOBILE)
    with pytest.raises(RuntimeError, match=r"^this store is closed$"):
        await submit(kind, gateway.url, store, quota=quota)


FORK = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from ihuyi_voice import *
store = Store.open(sys.argv[1])
client = VoiceClient.from_env(quota=None, store=store)
def submit(key):
    return client.submit("13912345678", "1125", idempotency_key=key).replayed
print(submit("before"), flush=True)
pid = os.fork()
if pid == 0:
    print("child", submit("before"), submit("child"), flush=True)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print("parent", submit("before"), submit("child"), submit("parent"), store.summary()["accepted"])
"""


@pytest.mark.measures_processes
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_goes_on_with_the_store(path: Path) -> None:
    gateway = SandboxGateway()
    with gateway.serve_in_thread() as url:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(FORK), path],
            env={
                **os.environ,
                "IHUYI_VOICE_API_ID": "sandbox",
                "IHUYI_VOICE_API_KEY": "sandbox-key",
                "IHUYI_VOICE_BASE_URL": url,
                "PYTHONWARNINGS": "default",
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    expected = "False\nchild True False\n7\nparent True True False 3\n"
    assert (0, expected, "") == (done.returncode, done.stdout, done.stderr)
    assert 3 == len(gateway.calls)


# --- secrets -----------------------------------------------------------------


@pytest.fixture
def witness() -> Iterator[Witness]:
    witness = Witness()
    root = logging.getLogger()
    level = root.level
    root.addHandler(witness)
    root.setLevel(logging.DEBUG)
    yield witness
    root.setLevel(level)
    root.removeHandler(witness)


def list_files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.is_file()]


async def searched(sending: Awaitable[SubmitResult], texts: list[str]) -> SubmitResult:
    """Await `sending`, and add the texts of its error to `texts`."""
    try:
        return await sending
    except Exception as error:
        texts += shown(error)
        raise


@pytest.mark.parametrize(
    "behaviour",
    [
        hang_up,
        echoing("in msg of JSON", 0),
        echoing("in msg of JSON", 2),
        echoing("in msg of XML", 405),
        echoing("in voiceid", 2),
        echoing("as HTML"),
        echoing("as a status line"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
async def test_no_secret_reaches_the_file_the_log_or_an_error(
    store: SqlStore, tmp_path: Path, witness: Witness, behaviour: Any, kind: str
) -> None:
    asyncio.get_running_loop().set_debug(True)
    texts: list[str] = []
    async with Rogue(behaviour).running() as rogue:
        for content in (CODE, CODE, "4321"):
            options: dict[str, Any] = {
                "api_id": "id",
                "api_key": KEY,
                "clock": lambda: NOW,
                "content": content,
            }
            with contextlib.suppress(OutcomeUnknownError, GatewayError, InvalidRequestError):
                texts.append(repr(await searched(submit(kind, rogue.url, store, **options), texts)))
    texts += [repr(store), repr(vars(store)), repr(store.unknown()), *witness.texts]
    files = [file.read_bytes() for file in list_files(tmp_path)]
    assert any(MASKED.encode() in data for data in files)
    assert set() == leaks(*texts, *(data.decode("latin-1") for data in files))
    assert 1 <= rogue.submits


async def test_no_secret_is_shown_when_the_store_fails(
    gateway: Gateway, store: SqlStore, broken: Broken, witness: Witness
) -> None:
    await submit("asyncio", gateway.url, store, "earlier", api_key=KEY)
    broken.now("deleted")
    with pytest.raises(StoreError) as caught:
        await submit("asyncio", gateway.url, store, api_key=KEY)
    assert set() == leaks(*shown(caught.value), *witness.texts)


# --- values ------------------------------------------------------------------


def test_a_replayed_result_is_equal_and_shows_replayed() -> None:
    replayed = SubmitResult("197362477", "ok", MOBILE, replayed=True)
    assert PLACED == replayed
    assert hash(PLACED) == hash(replayed)
    assert (
        "SubmitResult(voice_id='197362477', msg='ok', mobile='139****4321', replayed=True)"
        == repr(replayed)
    )
    assert "replayed" not in repr(PLACED)
    assert pickle.loads(pickle.dumps(replayed)).replayed
    assert not pickle.loads(pickle.dumps(PLACED)).replayed


@pytest.mark.parametrize("earlier", [False, True])
def test_an_unknown_outcome_pickles_with_its_earlier_flag(earlier: bool) -> None:
    error = pickle.loads(pickle.dumps(OutcomeUnknownError("why", earlier=earlier)))
    assert (earlier, "why", True) == (error.earlier, error.reason, error.may_have_rung)
    assert "outcome unknown: why; the phone may have rung" in str(error)


@pytest.mark.parametrize("kind", [NotSentError, StoreError])
def test_what_was_not_sent_has_its_reason(kind: type[NotSentError]) -> None:
    error = pickle.loads(pickle.dumps(kind("why")))
    assert (kind, "why", False) == (type(error), error.reason, error.may_have_rung)
    assert "why" in str(error)


def test_a_request_shows_neither_code_nor_number_beside_its_key() -> None:
    request = SubmitRequest(MOBILE, CODE, "k")
    assert set() == leaks(repr(request))
    assert "'k'" in repr(request)


async def test_a_machine_that_slept_does_not_send_what_may_have_been_resolved(
    gateway: Gateway, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the machine sleeps, the monotonic clock stops and the wall clock does not."""
    post = AiohttpTransport.post

    async def sleep_before(*args: Any) -> Answer:
        store.clock = lambda: time.time() + 3600  # type: ignore[method-assign]
        return await post(*args)

    monkeypatch.setattr(AiohttpTransport, "post", sleep_before)
    with pytest.raises(NotSentError):
        await submit("asyncio", gateway.url, store)
    assert [] == gateway.mobiles
    assert EntryState.NOT_SENT is state(store)
