"""What each setting does, against the sandbox or a server that keeps what it receives."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import aiohttp
import pytest

from ihuyi_voice import (
    AsyncVoiceClient,
    AuthenticationError,
    NotSentError,
    QuotaExceededError,
    RecipientQuota,
    SubmitResult,
    VoiceClient,
)
from ihuyi_voice.sandbox import SandboxGateway
from tests.inside import QUICK, submit_that_waits_for_a_slot, within
from tests.rogue import ACCEPTED, Connection, Rogue, http_answer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ihuyi_voice.store.limits import Windows

MOBILE = "13912345678"
PLACED = SubmitResult("197362477", "ok", MOBILE)
BALANCE = b'{"code":2,"msg":"ok","num":7}'
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def sandbox_client(url: str, **options: object) -> AsyncVoiceClient:
    return AsyncVoiceClient("sandbox", "sandbox-key", base_url=url, **options)  # type: ignore[arg-type]


async def answer_accepted(connection: Connection) -> None:
    while request := await connection.read_request():
        await connection.send(http_answer(BALANCE if b"GetNum" in request else ACCEPTED))


def form(request: bytes) -> dict[str, list[str]]:
    """The fields of a request's body."""
    return parse_qs(request.partition(b"\r\n\r\n")[2].decode(), strict_parsing=True)


# --- password and format -----------------------------------------------------


@pytest.mark.parametrize("answer_format", ["json", "xml"])
@pytest.mark.parametrize("dynamic_password", [True, False])
async def test_each_password_works_with_each_answer_format(
    dynamic_password: bool, answer_format: str
) -> None:
    gateway = SandboxGateway()
    options = {"dynamic_password": dynamic_password, "answer_format": answer_format}
    async with gateway.serve() as url:
        async with sandbox_client(url, **options) as voice:
            result = await voice.submit(MOBILE, "0042")
            assert ("提交成功", MOBILE) == (result.msg, result.mobile)
            assert 999 == (await voice.query_balance()).remaining
        async with AsyncVoiceClient("sandbox", "wrong", base_url=url, **options) as voice:  # type: ignore[arg-type]
            with pytest.raises(AuthenticationError) as caught:
                await voice.submit(MOBILE, "0042")
    assert 405 == caught.value.code
    assert [("0042", result.voice_id)] == [(call.content, call.voice_id) for call in gateway.calls]


@pytest.mark.parametrize("answer_format", ["json", "xml"])
async def test_the_static_password_is_sent_as_it_is(answer_format: str) -> None:
    rogue = Rogue(answer_accepted)
    async with rogue.running():
        options = {"dynamic_password": False, "answer_format": answer_format}
        async with AsyncVoiceClient("me&you", "a+b=c", base_url=rogue.url, **options) as voice:  # type: ignore[arg-type]
            assert PLACED == await voice.submit(MOBILE, "0042")
            await voice.query_balance()
    account = {"account": ["me&you"], "password": ["a+b=c"], "format": [answer_format]}
    assert account | {"mobile": [MOBILE], "content": ["0042"]} == form(rogue.requests[0])
    assert account == form(rogue.requests[1])


# --- the clock ---------------------------------------------------------------


async def test_a_wrong_clock_is_refused_by_the_gateway_and_places_no_call() -> None:
    gateway = SandboxGateway()
    async with (
        gateway.serve() as url,
        sandbox_client(url, clock=lambda: time.time() - 3600.0) as voice,
    ):
        with pytest.raises(
            AuthenticationError, match=r"the local clock is 36\d\d s behind"
        ) as caught:
            await voice.submit(MOBILE, "1125")
    assert (405, False) == (caught.value.code, caught.value.may_have_rung)
    assert [] == gateway.calls


async def test_the_error_for_a_405_mentions_a_wrong_clock() -> None:
    now = 1_700_000_000.0
    gateway = SandboxGateway(clock=lambda: now)
    async with gateway.serve() as url:
        for clock, words in ((now - 3600.0, "3600 s behind"), (now + 61.0, "61 s ahead of")):
            async with AsyncVoiceClient(
                "sandbox",
                "wrong",
                base_url=url,
                clock=lambda at=clock: at,  # type: ignore[misc]
            ) as voice:
                with pytest.raises(AuthenticationError, match=words):
                    await voice.submit(MOBILE, "1125")


class BrokenClock:
    """Gives the time `good` times, then NaN."""

    def __init__(self, good: int) -> None:
        self.good = good

    def __call__(self) -> float:
        self.good -= 1
        return 1_700_000_000.0 if self.good >= 0 else float("nan")


async def test_a_clock_that_fails_before_the_send_means_not_sent() -> None:
    quota = RecipientQuota(per_minute=1, per_day=1)
    rogue = Rogue(answer_accepted)
    async with (
        rogue.running(),
        AsyncVoiceClient(
            "id", "key", base_url=rogue.url, clock=BrokenClock(0), quota=quota, max_connections=1
        ) as voice,
    ):
        for _ in range(2):
            with pytest.raises(NotSentError, match=r"exception \(ValueError\)") as caught:
                await voice.submit(MOBILE, "1125")
        assert isinstance(caught.value.__cause__, ValueError)
    assert 0 == rogue.connections


async def test_a_clock_that_fails_after_the_send_changes_no_outcome() -> None:
    rogue = Rogue(answer_accepted)
    async with (
        rogue.running(),
        AsyncVoiceClient("id", "key", base_url=rogue.url, clock=BrokenClock(1)) as voice,
    ):
        assert PLACED == await voice.submit(MOBILE, "1125")
    assert 1 == rogue.submits


async def test_a_balance_query_whose_clock_fails_is_not_sent() -> None:
    rogue = Rogue(answer_accepted)
    async with (
        rogue.running(),
        AsyncVoiceClient("id", "key", base_url=rogue.url, clock=BrokenClock(0)) as voice,
    ):
        with pytest.raises(NotSentError, match=r"exception \(ValueError\)") as caught:
            await voice.query_balance()
    assert isinstance(caught.value.__cause__, ValueError)
    assert 0 == rogue.connections


# --- the environment's proxy and netrc ---------------------------------------


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.usefixtures("no_proxies")
class TestProxy:
    @pytest.mark.parametrize("variable", ["http_proxy", "all_proxy"])
    async def test_env_uses_the_proxy_of_the_environment(
        self, variable: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        proxy = Rogue(answer_accepted)
        async with proxy.running():
            monkeypatch.setenv(variable, proxy.url.replace("//", "//user:pa55@"))
            async with AsyncVoiceClient(
                "id", "key", base_url="http://gateway.invalid", proxy="env"
            ) as voice:
                assert PLACED == await voice.submit(MOBILE, "1125")
            with closing(
                VoiceClient("id", "key", base_url="http://gateway.invalid", proxy="env")
            ) as blocking:
                assert PLACED == await asyncio.to_thread(blocking.submit, MOBILE, "1125")
        assert 2 == proxy.submits
        assert b"POST http://gateway.invalid/webservice/voice.php?" in proxy.requests[0]
        assert b"Proxy-Authorization: Basic dXNlcjpwYTU1\r\n" in proxy.requests[0]

    async def test_env_is_read_when_the_client_is_created(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        proxy, other = Rogue(answer_accepted), Rogue(answer_accepted)
        async with proxy.running(), other.running():
            monkeypatch.setenv("http_proxy", proxy.url)
            voice = AsyncVoiceClient("id", "key", base_url="http://gateway.invalid", proxy="env")
            monkeypatch.setenv("http_proxy", other.url)
            async with voice:
                await voice.submit(MOBILE, "1125")
        assert (1, 0) == (proxy.submits, other.connections)

    @pytest.mark.parametrize(
        "no_proxy", ["127.0.0.1", "127.0.0.1:{port}", "*", "elsewhere.example, 127.0.0.1"]
    )
    async def test_env_respects_no_proxy(
        self, no_proxy: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        proxy, gateway = Rogue(answer_accepted), Rogue(answer_accepted)
        async with proxy.running(), gateway.running():
            monkeypatch.setenv("http_proxy", proxy.url)
            monkeypatch.setenv("no_proxy", no_proxy.format(port=gateway.url.rpartition(":")[2]))
            async with AsyncVoiceClient("id", "key", base_url=gateway.url, proxy="env") as voice:
                assert PLACED == await voice.submit(MOBILE, "1125")
        assert (0, 1) == (proxy.connections, gateway.submits)

    async def test_env_without_a_proxy_for_the_scheme_connects_directly(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        proxy, gateway = Rogue(answer_accepted), Rogue(answer_accepted)
        async with proxy.running(), gateway.running():
            monkeypatch.setenv("https_proxy", proxy.url)
            async with AsyncVoiceClient("id", "key", base_url=gateway.url, proxy="env") as voice:
                assert PLACED == await voice.submit(MOBILE, "1125")
        assert (0, 1) == (proxy.connections, gateway.submits)

    async def test_the_environment_is_ignored_unless_asked_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        proxy, gateway = Rogue(answer_accepted), Rogue(answer_accepted)
        async with proxy.running(), gateway.running():
            for name in ("http_proxy", "https_proxy", "all_proxy"):
                monkeypatch.setenv(name, proxy.url)
                monkeypatch.setenv(name.upper(), proxy.url)
            async with AsyncVoiceClient("id", "key", base_url=gateway.url) as voice:
                assert PLACED == await voice.submit(MOBILE, "1125")
        assert (0, 1) == (proxy.connections, gateway.submits)

    def test_the_error_for_an_unusable_proxy_of_the_environment_hides_its_password(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("https_proxy", "socks5://user:pa55@127.0.0.1")
        with pytest.raises(ValueError, match=r"^proxy must be http\(s\)://") as caught:
            AsyncVoiceClient("id", "key", proxy="env")
        assert "pa55" not in str(caught.value)

    async def test_netrc_is_never_read(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1\nlogin user\npassword pa55\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
        rogue = Rogue(answer_accepted)
        async with rogue.running():
            async with AsyncVoiceClient("id", "key", base_url=rogue.url, proxy="env") as voice:
                await voice.submit(MOBILE, "1125")
            # The file is valid: a client that reads it sends the password.
            async with aiohttp.ClientSession(trust_env=True) as session:
                await (await session.post(rogue.url, data=b"-")).read()
        ours, theirs = rogue.requests
        assert b"\r\nauthorization:" not in ours.lower()
        assert b"\r\nauthorization: basic " in theirs.lower()


# --- connecting --------------------------------------------------------------


async def test_trace_configs_are_called_by_both_clients() -> None:
    events: list[str] = []

    def traced() -> aiohttp.TraceConfig:
        async def start(_: object, __: object, params: aiohttp.TraceRequestStartParams) -> None:
            events.append(f"{params.method} {params.url.path_qs}")

        async def end(_: object, __: object, params: aiohttp.TraceRequestEndParams) -> None:
            events.append(str(params.response.status))

        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(start)
        trace.on_request_end.append(end)
        return trace

    rogue = Rogue(answer_accepted)
    async with rogue.running():
        async with AsyncVoiceClient(
            "id", "key", base_url=rogue.url, trace_configs=[traced(), traced()]
        ) as voice:
            await voice.submit(MOBILE, "1125")
        submit = "POST /webservice/voice.php?method=Submit"
        assert [submit, submit, "200", "200"] == events
        events.clear()
        with closing(
            VoiceClient("id", "key", base_url=rogue.url, trace_configs=(traced(),))
        ) as blocking:
            await asyncio.to_thread(blocking.query_balance)
    assert ["POST /webservice/voice.php?method=GetNum", "200"] == events


@pytest.mark.parametrize("attempts", [1, 2, 4])
async def test_connecting_is_retried_and_then_the_call_is_placed_once(
    attempts: int,
) -> None:
    tried = 0

    async def fail_but_the_last(*_: object) -> None:
        nonlocal tried
        tried += 1
        if tried < attempts:
            raise OSError

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_start.append(fail_but_the_last)
    rogue = Rogue(answer_accepted)
    async with (
        rogue.running(),
        within(
            AsyncVoiceClient(
                "id", "key", base_url=rogue.url, trace_configs=[trace], connect_attempts=attempts
            ),
            QUICK,
        ) as voice,
    ):
        assert PLACED == await voice.submit(MOBILE, "1125")
    assert (attempts, 1) == (tried, rogue.submits)


# --- the quota ---------------------------------------------------------------


async def test_by_default_the_third_call_to_a_number_within_a_minute_is_limited() -> None:
    gateway = SandboxGateway()
    async with gateway.serve() as url, sandbox_client(url) as voice:
        for code in ("0001", "0002"):
            await voice.submit(MOBILE, code)
        with pytest.raises(QuotaExceededError) as caught:
            await voice.submit(f"+86 {MOBILE}", "0003")
        assert 59.0 < caught.value.retry_after <= 60.0
        assert not caught.value.may_have_rung
        assert "the limit of calls to 139****5678 is reached" in str(caught.value)
        # Another number is not limited.
        await voice.submit("13812345678", "0004")
    assert ["0001", "0002", "0004"] == [attempt.content for attempt in gateway.attempts]


async def test_the_blocking_client_has_the_same_quota() -> None:
    gateway = SandboxGateway()
    async with gateway.serve() as url:
        with closing(VoiceClient("sandbox", "sandbox-key", base_url=url)) as voice:
            for code in ("0001", "0002"):
                await asyncio.to_thread(voice.submit, MOBILE, code)
            with pytest.raises(QuotaExceededError):
                await asyncio.to_thread(voice.submit, MOBILE, "0003")
    assert 2 == len(gateway.attempts)


async def test_clients_share_a_given_quota_but_not_the_default_one() -> None:
    gateway = SandboxGateway()
    shared = RecipientQuota(per_minute=1)
    async with gateway.serve() as url:
        for code in ("0001", "0002", "0003"):
            async with sandbox_client(url) as voice:
                await voice.submit(MOBILE, code)
        async with sandbox_client(url, quota=shared) as voice:
            await voice.submit(MOBILE, "0004")
        async with sandbox_client(url, quota=shared) as voice:
            with pytest.raises(QuotaExceededError):
                await voice.submit(MOBILE, "0005")
    assert 4 == len(gateway.attempts)


async def test_without_a_quota_no_call_is_limited() -> None:
    gateway = SandboxGateway()
    async with gateway.serve() as url, sandbox_client(url, quota=None) as voice:
        for n in range(20):
            await voice.submit(MOBILE, f"{n:04d}")
    assert 20 == len(gateway.calls)


async def test_a_call_that_the_gateway_refuses_counts() -> None:
    gateway = SandboxGateway(failing_mobiles=[MOBILE])
    quota = RecipientQuota(per_minute=1)
    async with gateway.serve() as url, sandbox_client(url, quota=quota) as voice:
        with pytest.raises(Exception, match="submit failed"):
            await voice.submit(MOBILE, "1125")
        with pytest.raises(QuotaExceededError):
            await voice.submit(MOBILE, "1125")
    assert 1 == len(gateway.attempts)


class ListStore:
    """A user's own store, which a test can make fail."""

    def __init__(self, *, fail_reserve: bool = False, fail_release: bool = False) -> None:
        self.fail_reserve = fail_reserve
        self.fail_release = fail_release
        self.reserved: list[tuple[str, str]] = []
        self.asked: list[tuple[str, Windows]] = []

    async def reserve(self, number: str, token: str, windows: Windows) -> float:
        await asyncio.sleep(0)
        if self.fail_reserve:
            msg = "the store is down"
            raise ConnectionResetError(msg)
        self.asked.append((number, windows))
        if len(self.reserved) == 1:
            return 12.5
        self.reserved.append((number, token))
        return 0.0

    async def release(self, number: str, token: str) -> None:
        await asyncio.sleep(0)
        if self.fail_release:
            msg = "the store is down"
            raise ConnectionResetError(msg)
        self.reserved.remove((number, token))


async def test_a_store_of_another_author() -> None:
    store = ListStore()
    gateway = SandboxGateway()
    quota = RecipientQuota(1, None, store)
    async with gateway.serve() as url, sandbox_client(url, quota=quota) as voice:
        await voice.submit(MOBILE, "1125")
        with pytest.raises(QuotaExceededError) as caught:
            await voice.submit(MOBILE, "1125")
    assert 12.5 == caught.value.retry_after
    assert 2 * [(MOBILE, ((1, 60.0),))] == store.asked
    assert [MOBILE] == [number for number, _ in store.reserved]
    assert 1 == len(gateway.attempts)


async def test_a_quota_store_that_fails_before_the_send_means_not_sent() -> None:
    store = ListStore(fail_reserve=True)
    gateway = SandboxGateway()
    quota = RecipientQuota(store=store)
    async with gateway.serve() as url:
        async with sandbox_client(url, quota=quota) as voice:
            with pytest.raises(NotSentError) as caught:
                await voice.submit(MOBILE, "1125")
        with (
            closing(VoiceClient("sandbox", "sandbox-key", base_url=url, quota=quota)) as blocking,
            pytest.raises(NotSentError, match="ConnectionResetError"),
        ):
            await asyncio.to_thread(blocking.submit, MOBILE, "1125")
    assert (
        "not sent: the quota's store failed (ConnectionResetError); nothing was written,"
        " no phone rang, repeating is safe"
    ) == str(caught.value)
    assert "the store is down" == str(caught.value.__cause__)
    assert [] == gateway.attempts


async def test_a_quota_store_that_fails_to_release_does_not_change_the_outcome() -> None:
    store = ListStore(fail_release=True)
    async with AsyncVoiceClient(
        "id", "key", base_url="http://127.0.0.1:1", quota=RecipientQuota(store=store),
        connect_attempts=1,
    ) as voice:  # fmt: skip
        with pytest.raises(NotSentError, match="the connection could not be made") as caught:
            await voice.submit(MOBILE, "1125")
    assert not caught.value.may_have_rung
    # The slot is kept: better one call too few.
    assert 1 == len(store.reserved)


async def waiting_for_a_slot(voice: AsyncVoiceClient) -> asyncio.Task[SubmitResult]:
    """A submit that has reserved its quota and waits for a slot."""
    async with voice:
        return await submit_that_waits_for_a_slot(voice, MOBILE, "1125")


@pytest.mark.parametrize("fail_release", [False, True])
async def test_a_cancelled_wait_for_a_slot_releases_the_quota(fail_release: bool) -> None:
    store = ListStore(fail_release=fail_release)
    task = await waiting_for_a_slot(
        AsyncVoiceClient("id", "key", max_connections=1, quota=RecipientQuota(store=store))
    )
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert fail_release == bool(store.reserved)


# --- threads -----------------------------------------------------------------


def test_many_threads_of_one_blocking_client_share_its_quota() -> None:
    gateway = SandboxGateway()
    outcomes: list[str] = []

    def call(submit: Callable[[str, str], SubmitResult]) -> None:
        try:
            outcomes.append(submit(MOBILE, "1125").msg)
        except QuotaExceededError as error:
            outcomes.append(re.sub(r"[\d.]+ s$", "- s", str(error)))

    with (
        gateway.serve_in_thread() as url,
        VoiceClient(
            "sandbox", "sandbox-key", base_url=url, quota=RecipientQuota(per_minute=7)
        ) as voice,
    ):
        threads = [threading.Thread(target=call, args=(voice.submit,)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    limited = (
        "the limit of calls to 139****5678 is reached; nothing was sent, no phone rang;"
        " allowed again in - s"
    )
    assert 13 * [limited] + 7 * ["提交成功"] == sorted(outcomes)
    assert 7 == len(gateway.calls)
