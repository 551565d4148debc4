"""Misuse of both clients raises a clear error, and the server receives nothing."""

from __future__ import annotations

import asyncio
import inspect
import re
from contextlib import closing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from ihuyi_voice import (
    AsyncVoiceClient,
    Balance,
    InvalidRequestError,
    RecipientQuota,
    VoiceClient,
)
from ihuyi_voice.sandbox import SandboxGateway
from tests.rogue import ACCEPTED, Connection, Rogue, http_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

MOBILE = "13912345678"

CLOSED = "this client is closed: make a new one"
OTHER_LOOP = (
    "this client belongs to another event loop, the one it was first used in:"
    " make one client per loop, or use VoiceClient, which brings its own"
)
NO_LOOP = (
    "AsyncVoiceClient runs on asyncio and no asyncio event loop is running here: use"
    " asyncio.run(...), or VoiceClient for blocking code; under trio use VoiceClient in a thread"
)

USES: dict[str, Callable[[AsyncVoiceClient], Coroutine[Any, Any, object]]] = {
    "submit": lambda voice: voice.submit(MOBILE, "1125"),
    "query_balance": lambda voice: voice.query_balance(),
    "async with": lambda voice: voice.__aenter__(),
}

every_use = pytest.mark.parametrize("use", USES.values(), ids=USES.keys())


async def answer_accepted(connection: Connection) -> None:
    while await connection.read_request():
        await connection.send(http_answer(ACCEPTED))


@pytest.fixture
def gateway() -> SandboxGateway:
    return SandboxGateway()


@pytest.fixture
def url(gateway: SandboxGateway) -> Iterator[str]:
    with gateway.serve_in_thread() as url:
        yield url


# --- closed ------------------------------------------------------------------


@every_use
async def test_a_use_after_close_raises(
    use: Callable[[AsyncVoiceClient], Coroutine[Any, Any, object]],
) -> None:
    rogue = Rogue(answer_accepted)
    async with rogue.running():
        async with AsyncVoiceClient("id", "key", base_url=rogue.url) as voice:
            pass
        with pytest.raises(RuntimeError, match=f"^{CLOSED}$"):
            await use(voice)
    assert rogue.connections == 0


@every_use
async def test_a_use_after_close_of_an_unused_client_raises(
    use: Callable[[AsyncVoiceClient], Coroutine[Any, Any, object]],
) -> None:
    voice = AsyncVoiceClient("id", "key")
    await voice.aclose()
    with pytest.raises(RuntimeError, match=f"^{CLOSED}$"):
        await use(voice)


async def test_closing_twice_does_no_harm() -> None:
    rogue = Rogue(answer_accepted)
    async with rogue.running(), AsyncVoiceClient("id", "key", base_url=rogue.url) as voice:
        await voice.submit(MOBILE, "1125")
        await voice.aclose()
        await voice.aclose()
    assert f"<AsyncVoiceClient {rogue.url} closed>" == repr(voice)


async def test_close_closes_the_connection() -> None:
    async def answer_until_hung_up(connection: Connection) -> None:
        await answer_accepted(connection)
        hung_up.set()

    hung_up = asyncio.Event()
    rogue = Rogue(answer_until_hung_up)
    async with rogue.running():
        async with AsyncVoiceClient("id", "key", base_url=rogue.url) as voice:
            await voice.submit(MOBILE, "1125")
            assert not hung_up.is_set()
        await asyncio.wait_for(hung_up.wait(), 5.0)


# --- loops -------------------------------------------------------------------


def test_use_and_close_in_a_second_event_loop_raise(url: str, gateway: SandboxGateway) -> None:
    voice = AsyncVoiceClient("sandbox", "sandbox-key", base_url=url)
    first = asyncio.new_event_loop()
    try:
        first.run_until_complete(voice.submit(MOBILE, "1125"))
        for use in (*USES.values(), AsyncVoiceClient.aclose):
            with pytest.raises(RuntimeError, match=f"^{re.escape(OTHER_LOOP)}$"):
                asyncio.run(use(voice))
        # The client is unchanged: still open, and usable in its own loop.
        assert f"<AsyncVoiceClient {url} open>" == repr(voice)
        assert Balance(999, "查询成功") == first.run_until_complete(voice.query_balance())
        first.run_until_complete(voice.aclose())
        # A closed client can be closed again in any loop.
        asyncio.run(voice.aclose())
    finally:
        first.close()
    assert [MOBILE] == [attempt.mobile for attempt in gateway.attempts]


def test_a_client_created_outside_a_loop_works_later(url: str, gateway: SandboxGateway) -> None:
    voice = AsyncVoiceClient("sandbox", "sandbox-key", base_url=url)

    async def use() -> str:
        try:
            return (await voice.submit(MOBILE, "1125")).mobile
        finally:
            await voice.aclose()

    assert MOBILE == asyncio.run(use())
    assert 1 == len(gateway.calls)


@every_use
def test_a_use_under_trio_raises(
    use: Callable[[AsyncVoiceClient], Coroutine[Any, Any, object]],
) -> None:
    trio = pytest.importorskip("trio", reason="trio is not installed")
    voice = AsyncVoiceClient("id", "key")
    with pytest.raises(RuntimeError, match=f"^{re.escape(NO_LOOP)}$"):
        trio.run(use, voice)


@every_use
def test_a_use_outside_a_loop_raises(
    use: Callable[[AsyncVoiceClient], Coroutine[Any, Any, object]],
) -> None:
    voice = AsyncVoiceClient("id", "key")
    with pytest.raises(RuntimeError, match=f"^{re.escape(NO_LOOP)}$"):
        use(voice).send(None)
    assert "<AsyncVoiceClient https://api.voice.ihuyi.com not yet used>" == repr(voice)


def test_an_unused_client_can_be_closed_without_a_loop() -> None:
    voice = AsyncVoiceClient("id", "key")
    with pytest.raises(StopIteration):
        voice.aclose().send(None)
    assert "<AsyncVoiceClient https://api.voice.ihuyi.com closed>" == repr(voice)


def test_the_error_names_the_subclass() -> None:
    class Ours(AsyncVoiceClient):
        pass

    with pytest.raises(RuntimeError, match=r"^Ours runs on asyncio and "):
        Ours("id", "key").submit(MOBILE, "1125").send(None)


async def test_the_blocking_client_raises_inside_a_running_loop() -> None:
    rogue = Rogue(answer_accepted)
    async with rogue.running():
        voice = VoiceClient("id", "key", base_url=rogue.url)
        for use in (lambda: voice.submit(MOBILE, "1125"), voice.query_balance, voice.__enter__):
            with pytest.raises(RuntimeError, match="allow_running_loop=True"):
                use()
        voice.close()
    assert 0 == rogue.connections
    assert f"<VoiceClient {rogue.url} closed>" == repr(voice)


def test_a_use_of_the_blocking_client_after_close_raises(url: str, gateway: SandboxGateway) -> None:
    with VoiceClient("sandbox", "sandbox-key", base_url=url) as voice:
        assert f"<VoiceClient {url} not yet used>" == repr(voice)
        voice.submit(MOBILE, "1125")
        assert f"<VoiceClient {url} open>" == repr(voice)
    voice.close()
    for use in (lambda: voice.submit(MOBILE, "1126"), voice.query_balance, voice.__enter__):
        with pytest.raises(RuntimeError, match=f"^{CLOSED}$"):
            use()
    assert ["1125"] == [attempt.content for attempt in gateway.attempts]


def test_the_blocking_client_is_closed_by_another_thread_just_before_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    voice = VoiceClient("id", "key")

    def close() -> None:
        voice.close()
        raise RuntimeError

    # The last that a call looks at before it uses the thread.
    monkeypatch.setattr("ihuyi_voice.sync.client.asyncio", SimpleNamespace(get_running_loop=close))
    with pytest.raises(RuntimeError, match=f"^{CLOSED}$"):
        voice.query_balance()


# --- arguments ---------------------------------------------------------------

INVALID: dict[str, tuple[object, object, str]] = {
    # name: (mobile, content, words in the error)
    "int content": (MOBILE, 1125, "an int loses leading zeros, write '0042' in quotes"),
    "bytes content": (MOBILE, b"1125", "content must be a str of 4-6 digits, not bytes"),
    "no content": (MOBILE, None, "content must be a str of 4-6 digits, not NoneType"),
    "full-width content": (MOBILE, "１１２５", "digits that are not ASCII: write them as 0-9"),
    "long content": (MOBILE, "1234567", "content must be a str of 4-6 digits; it has 7"),
    "full-width mobile": (
        "１３９１２３４５６７８", "1125", "digits that are not ASCII: write them as 0-9"
    ),
    "int mobile": (13912345678, "1125", "mobile must be a str with one number, not int"),
    "a number list": ([MOBILE, "13812345678"], "1125", "not list; submit once per number"),
    "a number list as text": (
        f"{MOBILE},13812345678", "1125", "it looks like several numbers: submit once per number"
    ),
    "a landline": ("01012345678", "1125", "its first two digits are not those of a mobile"),
    "foreign": ("+14155550100", "1125", "its country code is not 86"),
}  # fmt: skip


@pytest.mark.parametrize(("mobile", "content", "words"), INVALID.values(), ids=INVALID.keys())
async def test_a_bad_argument_is_refused_before_the_quota_and_the_send(
    mobile: str, content: str, words: str
) -> None:
    rogue = Rogue(answer_accepted)
    quota = RecipientQuota(per_minute=1, per_day=1)
    async with rogue.running():
        async with AsyncVoiceClient("id", "key", base_url=rogue.url, quota=quota) as voice:
            with pytest.raises(InvalidRequestError, match=re.escape(words)) as caught:
                await voice.submit(mobile, content)
        with (
            closing(VoiceClient("id", "key", base_url=rogue.url, quota=quota)) as blocking,
            pytest.raises(InvalidRequestError, match=re.escape(words)),
        ):
            await asyncio.to_thread(blocking.submit, mobile, content)
        # The quota did not count it.
        await quota.reserve(MOBILE)
    assert (False, 0) == (caught.value.may_have_rung, rogue.connections)
    assert isinstance(caught.value, ValueError)


async def test_an_idempotency_key_without_a_store_is_an_error_and_nothing_is_sent() -> None:
    words = "^idempotency_key needs a store that remembers it, and this client has none: pass"
    rogue = Rogue(answer_accepted)
    async with rogue.running():
        async with AsyncVoiceClient("id", "key", base_url=rogue.url) as voice:
            for key in ("order-17", ""):
                with pytest.raises(InvalidRequestError, match=words):
                    await voice.submit(MOBILE, "1125", idempotency_key=key)
        with (
            closing(VoiceClient("id", "key", base_url=rogue.url)) as blocking,
            pytest.raises(InvalidRequestError, match=words),
        ):
            await asyncio.to_thread(blocking.submit, MOBILE, "1125", idempotency_key="order-17")
    assert 0 == rogue.connections


BAD_SETTINGS: dict[str, tuple[dict[str, object], type[Exception], str]] = {
    # By name: the options, the exception, and words in it.
    "no connections": ({"max_connections": 0}, ValueError, "max_connections must be at least 1"),
    "half a connection": ({"max_connections": 0.5}, TypeError, "max_connections must be an int"),
    "no attempts": ({"connect_attempts": 0}, ValueError, "connect_attempts must be at least 1"),
    "no time": ({"timeout": 0}, ValueError, "timeout must be a finite number of seconds above 0"),
    "no end": ({"timeout": float("inf")}, ValueError, "timeout must be a finite number"),
    "text": ({"connect_timeout": "5"}, TypeError, "connect_timeout is in seconds"),
    "a path": (
        {"base_url": "http://127.0.0.1/webservice/voice.php"},
        ValueError,
        "base_url must be scheme and host alone, without a path or query",
    ),
    "a query": ({"base_url": "http://127.0.0.1?method=Submit"}, ValueError, "without a path or"),
    "a path and a query": ({"base_url": "http://127.0.0.1/a?b=c"}, ValueError, "without a path or"),
    "a fragment": ({"base_url": "http://127.0.0.1#x"}, ValueError, "without a path or query"),
    "no scheme": ({"base_url": "api.voice.ihuyi.com"}, ValueError, "base_url must be http(s)://"),
    "a user": ({"base_url": "http://me:pa55@127.0.0.1"}, ValueError, "must not hold a user name"),
    "a format": ({"answer_format": "yaml"}, ValueError, "answer_format must be 'json' or 'xml'"),
    "a proxy": ({"proxy": "socks5://user:pa55@127.0.0.1"}, ValueError, "proxy must be http(s)://"),
    "an id": ({"api_id": ""}, ValueError, "api_id is empty"),
    "a key": ({"api_key": " pa55 "}, ValueError, "api_key is empty or has blanks around it"),
    "no key": ({"api_key": None}, TypeError, "api_key must be a str, not NoneType"),
}


@pytest.mark.parametrize("make", [AsyncVoiceClient, VoiceClient])
@pytest.mark.parametrize(
    ("options", "exception", "words"), BAD_SETTINGS.values(), ids=BAD_SETTINGS.keys()
)
def test_the_error_for_a_bad_setting_names_it(
    make: type[AsyncVoiceClient | VoiceClient],
    options: dict[str, object],
    exception: type[Exception],
    words: str,
) -> None:
    arguments = {"api_id": "id", "api_key": "key", **options}
    with pytest.raises(exception, match=re.escape(words)) as caught:
        make(**cast("Any", arguments))
    assert "pa55" not in str(caught.value)


async def test_a_base_url_may_have_a_slash_and_a_port() -> None:
    rogue = Rogue(answer_accepted)
    async with (
        rogue.running(),
        AsyncVoiceClient("id", "key", base_url=rogue.url + "/") as voice,
    ):
        await voice.submit(MOBILE, "1125")
    assert rogue.url == voice.base_url
    assert b"POST /webservice/voice.php?method=Submit " in rogue.requests[0]


# --- the environment ---------------------------------------------------------


@pytest.mark.parametrize("make", [AsyncVoiceClient, VoiceClient])
@pytest.mark.parametrize(
    ("missing", "option"),
    [("IHUYI_VOICE_API_ID", "api_id"), ("IHUYI_VOICE_API_KEY", "api_key")],
)
@pytest.mark.parametrize("value", [None, ""])
def test_from_env_names_the_variable_that_is_missing(
    make: type[AsyncVoiceClient | VoiceClient],
    missing: str,
    option: str,
    value: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IHUYI_VOICE_API_ID", "id")
    monkeypatch.setenv("IHUYI_VOICE_API_KEY", "key-of-the-environment")
    if value is None:
        monkeypatch.delenv(missing)
    else:
        monkeypatch.setenv(missing, value)
    words = rf"^set the environment variable {missing}, or pass {option}=\.\.\.$"
    with pytest.raises(ValueError, match=words):
        make.from_env()
    assert isinstance(make.from_env(**cast("Any", {option: "given"})), make)


async def test_from_env_reads_the_environment_and_arguments_override_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway = SandboxGateway(api_id="ours", api_key="our-key")
    async with gateway.serve() as url:
        monkeypatch.setenv("IHUYI_VOICE_API_ID", "ours")
        monkeypatch.setenv("IHUYI_VOICE_API_KEY", "our-key")
        monkeypatch.setenv("IHUYI_VOICE_BASE_URL", url)
        async with AsyncVoiceClient.from_env() as voice:
            assert 1000 == (await voice.query_balance()).remaining
        with closing(VoiceClient.from_env()) as blocking:
            assert 1000 == (await asyncio.to_thread(blocking.query_balance)).remaining
        monkeypatch.setenv("IHUYI_VOICE_BASE_URL", "http://127.0.0.1:1")
        monkeypatch.setenv("IHUYI_VOICE_API_KEY", "another-key")
        async with AsyncVoiceClient.from_env(base_url=url, api_key="our-key") as voice:
            assert 1000 == (await voice.query_balance()).remaining
    monkeypatch.delenv("IHUYI_VOICE_BASE_URL")
    assert "https://api.voice.ihuyi.com" == AsyncVoiceClient.from_env().base_url


# --- repr --------------------------------------------------------------------


async def test_the_repr_shows_the_url_and_the_state() -> None:
    rogue = Rogue(answer_accepted)
    async with rogue.running():
        voice = AsyncVoiceClient("id-of-ours", "key", base_url=rogue.url)
        assert f"<AsyncVoiceClient {rogue.url} not yet used>" == repr(voice)
        async with voice as entered:
            assert entered is voice
            assert f"<AsyncVoiceClient {rogue.url} open>" == repr(voice) == str(voice)
        assert f"<AsyncVoiceClient {rogue.url} closed>" == repr(voice)


def test_submit_and_query_balance_are_coroutines_only_in_the_asyncio_client() -> None:
    for name in ("submit", "query_balance"):
        assert inspect.iscoroutinefunction(getattr(AsyncVoiceClient, name))
        assert not inspect.iscoroutinefunction(getattr(VoiceClient, name))
