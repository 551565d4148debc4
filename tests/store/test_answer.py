"""What the store keeps of an answer, and how a replay gives it back."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from ihuyi_voice.errors import NotSentError, OutcomeUnknownError, gateway_error
from ihuyi_voice.models import SubmitResult
from ihuyi_voice.store.answer import NO_ANSWER, StoredAnswer

from .support import MOBILE

RESULT = SubmitResult("900100200", "提交成功", MOBILE)


def test_a_replay_gives_every_field_of_a_result_back() -> None:
    # Each field differs from its default, so that a field that is lost is noticed.
    assert ["replayed"] == [
        field.name for field in fields(RESULT) if getattr(RESULT, field.name) == field.default
    ]
    stored = StoredAnswer.from_json(StoredAnswer.of(RESULT).to_json())
    again = stored.replayed(MOBILE)
    assert RESULT == again
    assert replace(RESULT, replayed=True).replayed is again.replayed
    assert 2 == stored.code


@pytest.mark.parametrize(
    ("expected", "end"),
    [
        (StoredAnswer(4051, "剩余条数不足"), gateway_error(4051, "剩余条数不足")),
        (StoredAnswer(4051, "InsufficientBalanceError"), gateway_error(4051, "")),
        (
            StoredAnswer(msg="the connection was reset"),
            OutcomeUnknownError("the connection was reset"),
        ),
        (StoredAnswer(msg="no slot came free"), NotSentError("no slot came free")),
        (StoredAnswer(msg="KeyboardInterrupt"), KeyboardInterrupt()),
        # Its code is an exit status.
        (StoredAnswer(msg="SystemExit"), SystemExit(3)),
    ],
)
def test_what_is_kept_of_an_exception(expected: StoredAnswer, end: BaseException) -> None:
    assert expected == StoredAnswer.of(end)


def test_the_text_of_an_answer() -> None:
    text = '{"code":2,"msg":"提交成功","voice_id":"900100200"}'
    assert text == StoredAnswer.of(RESULT).to_json()
    assert NO_ANSWER == StoredAnswer.from_json("{}")
