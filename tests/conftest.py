"""Conditions that every test relies on, however pytest was started."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_is_heard() -> None:
    # A shell that runs the tests in the background makes them and their child
    # processes ignore Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # pragma: no cover - one or the other
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _commands_speak_english() -> Iterator[None]:
    """A developer's locale may be Chinese."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("LANGUAGE", "LC_MESSAGES"):
            patched.delenv(name, raising=False)
        patched.setenv("LC_ALL", "C.UTF-8")
        yield


@pytest.fixture(autouse=True, scope="session")
def _the_users_own_store_is_not_used(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    """Neither by a command that a test runs, nor by a client that it makes with `from_env()`."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patched.delenv("IHUYI_VOICE_STORE", raising=False)
        yield
