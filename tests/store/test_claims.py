"""Which request may be sent: claims and settlements in every state, in both databases."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice.errors import InvalidRequestError, StoreError
from ihuyi_voice.store.answer import StoredAnswer
from ihuyi_voice.store.entry import Entry, EntryState, Fingerprints
from ihuyi_voice.store.sql.connection import Connection
from tests.inside import writer_of

from .support import (
    CONTENT,
    FINGERPRINTS,
    LIVE,
    MASKED,
    MOBILE,
    SETTLED,
    Clock,
    claim,
    claimed,
    ended,
    find,
)

if TYPE_CHECKING:
    from ihuyi_voice.store.sql.store import SqlStore
    from ihuyi_voice.store.writer.operations import Committed, Work

REPEATABLE = [EntryState.REFUSED, EntryState.NOT_SENT]


async def test_a_new_key_is_claimed(store: SqlStore) -> None:
    answer = await claim(store)
    assert answer.entry is None
    assert 32 == len(answer.token)


async def test_claiming_an_accepted_key_returns_the_gateways_answer(store: SqlStore) -> None:
    await ended(store, EntryState.ACCEPTED)
    again = await claim(store)
    assert "" == again.token
    assert again.entry is not None
    assert (EntryState.ACCEPTED, 2, "提交成功", "900100200", MASKED) == (
        again.entry.state,
        again.entry.answer.code,
        again.entry.answer.msg,
        again.entry.answer.voice_id,
        again.entry.mobile,
    )
    assert not again.entry.unsettled


@pytest.mark.parametrize("state", REPEATABLE)
async def test_a_key_that_did_not_ring_may_be_claimed_again(
    store: SqlStore, state: EntryState
) -> None:
    first = await ended(store, state)
    second = await claimed(store)
    assert first != second
    found = await find(store)
    assert found is not None
    assert (EntryState.CLAIMED, None, "", None, second) == (
        found.state,
        found.answer.code,
        found.answer.msg,
        found.answer.voice_id,
        found.token,
    )


async def test_an_unknown_key_blocks_a_claim_at_once(store: SqlStore, clock: Clock) -> None:
    store.patience = 60.0
    await ended(store, EntryState.UNKNOWN)
    clock.time += 100 * LIVE
    again = await claim(store)
    assert again.entry is not None
    assert EntryState.UNKNOWN is again.entry.state
    assert "the connection was reset" == again.entry.answer.msg
    assert again.entry.unsettled


async def test_a_claim_does_not_wait_for_an_expired_claim(store: SqlStore, clock: Clock) -> None:
    store.patience = 60.0
    await claimed(store)
    clock.time += LIVE
    began = time.monotonic()
    again = await claim(store)
    assert again.entry is not None
    assert EntryState.CLAIMED is again.entry.state
    assert time.monotonic() - began < 5


async def test_a_claim_waits_for_another_no_longer_than_patience(store: SqlStore) -> None:
    await claimed(store)
    began = time.monotonic()
    again = await claim(store)
    assert again.entry is not None
    assert EntryState.CLAIMED is again.entry.state
    assert 0.02 < time.monotonic() - began < 5


async def test_a_claim_waits_for_another_no_longer_than_its_deadline(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last look-up is early enough before the deadline for a busy database.
    monkeypatch.setattr("ihuyi_voice.store.writer.bounds.MAX_PAUSE", 10.0)
    store.patience = 60.0
    await claimed(store)
    again = await claim(store, timeout=3.0)
    assert again.entry is not None
    assert EntryState.CLAIMED is again.entry.state


async def test_a_claim_without_patience_does_not_wait(store: SqlStore) -> None:
    store.patience = 0
    await claimed(store)
    again = await claim(store)
    assert again.entry is not None


async def test_a_waiting_claim_gets_the_settlement(store: SqlStore) -> None:
    store.patience = 60.0
    token = await claimed(store)
    waiting = asyncio.create_task(claim(store))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await store.settle("k", token, EntryState.ACCEPTED, StoredAnswer(code=2, voice_id="987654321"))
    answer = await waiting
    assert answer.entry is not None
    assert ("987654321", EntryState.ACCEPTED) == (answer.entry.answer.voice_id, answer.entry.state)


@pytest.mark.parametrize("state", REPEATABLE)
async def test_one_waiting_claim_succeeds_after_a_request_that_did_not_ring(
    store: SqlStore, state: EntryState
) -> None:
    store.patience = 60.0
    token = await claimed(store)
    waiting = [asyncio.create_task(claim(store)) for _ in range(3)]
    await asyncio.sleep(0.05)
    await store.settle("k", token, state)
    done, others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    (winner,) = done
    assert winner.result().entry is None
    await store.settle("k", winner.result().token, EntryState.ACCEPTED, StoredAnswer(voice_id="1"))
    for other in others:
        answer = await other
        assert answer.entry is not None
        assert EntryState.ACCEPTED is answer.entry.state


async def test_a_waiting_claim_succeeds_when_the_key_is_purged(
    store: SqlStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.patience = 60.0
    token = await claimed(store, live=3600.0)
    find_in_database = writer_of(store).find

    async def find_after_purge(key: str, deadline: float) -> Entry | None:
        # Only settled keys are purged, so the key was settled in between.
        await store.settle("k", token, EntryState.ACCEPTED)
        clock.time += 1
        assert 1 == store.purge(timedelta(0))
        return await find_in_database(key, deadline)

    monkeypatch.setattr(writer_of(store), "find", find_after_purge)
    assert (await claim(store)).entry is None


async def test_many_operations_at_once_are_split_into_batches(
    in_file: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No operation waits long, and no statement is too large for its database."""
    sizes: list[int] = []
    apply = Connection.apply

    def counting(self: Connection, work: Work) -> Committed:
        sizes.append(sum(len(part) for part in work))
        return apply(self, work)

    monkeypatch.setattr(Connection, "apply", counting)
    await asyncio.gather(*(claimed(in_file, f"{n}") for n in range(1200)))
    await asyncio.gather(*(find(in_file, f"{n}") for n in range(1200)))
    assert 2400 == sum(sizes)
    assert max(sizes) <= 500


async def test_exactly_one_of_many_simultaneous_claims_succeeds(store: SqlStore) -> None:
    answers = await asyncio.gather(*(claim(store) for _ in range(50)))
    assert 1 == sum(answer.entry is None for answer in answers)


async def test_many_keys_at_once_are_claimed_and_settled(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine may take seconds for a batch.
    monkeypatch.setattr("ihuyi_voice.store.writer.bounds.SETTLE_TIMEOUT", 60.0)

    async def one(key: str) -> None:
        token = await claimed(store, key)
        await store.settle(key, token, EntryState.ACCEPTED, StoredAnswer(voice_id="1"))

    await asyncio.gather(*(one(f"key {i}") for i in range(1200)))
    assert {"accepted": 1200, "refused": 0, "not_sent": 0, "unknown": 0} == store.summary()


# --- mobile and content ------------------------------------------------------


@pytest.mark.parametrize("state", EntryState)
@pytest.mark.parametrize(
    ("mobile", "content"), [("13812345678", CONTENT), (MOBILE, "112579"), ("13900005678", CONTENT)]
)
async def test_another_mobile_or_content_is_an_error(
    in_file: SqlStore, state: EntryState, mobile: str, content: str
) -> None:
    if state is EntryState.CLAIMED:
        await claimed(in_file)
    else:
        await ended(in_file, state)
    in_file.patience = 0
    with pytest.raises(InvalidRequestError, match="'k' was used for another mobile or content"):
        await claim(in_file, mobile=mobile, content=content)
    with pytest.raises(InvalidRequestError, match="'k' was used for another mobile or content"):
        await in_file.find(
            "k", FINGERPRINTS.of(mobile, content), "138****5678", time.monotonic() + 10
        )
    entry = await find(in_file)
    assert entry is not None
    assert state is entry.state


@pytest.mark.parametrize("state", SETTLED)
async def test_with_another_api_key_the_masked_mobiles_are_compared(
    store: SqlStore, state: EntryState
) -> None:
    await ended(store, state)
    rotated = Fingerprints("a new key")
    with pytest.raises(InvalidRequestError):
        await claim(store, mobile="13812345678", fingerprints=rotated)
    if state is EntryState.ACCEPTED:
        # Ten thousand mobiles have that mask, and another of them may have been called.
        with pytest.raises(InvalidRequestError, match="or with another API key"):
            await claim(store, fingerprints=rotated)
        return
    answer = await claim(store, content="9999", fingerprints=rotated)
    assert answer.entry is None
    # From now on the key belongs to the new fingerprint.
    await store.settle("k", answer.token, EntryState.NOT_SENT)
    with pytest.raises(InvalidRequestError):
        await claim(store, content="9998", fingerprints=rotated)


async def test_find_makes_no_claim(store: SqlStore) -> None:
    assert await find(store) is None
    token = await claimed(store)
    first, second = await asyncio.gather(find(store), find(store))
    assert first == second
    assert first is not None
    assert (EntryState.CLAIMED, token) == (first.state, first.token)


# --- settling ----------------------------------------------------------------


async def test_an_unknown_key_may_be_settled_later(store: SqlStore) -> None:
    token = await ended(store, EntryState.UNKNOWN)
    await store.settle("k", token, EntryState.ACCEPTED, StoredAnswer(code=2, voice_id="900100200"))
    assert 1 == store.summary()["accepted"]


async def test_a_late_settlement_does_not_change_a_newer_claim(store: SqlStore) -> None:
    old = await ended(store, EntryState.NOT_SENT)
    new = await claimed(store)
    with pytest.raises(
        StoreError, match="another process or person has settled or claimed 'k' meanwhile"
    ):
        await store.settle("k", old, EntryState.ACCEPTED)
    found = await find(store)
    assert found is not None
    assert (new, EntryState.CLAIMED) == (found.token, found.state)


async def test_only_overtaken_settlements_of_a_batch_fail(store: SqlStore) -> None:
    token = await claimed(store, "mine")
    await claimed(store, "not mine")
    results = await asyncio.gather(
        store.settle("mine", token, EntryState.ACCEPTED),
        store.settle("not mine", "0" * 32, EntryState.ACCEPTED),
        store.settle("no key", "0" * 32, EntryState.ACCEPTED),
        return_exceptions=True,
    )
    assert [type(None), StoreError, StoreError] == [type(result) for result in results]
    assert {"accepted": 1, "unknown": 1, "refused": 0, "not_sent": 0} == store.summary()


async def test_the_last_of_two_simultaneous_settlements_counts(store: SqlStore) -> None:
    token = await claimed(store)
    await asyncio.gather(
        store.settle("k", token, EntryState.UNKNOWN, StoredAnswer(msg="reset")),
        store.settle("k", token, EntryState.REFUSED, StoredAnswer(code=4030)),
    )
    assert 1 == store.summary()["refused"]


@pytest.mark.parametrize("code", [0, 99999999999, 2**63, -(2**63) - 1, 10**30])
async def test_any_answer_of_the_gateway_is_stored(store: SqlStore, code: int) -> None:
    answer = StoredAnswer(code, "\0 half \ud83d 错误 '\"%s")
    await store.settle("k", await claimed(store), EntryState.REFUSED, answer)
    found = await find(store)
    assert found is not None
    assert answer == found.answer


async def test_similar_keys_are_different_keys(store: SqlStore) -> None:
    keys = ["k", "K", "k ", "%", "k%", "_", "'", "é", "e\u0301", "键", "😀", "x" * 255]
    for key in keys:
        await claimed(store, key)
    assert sorted(keys) == sorted(claim.key for claim in store.unknown())
