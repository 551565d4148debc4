"""The operator's calls: unknown, resolve, summary, purge."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta, timezone

import pytest

from ihuyi_voice.errors import LedgerError
from ihuyi_voice.store.ledger import EntryState, Fingerprints, Ledger, UnknownClaim

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

NONE = {"accepted": 0, "refused": 0, "not_sent": 0, "unknown": 0}


async def test_unknown_lists_claims_without_settlement_oldest_first(
    ledger: Ledger, clock: Clock
) -> None:
    assert [] == ledger.unknown()
    await ended(ledger, EntryState.UNKNOWN, "second")
    for state in SETTLED:
        await ended(ledger, state, state.value)
    clock.time -= 10
    await claimed(ledger, "first")
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
    ] == ledger.unknown()


async def test_a_key_resolved_as_placed_is_accepted(ledger: Ledger, clock: Clock) -> None:
    await claimed(ledger)
    clock.time += LIVE + DELIVERY
    ledger.resolve("k", placed=True)
    answer = await claim(ledger)
    assert answer.entry is not None
    assert (EntryState.ACCEPTED, None, "recorded by hand: placed", None) == (
        answer.entry.state,
        answer.entry.code,
        answer.entry.msg,
        answer.entry.voice_id,
    )


async def test_a_key_resolved_as_not_placed_may_be_claimed_again(
    ledger: Ledger, clock: Clock
) -> None:
    await ended(ledger, EntryState.UNKNOWN)
    clock.time += DELIVERY
    ledger.resolve("k", placed=False)
    assert NONE | {"not_sent": 1} == ledger.summary()
    found = await find(ledger)
    assert found is not None
    assert "recorded by hand: not placed" == found.msg
    await claimed(ledger)


@pytest.mark.parametrize("placed", [True, False])
@pytest.mark.parametrize(
    ("state", "wait"), [(EntryState.CLAIMED, LIVE + DELIVERY), (EntryState.UNKNOWN, DELIVERY)]
)
async def test_a_request_that_may_still_be_delivered_cannot_be_resolved(
    ledger: Ledger, clock: Clock, state: EntryState, wait: float, *, placed: bool
) -> None:
    if state is EntryState.UNKNOWN:
        token = await claimed(ledger)
        # The minute starts with the outcome, not with the claim.
        clock.time += LIVE - 1
        await ledger.settle("k", token, state)
    else:
        await claimed(ledger)
    clock.time += wait - 12.25
    with pytest.raises(ValueError, match="'k' may still be on its way") as early:
        ledger.resolve("k", placed=placed)
    assert str(early.value).endswith(
        "it may be resolved in 13 s. Until then the request may still be delivered by the network"
        " and ring the phone"
    )
    assert [12.25] == [entry.resolvable_in for entry in ledger.unknown()]
    assert NONE | {"unknown": 1} == ledger.summary()
    clock.time += 12.25
    assert [0.0] == [entry.resolvable_in for entry in ledger.unknown()]
    ledger.resolve("k", placed=placed)
    assert 0 == ledger.summary()["unknown"]


async def test_a_request_on_a_reset_connection_can_be_resolved_at_once(ledger: Ledger) -> None:
    token = await claimed(ledger)
    await ledger.settle("k", token, EntryState.UNKNOWN, reset=True)
    ledger.resolve("k", placed=False)
    assert NONE | {"not_sent": 1} == ledger.summary()


@pytest.mark.parametrize("state", SETTLED)
async def test_a_settled_key_cannot_be_resolved(ledger: Ledger, state: EntryState) -> None:
    await ended(ledger, state)
    with pytest.raises(ValueError, match=f"'k' is settled already, as {state.value}"):
        ledger.resolve("k", placed=True)
    assert NONE | {state.value: 1} == ledger.summary()


def test_a_key_without_a_claim_cannot_be_resolved(ledger: Ledger) -> None:
    with pytest.raises(LookupError, match="the ledger has no key 'k'"):
        ledger.resolve("k", placed=True)


async def test_a_late_settlement_replaces_not_placed(ledger: Ledger, clock: Clock) -> None:
    token = await claimed(ledger)
    clock.time += LIVE + DELIVERY
    ledger.resolve("k", placed=False)
    await ledger.settle("k", token, EntryState.ACCEPTED, voice_id="900100200")
    assert NONE | {"accepted": 1} == ledger.summary()


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
    ledger: Ledger, clock: Clock, late: EntryState, final: str, *, placed: bool
) -> None:
    token = await claimed(ledger)
    clock.time += LIVE + DELIVERY
    ledger.resolve("k", placed=placed)
    overtaken = placed and late is not EntryState.ACCEPTED
    message = "another process or person has settled or claimed 'k' meanwhile; that record is kept$"
    with pytest.raises(LedgerError, match=message) if overtaken else contextlib.nullcontext():
        await ledger.settle("k", token, late)
    assert NONE | {final: 1} == ledger.summary()


async def test_purge_deletes_settled_keys_that_changed_long_ago(
    ledger: Ledger, clock: Clock
) -> None:
    await ended(ledger, EntryState.UNKNOWN, "unknown")
    await claimed(ledger, "claimed")
    for state in SETTLED:
        await ended(ledger, state, state.value)
    token = await claimed(ledger, "late")
    clock.time += 100
    await ledger.settle("late", token, EntryState.ACCEPTED)
    assert 0 == ledger.purge(timedelta(seconds=100))
    clock.time += 1
    assert 3 == ledger.purge(timedelta(seconds=100))
    assert NONE | {"unknown": 2, "accepted": 1} == ledger.summary()
    await claimed(ledger, "accepted")


def test_purge_refuses_a_negative_age(in_file: Ledger) -> None:
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
    ledger: Ledger, state: EntryState, *, refuses: bool
) -> None:
    row = FINGERPRINTS.of_row(MOBILE, CONTENT, 0)
    token = await claimed(ledger, row)
    if state is not EntryState.CLAIMED:
        await ledger.settle(row, token, state)
    await ended(ledger, EntryState.ACCEPTED, "not a row of a file")
    assert not ledger.hashed_with_another_key(FINGERPRINTS.hashed_with)
    assert refuses is ledger.hashed_with_another_key(Fingerprints("new").hashed_with)


async def test_keys_that_the_caller_chose_do_not_depend_on_the_api_key(in_file: Ledger) -> None:
    await ended(in_file, EntryState.ACCEPTED, "a key of one's own")
    assert not in_file.hashed_with_another_key(Fingerprints("new").hashed_with)
