"""What is remembered, and what a follower of the record is given."""

from __future__ import annotations

import pytest

from ihuyi_voice.sandbox import Attempt, Call, PushTry, ReceiptPush
from ihuyi_voice.sandbox.history import Changes, Position, Record


def add(record: Record, times: int = 1) -> None:
    for _ in range(times):
        number = record.taken + 1
        attempt = Attempt("1", "2", 2, "", str(number), 0.0, "", (), number=number)
        record.add(attempt, Call("1", "2", str(number), 0.0))


def put(record: Record, number: int) -> ReceiptPush:
    push = ReceiptPush(number, str(number), "1", 2, "", 0.0)
    record.put(push)
    return push


def numbers(changes: Changes) -> list[int]:
    return [attempt.number for attempt in changes.attempts]


def read(record: Record, position: Position, limit: int = 100) -> tuple[list[int], Position]:
    changes = record.since(position, limit)
    return numbers(changes), changes.position


def test_the_last_so_many_are_kept_and_all_are_counted() -> None:
    record = Record("e", 3)
    add(record, 5)
    assert [3, 4, 5] == [attempt.number for attempt in record.attempts]
    assert ["3", "4", "5"] == [call.voice_id for call in record.calls]
    assert (5, 5, 3) == (record.taken, record.placed, record.keep)


def test_keeping_fewer_forgets_the_oldest_and_their_receipts() -> None:
    record = Record("e", 3)
    record.resize(4)
    add(record, 4)
    put(record, 1)
    kept = put(record, 4)
    record.resize(2)
    assert [3, 4] == [attempt.number for attempt in record.attempts]
    assert [kept] == record.pushes


def test_a_receipt_goes_with_its_attempt() -> None:
    record = Record("e", 2)
    add(record, 2)
    put(record, 1)
    kept = put(record, 2)
    add(record)
    assert [kept] == record.pushes
    put(record, 1)
    assert [kept] == record.pushes


def test_one_attempt_is_found_by_its_number() -> None:
    record = Record("e", 2)
    assert None is record.find(1)
    add(record, 3)
    push = put(record, 3)
    assert (record.attempts[0], None) == record.find(2)
    assert (record.attempts[1], push) == record.find(3)
    assert [None, None, None] == [record.find(number) for number in (0, 1, 4)]
    record.resize(10)
    assert None is record.find(5)


def test_a_follower_is_given_what_it_has_not_read() -> None:
    record = Record("e")
    add(record, 2)
    first = record.since(Position(), 100)
    assert (True, [1, 2], False) == (first.anew, numbers(first), first.more)
    add(record)
    second = record.since(first.position, 100)
    assert (False, [3]) == (second.anew, numbers(second))
    assert ([], second.position) == read(record, second.position)


def test_more_than_it_asked_for_comes_in_parts_and_the_receipts_last() -> None:
    record = Record("e")
    add(record, 5)
    push = put(record, 1)
    seen = []
    position, more, pushes = Position(), True, list[ReceiptPush]()
    while more:
        assert [] == pushes
        changes = record.since(position, 2)
        seen.append(numbers(changes))
        position, more, pushes = changes.position, changes.more, changes.pushes
    assert ([[1, 2], [3, 4], [5]], [push]) == (seen, pushes)


def test_who_fell_behind_by_more_than_is_kept_begins_anew() -> None:
    record = Record("e", 3)
    add(record)
    _, position = read(record, Position())
    add(record, 3)
    changes = record.since(position, 100)
    assert (False, [2, 3, 4]) == (changes.anew, numbers(changes))
    add(record)
    changes = record.since(position, 100)
    assert (True, [3, 4, 5]) == (changes.anew, numbers(changes))


@pytest.mark.parametrize("position", [Position("e", 9), Position("other", 1), Position("", 0)])
def test_a_position_that_is_none_of_its_own_begins_anew(position: Position) -> None:
    record = Record("e")
    add(record, 2)
    changes = record.since(position, 100)
    assert (True, [1, 2]) == (changes.anew, numbers(changes))


def test_clearing_goes_on_counting_under_another_epoch() -> None:
    record = Record("e")
    add(record, 2)
    put(record, 1)
    _, position = read(record, Position())
    record.clear("f")
    changes = record.since(position, 100)
    assert (True, [], []) == (changes.anew, changes.attempts, record.pushes)
    add(record)
    assert ([3], Position("f", 3, 1)) == read(record, changes.position)


def test_each_receipt_is_told_as_it_stands_the_last_changed_last() -> None:
    record = Record("e")
    add(record, 3)
    one = put(record, 1)
    put(record, 2)
    position = record.since(Position(), 100).position
    three = put(record, 3)
    tried = one.tried(PushTry(1.0, accepted=True, result="success"), ended=True)
    record.put(tried)
    assert [three, tried] == record.since(position, 100).pushes
    assert (False, True) == (one.accepted, tried.accepted)
