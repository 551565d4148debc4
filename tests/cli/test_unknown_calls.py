"""The list of unknown calls: which lines it has, and what they can be copied into."""

from __future__ import annotations

import io
import shlex
import sys
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice.cli.unknown_calls import print_unknown
from ihuyi_voice.store.entry import UnknownClaim

from .test_language import chinese

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["chinese"]

URL = "sqlite:///the calls.db"


@pytest.fixture(autouse=True)
def _beijing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A terminal of 80 columns in a zone that is 8 hours ahead."""
    monkeypatch.setenv("COLUMNS", "80")
    with monkeypatch.context() as zone:
        zone.setenv("TZ", "CST-8")
        time.tzset()
        yield
    time.tzset()


def claim(key: str, reason: str = "", resolvable_in: float = 0.0) -> UnknownClaim:
    claimed_at = datetime(2023, 11, 14, 22, 13, 20, tzinfo=timezone.utc)
    return UnknownClaim(key, "139****5678", claimed_at, 1.0, reason, resolvable_in)


def printed(capsys: pytest.CaptureFixture[str], *claims: UnknownClaim) -> list[str]:
    print_unknown(claims, URL)
    return capsys.readouterr().out.splitlines()


def test_calls_of_several_reasons_have_the_number_of_theirs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = printed(
        capsys,
        claim("one", "the connection was reset"),
        claim("登录 2", resolvable_in=7.2),
        claim("three", "the connection was reset", 3.0),
    )
    command = f"ihuyi-voice store {shlex.quote(URL)}"
    assert [
        "key     mobile       claimed at           resolve  why",
        "one     139****5678  2023-11-15 06:13:20  now      1",
        "登录 2  139****5678  2023-11-15 06:13:20  in 8 s   2",
        "three   139****5678  2023-11-15 06:13:20  in 3 s   1",
        "",
        "why 1: the connection was reset",
        "why 2: its process ended without an outcome",
        "all may be resolved in 8 s: until then the network may still deliver a request",
        "These phones may have rung. Look each up on the account's page, then record it:",
        f"  {command} resolve KEY... --placed (or --not-placed)",
        "If all were placed, or none was, this resolves all of them (or --not-placed):",
        f"  {command} --json | {command} resolve - --placed",
    ] == lines


def test_a_key_that_is_too_wide_for_one_line_has_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A Chinese character is as wide as two others."""
    widest, too_wide = "录" * 18, "录" * 19
    rest = "  139****5678  2023-11-15 06:13:20  now"
    assert f"{widest}{rest}" == printed(capsys, claim(widest))[1]
    assert [too_wide, rest] == printed(capsys, claim(too_wide))[2:4]


@pytest.mark.usefixtures("chinese")
def test_the_width_of_a_chinese_header_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is wider than the lines below it."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    print_unknown([claim("k" * 39)], URL)
    header, header_of_the_rest, key, _ = out.getvalue().splitlines()[:4]
    assert ("幂等键", "k" * 39) == (header, key)
    assert header_of_the_rest.startswith("  手机号")
