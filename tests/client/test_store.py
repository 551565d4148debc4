"""What a client does with a store: it shares limits, keeps keys, and opens one that is named."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pytest

from ihuyi_voice import (
    AsyncVoiceClient,
    InvalidRequestError,
    NotSentError,
    Outcome,
    OutcomeStatus,
    QuotaExceededError,
    RecipientQuota,
    StoreError,
    SubmitRequest,
    VoiceClient,
)
from ihuyi_voice.quota import HOUR, MINUTE
from ihuyi_voice.sandbox import SandboxGateway
from ihuyi_voice.store.entry import EntryState
from ihuyi_voice.store.store import Store
from tests.inside import slots_of, writer_of
from tests.store.support import Clock, open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from ihuyi_voice.store.sql.store import SqlStore

S = OutcomeStatus
MOBILE, OTHER, CODE = "13912345678", "13812345678", "1125"
NOWHERE = "http://127.0.0.1:1"
BOTH_CLIENTS = pytest.mark.parametrize("kind", [AsyncVoiceClient, VoiceClient])


class Served(NamedTuple):
    """A gateway and its URL."""

    record: SandboxGateway
    url: str

    @property
    def mobiles(self) -> list[str]:
        """The numbers that reached it."""
        return [attempt.mobile for attempt in self.record.attempts]


@pytest.fixture
async def gateway() -> AsyncIterator[Served]:
    record = SandboxGateway()
    async with record.serve() as url:
        yield Served(record, url)


@pytest.fixture(autouse=True)
def _no_last_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing a store does not retry what can never be recorded."""
    monkeypatch.setattr("ihuyi_voice.store.writer.bounds.LAST_RETRIES", 0.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "voice.db"


@pytest.fixture
def store(path: Path, clock: Clock) -> Iterator[SqlStore]:
    with open_store(path, clock=clock) as opened:
        yield opened


def client(url: str, store: Store | None, **options: Any) -> AsyncVoiceClient:
    return AsyncVoiceClient("sandbox", "sandbox-key", base_url=url, store=store, **options)


async def wait_of(voice: AsyncVoiceClient, key: str | None = None) -> float:
    """The seconds until the number may be called again, by the error of a submit."""
    with pytest.raises(QuotaExceededError) as limited:
        await voice.submit(MOBILE, CODE, idempotency_key=key)
    assert not limited.value.may_have_rung
    return limited.value.retry_after


def state(store: SqlStore, key: str) -> EntryState | None:
    return store.known([key]).get(key)


# --- limits --------------------------------------------------------------------


async def test_the_default_limits_are_kept_in_the_store(
    gateway: Served, store: SqlStore, clock: Clock
) -> None:
    async with client(gateway.url, store) as voice:
        for _ in range(2):
            await voice.submit(MOBILE, CODE)
        assert MINUTE == await wait_of(voice)
        # By the store's clock, not by this process's.
        clock.time += MINUTE
        await voice.submit(MOBILE, CODE)
    assert [MOBILE] * 3 == gateway.mobiles


async def test_two_clients_of_one_store_share_the_limits(gateway: Served, store: SqlStore) -> None:
    async with client(gateway.url, store) as one, client(gateway.url, store) as other:
        await one.submit(MOBILE, CODE)
        await other.submit(MOBILE, CODE)
        assert [MINUTE] * 2 == [await wait_of(voice) for voice in (one, other)]
        await one.submit(OTHER, CODE)
    assert [MOBILE, MOBILE, OTHER] == gateway.mobiles


async def test_a_client_that_comes_later_knows_the_calls(gateway: Served, path: Path) -> None:
    for _ in range(2):
        with open_store(path) as store:
            async with client(gateway.url, store) as voice:
                await voice.submit(MOBILE, CODE)
    with open_store(path) as store:
        async with client(gateway.url, store) as voice:
            assert 0.0 < await wait_of(voice) <= MINUTE


def test_both_clients_share_the_limits(path: Path) -> None:
    record = SandboxGateway()

    async def one_more(url: str, store: Store) -> None:
        async with client(url, store) as voice:
            await voice.submit(MOBILE, CODE)
            await wait_of(voice)

    with record.serve_in_thread() as url, open_store(path) as store:
        with VoiceClient("sandbox", "sandbox-key", base_url=url, store=store) as voice:
            voice.submit(MOBILE, CODE)
        asyncio.run(one_more(url, store))
    assert 2 == len(record.attempts)


async def test_calls_with_and_without_keys_count_together(gateway: Served, store: SqlStore) -> None:
    async with client(gateway.url, store) as voice:
        await voice.submit(MOBILE, CODE, idempotency_key="a")
        await voice.submit(MOBILE, CODE)
        for key in (None, "b"):
            assert MINUTE == await wait_of(voice, key)
        # It is known, so it needs no place.
        assert (await voice.submit(MOBILE, CODE, idempotency_key="a")).replayed
    assert [MOBILE] * 2 == gateway.mobiles


async def test_a_key_that_was_limited_is_free(
    gateway: Served, store: SqlStore, clock: Clock
) -> None:
    quota = RecipientQuota(per_minute=1, per_day=None)
    async with client(gateway.url, store, quota=quota) as voice:
        await voice.submit(MOBILE, CODE)
        await wait_of(voice, "k")
        assert state(store, "k") in (None, EntryState.NOT_SENT)
        clock.time += MINUTE
        assert not (await voice.submit(MOBILE, CODE, idempotency_key="k")).replayed
    assert EntryState.ACCEPTED is state(store, "k")


@pytest.mark.parametrize("key", [None, "k"])
async def test_what_was_not_sent_gives_its_place_back(
    gateway: Served, store: SqlStore, key: str | None
) -> None:
    quota = RecipientQuota(per_minute=1, per_day=None)
    async with client(NOWHERE, store, quota=quota, connect_attempts=1) as unreachable:
        for _ in range(3):
            with pytest.raises(NotSentError):
                await unreachable.submit(MOBILE, CODE, idempotency_key=key)
    async with client(gateway.url, store, quota=quota) as voice:
        await voice.submit(MOBILE, CODE, idempotency_key=key)
        assert MINUTE == await wait_of(voice)
    assert [MOBILE] == gateway.mobiles


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_submit_that_is_cancelled_before_the_write_gives_its_place_back(
    gateway: Served, store: SqlStore, key: str | None
) -> None:
    quota = RecipientQuota(per_minute=1, per_day=None)
    async with client(gateway.url, store, quota=quota, max_connections=1) as voice:
        slots = slots_of(voice)
        slots.acquire_nowait()
        task = asyncio.create_task(voice.submit(MOBILE, CODE, idempotency_key=key))
        while not slots.statistics().tasks_waiting:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        slots.release()
        assert [] == gateway.mobiles
        await voice.submit(MOBILE, CODE, idempotency_key=key)
        assert MINUTE == await wait_of(voice)
    assert [MOBILE] == gateway.mobiles


async def test_a_refused_call_counts(gateway: Served, store: SqlStore) -> None:
    gateway.record.blacklist |= {MOBILE}
    quota = RecipientQuota(per_minute=1, per_day=None)
    async with client(gateway.url, store, quota=quota) as voice:
        with pytest.raises(Exception, match="4030"):
            await voice.submit(MOBILE, CODE)
        assert MINUTE == await wait_of(voice)


async def test_five_an_hour(gateway: Served, store: SqlStore, clock: Clock) -> None:
    quota = RecipientQuota(per_hour=5)
    async with client(gateway.url, store, quota=quota) as voice:
        for _ in range(5):
            await voice.submit(MOBILE, CODE)
            clock.time += MINUTE
        assert HOUR - 5 * MINUTE == await wait_of(voice)
        clock.time += HOUR - 5 * MINUTE
        await voice.submit(MOBILE, CODE)
    assert 6 == len(gateway.mobiles)


async def test_each_client_has_limits_of_its_own(gateway: Served, store: SqlStore) -> None:
    """They count the same calls."""
    strict = RecipientQuota(per_minute=1, per_day=None)
    async with client(gateway.url, store, quota=strict) as one, client(gateway.url, store) as other:
        await other.submit(MOBILE, CODE)
        assert MINUTE == await wait_of(one)
        await other.submit(MOBILE, CODE)
        assert MINUTE == await wait_of(other)


async def test_without_a_quota_the_store_limits_nothing(gateway: Served, store: SqlStore) -> None:
    async with client(gateway.url, store, quota=None) as voice:
        for n in range(12):
            await voice.submit(MOBILE, CODE, idempotency_key=f"{n}" if n % 2 else None)
        assert (await voice.submit(MOBILE, CODE, idempotency_key="1")).replayed
    assert 12 == len(gateway.mobiles)
    assert 6 == store.summary()["accepted"]


async def test_a_quota_with_its_own_store_stays_there(gateway: Served, store: SqlStore) -> None:
    class Recording:
        def __init__(self) -> None:
            self.asked: list[str] = []

        async def reserve(self, number: str, token: str, windows: object) -> float:
            self.asked.append(number)
            return 0.0

        async def release(self, number: str, token: str) -> None:
            """Never asked."""

    own = Recording()
    async with client(gateway.url, store, quota=RecipientQuota(store=own)) as voice:
        for key in (None, "k", None):
            await voice.submit(MOBILE, CODE, idempotency_key=key)
    assert [MOBILE] * 3 == own.asked


@BOTH_CLIENTS
def test_a_quota_with_its_own_clock_is_refused(kind: Any, store: SqlStore) -> None:
    quota = RecipientQuota(clock=time.monotonic)
    with pytest.raises(ValueError, match="with a store the store's clock decides"):
        kind("sandbox", "sandbox-key", store=store, quota=quota)
    kind("sandbox", "sandbox-key", quota=quota)


# --- keys ----------------------------------------------------------------------


class Keyless(Store):
    """A store that keeps limits alone, as Redis does."""

    def __init__(self, limits: SqlStore) -> None:
        self._limits = limits

    @property
    def place(self) -> str:
        return "redis://host/0"

    @property
    def limits(self) -> SqlStore:
        return self._limits

    def close(self) -> None:
        raise NotImplementedError  # pragma: no cover - never called

    unknown = resolve = summary = purge = close  # type: ignore[assignment]
    verifications = property(close)


async def test_a_key_without_a_store_is_refused(gateway: Served) -> None:
    async with client(gateway.url, None) as voice:
        with pytest.raises(InvalidRequestError, match=r"pass store=Store\.open\(\.\.\.\)"):
            await voice.submit(MOBILE, CODE, idempotency_key="k")
    assert [] == gateway.mobiles


async def test_a_key_is_refused_where_the_store_keeps_none(
    gateway: Served, store: SqlStore
) -> None:
    words = r"cannot be kept in redis://host/0: a key must survive a crash.* no phone rang$"
    async with client(gateway.url, Keyless(store)) as voice:
        with pytest.raises(InvalidRequestError, match=words):
            await voice.submit(MOBILE, CODE, idempotency_key="k")
        assert [] == gateway.mobiles
        for _ in range(2):
            await voice.submit(MOBILE, CODE)
        await wait_of(voice)


@BOTH_CLIENTS
def test_keys_are_required_only_where_they_can_be_kept(kind: Any, store: SqlStore) -> None:
    for without in (None, Keyless(store)):
        with pytest.raises(ValueError, match="require_key=True needs a store that keeps keys"):
            kind("sandbox", "sandbox-key", store=without, require_key=True)
    kind("sandbox", "sandbox-key", store=store, require_key=True)


async def test_a_required_key_is_missing(gateway: Served, store: SqlStore) -> None:
    async with client(gateway.url, store, require_key=True) as voice:
        with pytest.raises(InvalidRequestError, match=r"has no idempotency_key.* no phone rang$"):
            await voice.submit(MOBILE, CODE)
        await voice.submit(MOBILE, CODE, idempotency_key="k")
    assert [MOBILE] == gateway.mobiles


# --- the environment and ownership ------------------------------------------------


@pytest.fixture
def named(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that the environment names, beside the account."""
    monkeypatch.setenv("IHUYI_VOICE_API_ID", "sandbox")
    monkeypatch.setenv("IHUYI_VOICE_API_KEY", "sandbox-key")
    monkeypatch.setenv("IHUYI_VOICE_STORE", str(path))
    return path


def is_there(path: Path) -> bool:
    return path.exists()


def remembered(monkeypatch: pytest.MonkeyPatch) -> list[Store]:
    """Fills with the stores that are opened from now on."""
    opened: list[Store] = []
    open_it = Store.open

    def remember(*arguments: Any, **options: Any) -> Store:
        opened.append(open_it(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(Store, "open", remember)
    return opened


def is_closed(store: Store) -> bool:
    try:
        store.summary()
    except RuntimeError:
        return True
    return False


async def close(voice: AsyncVoiceClient | VoiceClient) -> None:
    if isinstance(voice, VoiceClient):
        await asyncio.to_thread(voice.close)
    else:
        await voice.aclose()


@BOTH_CLIENTS
@pytest.mark.parametrize("used", [False, True])
async def test_a_store_that_the_environment_names_is_closed_with_the_client(
    kind: Any, used: bool, named: Path, gateway: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = remembered(monkeypatch)
    voice = kind.from_env(base_url=gateway.url)
    (store,) = opened
    assert not is_closed(store)
    if used and kind is AsyncVoiceClient:
        await voice.submit(MOBILE, CODE, idempotency_key="k")
    elif used:
        await asyncio.to_thread(voice.submit, MOBILE, CODE, idempotency_key="k")
    await close(voice)
    assert is_closed(store)
    await close(voice)
    with open_store(named, create=False) as again:
        assert int(used) == again.summary()["accepted"]


@BOTH_CLIENTS
async def test_a_store_that_is_passed_in_stays_open(
    kind: Any, named: Path, gateway: Served, tmp_path: Path
) -> None:
    with open_store(tmp_path / "own.db") as own:
        for make in (kind.from_env, lambda **options: kind("sandbox", "sandbox-key", **options)):
            await close(make(store=own, base_url=gateway.url))
            assert not is_closed(own)
    assert not is_there(named)


@BOTH_CLIENTS
async def test_no_store_wins_over_the_environment(kind: Any, named: Path) -> None:
    await close(kind.from_env(store=None))
    assert not is_there(named)


@BOTH_CLIENTS
async def test_an_empty_variable_names_no_store(
    kind: Any, named: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IHUYI_VOICE_STORE", "")
    await close(kind.from_env())
    assert not is_there(named)


@BOTH_CLIENTS
def test_a_client_that_is_not_made_closes_the_store(
    kind: Any, named: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = remembered(monkeypatch)
    with pytest.raises(ValueError, match="timeout"):
        kind.from_env(timeout=-1.0)
    assert [True] == [is_closed(store) for store in opened]


@BOTH_CLIENTS
def test_a_store_that_cannot_be_opened(
    kind: Any, named: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IHUYI_VOICE_STORE", str(tmp_path))
    with pytest.raises(StoreError, match="is a folder"):
        kind.from_env()
    monkeypatch.setenv("IHUYI_VOICE_STORE", "ftp://host/store")
    with pytest.raises(ValueError, match="a store is the path of an SQLite file, or a URL"):
        kind.from_env()


# --- bulk runs -----------------------------------------------------------------


def rows(keyed: bool, *numbers: str) -> list[SubmitRequest]:
    return [
        SubmitRequest(number, CODE, f"row {n}" if keyed else None)
        for n, number in enumerate(numbers)
    ]


async def outcomes(voice: AsyncVoiceClient, *args: Any, **options: Any) -> list[Outcome]:
    async with voice.submit_many(*args, stop_on=None, **options) as run:
        made = [outcome async for outcome in run]
    return sorted(made, key=lambda outcome: outcome.index)


@pytest.mark.parametrize("keyed", [False, True])
async def test_rows_over_the_limit_are_limited(
    gateway: Served, store: SqlStore, keyed: bool
) -> None:
    async with client(gateway.url, store) as voice:
        made = await outcomes(voice, rows(keyed, MOBILE, MOBILE, MOBILE, OTHER), concurrency=1)
        assert [S.ACCEPTED, S.ACCEPTED, S.LIMITED, S.ACCEPTED] == [one.status for one in made]
        limited = made[2].error
        assert isinstance(limited, QuotaExceededError)
        assert MINUTE == limited.retry_after
        # The run counts for others too.
        await wait_of(voice)
    assert 3 == len(gateway.mobiles)


@pytest.mark.parametrize("keyed", [False, True])
async def test_rows_over_the_limit_wait_for_it(gateway: Served, path: Path, keyed: bool) -> None:
    quota = RecipientQuota(per_minute=1, per_day=None)
    quota.windows = ((1, 0.3),)
    with open_store(path) as store:
        async with client(gateway.url, store, quota=quota) as voice:
            made = await outcomes(
                voice, rows(keyed, MOBILE, MOBILE, OTHER, MOBILE), wait_for_quota=True
            )
    assert [S.ACCEPTED] * 4 == [one.status for one in made]
    assert [MOBILE, MOBILE, MOBILE, OTHER] == sorted(gateway.mobiles, reverse=True)
    times = [attempt.time for attempt in gateway.record.attempts if attempt.mobile == MOBILE]
    assert times[-1] - times[0] >= 2 * 0.3 * 0.9


@pytest.mark.parametrize("keyed", [False, True])
async def test_a_run_without_limits(gateway: Served, store: SqlStore, keyed: bool) -> None:
    async with client(gateway.url, store, quota=None) as voice:
        made = await outcomes(voice, rows(keyed, *[MOBILE] * 20))
    assert {S.ACCEPTED} == {one.status for one in made}
    assert 20 == len(gateway.mobiles)


# --- a store that fails ----------------------------------------------------------


@pytest.mark.parametrize("keyed", [False, True])
async def test_a_store_that_fails_lets_nothing_through(
    gateway: Served, store: SqlStore, path: Path, keyed: bool
) -> None:
    async with client(gateway.url, store) as voice:
        await voice.submit(OTHER, CODE)
        os.unlink(path)  # noqa: PTH108
        with pytest.raises(StoreError, match="no phone rang") as failed:
            await voice.submit(MOBILE, CODE, idempotency_key="k" if keyed else None)
        assert isinstance(failed.value, NotSentError)
        assert not failed.value.may_have_rung
        assert path.name in str(failed.value)
        made = await outcomes(voice, rows(keyed, MOBILE, OTHER))
    assert [S.NOT_SENT] * 2 == [one.status for one in made]
    assert all(isinstance(one.error, StoreError) for one in made)
    assert [OTHER] == gateway.mobiles


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_closed_store(gateway: Served, store: SqlStore, key: str | None) -> None:
    async with client(gateway.url, store) as voice:
        store.close()
        with pytest.raises(RuntimeError, match="this store is closed"):
            await voice.submit(MOBILE, CODE, idempotency_key=key)
    assert [] == gateway.mobiles


async def test_the_store_has_until_the_deadline_of_the_request(
    gateway: Served, store: SqlStore
) -> None:
    async with client(gateway.url, store, timeout=0.05) as voice:
        with writer_of(store).at_work:
            for key in (None, "k"):
                with pytest.raises(StoreError, match="did not answer in time"):
                    await voice.submit(MOBILE, CODE, idempotency_key=key)
    assert [] == gateway.mobiles


# --- rows and requests without keys -------------------------------------------------


async def test_rows_without_keys_wait_for_the_rate_and_share_the_limit(
    gateway: Served, store: SqlStore
) -> None:
    async with (
        client(gateway.url, store) as voice,
        voice.submit_many([(MOBILE, CODE)] * 3, rate=1000.0) as run,
    ):
        report = await run.finish()
    assert (2, 1) == (report.counts[OutcomeStatus.ACCEPTED], report.counts[OutcomeStatus.LIMITED])


class KeepingLimits:
    """Limits that give nothing back."""

    async def reserve(self, number: str, token: str, windows: object, *, deadline: float) -> float:
        return 0.0

    async def release(self, number: str, token: str) -> None:
        msg = "down"
        raise StoreError(msg)


async def test_a_place_that_is_not_given_back_is_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Keyless(cast("SqlStore", KeepingLimits()))
    async with client("http://127.0.0.1:1", store, connect_attempts=1) as voice:
        with pytest.raises(NotSentError):
            await voice.submit(MOBILE, CODE)
    assert "the store has not given its place in the limit back" in caplog.text
    assert MOBILE not in caplog.text
