"""Keys and fingerprints, without database and event loop."""

from __future__ import annotations

import os
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ihuyi_voice.errors import InvalidRequestError
from ihuyi_voice.store.entry import Fingerprints, check_key, row_prefix

from .support import API_KEY, CONTENT, FINGERPRINTS, MOBILE


@pytest.mark.parametrize("key", ["k", "x" * 255, "order 4711/a", "键", "row:0"])
def test_a_printable_key_is_valid_and_unchanged(key: str) -> None:
    assert key == check_key(key)


@pytest.mark.parametrize(
    ("problem", "key"),
    [
        ("must have 1-255 characters, not 0", ""),
        ("must have 1-255 characters, not 256", "x" * 256),
        ("cannot be printed", "a\nb"),
        ("cannot be printed", "a\0"),
        ("cannot be printed", "\ud83d"),
        ("cannot be printed", "a\x7f"),
        ("must be a str, not int", 7),
        ("must be a str, not bytes", b"k"),
        ("must be a str, not NoneType", None),
    ],
)
def test_any_other_key_is_refused(problem: str, key: object) -> None:
    with pytest.raises(InvalidRequestError, match=problem):
        check_key(key)


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    # These values must never change, because later releases read the store.
    assert ("6c86b8a2e7f46a3aaf8a5631ede69d71", "fba6f1ac") == FINGERPRINTS.of(MOBILE, CONTENT)
    assert "row:fdc747e2dff75d7c0cc0cbdf710be3a1" == FINGERPRINTS.of_row(
        "rows.csv", MOBILE, CONTENT, 0
    )


@given(st.sampled_from(["139", "1391"]), st.sampled_from(["2", "12", ""]), st.integers(0, 20))
def test_fingerprints_of_different_requests_differ(mobile: str, content: str, count: int) -> None:
    made = {
        FINGERPRINTS.of(mobile, content).digest,
        FINGERPRINTS.of(mobile + "2", content).digest,
        FINGERPRINTS.of(mobile, content + "2").digest,
        Fingerprints("another").of(mobile, content).digest,
        FINGERPRINTS.of_row("job", mobile, content, count),
        FINGERPRINTS.of_row("job", mobile, content, count + 1),
        FINGERPRINTS.of_row("job", mobile + "2", content, count),
        FINGERPRINTS.of_row("another", mobile, content, count),
        Fingerprints("another").of_row("job", mobile, content, count),
    }
    assert 9 == len(made)
    assert all(re.fullmatch("(row:)?[0-9a-f]{32}", one) for one in made)


def test_the_keys_of_a_job_begin_alike_with_every_api_key() -> None:
    # The bytes of a file's name need not be text.
    for job in ("rows.csv", "", os.fsdecode(b"\xff.csv")):
        mine, another = (
            Fingerprints(key).of_row(job, MOBILE, CONTENT, 0) for key in (API_KEY, "another")
        )
        assert mine != another
        assert row_prefix(job) == mine[:12] == another[:12]
        assert re.fullmatch("row:[0-9a-f]{32}", mine)
    assert row_prefix("rows.csv") != row_prefix("rows2.csv")


def test_hashed_with_identifies_an_api_key_without_showing_it() -> None:
    assert FINGERPRINTS.hashed_with == Fingerprints(API_KEY).hashed_with
    assert FINGERPRINTS.hashed_with != Fingerprints("another").hashed_with
    assert f"Fingerprints(hashed_with={FINGERPRINTS.hashed_with!r})" == repr(FINGERPRINTS)


def test_fingerprints_cannot_be_pickled() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(FINGERPRINTS)
