"""Which operations form a batch: no database and no thread."""

from __future__ import annotations

import asyncio
import time

from ihuyi_voice.store.answer import NO_ANSWER
from ihuyi_voice.store.entry import EntryState, NewClaim, Settlement
from ihuyi_voice.store.writer.backlog import Backlog, split
from ihuyi_voice.store.writer.operations import (
    ClaimOperation,
    LookupOperation,
    Operation,
    SettleOperation,
)

from .support import CONTENT, FINGERPRINTS, LIVE, MASKED, MOBILE


def claim_of(key: str) -> ClaimOperation:
    claim = NewClaim(key, *FINGERPRINTS.of(MOBILE, CONTENT), MASKED, "token", 0.0, LIVE)
    return ClaimOperation(claim, asyncio.get_running_loop().create_future())


def lookup_of(key: str) -> LookupOperation:
    return LookupOperation(key, asyncio.get_running_loop().create_future())


def settlement_of(key: str) -> SettleOperation:
    return SettleOperation(
        Settlement(key, "token", EntryState.ACCEPTED, NO_ANSWER, 0.0, 0.0), future=None
    )


async def test_settlements_are_split_from_the_others() -> None:
    settlement, claim = settlement_of("a"), claim_of("b")
    assert ([settlement], [claim]) == split([settlement, claim])


async def test_a_batch_has_each_key_once_per_kind() -> None:
    backlog = Backlog()
    first: list[Operation] = [claim_of("a"), settlement_of("a"), lookup_of("a"), lookup_of("a")]
    second: list[Operation] = [claim_of("a"), settlement_of("a")]
    backlog.new.extend([*first, *second])
    assert first == backlog.next_batch()
    assert second == backlog.next_batch()
    assert [] == backlog.next_batch()


async def test_abandoned_claims_and_lookups_are_dropped_and_settlements_are_not() -> None:
    backlog = Backlog()
    settlement = settlement_of("c")
    operations: list[Operation] = [claim_of("a"), lookup_of("b"), settlement]
    for operation in operations:
        operation.waiting = False
    backlog.new.extend(operations)
    assert [settlement] == backlog.next_batch()


async def test_failed_settlements_precede_new_operations() -> None:
    backlog = Backlog()
    failed = [settlement_of("a"), settlement_of("b")]
    for operation in failed:
        backlog.keep(operation)
    claim = claim_of("a")
    backlog.new.append(claim)
    assert 0.0 == backlog.next_due()
    assert [*failed, claim] == backlog.next_batch()
    assert float("inf") == backlog.next_due()


async def test_a_key_that_is_tried_alone_joins_no_batch() -> None:
    backlog = Backlog()
    suspect, another, lookup = claim_of("a"), claim_of("a"), lookup_of("a")
    backlog.isolate(suspect)
    backlog.new.extend([another, lookup])
    assert [lookup] == backlog.next_batch()
    now = time.monotonic()
    assert suspect is backlog.next_single(now)
    assert another is backlog.next_single(now)
    assert backlog.next_single(now) is None


async def test_a_single_is_tried_when_it_is_due_and_its_task_waits() -> None:
    backlog = Backlog()
    abandoned, postponed = claim_of("a"), claim_of("b")
    backlog.isolate(abandoned)
    abandoned.waiting = False
    assert backlog.postpone(postponed)
    assert backlog.next_single(postponed.due - 0.001) is None
    assert [postponed] == list(backlog.singles)
    assert postponed is backlog.next_single(postponed.due)


async def test_the_wait_for_a_locked_row_is_bounded() -> None:
    backlog = Backlog()
    operation = claim_of("a")
    operation.give_up_at = time.monotonic()
    assert not backlog.postpone(operation)
    assert [] == list(backlog.singles)
