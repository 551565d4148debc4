"""The public API as users write it: type-checked against the installed package, never run.

A line that must be refused carries a `type: ignore` with the code of the
error; strict mypy complains about one that is not needed.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, NewType

from typing_extensions import assert_never, assert_type

import ihuyi_voice
from ihuyi_voice import (
    AsyncBalanceWatch,
    AsyncVoiceClient,
    Balance,
    BalanceReading,
    BalanceWatch,
    GatewayError,
    IhuyiVoiceError,
    InvalidRequestError,
    LimitStore,
    NotSentError,
    OutcomeStatus,
    OutcomeUnknownError,
    QuotaExceededError,
    RecipientQuota,
    SubmitEvent,
    SubmitRequest,
    SubmitResult,
    VoiceClient,
    generate_code,
)
from ihuyi_voice.sandbox import Attempt, Call, Chaos, SandboxGateway

if TYPE_CHECKING:
    import aiohttp

    from ihuyi_voice.store.limits import Windows

assert_type(ihuyi_voice.__version__, str)
assert_type(generate_code(), str)
assert_type(generate_code(length=4), str)


# --- calls ------------------------------------------------------------------


async def place_a_call() -> None:
    async with AsyncVoiceClient("APIID", "APIKEY") as client:
        assert_type(client, AsyncVoiceClient)
        result = await client.submit("13912345678", generate_code())
        assert_type(result, SubmitResult)
        assert_type(result.voice_id, str | None)
        assert_type(result.msg, str)
        assert_type(result.mobile, str)
        assert_type(await client.query_balance(), Balance)
        await client.submit("13912345678", "1125", idempotency_key="order-7")

        await client.submit("13912345678", 1125)  # type: ignore[arg-type]
        await client.submit(13912345678, "1125")  # type: ignore[arg-type]
        await client.submit(["13912345678"], "1125")  # type: ignore[arg-type]
        await client.submit("13912345678")  # type: ignore[call-arg]
        await client.submit("13912345678", "1125", "order-7")  # type: ignore[call-arg]
        client.submit("13912345678", "1125")  # type: ignore[unused-coroutine]
        result.msg = "changed"  # type: ignore[misc]
    with AsyncVoiceClient("APIID", "APIKEY"):  # type: ignore[attr-defined]
        pass
    await client.aclose()


def count(event: SubmitEvent) -> None:
    assert_type(event.status, OutcomeStatus)
    assert_type(event.code, int | None)
    assert_type(event.voice_id, str | None)
    assert_type(event.key, str | None)
    assert_type(event.seconds, float)
    assert_type(event.attempts, int)
    event.seconds = 0.0  # type: ignore[misc]


def watch_what_happens() -> None:
    with VoiceClient("APIID", "APIKEY", on_event=[count]) as client:
        with BalanceWatch(client, below=500, every=300) as watch:
            assert_type(watch.reading, BalanceReading)
            assert_type(watch.reading.remaining, int | None)
        AsyncBalanceWatch(client, below=500, every=300)  # type: ignore[arg-type]
        BalanceWatch(client, below=500)  # type: ignore[call-arg]
    VoiceClient.from_env(on_event=[count, print])
    VoiceClient.from_env(on_event=[generate_code])  # type: ignore[list-item]


def place_a_call_blocking() -> None:
    with VoiceClient("APIID", "APIKEY", allow_running_loop=True) as client:
        assert_type(client, VoiceClient)
        assert_type(client.submit("13912345678", "1125"), SubmitResult)
        balance = client.query_balance()
        assert_type(balance.remaining, int)
        assert_type(balance.msg, str)

        client.submit("13912345678", 1125)  # type: ignore[arg-type]
        client.submit("13912345678", "1125").content  # type: ignore[attr-defined] # noqa: B018
    client.close()


# --- settings ---------------------------------------------------------------


def make_clients(trace: aiohttp.TraceConfig) -> None:
    AsyncVoiceClient(
        "APIID",
        "APIKEY",
        base_url="http://127.0.0.1:8080",
        dynamic_password=False,
        answer_format="xml",
        timeout=10,
        connect_timeout=2.5,
        connect_attempts=1,
        max_connections=500,
        ssl_context=ssl.create_default_context(),
        proxy="env",
        trace_configs=[trace],
        quota=None,
        clock=lambda: 1_700_000_000,
    )
    AsyncVoiceClient("APIID", "APIKEY", answer_format="yaml")  # type: ignore[arg-type]
    AsyncVoiceClient("APIID", "APIKEY", timeout="15 s")  # type: ignore[arg-type]
    AsyncVoiceClient("APIID", "APIKEY", max_connections=1.5)  # type: ignore[arg-type]
    AsyncVoiceClient("APIID", "APIKEY", quota=5)  # type: ignore[arg-type]
    AsyncVoiceClient("APIID", "APIKEY", "https://example.com")  # type: ignore[call-arg]
    AsyncVoiceClient("APIID", "APIKEY", allow_running_loop=True)  # type: ignore[call-arg]
    AsyncVoiceClient("APIID", b"APIKEY")  # type: ignore[arg-type]
    VoiceClient("APIID", "APIKEY", retries=3)  # type: ignore[call-arg]


class OurClient(AsyncVoiceClient):
    """A subclass keeps its class through the other ways to make one."""


class OurBlockingClient(VoiceClient):
    """The same."""


async def make_clients_from_the_environment() -> None:
    assert_type(AsyncVoiceClient.from_env(), AsyncVoiceClient)
    assert_type(VoiceClient.from_env(), VoiceClient)
    assert_type(OurClient.from_env(max_connections=500, quota=None), OurClient)
    assert_type(OurBlockingClient.from_env(api_id="APIID", timeout=3), OurBlockingClient)
    async with OurClient.from_env() as client:
        assert_type(client, OurClient)

    AsyncVoiceClient.from_env("APIID")  # type: ignore[arg-type, misc, call-arg, unused-ignore]
    AsyncVoiceClient.from_env(timeout="15 s")  # type: ignore[arg-type]
    VoiceClient.from_env(retries=3)  # type: ignore[call-arg]


# --- requests and outcomes ----------------------------------------------------


def read_requests() -> list[SubmitRequest]:
    keyed = SubmitRequest("13912345678", "1125", idempotency_key="order-7")
    assert_type(keyed.mobile, str)
    assert_type(keyed.idempotency_key, str | None)
    keyed.content = "1126"  # type: ignore[misc]
    return [keyed, SubmitRequest(mobile="13912345678", content="1125")]


def tell_outcome(status: OutcomeStatus) -> str:
    if status is OutcomeStatus.ACCEPTED or status is OutcomeStatus.REPLAYED:
        return "done"
    if status is OutcomeStatus.UNKNOWN:
        return "do not repeat"
    if (
        status is OutcomeStatus.INVALID
        or status is OutcomeStatus.LIMITED
        or status is OutcomeStatus.NOT_SENT
        or status is OutcomeStatus.REFUSED
    ):
        return "no phone rang"
    assert_never(status)


def tell_error(client: VoiceClient) -> str:
    try:
        client.submit("13912345678", "1125")
    except QuotaExceededError as error:
        assert_type(error.retry_after, float)
    except GatewayError as error:
        assert_type(error.code, int)
        assert_type(error.msg, str)
        assert_type(error.meaning, str)
        assert_type(error.account_level, bool)
        error.retry_after  # type: ignore[attr-defined] # noqa: B018
    except OutcomeUnknownError as error:
        assert_type(error.reason, str)
    except (InvalidRequestError, NotSentError) as error:
        assert_type(error, InvalidRequestError | NotSentError)
        wrong_value: ValueError = error  # type: ignore[assignment]
        return str(wrong_value)
    except IhuyiVoiceError as error:
        assert_type(error.may_have_rung, bool)
    return ""


invalid: ValueError = InvalidRequestError("a wrong number is a wrong value")


# --- quota --------------------------------------------------------------------


class SharedStore:
    """A user's own store: it need not derive from anything."""

    async def reserve(self, number: str, token: str, windows: Windows) -> float:
        del number, token
        return min(seconds for _, seconds in windows)

    async def release(self, number: str, token: str) -> None:
        del number, token


class BlockingStore:
    """No store: its methods cannot be awaited."""

    def reserve(self, number: str, token: str, windows: Windows) -> float:
        del number, token, windows
        return 0.0

    def release(self, number: str, token: str) -> None:
        del number, token


async def limit_calls() -> None:
    stores: list[LimitStore] = [SharedStore()]
    quota = RecipientQuota(per_minute=1, per_day=None, store=stores[0], per_hour=5)
    token = await quota.reserve("13912345678")
    assert_type(token, str)
    await quota.release("13912345678", token)
    RecipientQuota(clock=lambda: 0)
    AsyncVoiceClient("APIID", "APIKEY", quota=quota)
    VoiceClient("APIID", "APIKEY", quota=RecipientQuota(store=SharedStore()))

    RecipientQuota(store=BlockingStore())  # type: ignore[arg-type]
    RecipientQuota(store=SharedStore)  # type: ignore[arg-type]
    RecipientQuota(per_minute="2")  # type: ignore[arg-type]


# --- sandbox ------------------------------------------------------------------

Number = NewType("Number", str)


async def try_it_without_ringing_anyone() -> None:
    numbers: list[Number] = [Number("13912345678")]
    gateway = SandboxGateway(balance=3, blacklist=numbers, chaos=Chaos(no_answer=0.5, seed=1))
    async with gateway.serve() as url:
        assert_type(url, str)
        async with AsyncVoiceClient("sandbox", "sandbox-key", base_url=url) as client:
            await client.submit("13912345678", "1125")
    with gateway.serve_in_thread(port=8080) as url:
        VoiceClient("sandbox", "sandbox-key", base_url=url).submit("13912345678", "1125")
    assert_type(gateway.calls, list[Call])
    assert_type(gateway.attempts, list[Attempt])
    assert_type(gateway.calls[0].content, str)
    assert_type(gateway.attempts[0].code, int)
    assert_type(gateway.balance, int)
    assert_type(gateway.blacklist, frozenset[str])
    gateway.blacklist |= {"13912345678"}
    gateway.time_window = None
    gateway.chaos = Chaos()
    gateway.reset()

    gateway.balance = "many"  # type: ignore[assignment]
    gateway.blacklist.add("13912345678")  # type: ignore[attr-defined]
    SandboxGateway("sandbox")  # type: ignore[call-arg]
    Chaos(0.5)  # type: ignore[call-arg]
    with gateway.serve():  # type: ignore[attr-defined]
        pass
