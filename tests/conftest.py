"""Conditions that every test relies on, however pytest was started."""

from __future__ import annotations

import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_is_heard() -> None:
    # A shell that runs the tests in the background makes them and their child
    # processes ignore Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # pragma: no cover - one or the other
        signal.signal(signal.SIGINT, signal.default_int_handler)
