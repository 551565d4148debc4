"""The operator's calls: unknown, resolve, summary, purge."""

from __future__ import annotations

import contextlib
import time
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice.errors import StoreError
from ihuyi_voice.store.answer import StoredAnswer
from ihuyi_voice.store.entry import EntryState, Fingerprints, UnknownClaim
from ihuyi_voice.store.verifications import NewRecord

from .support import (
    CONTENT,
    DELIVERY,
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

NONE = {"accepted": 0, "refused": 0, "not_sent": 0, "unknown": 0}


async def test_unknown_lists_claims_without_settlement_oldest_first(
    store: SqlStore, clock: Clock
) -> None:
    assert [] == store.unknown()
    await ended(store, EntryState.UNKNOWN, "second")
    for state in SETTLED:
        await ended(store, state, state.value)
    clock.time -= 10
    await claimed(store, "first")
    clock.time += 15.5
    first = datetime.fromtimestamp(clock.time - 15.5, timezone.utc)
    assert [
        UnknownClaim("first", MASKED, first, 15.5, "", LIVE + DELIVERY - 15.5),
        UnknownClaim(
            "second",
            MASKED,
            first + timedelta(seconds=10),
            5.5,
            "the connection was reset",
            DELIVERY - 5.5,
        ),
    ] == store.unknown()


async def test_a_key_resolved_as_placed_is_accepted(store: SqlStore, clock: Clock) -> None:
    await claimed(store)
    clock.time += LIVE + DELIVERY
    store.resolve("k", placed=True)
    answer = await claim(store)
    assert answer.entry is not None
    assert (EntryState.ACCEPTED, None, "recorded by hand: placed", None) == (
        answer.entry.state,
        answer.entry.answer.code,
        answer.entry.answer.msg,
        answer.entry.answer.voice_id,
    )


async def test_a_key_resolved_as_not_placed_may_be_claimed_again(
    store: SqlStore, clock: Clock
) -> None:
    await ended(store, EntryState.UNKNOWN)
    clock.time += DELIVERY
    store.resolve("k", placed=False)
    assert NONE | {"not_sent": 1} == store.summary()
    found = await find(store)
    assert found is not None
    assert "recorded by hand: not placed" == found.answer.msg
    await claimed(store)


@pytest.mark.parametrize("placed", [True, False])
@pytest.mark.parametrize(
    ("state", "wait"), [(EntryState.CLAIMED, LIVE + DELIVERY), (EntryState.UNKNOWN, DELIVERY)]
)
async def test_a_request_that_may_still_be_delivered_cannot_be_resolved(
    store: SqlStore, clock: Clock, state: EntryState, wait: float, *, placed: bool
) -> None:
    if state is EntryState.UNKNOWN:
        token = await claimed(store)
        # The minute starts with the outcome, not with the claim.
        clock.time += LIVE - 1
        await store.settle("k", token, state)
    else:
        await claimed(store)
    clock.time += wait - 12.25
    with pytest.raises(ValueError, match="'k' may still be on its way") as early:
        store.resolve("k", placed=placed)
    assert str(early.value).endswith(
        "it may be resolved in 13 s. Until then the request may still be delivered by the network"
        " and ring the phone"
    )
    assert [12.25] == [entry.resolvable_in for entry in store.unknown()]
    assert NONE | {"unknown": 1} == store.summary()
    clock.time += 12.25
    assert [0.0] == [entry.resolvable_in for entry in store.unknown()]
    store.resolve("k", placed=placed)
    assert 0 == store.summary()["unknown"]


async def test_a_request_on_a_reset_connection_can_be_resolved_at_once(store: SqlStore) -> None:
    token = await claimed(store)
    await store.settle("k", token, EntryState.UNKNOWN, reset=True)
    store.resolve("k", placed=False)
    assert NONE | {"not_sent": 1} == store.summary()


@pytest.mark.parametrize("state", SETTLED)
async def test_a_settled_key_cannot_be_resolved(store: SqlStore, state: EntryState) -> None:
    await ended(store, state)
    with pytest.raises(ValueError, match=f"'k' is settled already, as {state.value}"):
        store.resolve("k", placed=True)
    assert NONE | {state.value: 1} == store.summary()


def test_a_key_without_a_claim_cannot_be_resolved(store: SqlStore) -> None:
    with pytest.raises(LookupError, match="the store has no key 'k'"):
        store.resolve("k", placed=True)


async def test_a_late_settlement_replaces_not_placed(store: SqlStore, clock: Clock) -> None:
    token = await claimed(store)
    clock.time += LIVE + DELIVERY
    store.resolve("k", placed=False)
    await store.settle("k", token, EntryState.ACCEPTED, StoredAnswer(voice_id="900100200"))
    assert NONE | {"accepted": 1} == store.summary()


@pytest.mark.parametrize(
    ("placed", "late", "final"),
    [
        (True, EntryState.ACCEPTED, "accepted"),
        (True, EntryState.UNKNOWN, "accepted"),
        (True, EntryState.NOT_SENT, "accepted"),
        (True, EntryState.REFUSED, "accepted"),
        (False, EntryState.UNKNOWN, "unknown"),
        (False, EntryState.REFUSED, "refused"),
        (False, EntryState.NOT_SENT, "not_sent"),
    ],
)
async def test_a_call_that_a_person_saw_placed_stays_accepted(
    store: SqlStore, clock: Clock, late: EntryState, final: str, *, placed: bool
) -> None:
    token = await claimed(store)
    clock.time += LIVE + DELIVERY
    store.resolve("k", placed=placed)
    overtaken = placed and late is not EntryState.ACCEPTED
    message = "another process or person has settled or claimed 'k' meanwhile; that record is kept$"
    with pytest.raises(StoreError, match=message) if overtaken else contextlib.nullcontext():
        await store.settle("k", token, late)
    assert NONE | {final: 1} == store.summary()


async def test_purge_deletes_settled_keys_that_changed_long_ago(
    store: SqlStore, clock: Clock
) -> None:
    await ended(store, EntryState.UNKNOWN, "unknown")
    await claimed(store, "claimed")
    for state in SETTLED:
        await ended(store, state, state.value)
    token = await claimed(store, "late")
    clock.time += 100
    await store.settle("late", token, EntryState.ACCEPTED)
    assert 0 == store.purge(timedelta(seconds=100))
    clock.time += 1
    assert 3 == store.purge(timedelta(seconds=100))
    assert NONE | {"unknown": 2, "accepted": 1} == store.summary()
    await claimed(store, "accepted")


async def test_purge_deletes_verifications_that_expired_long_ago(
    store: SqlStore, clock: Clock
) -> None:
    for id_, ttl in (("a" * 32, 100.0), ("b" * 32, 200.0)):
        new = NewRecord(
            id=id_,
            purpose="login",
            binding="binding",
            subject=id_,
            hashed_with="key",
            mobile=MASKED,
            length=6,
            ttl=ttl,
            attempts=5,
            cooldown=60.0,
            is_decoy=False,
            token="token",
        )
        await store.verifications.create(new, time.monotonic() + 30)
    await ended(store, EntryState.REFUSED)
    clock.time += 150
    # As all else: only where it is older than that.
    assert 0 == store.purge(timedelta(seconds=151))
    assert 2 == store.purge(timedelta(seconds=40))
    found = [await store.verifications.find(id_ * 32, time.monotonic() + 30) for id_ in "ab"]
    assert [True, False] == [one is None for one in found]


def test_purge_refuses_a_negative_age(in_file: SqlStore) -> None:
    with pytest.raises(ValueError, match="older_than must not be negative, not -1 day"):
        in_file.purge(timedelta(days=-1))


@pytest.mark.parametrize(
    ("refuses", "state"),
    [
        (True, EntryState.CLAIMED),
        (True, EntryState.UNKNOWN),
        (True, EntryState.ACCEPTED),
        (False, EntryState.REFUSED),
        (False, EntryState.NOT_SENT),
    ],
)
async def test_row_keys_of_another_api_key_are_detected(
    store: SqlStore, state: EntryState, *, refuses: bool
) -> None:
    row = FINGERPRINTS.of_row("job", MOBILE, CONTENT, 0)
    token = await claimed(store, row)
    if state is not EntryState.CLAIMED:
        await store.settle(row, token, state)
    await ended(store, EntryState.ACCEPTED, "not a row of a file")
    assert not store.hashed_with_another_key("job", FINGERPRINTS.hashed_with)
    new = Fingerprints("new").hashed_with
    assert refuses is store.hashed_with_another_key("job", new)
    assert not store.hashed_with_another_key("another job", new)


async def test_keys_that_the_caller_chose_do_not_depend_on_the_api_key(in_file: SqlStore) -> None:
    await ended(in_file, EntryState.ACCEPTED, "a key of one's own")
    assert not in_file.hashed_with_another_key("job", Fingerprints("new").hashed_with)
