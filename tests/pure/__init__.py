"""Tests of errors.py, models.py and wire.py: no loop, no socket, no clock."""

from __future__ import annotations

from pathlib import Path

from hypothesis import settings

from ihuyi_voice.errors import IhuyiVoiceError
from ihuyi_voice.models import Answer, Balance, SubmitResult
from ihuyi_voice.wire import Redaction, decode_balance, decode_submit

DATA = Path(__file__).parents[1] / "data"

MOBILE = "13912345678"
CONTENT = "907351"
NOW = 1_700_000_000
"""Tue, 14 Nov 2023 22:13:20 GMT."""

BOUNDED = settings(max_examples=200, deadline=None, derandomize=True, database=None)
"""The same examples on every run, and a bounded number of them."""


def answer(body: bytes | str, status: int = 200, date: str | None = None) -> Answer:
    return Answer(status, body.encode() if isinstance(body, str) else body, date)


def submit_read(answer: Answer, now: int = NOW, hide: tuple[str, ...] = ()) -> SubmitResult:
    """What `decode_submit` returns, raised where it is an error."""
    result = decode_submit(answer, MOBILE, CONTENT, now, Redaction(hide))
    if isinstance(result, IhuyiVoiceError):
        raise result
    return result


def balance_read(answer: Answer, now: int = NOW, hide: tuple[str, ...] = ()) -> Balance:
    """What `decode_balance` returns, raised where it is an error."""
    balance = decode_balance(answer, now, Redaction(hide))
    if isinstance(balance, IhuyiVoiceError):
        raise balance
    return balance
