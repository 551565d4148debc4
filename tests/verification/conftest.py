"""Fixtures: verifiers of both classes over each kind of store, and a sandbox gateway."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import pytest

from ihuyi_voice import Store
from ihuyi_voice.testing import VoiceGateway
from tests.store.redis_server import running_redis

from .faces import MEMORY, Clock, Face, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.store.mariadb import MariaDbServer
    from tests.store.postgres import PostgresServer
    from tests.store.redis_server import RedisServer

    from .faces import Kind

KINDS = ["asyncio", "blocking"]
STORES = ["memory", "sqlite", "postgresql", "mariadb", "redis"]
# The fixtures that are a place, with the stores that each is in.
PLACES = {
    "place": STORES,
    "shared_place": STORES[1:],
    "place_with_keys": ["sqlite", "postgresql", "mariadb"],
}


@pytest.fixture(scope="session")
def postgresql(postgres: PostgresServer) -> PostgresServer:
    return postgres


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


def place_of(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new store of that kind can be opened; "" for memory."""
    if name == "memory":
        return MEMORY
    if name == "sqlite":
        return str(tmp_path / "voice.db")
    server: PostgresServer | MariaDbServer | RedisServer = request.getfixturevalue(name)
    return server.empty()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each kind of store and each class; where a test has both, each store once, SQLite twice.

    No rule depends on a class and on a store at once: the classes share what they do with it.
    """
    names = {*PLACES} & {*metafunc.fixturenames}
    for name in names:
        if "kind" not in metafunc.fixturenames:
            metafunc.parametrize(name, PLACES[name], indirect=True)
            continue
        kinds = itertools.cycle(KINDS)
        pairs = [*zip(kinds, PLACES[name], strict=False), ("asyncio", "sqlite")]
        metafunc.parametrize(("kind", name), [*dict.fromkeys(pairs)], indirect=True)
    if not names and "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", KINDS, indirect=True)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each kind of store."""
    return place_of(request.param, request, tmp_path)


@pytest.fixture
def shared_place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each kind of store that several processes share."""
    return place_of(request.param, request, tmp_path)


@pytest.fixture
def place_with_keys(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each kind of store that keeps idempotency keys."""
    return place_of(request.param, request, tmp_path)


@pytest.fixture
def postgres_place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return place_of("postgresql", request, tmp_path)


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gateway() -> Iterator[VoiceGateway]:
    gateway = VoiceGateway()
    with gateway.serve_in_thread() as gateway.url:
        yield gateway


@pytest.fixture
def store(place: str, clock: Clock) -> Iterator[Store | None]:
    """None for memory."""
    if place == MEMORY:
        yield None
        return
    with Store.open(place, patience=0.1, clock=clock) as opened_store:
        yield opened_store


@pytest.fixture
def make(
    kind: Kind, gateway: VoiceGateway, store: Store | None, clock: Clock
) -> Iterator[Callable[..., Face]]:
    """Make verifiers of the class over the store."""
    with contextlib.ExitStack() as stack:

        def face(**options: Any) -> Face:
            options = {"store": store, "clock": clock, **options}
            return stack.enter_context(opened(kind, gateway.url, **options))

        yield face


@pytest.fixture
def verifier(make: Callable[..., Face]) -> Face:
    return make()


@pytest.fixture
def in_memory(kind: Kind, gateway: VoiceGateway, clock: Clock) -> Iterator[Face]:
    """A verifier in memory, for tests about what no store changes."""
    with opened(kind, gateway.url, clock=clock) as face:
        yield face
