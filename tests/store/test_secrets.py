"""The database's password is in no error, no repr and no variable of a traceback."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from ihuyi_voice.errors import StoreError
from ihuyi_voice.models import Secret
from ihuyi_voice.store.sql.database import Database

from .support import claim, claimed, open_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .postgres import PostgresServer

PASSWORD = "hunter2"


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and all its causes and contexts, suppressed or not."""
    left, seen = [error], set()
    while left:
        one = left.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            left += [other for other in (one.__cause__, one.__context__) if other is not None]


def shown(value: object, depth: int = 4) -> Iterator[str]:
    """What tools show of a variable: its repr, and the items found by iterating it."""
    yield repr(value)
    if depth and isinstance(value, dict):  # pragma: no cover - a leak
        for key, inner in value.items():
            yield from shown(key, depth - 1)
            yield from shown(inner, depth - 1)
    elif depth and isinstance(value, list | tuple | set):
        for inner in value:
            yield from shown(inner, depth - 1)


def leaks(error: BaseException, skipped: str = "/tests/") -> list[str]:
    """Where the password is shown, except in the frames of the tests."""
    found = []
    for one in chain(error):
        found += [text for text in (str(one), repr(one.args)) if PASSWORD in text]
        traceback = one.__traceback__
        while traceback is not None:
            frame = traceback.tb_frame
            if skipped not in frame.f_code.co_filename:
                found += [
                    f"{frame.f_code.co_name}: {name}"
                    for name, value in frame.f_locals.items()
                    if any(PASSWORD in text for text in shown(value))
                ]
            traceback = traceback.tb_next
    return found


@pytest.mark.parametrize("value", [PASSWORD, {1: [(PASSWORD,)]}, {PASSWORD}])
def test_the_search_finds_a_leak(value: object) -> None:
    def fail(url: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        fail(value)
    assert "fail: url" in leaks(caught.value, skipped="nowhere")


@pytest.mark.parametrize(
    "where",
    [
        "postgresql://joe:hunter2@host:port/calls",
        "postgresql+asyncpg://joe:hunter2@host/calls",
        "mysql://joe:hunter2@host/calls",
        "sqlite://joe:hunter2@host/calls.db",
        "postgresql://joe:hunter2@127.0.0.1:9/calls",
        "postgresql://joe:a@hunter2@127.0.0.1:9/calls",
        "postgresql://joe@127.0.0.1:9/calls?password=hunter2",
        "postgresql://joe@127.0.0.1:9/calls?password=hunter2&nonsense=1",
        "postgresql://joe@127.0.0.1:9/calls?sslpassword=hunter2",
        b"postgresql://joe:hunter2@127.0.0.1:9/calls",
    ],
)
def test_a_store_that_cannot_be_opened(where: Any) -> None:
    with pytest.raises((StoreError, ValueError, TypeError)) as caught:
        open_store(where)
    assert [] == leaks(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("patience", ["2", -1])
def test_a_store_with_a_wrong_option(patience: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        open_store("postgresql://joe:hunter2@127.0.0.1:9/calls", patience=patience)
    assert [] == leaks(caught.value)


def test_a_store_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(ModuleNotFoundError, match="needs psycopg") as caught:
        open_store("postgresql://joe:hunter2@127.0.0.1:9/calls")
    assert [] == leaks(caught.value)


def test_the_repr_of_a_server_hides_the_password() -> None:
    url = Secret("postgresql://joe:hunter2@host/calls?sslpassword=hunter2")
    assert "<PostgreSql postgresql+psycopg://joe:***@host/calls>" == repr(
        Database(url, None).backend
    )


def test_an_at_sign_in_a_password_is_explained() -> None:
    with pytest.raises(ValueError, match="with %40 for each @ in user or password"):
        open_store("postgresql://joe:hun@ter2@host/calls")


async def test_a_store_whose_server_stops(postgres: PostgresServer, tmp_path: Path) -> None:
    url = postgres.empty().replace("postgres@", "postgres:hunter2@") + "&sslpassword=hunter2"
    with open_store(url) as store:
        await claimed(store)
        postgres.stop()
        try:
            errors: list[object] = [
                *await asyncio.gather(claim(store, "new"), return_exceptions=True)
            ]
            for call in (store.summary, store.unknown):
                with pytest.raises(StoreError) as caught:
                    call()
                errors.append(caught.value)
        finally:
            postgres.start()
    for error in errors:
        assert isinstance(error, StoreError)
        assert [] == leaks(error)


async def test_an_unexpected_exception_while_connecting(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.empty().replace("postgres@", "postgres:hunter2@")

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    with open_store(url) as store:
        monkeypatch.setattr("psycopg.connect", fail)
        monkeypatch.setattr("psycopg.Connection.connect", fail)
        with pytest.raises(StoreError, match="ZeroDivisionError") as caught:
            await claim(store)
        assert [] == leaks(caught.value)
        with pytest.raises(StoreError, match="ZeroDivisionError") as caught:
            store.summary()
        assert [] == leaks(caught.value)
