"""Verifications in Redis: what disturbs a step, and what it must not disturb."""

from __future__ import annotations

import asyncio
import math
import secrets
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from ihuyi_voice import (
    AsyncVerifier,
    AsyncVoiceClient,
    OutcomeStatus,
    Store,
    VerificationStatus,
)
from ihuyi_voice.errors import StoreError
from ihuyi_voice.store.limits import DAY
from ihuyi_voice.store.redis import RedisStore
from ihuyi_voice.store.redis import server as redis_server
from ihuyi_voice.store.verifications import (
    Found,
    NewRecord,
    Refusal,
    Transaction,
    Verifications,
    guesses_of,
)
from ihuyi_voice.store.writer.operations import Work
from tests.store.redis_server import running_redis

from .faces import KEY, MOBILE, Clock, wrong

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ihuyi_voice.store.verifications import VerificationStore
    from ihuyi_voice.testing import VoiceGateway
    from tests.store.redis_server import RedisServer

T = TypeVar("T")

ID = "0123456789abcdef" * 2
BINDINGS = {"key": "binding"}
RECORD = f"ihuyi_voice:verification:{ID}"
GUESSES = f"ihuyi_voice:starts:{guesses_of('subject')}"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A server of its own, because these tests kill it."""
    with running_redis() as running:
        yield running


@pytest.fixture
def store(server: RedisServer) -> Iterator[RedisStore]:
    with Store.open(server.empty()) as opened:
        assert isinstance(opened, RedisStore)
        yield opened


def soon() -> float:
    return time.monotonic() + 30


async def create(store: RedisStore, id_: str = ID, subject: str = "subject") -> Found:
    new = NewRecord(
        id=id_,
        purpose="login",
        binding="binding",
        subject=subject,
        hashed_with="key",
        mobile="139****5678",
        length=6,
        ttl=300.0,
        attempts=5,
        cooldown=60.0,
        is_decoy=False,
        token=secrets.token_hex(8),
    )
    found = (await store.verifications.create(new, soon())).found
    assert found is not None
    return found


async def spend(
    verifications: VerificationStore, token: str = "", id_: str = ID
) -> Found | Refusal:
    return await verifications.spend(id_, BINDINGS, token or secrets.token_hex(8), soon())


async def left(store: RedisStore, id_: str = ID) -> int:
    found = await store.verifications.find(id_, soon())
    assert found is not None
    return found.record.attempts_left


class Disturbed:
    """A store in which something happens each time a step has run, before its writes.

    Args:
        store: runs the steps.
        events: the first happens after the first run, and so on.
    """

    def __init__(self, store: RedisStore, *events: Callable[[], object]) -> None:
        self.runs = 0
        self._store = store
        self._events = list(events)

    async def run(self, step: Callable[[Transaction], T], deadline: float) -> T:
        def disturbed(tx: Transaction) -> T:
            result = step(tx)
            self.runs += 1
            if self._events:
                self._events.pop(0)()
            return result

        return await self._store.run(disturbed, deadline)

    async def run_later(self, step: Callable[[Transaction], Any], deadline: float) -> None:
        await self.run(step, deadline)


async def in_one_batch(store: RedisStore, *calls: Any) -> list[Any]:
    """Run coroutines whose operations the writer finds in its queue together."""
    runs, go_on = threading.Event(), threading.Event()

    def hold(_: Transaction) -> None:
        runs.set()
        assert go_on.wait(30)

    first = asyncio.ensure_future(store.run(hold, soon()))
    await asyncio.to_thread(runs.wait, 30)
    tasks = [asyncio.ensure_future(call) for call in calls]
    # Each task queues its operation in its first step.
    await asyncio.sleep(0)
    go_on.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


# --- other clients ---------------------------------------------------------------


async def test_a_step_runs_again_where_another_client_was_faster(
    store: RedisStore, server: RedisServer
) -> None:
    await create(store)
    with Store.open(server.url()) as other:
        assert isinstance(other, RedisStore)
        disturbed = Disturbed(store, lambda: asyncio.run(spend(other.verifications)))
        found = await asyncio.wait_for(spend(Verifications(disturbed)), 30)
    assert isinstance(found, Found)
    assert (2, 3) == (disturbed.runs, found.record.attempts_left)
    with server.client() as client:
        assert 2 == client.zcard(GUESSES)


async def test_a_step_that_others_always_overtake_fails_and_changes_nothing(
    store: RedisStore, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ihuyi_voice.store.writer.bounds.CLAIM_ROW_TIMEOUT", 0.1)
    monkeypatch.setattr("ihuyi_voice.store.writer.bounds.BATCH_ROW_TIMEOUT", 0.01)
    await create(store)
    with server.client() as client:

        def touch() -> None:
            client.set(RECORD, client.get(RECORD))

        disturbed = Disturbed(store, *[touch] * 100_000)
        message = rf"{server.url()}: other processes keep changing the same verification$"
        with pytest.raises(StoreError, match=message):
            await spend(Verifications(disturbed))
    assert disturbed.runs > 2
    assert 5 == await left(store)


async def test_a_step_that_only_reads_writes_nothing(
    store: RedisStore, server: RedisServer
) -> None:
    with server.client() as client:
        found = await Verifications(Disturbed(store, lambda: client.set(RECORD, "x"))).find(
            ID, soon()
        )
        assert (None, [RECORD.encode()]) == (found, client.keys())
    assert 0 == await store.verifications.guesses("subject", soon())
    assert 0 == await store.verifications.purge(timedelta(0), soon())


# --- several in one batch ----------------------------------------------------------


async def test_the_steps_of_a_batch_see_each_other(store: RedisStore) -> None:
    await create(store)
    results = await in_one_batch(store, *(spend(store.verifications) for _ in range(7)))
    lefts = [one.record.attempts_left if isinstance(one, Found) else one for one in results]
    assert [4, 3, 2, 1, 0, *[Refusal.NO_ATTEMPTS_LEFT] * 2] == lefts
    assert 5 == await store.verifications.guesses("subject", soon())


@pytest.mark.parametrize("value", ["list", "no JSON", "null", "{}", '{"status": "pending"}'])
async def test_a_key_that_another_program_wrote_fails_its_verification_alone(
    store: RedisStore, server: RedisServer, value: str
) -> None:
    await create(store)
    with server.client() as client:
        foreign = RECORD.replace(ID, "f" * 32)
        client.rpush(foreign, "x") if value == "list" else client.set(foreign, value)
        results = await in_one_batch(
            store,
            spend(store.verifications, "a"),
            spend(store.verifications, "b"),
            spend(store.verifications, id_="f" * 32),
            spend(store.verifications, "c"),
            store.reserve("number", "t", ((1, 60.0),)),
        )
    failed = results.pop(2)
    assert isinstance(failed, StoreError)
    assert ("WRONGTYPE" if value == "list" else "another program has written") in str(failed)
    assert [4, 3, 2] == [one.record.attempts_left for one in results[:3]]
    assert [0.0] == results[3:]
    assert 2 == await left(store)


async def test_a_reservation_that_fails_repeats_no_step(
    store: RedisStore, server: RedisServer
) -> None:
    await create(store)
    with server.client() as client:
        client.set("ihuyi_voice:starts:number", "x")
        client.script_flush()
    results = await in_one_batch(
        store,
        spend(store.verifications),
        store.reserve("number", "t", ((1, 60.0),)),
        spend(store.verifications),
        store.reserve("other", "t2", ((1, 60.0),)),
    )
    assert isinstance(results[1], StoreError)
    assert 0.0 == results[3]
    assert 3 == await left(store)


async def test_a_server_without_memory_fails_what_writes_alone(
    store: RedisStore, server: RedisServer
) -> None:
    await create(store)
    with server.client() as client:
        client.config_set("maxmemory", 1)
        try:
            found, refused, spent = await in_one_batch(
                store,
                store.verifications.find(ID, soon()),
                spend(store.verifications, id_="0" * 32),
                spend(store.verifications),
            )
        finally:
            client.config_set("maxmemory", 0)
    assert isinstance(found, Found)
    assert Refusal.UNKNOWN_ID is refused
    assert isinstance(spent, StoreError)
    assert "command not allowed when used memory > 'maxmemory'" in str(spent)
    # Neither what redis-py repeats of the command.
    assert ID not in str(spent)
    assert 5 == await left(store)


# --- broken connections and servers --------------------------------------------------


async def test_a_server_that_restarts_in_the_middle_of_a_step_fails_no_guess(
    store: RedisStore, server: RedisServer
) -> None:
    await create(store)

    def restart() -> None:
        server.kill()
        server.start()

    disturbed = Disturbed(store, restart)
    found = await spend(Verifications(disturbed))
    assert isinstance(found, Found)
    assert (2, 4) == (disturbed.runs, found.record.attempts_left)
    assert 4 == await left(store)


@pytest.mark.parametrize("writes", [False, True])
async def test_a_connection_that_breaks_is_no_other_client_that_was_faster(
    store: RedisStore, server: RedisServer, writes: bool
) -> None:
    await create(store)
    connection = store._server.connect()

    def step(tx: Transaction) -> None:
        record = tx.find(ID)
        assert record is not None
        if writes:
            tx.save(record)
        server.kill()
        if not writes:
            tx.starts("subject")

    try:
        with pytest.raises(StoreError, match=r"\(ConnectionError\)$"):
            connection.apply(Work([], [], [], [], [], [("name", step)]))
    finally:
        server.start()
    # Only EXEC may have been executed.
    assert (writes, "connection") == (connection.committing, connection.failure_scope.value)
    connection.close()


async def test_while_the_server_is_killed_no_code_is_approved(
    store: RedisStore, server: RedisServer, gateway: VoiceGateway
) -> None:
    async with AsyncVoiceClient(
        "sandbox", "sandbox-key", base_url=gateway.url, store=store, quota=None
    ) as client:
        verifier = AsyncVerifier(client, key=KEY)
        started = await verifier.start(MOBILE, purpose="login")
        code = gateway.last_code(MOBILE)
        # In the middle of the step that spends the guess.
        killed = Verifications(Disturbed(store, server.kill))
        try:
            disturbed = AsyncVerifier(client, key=KEY, store=killed)
            with pytest.raises(StoreError, match="ConnectionError"):
                await disturbed.check(started.id, code, mobile=MOBILE, purpose="login")
            with pytest.raises(StoreError, match="ConnectionError"):
                await verifier.check(started.id, code, mobile=MOBILE, purpose="login")
        finally:
            server.start()
        results = await asyncio.gather(
            *(verifier.check(started.id, code, mobile=MOBILE, purpose="login") for _ in range(3))
        )
    assert [False, False, True] == sorted(result.approved for result in results)


async def test_a_guess_whose_answer_was_lost_is_recognised_by_its_token(
    store: RedisStore, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(store)
    with server.client() as client:
        client.ping()
        monkeypatch.setattr(redis_server, "READ_TIMEOUT", 0.2)
        with Store.open(server.url()) as hasty:
            assert isinstance(hasty, RedisStore)
            disturbed = Disturbed(hasty, server.freeze)
            try:
                with pytest.raises(StoreError, match=r"\(TimeoutError\)"):
                    await spend(Verifications(disturbed), "lost")
            finally:
                server.thaw()
        # The server executes what it has received before anything that is sent now.
        for _ in range(3):
            await spend(store.verifications)
    assert 1 == await left(store)
    again = await spend(store.verifications, "lost")
    assert isinstance(again, Found)
    assert 1 == again.record.attempts_left
    await spend(store.verifications)
    # Also when no guess is left.
    assert isinstance(await spend(store.verifications, "lost"), Found)
    assert Refusal.NO_ATTEMPTS_LEFT is await spend(store.verifications)
    assert await store.verifications.approve(ID, "lost", soon())


# --- what is kept -------------------------------------------------------------------


async def test_everything_expires(store: RedisStore, server: RedisServer) -> None:
    await create(store)
    await spend(store.verifications)
    with server.client() as client:
        lives = {key.decode(): client.pttl(key) / 1000 for key in client.scan_iter()}
    assert {RECORD, GUESSES, "ihuyi_voice:starts:subject"} == set(lives)
    assert math.isclose(300 + DAY, lives.pop(RECORD), abs_tol=30)
    assert all(math.isclose(DAY, life, abs_tol=30) for life in lives.values())
    connection = store._server.connect()
    # So there is nothing that the writer must delete.
    assert not connection.forget_expired()
    connection.close()


async def test_a_clock_that_was_set_back_keeps_starts_for_one_window_more(
    server: RedisServer,
) -> None:
    clock = Clock()
    with Store.open(server.empty(), clock=clock) as store:
        assert isinstance(store, RedisStore)
        await create(store)
        await spend(store.verifications)
        clock.pass_(-10 * DAY)
        await spend(store.verifications)
    with server.client() as client:
        assert math.isclose(2 * DAY, client.pttl(GUESSES) / 1000, abs_tol=30)


async def test_a_call_that_was_not_sent_gives_its_cooldown_back(
    store: RedisStore, server: RedisServer
) -> None:
    found = await create(store)
    note = store.verifications.note_call
    await note(ID, 1, OutcomeStatus.NOT_SENT.value, soon(), gives_back=True)
    with server.client() as client:
        assert 0 == client.zcard(f"ihuyi_voice:starts:{found.record.subject}")
    assert VerificationStatus.PENDING is (await create(store, "1" * 32)).record.status


async def test_a_start_that_is_delivered_again_places_no_second_call(
    store: RedisStore, server: RedisServer, gateway: VoiceGateway
) -> None:
    async with AsyncVoiceClient(
        "sandbox", "sandbox-key", base_url=gateway.url, store=store, quota=None
    ) as client:
        verifier = AsyncVerifier(client, key=KEY)
        id_ = AsyncVerifier.new_id()
        # The server dies before it records the outcome of the call.
        disturbed = Verifications(Disturbed(store, lambda: None, server.kill))
        lost = AsyncVerifier(client, key=KEY, store=disturbed)
        try:
            started = await lost.start(MOBILE, purpose="login", id=id_)
        finally:
            server.start()
        assert OutcomeStatus.ACCEPTED is started.call
        again = await verifier.start(MOBILE, purpose="login", id=id_)
        # How the call ended is not known.
        assert (id_, None) == (again.id, again.call)
        assert 1 == len(gateway.calls)
        code = gateway.last_code(MOBILE)
        check = verifier.check
        assert not (await check(id_, wrong(code), mobile=MOBILE, purpose="login")).approved
        assert (await check(id_, code, mobile=MOBILE, purpose="login")).approved
