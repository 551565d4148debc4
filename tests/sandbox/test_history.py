"""What is remembered, and what a reader of the history has not read yet."""

from __future__ import annotations

from ihuyi_voice.sandbox import Attempt, Call, OtherRequest, PushTry, ReceiptPush
from ihuyi_voice.sandbox.history import History


def add(history: History, times: int = 1) -> None:
    for _ in range(times):
        number = history.taken + 1
        attempt = Attempt("1", "2", 2, "", str(number), 0.0, "", (), number=number)
        history.add(attempt, Call("1", "2", str(number), 0.0))


def put(history: History, number: int) -> ReceiptPush:
    push = ReceiptPush(number, str(number), "1", 2, "", 0.0)
    history.put(push)
    return push


def after(history: History, number: int, limit: int = 100) -> list[int]:
    return [attempt.number for attempt in history.after(number, limit)]


def test_the_last_attempts_are_kept_and_all_are_counted() -> None:
    history = History(3)
    add(history, 5)
    assert [3, 4, 5] == [attempt.number for attempt in history.attempts]
    assert ["3", "4", "5"] == [call.voice_id for call in history.calls]
    assert (5, 5, 3) == (history.taken, history.placed, history.keep)


def test_keeping_fewer_forgets_the_oldest_and_their_receipts() -> None:
    history = History(3)
    history.resize(4)
    add(history, 4)
    put(history, 1)
    kept = put(history, 4)
    history.resize(2)
    assert [3, 4] == [attempt.number for attempt in history.attempts]
    assert [kept] == history.receipts


def test_a_receipt_is_forgotten_with_its_attempt() -> None:
    history = History(2)
    add(history, 2)
    put(history, 1)
    kept = put(history, 2)
    add(history)
    assert [kept] == history.receipts
    put(history, 1)
    assert [kept] == history.receipts


def test_the_receipt_that_changed_last_comes_last() -> None:
    history = History()
    add(history, 2)
    one, two = put(history, 1), put(history, 2)
    assert [one, two] == history.receipts
    tried = one.tried(PushTry(1.0, accepted=True, result="success"), ended=True)
    history.put(tried)
    assert [two, tried] == history.receipts
    assert (False, True) == (one.accepted, tried.accepted)


def test_one_attempt_is_found_by_its_number() -> None:
    history = History(2)
    assert [None, None] == [history.find(number) for number in (0, 1)]
    add(history, 3)
    push = put(history, 3)
    assert (history.attempts[0], None) == history.find(2)
    assert (history.attempts[1], push) == history.find(3)
    assert [None, None, None] == [history.find(number) for number in (0, 1, 4)]
    history.resize(10)
    assert None is history.find(5)


def test_a_reader_gets_what_came_after_the_number_it_has_read() -> None:
    history = History(3)
    add(history, 2)
    assert [[1, 2], [2], []] == [after(history, number) for number in (0, 1, 2)]
    add(history, 2)
    assert [3, 4] == after(history, 2)


def test_a_reader_that_fell_behind_gets_what_is_kept_and_at_most_the_limit() -> None:
    history = History(3)
    add(history, 9)
    assert [7, 8, 9] == after(history, 1)
    assert [8, 9] == after(history, 1, limit=2)


def test_a_cleared_history_is_empty_and_continues_to_count() -> None:
    history = History(3)
    add(history, 2)
    put(history, 1)
    cleared = history.cleared()
    assert ([], [], [], 2, 2, 3) == (
        list(cleared.attempts), list(cleared.calls), cleared.receipts,
        cleared.taken, cleared.placed, cleared.keep,
    )  # fmt: skip
    assert [] == after(cleared, 0)
    add(cleared)
    assert [3] == after(cleared, 0) == after(cleared, 2)


# --- other requests -------------------------------------------------------------


def add_other(history: History) -> OtherRequest:
    return history.add_other(OtherRequest("unknown", "GET /", "", 0.0, "", 404))


def test_other_requests_are_numbered_apart_and_know_their_place() -> None:
    history = History(2)
    assert (1, 0) == (add_other(history).number, history.others[0].after)
    add(history, 2)
    assert [(2, 2), (3, 2)] == [
        (other.number, other.after) for other in (add_other(history), add_other(history))
    ]
    assert ([2, 3], 3) == ([other.number for other in history.others], history.others_taken)
    history.resize(1)
    assert [3] == [other.number for other in history.others]


def test_a_reader_gets_the_other_requests_that_it_has_not_read() -> None:
    history = History(3)
    for _ in range(5):
        add_other(history)
    assert [4, 5] == [other.number for other in history.others_after(3, 100)]
    assert [3, 4, 5] == [other.number for other in history.others_after(0, 100)]
    assert [5] == [other.number for other in history.others_after(0, 1)]
    assert [] == history.others_after(5, 100)
    cleared = history.cleared()
    assert ([], 6) == (list(cleared.others), add_other(cleared).number)
