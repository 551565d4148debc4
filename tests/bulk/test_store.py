"""Bulk runs with keys: a run is repeated after any failure, and no row is placed twice."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections import Counter
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ihuyi_voice import (
    AuthenticationError,
    BulkStoppedError,
    InvalidRequestError,
    NotSentError,
    Outcome,
    OutcomeStatus,
    OutcomeUnknownError,
    QuotaExceededError,
    RecipientQuota,
    StoreError,
    SubmitRequest,
    VoiceClient,
)
from ihuyi_voice.sandbox import Chaos
from tests.bulk.spies import (
    Gateway,
    client,
    counted,
    mobile,
    pair,
    sandbox,
    turns,
    until,
)
from tests.bulk.test_quota import FailingStore
from tests.client.test_idempotency import Broken
from tests.inside import shorten, slots_of, taken
from tests.rogue import ACCEPTED
from tests.store.support import Clock, open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from ihuyi_voice.client import AsyncVoiceClient
    from ihuyi_voice.store.sql.store import SqlStore

S = OutcomeStatus
REFUSED = b'{"code":0,"msg":"failed","voiceid":"0"}'
WRONG_KEY = b'{"code":405,"msg":"no","voiceid":"0"}'


def keyed(*numbers: int) -> list[SubmitRequest]:
    """Good rows, each with a number and a key of its own."""
    return [SubmitRequest(*pair(n), f"key {n}") for n in numbers]


def mobiles(*numbers: int) -> list[str]:
    return [mobile(n) for n in numbers]


async def run_to_the_end(
    voice: AsyncVoiceClient, rows: Sequence[Any], **options: Any
) -> dict[int, Outcome]:
    """The outcomes by row index."""
    async with voice.submit_many(rows, **options) as run:
        made = {outcome.index: outcome async for outcome in run}
    assert len(rows) == len(made) == run.report.total
    return made


def statuses(made: dict[int, Outcome]) -> list[OutcomeStatus]:
    return [made[index].status for index in sorted(made)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "calls.db"


@pytest.fixture
def store(gateway: Gateway, path: Path) -> Iterator[SqlStore]:
    with open_store(path, patience=5.0) as opened:
        yield opened


def states(path: Path) -> dict[str, str]:
    """The state of every key, as another process sees it."""
    with contextlib.closing(sqlite3.connect(path)) as other:
        return dict(other.execute("SELECT key, state FROM ihuyi_voice_calls"))


# --- again -------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 7, 100])
async def test_the_same_rows_again_send_nothing(
    gateway: Gateway, store: SqlStore, concurrency: int
) -> None:
    rows = keyed(*range(100))
    quota = RecipientQuota(per_minute=1, per_day=None)
    async with client(gateway.url, store=store) as voice:
        first = await run_to_the_end(voice, rows, concurrency=concurrency)
    async with client(gateway.url, store=store, quota=quota) as voice:
        again = await run_to_the_end(voice, rows[::-1], concurrency=concurrency)
    assert [S.ACCEPTED] * 100 == statuses(first)
    assert [S.REPLAYED] * 100 == statuses(again)
    for index, outcome in again.items():
        assert first[99 - index].result == outcome.result
        assert outcome.result is not None
        assert outcome.result.replayed
        assert outcome.error is None
    assert sorted(mobiles(*range(100))) == sorted(gateway.mobiles)
    # Every reservation was released.
    for n in range(100):
        await quota.reserve(mobile(n))


@pytest.mark.parametrize("rate", [None, 5.0])
async def test_known_rows_use_up_neither_quota_nor_rate(
    gateway: Gateway, store: SqlStore, rate: float | None
) -> None:
    rows = [SubmitRequest(*pair(0), f"key {n}") for n in range(50)]
    async with client(gateway.url, store=store) as voice:
        await run_to_the_end(voice, rows)
    gateway.mobiles.clear()
    quota = RecipientQuota(per_minute=1, per_day=None)
    rows.append(SubmitRequest(*pair(0), "new"))
    async with (
        client(gateway.url, store=store, quota=quota) as voice,
        voice.submit_many(rows, rate=rate) as run,
    ):
        made = [outcome.status async for outcome in run]
    assert Counter({S.REPLAYED: 50, S.ACCEPTED: 1}) == Counter(made)
    assert mobiles(0) == gateway.mobiles
    # At the rate they would have taken ten seconds.
    assert run.report.elapsed < 5


async def test_a_known_outcome_is_reported_whatever_the_rate(
    gateway: Gateway, store: SqlStore
) -> None:
    gateway.answer = lambda _: None
    async with client(gateway.url, store=store) as voice:
        first = await run_to_the_end(voice, keyed(0))
        rows = [*keyed(0), SubmitRequest(mobile(0), "4321", "key 0")]
        again = await run_to_the_end(voice, rows, rate=1000.0)
    assert [S.UNKNOWN] == statuses(first)
    assert [S.UNKNOWN, S.INVALID] == statuses(again)
    assert str(again[1].error).startswith("row 1: ")
    assert mobiles(0) == gateway.mobiles


@pytest.mark.parametrize("rate", [None, 1000.0])
async def test_a_key_in_flight_is_waited_for_whatever_the_quota_and_the_rate(
    gateway: Gateway, store: SqlStore, rate: float | None
) -> None:
    quota = RecipientQuota(per_minute=1, per_day=None)
    gateway.held = lambda _: True
    async with (
        client(gateway.url, store=store, quota=quota) as voice,
        voice.submit_many(keyed(0) * 2, rate=rate) as run,
    ):
        await until(lambda: 1 == len(gateway.mobiles))
        await turns()
        gateway.release()
        made = [outcome.status async for outcome in run]
    assert Counter({S.ACCEPTED: 1, S.REPLAYED: 1}) == Counter(made)
    assert mobiles(0) == gateway.mobiles


async def test_a_limited_row_is_sent_when_due_while_the_source_has_more_rows(
    gateway: Gateway, store: SqlStore
) -> None:
    quota = RecipientQuota(per_minute=1, per_day=None)
    shorten(quota, (1, 0.2))
    over = anyio.Event()

    async def rows() -> AsyncIterator[SubmitRequest]:
        yield SubmitRequest(*pair(0), "a")
        yield SubmitRequest(*pair(0), "b")
        # No more rows until both have their outcome.
        await over.wait()

    async with (
        client(gateway.url, store=store, quota=quota) as voice,
        voice.submit_many(rows(), wait_for_quota=True) as run,
    ):
        made = [(await run.__anext__()).status for _ in range(2)]
        over.set()
        await run.finish()
    assert [S.ACCEPTED] * 2 == made
    assert mobiles(0, 0) == gateway.mobiles


async def test_a_failed_quota_store_leaves_the_key_free(
    gateway: Gateway, store: SqlStore, path: Path
) -> None:
    async with client(
        gateway.url, store=store, quota=RecipientQuota(store=FailingStore())
    ) as voice:
        made = await run_to_the_end(voice, keyed(0, 1))
    assert [S.NOT_SENT] * 2 == statuses(made)
    assert "the quota's store failed (OSError)" in str(made[0].error)
    assert {"key 0": "not_sent", "key 1": "not_sent"} == states(path)
    assert [] == gateway.mobiles


async def test_only_new_rows_are_sent(gateway: Gateway, store: SqlStore) -> None:
    async with client(gateway.url, store=store) as voice:
        await run_to_the_end(voice, keyed(0, 1, 2))
        gateway.mobiles.clear()
        again = await run_to_the_end(voice, keyed(3, 2, 4, 0))
    assert [S.ACCEPTED, S.REPLAYED, S.ACCEPTED, S.REPLAYED] == statuses(again)
    assert mobiles(3, 4) == sorted(gateway.mobiles)


@pytest.mark.parametrize("wait_for_quota", [False, True])
async def test_the_store_is_asked_before_a_row_is_limited_or_waits(
    gateway: Gateway, store: SqlStore, wait_for_quota: bool
) -> None:
    quota = RecipientQuota(per_minute=1, per_day=None)
    gateway.answer = lambda number: None if number == mobile(2) else ACCEPTED
    async with client(gateway.url, store=store, quota=quota) as voice:
        await run_to_the_end(voice, keyed(0, 1, 2))
        rows = [*keyed(0, 1, 2), SubmitRequest(mobile(0), "4321", "key 0")]
        made = await run_to_the_end(voice, rows, wait_for_quota=wait_for_quota)
    assert [S.REPLAYED, S.REPLAYED, S.UNKNOWN, S.INVALID] == statuses(made)
    assert isinstance(made[2].error, OutcomeUnknownError)
    assert made[2].error.earlier
    assert str(made[3].error).startswith("row 3: idempotency_key 'key 0' was used for another")
    assert mobiles(0, 1, 2) == sorted(gateway.mobiles)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store_with_clock(path: Path, clock: Clock) -> Iterator[SqlStore]:
    with open_store(path, clock=clock) as opened:
        yield opened


async def test_a_limited_row_that_the_store_does_not_know(
    gateway: Gateway, store_with_clock: SqlStore, clock: Clock
) -> None:
    """Nothing is sent with its key, which is free when the row is tried again."""
    quota = RecipientQuota(per_minute=1, per_day=None)
    rows = [SubmitRequest(*pair(0), "a"), SubmitRequest(*pair(0), "b")]
    async with client(gateway.url, store=store_with_clock, quota=quota) as voice:
        made = await run_to_the_end(voice, rows, concurrency=1)
        assert [S.ACCEPTED, S.LIMITED] == statuses(made)
        assert isinstance(made[1].error, QuotaExceededError)
        clock.time += 60.0
        made = await run_to_the_end(voice, rows, concurrency=1)
    assert [S.REPLAYED, S.ACCEPTED] == statuses(made)
    assert mobiles(0, 0) == gateway.mobiles


@pytest.mark.parametrize("rate", [None, 1000.0])
async def test_one_key_twice_in_a_run(
    gateway: Gateway, store: SqlStore, rate: float | None
) -> None:
    async with client(gateway.url, store=store) as voice:
        made = await run_to_the_end(voice, keyed(0, 0, 0), rate=rate)
    assert Counter({S.ACCEPTED: 1, S.REPLAYED: 2}) == Counter(statuses(made))
    assert mobiles(0) == gateway.mobiles


@pytest.mark.parametrize("rate", [None, 2000.0])
async def test_two_runs_of_the_same_rows_at_once(
    gateway: Gateway, store: SqlStore, rate: float | None
) -> None:
    counts: Counter[OutcomeStatus] = Counter()
    rows = keyed(*range(200))

    async def send(part: list[SubmitRequest]) -> None:
        async with client(gateway.url, store=store) as voice:
            made = await run_to_the_end(voice, part, concurrency=20, rate=rate)
            counts.update(statuses(made))

    async with anyio.create_task_group() as group:
        group.start_soon(send, rows)
        group.start_soon(send, rows[::-1])
    assert Counter({S.ACCEPTED: 200, S.REPLAYED: 200}) == counts
    assert Counter(dict.fromkeys(mobiles(*range(200)), 1)) == Counter(gateway.mobiles)


def test_the_blocking_client(path: Path) -> None:
    gateway = sandbox()
    with (
        gateway.serve_in_thread() as url,
        open_store(path) as store,
        VoiceClient("sandbox", "sandbox-key", base_url=url, store=store, quota=None) as voice,
    ):
        for status in (S.ACCEPTED, S.REPLAYED):
            with voice.submit_many(keyed(*range(50))) as run:
                assert {status: 50} == counted(run.finish())
    assert 50 == len(gateway.attempts)


def test_the_blocking_client_aborted(path: Path) -> None:
    gateway = sandbox(chaos=Chaos(no_answer=1.0))
    with (
        gateway.serve_in_thread() as url,
        open_store(path) as store,
        VoiceClient("sandbox", "sandbox-key", base_url=url, store=store, quota=None) as voice,
    ):
        with voice.submit_many(keyed(*range(50)), concurrency=5) as run:
            while len(gateway.attempts) < 5:
                pass
            run.abort()
            first = run.finish()
        assert 5 == first.counts[S.UNKNOWN]
        gateway.chaos = Chaos()
        with voice.submit_many(keyed(*range(50))) as run:
            assert {S.UNKNOWN: 5, S.ACCEPTED: 45} == counted(run.finish())
    assert Counter(dict.fromkeys(mobiles(*range(50)), 1)) == Counter(
        attempt.mobile for attempt in gateway.attempts
    )


# --- unknown -----------------------------------------------------------------


async def test_unknown_rows_are_never_sent_again_and_do_not_stop_the_next_run(
    gateway: Gateway, store: SqlStore
) -> None:
    gateway.answer = lambda _: None
    rows = keyed(*range(50))
    async with client(gateway.url, store=store) as voice:
        first = await run_to_the_end(voice, rows, max_failures_in_row=None)
        gateway.answer = lambda _: ACCEPTED
        again = await run_to_the_end(voice, [*rows, *keyed(50)], concurrency=1)
    assert [S.UNKNOWN] * 50 == statuses(first)
    assert [S.UNKNOWN] * 50 + [S.ACCEPTED] == statuses(again)
    for n in range(50):
        before, after = first[n].error, again[n].error
        assert isinstance(before, OutcomeUnknownError)
        assert isinstance(after, OutcomeUnknownError)
        assert (False, True) == (before.earlier, after.earlier)
        assert after.may_have_rung
    assert mobiles(*range(51)) == sorted(gateway.mobiles)


async def test_an_outcome_known_from_the_store_does_not_reset_the_failures(
    gateway: Gateway, store: SqlStore
) -> None:
    """It did not reach the gateway now, and is not a failure of now either."""
    gateway.answer = lambda number: ACCEPTED if number < mobile(10) else None
    async with client(gateway.url, store=store) as voice:
        await run_to_the_end(voice, keyed(0, 1, 10, 11))
        rows = keyed(20, 0, 10, 21, 1, 11, 22, 23)
        run = voice.submit_many(rows, concurrency=1, max_failures_in_row=3)
        with pytest.raises(BulkStoppedError) as stopped:
            async with run:
                await run.finish()
    assert 6 == stopped.value.report.stopped_at
    assert {S.UNKNOWN: 5, S.REPLAYED: 2} == counted(run.report)


# --- what may be sent again ---------------------------------------------------


async def test_refused_and_not_sent_rows_are_sent_again(gateway: Gateway, store: SqlStore) -> None:
    rows = keyed(*range(10))
    gateway.answer = lambda number: REFUSED if number < mobile(5) else ACCEPTED
    async with client("http://127.0.0.1:9", store=store, connect_attempts=1) as voice:
        assert [S.NOT_SENT] * 10 == statuses(await run_to_the_end(voice, rows))
    async with client(gateway.url, store=store) as voice:
        made = await run_to_the_end(voice, rows)
        assert [S.REFUSED] * 5 + [S.ACCEPTED] * 5 == statuses(made)
        gateway.answer = lambda _: ACCEPTED
        made = await run_to_the_end(voice, rows)
    assert [S.ACCEPTED] * 5 + [S.REPLAYED] * 5 == statuses(made)
    assert Counter(dict.fromkeys(mobiles(0, 1, 2, 3, 4), 2)) + Counter(
        dict.fromkeys(mobiles(5, 6, 7, 8, 9), 1)
    ) == Counter(gateway.mobiles)


async def test_rows_refused_for_a_wrong_api_key_are_sent_with_the_right_one(
    gateway: Gateway, store: SqlStore
) -> None:
    rows = keyed(*range(20))
    gateway.answer = lambda _: WRONG_KEY
    async with client(gateway.url, store=store) as voice:
        with pytest.raises(BulkStoppedError) as stopped:
            await run_to_the_end(voice, rows, concurrency=3)
        assert isinstance(stopped.value.cause, AuthenticationError)
        gateway.answer = lambda _: ACCEPTED
        assert [S.ACCEPTED] * 20 == statuses(await run_to_the_end(voice, rows))


# --- keys --------------------------------------------------------------------


async def test_rows_without_a_key_are_invalid_if_the_client_requires_keys(
    gateway: Gateway, store: SqlStore
) -> None:
    rows = [*keyed(0), pair(1), SubmitRequest(*pair(2)), SubmitRequest(*pair(3), "")]
    async with client(gateway.url, store=store, require_key=True) as voice:
        made = await run_to_the_end(voice, rows)
    assert [S.ACCEPTED, S.INVALID, S.INVALID, S.INVALID] == statuses(made)
    assert str(made[1].error).startswith("row 1: the request has no idempotency_key, and this")
    assert "row 3: idempotency_key must have 1-255 characters, not 0" == str(made[3].error)
    assert mobiles(0) == gateway.mobiles


async def test_rows_without_a_key_are_sent_by_default(
    gateway: Gateway, store: SqlStore, path: Path
) -> None:
    async with client(gateway.url, store=store) as voice:
        rows = [*keyed(0), pair(1), *keyed(0)]
        made = await run_to_the_end(voice, rows, concurrency=1)
    assert [S.ACCEPTED, S.ACCEPTED, S.REPLAYED] == statuses(made)
    assert {"key 0": "accepted"} == states(path)


async def test_the_key_of_another_row_is_invalid(gateway: Gateway, store: SqlStore) -> None:
    rows = [*keyed(0), SubmitRequest(*pair(1), "key 0")]
    async with client(gateway.url, store=store) as voice:
        made = await run_to_the_end(voice, rows, concurrency=1)
    assert [S.ACCEPTED, S.INVALID] == statuses(made)
    assert isinstance(made[1].error, InvalidRequestError)
    assert str(made[1].error).startswith("row 1: idempotency_key 'key 0' was used for another")
    assert mobiles(0) == gateway.mobiles


async def test_a_key_without_a_store_is_invalid(gateway: Gateway) -> None:
    async with client(gateway.url) as voice:
        assert [S.INVALID] * 3 == statuses(await run_to_the_end(voice, keyed(0, 1, 2)))
    assert [] == gateway.mobiles


# --- the claim comes first ---------------------------------------------------


async def test_every_claim_is_in_the_file_when_its_request_arrives(
    gateway: Gateway, store: SqlStore, path: Path
) -> None:
    seen: list[str | None] = []

    def look(number: str) -> bytes:
        seen.append(states(path).get(f"key {int(number[3:])}"))
        return ACCEPTED

    gateway.answer = look
    async with client(gateway.url, store=store) as voice:
        await run_to_the_end(voice, keyed(*range(100)), concurrency=30)
    assert ["claimed"] * 100 == seen
    assert {"accepted"} == set(states(path).values())


# --- stopped -----------------------------------------------------------------


@pytest.mark.parametrize("how", ["abort", "cancel", "raise", "leave"])
async def test_a_stopped_run_can_be_continued(
    gateway: Gateway, store: SqlStore, path: Path, how: str
) -> None:
    rows = keyed(*range(50))
    gateway.held = lambda number: number >= mobile(20)
    async with client(gateway.url, store=store) as voice:
        run = voice.submit_many(rows, concurrency=10)
        with anyio.CancelScope() as scope, contextlib.suppress(KeyError):
            async with run:
                await gateway.arrived(30)
                if how == "abort":
                    run.abort()
                elif how == "cancel":
                    scope.cancel()
                    await turns()
                elif how == "raise":
                    gateway.release()
                    raise KeyError
                else:
                    gateway.release()
        gateway.release()
        cut_off = how in ("abort", "cancel")
        counts = counted(run.report)
        assert (10 if cut_off else 0) == counts.get(S.UNKNOWN, 0)
        accepted = counts[S.ACCEPTED]
        assert 20 <= accepted <= 30
        known = Counter(states(path).values())
        assert (accepted, counts.get(S.UNKNOWN, 0), 0) == (
            known["accepted"],
            known["unknown"],
            known["claimed"],
        )
        again = Counter(statuses(await run_to_the_end(voice, rows, concurrency=10)))
    assert again[S.REPLAYED] == accepted
    assert again[S.UNKNOWN] == counts.get(S.UNKNOWN, 0)
    assert 50 == sum(again.values())
    assert again[S.ACCEPTED] == 50 - again[S.REPLAYED] - again[S.UNKNOWN]
    assert Counter(dict.fromkeys(mobiles(*range(50)), 1)) == Counter(gateway.mobiles)


async def test_rows_aborted_before_the_write_are_not_sent(
    gateway: Gateway, store: SqlStore, path: Path
) -> None:
    """All rows have their claim and wait for the slot, which another run holds."""
    gateway.hold()
    async with client(gateway.url, store=store, max_connections=3) as voice:
        async with anyio.create_task_group() as group:
            other = voice.submit_many(keyed(0, 1, 2))

            async def hold_the_slots() -> None:
                async with other:
                    await other.finish()

            group.start_soon(hold_the_slots)
            await gateway.arrived(3)
            async with voice.submit_many(keyed(3, 4, 5), concurrency=3) as run:
                slots = slots_of(voice)
                await until(lambda: slots.statistics().tasks_waiting == 3)
                assert {"claimed"} == set(states(path).values())
                run.abort()
                assert {S.NOT_SENT: 3} == counted(await run.finish())
            assert Counter({"claimed": 3, "not_sent": 3}) == Counter(states(path).values())
            gateway.release()
        made = await run_to_the_end(voice, keyed(*range(6)))
    assert [S.REPLAYED] * 3 + [S.ACCEPTED] * 3 == statuses(made)
    assert mobiles(*range(6)) == sorted(gateway.mobiles)


# --- a database that fails ---------------------------------------------------


@pytest.mark.parametrize("how", Broken.WAYS)
async def test_a_store_that_is_lost_during_a_run(  # noqa: PLR0917 - fixtures
    gateway: Gateway,
    store: SqlStore,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    """After that nothing is sent. No row is lost, and none is sent twice."""
    rows = [SubmitRequest(*pair(n), f"{n:0>250}") for n in range(500)]
    made: dict[int, Outcome] = {}
    gateway.held = lambda number: mobile(20) <= number < mobile(23)
    with contextlib.ExitStack() as stack:
        broken = Broken(path, store, monkeypatch, stack)
        async with client(gateway.url, store=store) as voice:
            run = voice.submit_many(rows, concurrency=3)
            with pytest.raises(BulkStoppedError) as stopped:  # noqa: PT012
                async with run:
                    async for outcome in run:
                        assert made.setdefault(outcome.index, outcome) is outcome
                        if len(made) == 20:
                            await gateway.arrived(23)
                            words = broken.now(how)
                            gateway.release()
    counts = counted(run.report)
    assert {S.ACCEPTED, S.NOT_SENT} == set(counts)
    assert run.report.total == len(made) == taken(run)
    # Three requests were in flight.
    assert len(gateway.mobiles) == counts[S.ACCEPTED] == len(set(gateway.mobiles))
    assert 23 <= counts[S.ACCEPTED] <= (23 if how != "full" else 100)
    # If a short row still fits, the count of failures starts again.
    assert 20 <= counts[S.NOT_SENT] <= (23 if how != "full" else 100)
    assert isinstance(stopped.value.cause, StoreError)
    for outcome in made.values():
        if outcome.status is S.NOT_SENT:
            assert isinstance(outcome.error, StoreError)
            # Once the store is known to be gone, the message says what is there instead.
            said_of_it = "" if how in ("deleted", "replaced") else words
            assert f"{said_of_it}; nothing was sent" in outcome.error.reason
        else:
            assert outcome.result is not None
    # Not asyncio's own records, which report a busy machine.
    ours = [record for record in caplog.records if record.name == "ihuyi_voice"]
    said = [
        record
        for record in ours
        if record.levelno >= logging.WARNING and not hasattr(record, "ihuyi_status")
    ]
    if how != "full":
        assert 3 == len(said)
    for record in said:
        assert "the store could not record it" in record.getMessage()
        assert "000" not in record.getMessage().partition(": ")[0]


async def test_after_a_store_was_locked_for_a_while_the_rest_is_sent(
    gateway: Gateway, store: SqlStore, path: Path
) -> None:
    rows = keyed(*range(100))
    store.patience = 0.0
    async with client(gateway.url, store=store) as voice:
        with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
            run = voice.submit_many(rows, concurrency=5)
            with pytest.raises(BulkStoppedError):  # noqa: PT012
                async with run:
                    await run.__anext__()
                    Broken(path, store, patch, stack).now("locked")
                    await run.finish()
        accepted = run.report.counts[S.ACCEPTED]
        made = Counter(statuses(await run_to_the_end(voice, rows)))
    # Some of them could not be recorded: they stay unknown.
    assert made[S.REPLAYED] + made[S.UNKNOWN] == accepted
    assert made[S.ACCEPTED] == 100 - accepted
    assert Counter(dict.fromkeys(mobiles(*range(100)), 1)) == Counter(gateway.mobiles)


async def test_a_limited_row_is_not_sent_when_the_store_fails(
    gateway: Gateway, store: SqlStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = RecipientQuota(per_minute=1, per_day=None)
    with contextlib.ExitStack() as stack:
        async with client(gateway.url, store=store, quota=quota) as voice:
            await run_to_the_end(voice, keyed(0))
            Broken(path, store, monkeypatch, stack).now("deleted")
            made = await run_to_the_end(voice, keyed(0))
    assert [S.NOT_SENT] == statuses(made)
    assert isinstance(made[0].error, StoreError)


@pytest.mark.parametrize("quota", [False, True])
async def test_a_closed_store_says_so_and_nothing_is_sent(
    gateway: Gateway, store: SqlStore, quota: bool
) -> None:
    limit = RecipientQuota(per_minute=1, per_day=None) if quota else None
    if limit is not None:
        await limit.reserve(mobile(0))
    store.close()
    async with client(gateway.url, store=store, quota=limit) as voice:
        run = voice.submit_many(keyed(*range(9)), concurrency=1)
        with pytest.raises(RuntimeError, match=r"^this store is closed$"):
            async with run:
                await run.finish()
    assert {S.NOT_SENT: 1} == counted(run.report)
    assert [] == gateway.mobiles


async def test_cancelling_the_look_up_of_a_limited_row(
    gateway: Gateway, store: SqlStore, path: Path
) -> None:
    quota = RecipientQuota(per_minute=1, per_day=None)
    await quota.reserve(mobile(0))
    made: list[Outcome] = []
    async with client(gateway.url, store=store, quota=quota) as voice:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            # A claim waits for the file, and the look-up waits for the claim.
            async with voice.submit_many(keyed(1, 0), concurrency=2) as run:
                await until(lambda: taken(run) == 2)
                await turns()
                run.abort()
                made = [outcome async for outcome in run]
    assert [S.NOT_SENT] * 2 == [outcome.status for outcome in made]
    assert {NotSentError} == {type(outcome.error) for outcome in made}
    assert [] == gateway.mobiles
