"""What every test may rely on, whoever started them."""

from __future__ import annotations

import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_is_heard() -> None:
    # A shell that starts the tests in its background has Ctrl-C ignored by all
    # that it starts, and by what they start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # pragma: no cover - one or the other
        signal.signal(signal.SIGINT, signal.default_int_handler)
