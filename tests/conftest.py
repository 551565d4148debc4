"""Conditions that every test relies on, and the database servers that they share."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from tests.store.mariadb import MariaDbServer
    from tests.store.postgres import PostgresServer


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Measure the coverage of the processes of tests that are marked so, and of no others.

    Measuring doubles a process's CPU time, and most run what other tests run in their own
    process. A test whose processes or forks run something that no other test does is marked
    `measures_processes`; the report of the coverage shows where the mark is missing.
    """
    with pytest.MonkeyPatch.context() as patched:
        if item.get_closest_marker("measures_processes") is None:
            for name in tuple(os.environ):
                if name.startswith("COVERAGE_"):
                    patched.delenv(name)
        return (yield)


@pytest.fixture(autouse=True, scope="session")
def _a_failed_test_waits_for_no_process() -> Iterator[None]:
    """The end of a `with Popen(...)` block waits, without a limit, for a process that may hang."""
    leave: Callable[..., None] = subprocess.Popen.__exit__

    def kill_and_leave(
        process: subprocess.Popen[bytes], exc_type: type[BaseException] | None, *rest: object
    ) -> None:
        if exc_type is not None:
            process.kill()
        leave(process, exc_type, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(subprocess.Popen, "__exit__", kill_and_leave)
        yield


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_is_heard() -> None:
    # A shell that runs the tests in the background makes them and their child
    # processes ignore Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # pragma: no cover - one or the other
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _voice_ids_begin_alike() -> Iterator[None]:
    """An id that is drawn at random may contain a code of which a test asserts that it is hidden.

    A sandbox in another process draws its own.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ihuyi_voice.sandbox.core.draw_first_id", lambda: 100_000_001)
        yield


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


# To make and start a server takes seconds, so each process of the tests does it once. They
# are imported only then, because most runs need none.


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    from tests.store.postgres import running_server  # noqa: PLC0415 - see above

    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDbServer]:
    from tests.store.mariadb import running_server  # noqa: PLC0415 - see above

    with running_server() as server:
        yield server
