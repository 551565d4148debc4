"""Tests of errors.py, models.py and wire.py: no loop, no socket, no clock."""

from __future__ import annotations

from pathlib import Path

from hypothesis import settings

from ihuyi_voice.models import Answer

DATA = Path(__file__).parents[1] / "data"

MOBILE = "13912345678"
NOW = 1_700_000_000
"""Tue, 14 Nov 2023 22:13:20 GMT."""

BOUNDED = settings(max_examples=200, deadline=None, derandomize=True, database=None)
"""The same examples on every run, and a bounded number of them."""


def answer(body: bytes | str, status: int = 200, date: str | None = None) -> Answer:
    return Answer(status, body.encode() if isinstance(body, str) else body, date)
