"""The fixtures, used as the tests of any project use them."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import anyio
import pytest
from playwright.sync_api import sync_playwright

import ihuyi_voice.pytest_plugin
from ihuyi_voice import (
    AsyncVoiceClient,
    BlockedMobileError,
    InvalidRequestError,
    QuotaExceededError,
    VoiceClient,
)
from ihuyi_voice.sandbox import SandboxGateway
from tests import inside
from tests.sandbox.http import DEADLINE

if TYPE_CHECKING:
    from pathlib import Path

    from ihuyi_voice.pytest_plugin import VoiceGateway

MOBILE = "13912345678"
OTHER = "13800000000"
SPELLINGS = [MOBILE, f"+86 {MOBILE}", "139-1234-5678", f"0086{MOBILE}"]


def test_the_fixture_is_a_sandbox_for_this_test_alone(voice_gateway: VoiceGateway) -> None:
    assert isinstance(voice_gateway, SandboxGateway)
    assert isinstance(voice_gateway, ihuyi_voice.pytest_plugin.VoiceGateway)
    assert [] == voice_gateway.calls


def test_the_plugin_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match=r"^module 'ihuyi_voice\.pytest_plugin' has no attr"):
        ihuyi_voice.pytest_plugin.no_such_name  # type: ignore[attr-defined] # noqa: B018


def test_the_environment_names_it(voice_gateway: VoiceGateway) -> None:
    assert ("sandbox", "sandbox-key", voice_gateway.url) == (
        os.environ["IHUYI_VOICE_API_ID"],
        os.environ["IHUYI_VOICE_API_KEY"],
        os.environ["IHUYI_VOICE_BASE_URL"],
    )
    script = (
        f"from ihuyi_voice import VoiceClient\nVoiceClient.from_env().submit({MOBILE!r}, '1125')"
    )
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True)
    assert "1125" == voice_gateway.last_code(MOBILE)


def test_the_client_calls_the_same_number_as_often_as_a_test_likes(
    voice_gateway: VoiceGateway, voice_client: VoiceClient
) -> None:
    for _ in range(3):
        voice_client.submit(MOBILE, "1125")
    assert 3 == len(voice_gateway.calls)
    assert voice_client.base_url == voice_gateway.url
    with VoiceClient.from_env() as limited:
        limited.submit(MOBILE, "1125")
        limited.submit(MOBILE, "1125")
        with pytest.raises(QuotaExceededError):
            limited.submit(MOBILE, "1125")


@pytest.fixture
def users_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of a store that the environment names, and where there is none yet."""
    place = tmp_path / "calls.db"
    monkeypatch.setenv("IHUYI_VOICE_STORE", str(place))
    return place


def test_no_fixture_uses_the_store_that_the_environment_names(
    users_store: Path, voice_gateway: VoiceGateway, voice_client: VoiceClient
) -> None:
    voice_client.submit(MOBILE, "1125")
    with VoiceClient.from_env() as client:
        client.submit(MOBILE, "1125")
    script = (
        "import asyncio\nfrom ihuyi_voice import AsyncVoiceClient\nasync def main():\n"
        f"    async with AsyncVoiceClient.from_env() as c: await c.submit({MOBILE!r}, '1125')\n"
        "asyncio.run(main())"
    )
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True)
    assert 3 == len(voice_gateway.calls)
    assert [] == list(users_store.parent.iterdir())


def test_the_variable_is_back_after_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IHUYI_VOICE_STORE", "the user's")
    with pytest.MonkeyPatch.context() as patched:
        fixture = inspect.unwrap(ihuyi_voice.pytest_plugin.voice_gateway)(patched)
        next(fixture)
        assert "IHUYI_VOICE_STORE" not in os.environ
        fixture.close()
    assert "the user's" == os.environ["IHUYI_VOICE_STORE"]


# --- last_code --------------------------------------------------------------


@pytest.mark.parametrize("spelt", SPELLINGS)
def test_the_last_code_of_a_number_is_found_in_any_spelling(
    voice_gateway: VoiceGateway, voice_client: VoiceClient, spelt: str
) -> None:
    for mobile, content in ((MOBILE, "1111"), (MOBILE, "2222"), (OTHER, "3333")):
        voice_client.submit(mobile, content)
    assert "2222" == voice_gateway.last_code(spelt)
    assert "3333" == voice_gateway.last_code(OTHER)


def test_without_a_call_the_error_lists_the_calls_and_refusals(
    voice_gateway: VoiceGateway, voice_client: VoiceClient
) -> None:
    with pytest.raises(AssertionError) as caught:
        voice_gateway.last_code(f"+86{MOBILE}")
    assert f"no call was placed to {MOBILE}; calls placed: none; refused: none" == str(caught.value)
    voice_gateway.blacklist = [MOBILE]
    for mobile in (OTHER, OTHER, "13700000000"):
        voice_client.submit(mobile, "1125")
    with pytest.raises(BlockedMobileError):
        voice_client.submit(MOBILE, "1125")
    with pytest.raises(AssertionError) as caught:
        voice_gateway.last_code(MOBILE)
    assert (
        f"no call was placed to {MOBILE}; calls placed: {OTHER} (2), 13700000000 (1);"
        f" refused: {MOBILE} with 4030 手机号码已被列入黑名单" == str(caught.value)
    )


@pytest.mark.parametrize("method", ["last_code", "wait_for_call"])
def test_an_invalid_number_is_an_error(voice_gateway: VoiceGateway, method: str) -> None:
    with pytest.raises(InvalidRequestError, match="it has 3 digits"):
        getattr(voice_gateway, method)("139")


# --- wait_for_call ----------------------------------------------------------


@pytest.mark.parametrize("spelt", SPELLINGS)
def test_a_call_that_was_placed_before_is_returned_at_once(
    voice_gateway: VoiceGateway, voice_client: VoiceClient, spelt: str
) -> None:
    voice_id = voice_client.submit(MOBILE, "1125").voice_id
    call = voice_gateway.wait_for_call(spelt, timeout=0)
    assert (MOBILE, "1125", voice_id) == (call.mobile, call.content, call.voice_id)


def test_a_wait_ends_when_the_call_is_placed(
    voice_gateway: VoiceGateway, voice_client: VoiceClient
) -> None:
    waiting, _ = when_looked(voice_gateway)
    with ThreadPoolExecutor() as pool:
        waited = pool.submit(voice_gateway.wait_for_call, MOBILE, DEADLINE)
        assert waiting.wait(DEADLINE)
        voice_client.submit(OTHER, "3333")
        assert not waited.done()
        voice_client.submit(MOBILE, "1125")
        assert "1125" == waited.result(DEADLINE).content


def when_looked(gateway: VoiceGateway) -> tuple[threading.Event, threading.Event]:
    """Set once a wait has looked: the first when it found no call, the second when it did."""
    waiting, found = threading.Event(), threading.Event()
    inside.when_looked(gateway, lambda call: (found if call else waiting).set())
    return waiting, found


def test_each_wait_gives_the_next_call(
    voice_gateway: VoiceGateway, voice_client: VoiceClient
) -> None:
    for content in ("1111", "2222"):
        voice_client.submit(MOBILE, content)
    assert ["1111", "2222"] == [voice_gateway.wait_for_call(MOBILE, 0).content for _ in range(2)]
    with pytest.raises(AssertionError) as caught:
        voice_gateway.wait_for_call(MOBILE, timeout=0.01)
    assert (
        f"no call was placed to {MOBILE} within 0.01 s that no wait had returned before;"
        f" calls placed: {MOBILE} (2); refused: none" == str(caught.value)
    )
    assert "2222" == voice_gateway.last_code(MOBILE)


def test_after_a_reset_the_next_call_is_the_first(
    voice_gateway: VoiceGateway, voice_client: VoiceClient
) -> None:
    for _ in range(2):
        voice_client.submit(MOBILE, "1125")
        assert "1125" == voice_gateway.wait_for_call(MOBILE, 0).content
        voice_gateway.reset()
        assert [] == voice_gateway.calls


def test_waits_at_the_same_time_get_a_call_each(
    voice_gateway: VoiceGateway, voice_client: VoiceClient
) -> None:
    with ThreadPoolExecutor(4) as pool:
        waits = [pool.submit(voice_gateway.wait_for_call, MOBILE, DEADLINE) for _ in range(4)]
        contents = {f"111{n}" for n in range(4)}
        for content in contents:
            voice_client.submit(MOBILE, content)
        assert contents == {wait.result(DEADLINE).content for wait in waits}


async def test_in_a_running_loop_the_error_names_the_asynchronous_wait(
    voice_gateway: VoiceGateway,
) -> None:
    with pytest.raises(RuntimeError, match=r"`await voice_gateway\.wait_for_call_async\(\.\.\.\)`"):
        voice_gateway.wait_for_call(MOBILE)


def test_it_works_beside_the_loop_of_another_library(
    voice_gateway: VoiceGateway, voice_client: VoiceClient
) -> None:
    """As in a test of a page: the loop of Playwright's blocking API counts as running."""
    with sync_playwright():
        voice_client.submit(MOBILE, "1125")
        assert "1125" == voice_gateway.wait_for_call(MOBILE).content


async def test_in_an_asynchronous_test_the_blocking_client_works(
    voice_gateway: VoiceGateway, voice_client: VoiceClient
) -> None:
    voice_client.submit(MOBILE, "1125")
    assert "1125" == voice_gateway.last_code(MOBILE)


async def test_the_loop_keeps_running_while_a_call_is_awaited(voice_gateway: VoiceGateway) -> None:
    async with AsyncVoiceClient.from_env() as client:
        waiting, _ = when_looked(voice_gateway)
        waited = asyncio.create_task(voice_gateway.wait_for_call_async(f"+86{MOBILE}", DEADLINE))
        await asyncio.to_thread(waiting.wait, DEADLINE)
        await client.submit(MOBILE, "1125")
        assert "1125" == (await waited).content


async def test_a_call_that_is_not_placed_in_time_fails_an_asynchronous_test_too(
    voice_gateway: VoiceGateway,
) -> None:
    with pytest.raises(AssertionError, match=f"no call was placed to {MOBILE} within 0.01 s"):
        await voice_gateway.wait_for_call_async(MOBILE, timeout=0.01)


async def test_a_wait_that_is_cancelled_ends_and_takes_no_call(voice_gateway: VoiceGateway) -> None:
    waiting, _ = when_looked(voice_gateway)
    waited = asyncio.create_task(voice_gateway.wait_for_call_async(MOBILE, timeout=3600))
    await asyncio.to_thread(waiting.wait, DEADLINE)
    waited.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waited
    async with AsyncVoiceClient.from_env() as client:
        await client.submit(MOBILE, "1125")
    assert "1125" == (await voice_gateway.wait_for_call_async(MOBILE, DEADLINE)).content
    # No thread is still waiting.
    await asyncio.wait_for(asyncio.get_running_loop().shutdown_default_executor(), DEADLINE)


async def test_a_call_that_arrives_with_the_cancellation_is_left_to_the_next_wait(
    voice_gateway: VoiceGateway, voice_client: VoiceClient
) -> None:
    waiting, found = when_looked(voice_gateway)
    waited = asyncio.create_task(voice_gateway.wait_for_call_async(MOBILE, timeout=3600))
    await asyncio.to_thread(waiting.wait, DEADLINE)
    submit = threading.Thread(target=voice_client.submit, args=(MOBILE, "1125"))
    submit.start()
    # The loop is blocked until the thread has the call: both happen in the same turn.
    found.wait(DEADLINE)
    waited.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waited
    submit.join(DEADLINE)
    assert "1125" == (await voice_gateway.wait_for_call_async(MOBILE, DEADLINE)).content


async def test_a_wait_ends_with_the_deadline_around_it(voice_gateway: VoiceGateway) -> None:
    with anyio.move_on_after(0.01) as deadline:
        await voice_gateway.wait_for_call_async(MOBILE, timeout=20)
    assert deadline.cancelled_caught


def test_a_call_can_be_awaited_under_trio(
    voice_gateway: VoiceGateway, voice_client: VoiceClient
) -> None:
    async def log_in() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, place)
            assert "1125" == (await voice_gateway.wait_for_call_async(MOBILE)).content

    def place() -> None:
        voice_client.submit(MOBILE, "1125")

    anyio.run(log_in, backend="trio")
