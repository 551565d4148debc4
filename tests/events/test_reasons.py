"""What a log record and an event say of an error: no foreign code, and not the key."""

from __future__ import annotations

import pytest

from ihuyi_voice import NotSentError, OutcomeStatus, SubmitEvent, SubmitRequest
from ihuyi_voice.request_log import RequestLog


def ended(end: NotSentError | SystemExit, status: OutcomeStatus, key: str) -> SubmitEvent:
    """The event of a submit that ended so."""
    events: list[SubmitEvent] = []
    log = RequestLog("http://127.0.0.1:1", (events.append,))
    log.end("submit", SubmitRequest("13912345678", "1125", key), end, status)
    (event,) = events
    return event


def test_a_foreign_exception_has_no_code_of_the_gateway() -> None:
    assert None is ended(SystemExit(2), OutcomeStatus.UNKNOWN, "login-4711").code


@pytest.mark.parametrize(
    ("key", "reason"),
    [("k", "its key keeps failing, k"), ("login-4711", "its key keeps failing, its key")],
)
def test_a_reason_does_not_name_the_key(key: str, reason: str) -> None:
    error = NotSentError(f"{key!r} keeps failing, {key}")
    assert reason == ended(error, OutcomeStatus.NOT_SENT, key).reason
