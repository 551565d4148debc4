"""Numbers, codes and keys of a subclass of str are read by their content; other types refused."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from ihuyi_voice import (
    AsyncVoiceClient,
    InvalidRequestError,
    NotSentError,
    OutcomeStatus,
    OutcomeUnknownError,
    Store,
    SubmitRequest,
    VoiceClient,
)
from tests.rogue import ACCEPTED, Connection, Rogue, http_answer

if TYPE_CHECKING:
    from pathlib import Path

MOBILE, CODE = "13912345678", "1125"


class Marked(str):
    """A plain subclass, such as Django's SafeString."""

    __slots__ = ()


class Lying(str):
    """A subclass whose methods fail."""

    __slots__ = ()

    def _fail(self, *_: object, **__: object) -> NoReturn:
        raise TypeError

    __len__ = __iter__ = __str__ = __repr__ = __format__ = __hash__ = __eq__ = _fail
    strip = isascii = isdigit = isprintable = encode = replace = _fail


class Lazy:
    """Claims to be a str, as Django's SimpleLazyObject and lazystr do."""

    def __init__(self, value: str) -> None:
        self._value = value

    @property  # type: ignore[misc] # as in Django
    def __class__(self) -> Any:
        return str

    def __len__(self) -> int:
        return len(self._value)

    def __str__(self) -> str:
        return self._value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._value, name)


class Unreadable(Lazy):
    """A lazy object that raises when it is evaluated."""

    def __str__(self) -> str:
        raise TypeError


class Failing:
    """A lazy object that fails even in `isinstance`, for example because of a database."""

    @property  # type: ignore[misc] # what `isinstance` asks
    def __class__(self) -> type:
        raise LookupError


async def accept(connection: Connection) -> None:
    while await connection.read_request():
        await connection.send(http_answer(ACCEPTED))


ROWS: list[tuple[Any, Any, OutcomeStatus]] = [
    (MOBILE, CODE, OutcomeStatus.ACCEPTED),
    (Marked(MOBILE), Marked(CODE), OutcomeStatus.ACCEPTED),
    (Lying("139 1234 5678"), Lying(CODE), OutcomeStatus.ACCEPTED),
    (Lying("1391234567"), CODE, OutcomeStatus.INVALID),
    (MOBILE, Lying("12"), OutcomeStatus.INVALID),
    (Lazy(MOBILE), CODE, OutcomeStatus.INVALID),
    (MOBILE, Lazy(CODE), OutcomeStatus.INVALID),
    (Unreadable(MOBILE), Unreadable(CODE), OutcomeStatus.INVALID),
    (None, object(), OutcomeStatus.INVALID),
    (Failing(), CODE, OutcomeStatus.INVALID),
    (MOBILE, Failing(), OutcomeStatus.INVALID),
    (MOBILE, CODE, OutcomeStatus.ACCEPTED),
]
EXPECTED = [status for *_, status in ROWS]


def test_the_test_doubles_work() -> None:
    assert isinstance(Lazy(MOBILE), str)
    assert (MOBILE, 11, "1") == (str(Lazy(MOBILE)), len(Lazy(MOBILE)), Lazy("1 ").strip())
    for use in (len, str, repr):
        with pytest.raises(TypeError):
            use(Lying("1"))
    with pytest.raises(TypeError):
        str(Unreadable("1"))


@pytest.mark.parametrize("as_requests", [False, True])
async def test_each_row_of_a_run_gets_an_outcome(as_requests: bool) -> None:
    rows = [SubmitRequest(m, c) if as_requests else (m, c) for m, c, _ in ROWS]
    rogue = Rogue(accept)
    async with rogue.running():
        async with (
            AsyncVoiceClient("id", "key", base_url=rogue.url, quota=None) as voice,
            voice.submit_many(rows) as run,
        ):
            outcomes = sorted([o async for o in run], key=lambda outcome: outcome.index)
        assert all(repr(outcome) for outcome in outcomes)

        def block() -> list[OutcomeStatus]:
            with (
                closing(VoiceClient("id", "key", base_url=rogue.url, quota=None)) as blocking,
                blocking.submit_many(iter(rows)) as run,
            ):
                return [o.status for o in sorted(run, key=lambda outcome: outcome.index)]

        assert EXPECTED == await asyncio.to_thread(block)
    assert EXPECTED == [outcome.status for outcome in outcomes]
    assert 2 * EXPECTED.count(OutcomeStatus.ACCEPTED) == rogue.submits


@pytest.mark.parametrize("kind", [list, iter])
async def test_a_row_whose_evaluation_fails_is_an_invalid_row(kind: Any) -> None:
    rogue = Rogue(accept)
    rows: list[Any] = [(MOBILE, CODE), Failing(), (MOBILE, CODE)]
    async with (
        rogue.running(),
        AsyncVoiceClient("id", "key", base_url=rogue.url, quota=None) as voice,
        voice.submit_many(kind(rows)) as run,
    ):
        outcomes = sorted([o async for o in run], key=lambda outcome: outcome.index)
    accepted, invalid = OutcomeStatus.ACCEPTED, OutcomeStatus.INVALID
    assert [accepted, invalid, accepted] == [outcome.status for outcome in outcomes]


# Parametrized by index, because pytest would call their repr.
NO_KEYS = [Lazy("key"), 1, b"key", Lying(""), Lying(" key")]
KEYS = [Marked("key"), Lying("key")]


@pytest.mark.parametrize("place", range(len(NO_KEYS)))
async def test_a_key_that_is_not_a_valid_str_is_refused(place: int, tmp_path: Path) -> None:
    key: Any = NO_KEYS[place]
    with Store.open(tmp_path / "calls.db") as store:
        async with AsyncVoiceClient("id", "key", store=store) as voice:
            with pytest.raises(InvalidRequestError, match=r"^idempotency_key "):
                await voice.submit(MOBILE, CODE, idempotency_key=key)
        assert 0 == sum(store.summary().values())


@pytest.mark.parametrize("place", range(len(KEYS)))
async def test_a_key_is_stored_by_its_content(place: int, tmp_path: Path) -> None:
    key = KEYS[place]
    rogue = Rogue(accept)
    with Store.open(tmp_path / "calls.db") as store:
        async with (
            rogue.running(),
            AsyncVoiceClient("id", "key", base_url=rogue.url, store=store) as voice,
        ):
            first = await voice.submit(MOBILE, CODE, idempotency_key=key)
            again = await voice.submit(MOBILE, CODE, idempotency_key="key")
    assert (False, True) == (first.replayed, again.replayed)
    assert 1 == rogue.submits


# --- foreign exceptions ---------------------------------------------------------


class Clock:
    """Raises the given error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self) -> float:
        raise self.error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(24, "secret"), "OSError: Too many open files"),
        (OSError("secret"), "OSError"),
        (OSError("secret", "words"), "OSError"),
        (RuntimeError("can't start new thread"), "RuntimeError: can't start new thread"),
        (RuntimeError("secret"), "RuntimeError"),
        (MemoryError(), "MemoryError"),
        (ImportError("secret"), "ImportError"),
    ],
)
async def test_a_foreign_exception_before_the_write_is_not_sent_with_its_reason(
    error: Exception, words: str
) -> None:
    async with AsyncVoiceClient(
        "id", "key", base_url="http://127.0.0.1:1", clock=Clock(error)
    ) as voice:
        with pytest.raises(NotSentError) as caught:
            await voice.submit(MOBILE, CODE)
        with pytest.raises(NotSentError) as of_balance:
            await voice.query_balance()
    for raised in (caught.value, of_balance.value):
        assert f"an unexpected exception ({words})" == raised.reason
        assert error is raised.__cause__


class FailsOnRetry:
    """A clock that works for the first attempt of each request only."""

    def __init__(self) -> None:
        self.works = False

    def __call__(self) -> float:
        self.works = not self.works
        if self.works:
            return 1_700_000_000.0
        raise OSError(24, "secret")


async def test_a_retry_that_cannot_be_signed_is_not_sent() -> None:
    async with AsyncVoiceClient(
        "id", "key", base_url="http://127.0.0.1:1", clock=FailsOnRetry()
    ) as voice:
        with pytest.raises(NotSentError):
            await voice.submit(MOBILE, CODE)
        with pytest.raises(NotSentError):
            await voice.query_balance()


async def test_a_retry_of_a_balance_query_that_cannot_be_signed_is_unknown() -> None:
    async def hang_up(connection: Connection) -> None:
        await connection.read_request()

    rogue = Rogue(hang_up)
    async with (
        rogue.running(),
        AsyncVoiceClient("id", "key", base_url=rogue.url, clock=FailsOnRetry()) as voice,
    ):
        with pytest.raises(OutcomeUnknownError) as caught:
            await voice.query_balance()
    assert not caught.value.may_have_rung


@pytest.mark.parametrize(
    "error", [OSError(24, "secret"), RuntimeError("can't start new thread"), ValueError("secret")]
)
async def test_a_claim_that_fails_for_a_foreign_reason_is_not_sent(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> NoReturn:
        raise error

    with Store.open(tmp_path / "calls.db") as store:
        monkeypatch.setattr(store, "claim", fail)
        async with AsyncVoiceClient("id", "key", store=store) as voice:
            with pytest.raises(NotSentError, match=type(error).__name__) as caught:
                await voice.submit(MOBILE, CODE, idempotency_key="key")
    assert error is caught.value.__cause__
