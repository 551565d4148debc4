"""One outcome per row, whatever the row, and whatever happens to other rows."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from ihuyi_voice import (
    InvalidMobileError,
    InvalidRequestError,
    Outcome,
    OutcomeStatus,
    OutcomeUnknownError,
    SubmitRequest,
    SubmitResult,
)
from tests.bulk.spies import Gateway, client, counted, mobile, pair, pairs

S = OutcomeStatus
GOOD = mobile(1)


async def outcomes(gateway: Gateway, rows: Any, **options: Any) -> dict[int, Outcome]:
    """The outcome of each row, by its index."""
    async with client(gateway.url) as voice, voice.submit_many(rows, **options) as run:
        made = [outcome async for outcome in run]
    by_index = {outcome.index: outcome for outcome in made}
    assert len(by_index) == len(made) == run.report.total
    return by_index


async def test_each_row_has_its_index_request_and_result(gateway: Gateway) -> None:
    made = await outcomes(gateway, pairs(50))
    for n in range(50):
        request = SubmitRequest(mobile(n), "1125")
        result = SubmitResult("197362477", "ok", mobile(n))
        assert Outcome(n, request, S.ACCEPTED, result, None) == made[n]
    assert sorted(gateway.mobiles) == [mobile(n) for n in range(50)]


async def test_no_rows_give_no_outcomes(gateway: Gateway) -> None:
    assert {} == await outcomes(gateway, [])
    assert {} == await outcomes(gateway, iter([]))


@pytest.mark.parametrize(
    "row",
    [
        SubmitRequest(GOOD, "1125"),
        (GOOD, "1125"),
        [GOOD, "1125"],
        ("+86 139-0000-0001", "1125"),
    ],
)
async def test_accepted_forms_of_a_row(gateway: Gateway, row: object) -> None:
    made = await outcomes(gateway, [row])
    assert (S.ACCEPTED, [GOOD]) == (made[0].status, gateway.mobiles)
    request = row if isinstance(row, SubmitRequest) else SubmitRequest(*row)  # type: ignore[misc]
    assert request == made[0].request


MALFORMED: list[tuple[object, str]] = [
    (None, "a row must be a SubmitRequest or a (mobile, content) pair, not a NoneType"),
    (13912345678, "a row must be a SubmitRequest or a (mobile, content) pair, not a int"),
    ("ab", "a row must be a SubmitRequest or a (mobile, content) pair, not a str"),
    ({"mobile": GOOD}, "a row must be a SubmitRequest or a (mobile, content) pair, not a dict"),
    ((), "a row must be a SubmitRequest or a (mobile, content) pair, not a tuple of 0"),
    ((GOOD,), "a row must be a SubmitRequest or a (mobile, content) pair, not a tuple of 1"),
    (
        [GOOD, "1", "2"],
        "a row must be a SubmitRequest or a (mobile, content) pair, not a list of 3",
    ),
    (("", "1125"), "mobile must be a mainland number: 1, then 3-9, then nine digits; it is empty"),
    (
        ("1391234567", "1125"),
        "mobile must be a mainland number: 1, then 3-9, then nine digits; it has 10 digits",
    ),
    (
        (13912345678, "1125"),
        "mobile must be a str with one number, not int; submit once per number",
    ),
    (
        (GOOD, 1125),
        (
            "content must be a str of 4-6 digits, not int: an int loses leading zeros,"
            " write '0042' in quotes"
        ),
    ),
    ((GOOD, "12ab"), "content must be a str of 4-6 digits; it has characters other than digits"),
    ((GOOD, None), "content must be a str of 4-6 digits, not NoneType"),
    (
        SubmitRequest(GOOD, "1125", "key"),
        (
            "idempotency_key needs a store that remembers it, and this client has none: pass"
            " store=Store.open(...); nothing was sent, no phone rang"
        ),
    ),
]


async def test_a_malformed_row_is_invalid_and_says_where(gateway: Gateway) -> None:
    """The row and the column are named; the rows around it are sent."""
    rows: list[object] = []
    for row, _ in MALFORMED:
        rows += [pair(100 + len(rows)), row]
    made = await outcomes(gateway, [*rows, pair(99)])
    assert len(rows) + 1 == len(made)
    for n, (row, text) in enumerate(MALFORMED):
        outcome = made[2 * n + 1]
        assert (S.INVALID, None) == (outcome.status, outcome.result)
        assert isinstance(outcome.error, InvalidRequestError)
        assert f"row {2 * n + 1}: {text}" == str(outcome.error)
        if isinstance(row, SubmitRequest):
            assert row is outcome.request
        elif isinstance(row, tuple | list) and len(row) == 2:
            assert SubmitRequest(*row) == outcome.request
        else:
            assert outcome.request is None
    assert {99, *range(100, 100 + len(rows), 2)} == {int(sent[3:]) for sent in gateway.mobiles}


async def test_the_failure_of_one_row_affects_no_other_row(gateway: Gateway) -> None:
    refused = '{"code":406,"msg":"手机格式不正确","voiceid":"0"}'.encode()
    answers = {mobile(1): refused, mobile(2): None, mobile(3): b"<html>"}
    accepting = gateway.answer
    gateway.answer = lambda number: answers.get(number, accepting(number))
    made = await outcomes(gateway, [*pairs(6), None])
    assert [S.ACCEPTED, S.REFUSED, S.UNKNOWN, S.UNKNOWN, S.ACCEPTED, S.ACCEPTED, S.INVALID] == [
        made[n].status for n in range(7)
    ]
    assert isinstance(made[1].error, InvalidMobileError)
    assert isinstance(made[2].error, OutcomeUnknownError)
    assert made[2].error.may_have_rung
    assert sorted(gateway.mobiles) == [mobile(n) for n in range(6)]


async def test_a_fast_row_is_handed_over_before_a_slow_one_that_began_earlier(
    gateway: Gateway,
) -> None:
    gateway.held = lambda number: number == mobile(0)
    async with client(gateway.url) as voice, voice.submit_many(pairs(3), concurrency=2) as run:
        # The gateway holds back the first row until both others were read.
        assert [1, 2] == [(await run.__anext__()).index, (await run.__anext__()).index]
        gateway.release()
        assert [0] == [outcome.index async for outcome in run]


async def test_the_same_number_twice_is_two_calls(gateway: Gateway) -> None:
    made = await outcomes(gateway, [pair(1), pair(1)])
    assert (2, [GOOD, GOOD]) == (len(made), gateway.mobiles)


async def test_outcomes_and_reports_pickle_and_are_plain_values(gateway: Gateway) -> None:
    made = await outcomes(gateway, [pair(1), (GOOD, "12")])
    for outcome in made.values():
        copied = pickle.loads(pickle.dumps(outcome))
        assert (outcome.index, outcome.request, outcome.result) == (
            copied.index,
            copied.request,
            copied.result,
        )
        assert str(outcome.error) == str(copied.error)


async def test_the_report_before_during_and_after(gateway: Gateway) -> None:
    gateway.held = lambda number: number == mobile(2)
    async with client(gateway.url) as voice:
        rows: Any = [*pairs(3), None]
        run = voice.submit_many(rows)
        before = run.report
        assert (0, 0.0, {}, None) == (
            before.total,
            before.elapsed,
            counted(before),
            before.stopped_by,
        )
        assert set(S) == set(before.counts)
        async with run:
            for _ in range(3):
                await run.__anext__()
            during = run.report
            assert {S.ACCEPTED: 2, S.INVALID: 1} == counted(during)
            assert during.elapsed > 0
            gateway.release()
            assert {S.ACCEPTED: 3, S.INVALID: 1} == counted(await run.finish())
        after = run.report
    assert {S.ACCEPTED: 3, S.INVALID: 1} == counted(after)
    assert after.elapsed >= during.elapsed
    # `elapsed` does not grow after the run is over.
    assert after == run.report
    assert (None, None) == (after.stopped_by, after.stopped_at)


async def test_every_row_is_logged_once_without_its_number_or_code(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    await outcomes(gateway, [pair(1), (GOOD, "98x6"), None])
    ours = [record for record in caplog.records if record.name == "ihuyi_voice"]
    lines = sorted(record.getMessage().partition(" code=")[0] for record in ours)
    assert lines == [
        "submit_many **** invalid",
        "submit_many 139****0001 accepted",
        "submit_many 139****0001 invalid",
    ]
    assert GOOD not in caplog.text
    assert "98x6" not in caplog.text
