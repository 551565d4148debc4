"""From the submit to the receipt: the sandbox sends it to a real handler."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import anyio
import pytest

from ihuyi_voice import AsyncVoiceClient
from ihuyi_voice.sandbox import Chaos, SandboxGateway
from tests.receipts.servers import PATH, aiohttp_serving, starlette_serving
from tests.sandbox.http import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from ihuyi_voice.receipts.handlers import Receipt
    from ihuyi_voice.sandbox import ReceiptPush

    Serving = Callable[..., AbstractAsyncContextManager[str]]

MOBILE = "13912345678"


@pytest.fixture(params=[aiohttp_serving, starlette_serving])
def serving(request: pytest.FixtureRequest) -> Serving:
    serving: Serving = request.param
    return serving


async def submitted(gateway: SandboxGateway) -> str | None:
    """Place one call, wait until its receipt was delivered or given up; its voice id."""
    async with gateway.serve() as url:
        async with AsyncVoiceClient("sandbox", "sandbox-key", base_url=url) as client:
            voice_id = (await client.submit(MOBILE, "1125")).voice_id
        with anyio.fail_after(DEADLINE):
            while not any(push.ended for push in gateway.receipts):
                await asyncio.sleep(0.005)
    return voice_id


def sandbox(url: str, **settings: object) -> SandboxGateway:
    gateway = SandboxGateway(receipt_url=url + PATH, receipt_delay=0, receipt_interval=0.01)
    gateway.change(settings)
    return gateway


async def test_a_submit_is_followed_by_its_receipt(serving: Serving) -> None:
    seen: list[Receipt] = []
    async with serving(seen.append) as url:
        gateway = sandbox(url)
        voice_id = await submitted(gateway)
    (receipt,) = seen
    assert (voice_id, MOBILE, True) == (receipt.voice_id, receipt.mobile, receipt.delivered)
    assert receipt.reported_at is not None
    assert timedelta(hours=8) == receipt.reported_at.utcoffset()
    assert abs(datetime.now(receipt.reported_at.tzinfo) - receipt.reported_at) < timedelta(
        minutes=1
    )
    assert [[True]] == [results(push) for push in gateway.receipts]


def results(push: ReceiptPush) -> list[bool]:
    return [attempt.accepted for attempt in push.tries]


@pytest.mark.parametrize("name", ["voiceid", "smsid", "task_id", "taskid"])
async def test_the_id_is_found_under_each_of_its_names(serving: Serving, name: str) -> None:
    seen: list[Receipt] = []
    async with serving(seen.append) as url:
        voice_id = await submitted(sandbox(url, receipt_id=name))
    assert [voice_id] == [receipt.voice_id for receipt in seen]


async def test_a_call_that_was_not_delivered_says_so(serving: Serving) -> None:
    seen: list[Receipt] = []
    async with serving(seen.append) as url:
        gateway = sandbox(url)
        gateway.chaos = Chaos(receipt_undelivered=1)
        await submitted(gateway)
    assert [False] == [receipt.delivered for receipt in seen]
    assert "2" not in [receipt.code for receipt in seen]


async def test_a_receipt_that_fails_twice_is_accepted_the_third_time(serving: Serving) -> None:
    seen: list[Receipt] = []

    def fails_twice(receipt: Receipt) -> None:
        seen.append(receipt)
        if len(seen) < 3:
            msg = "the database is away"
            raise ConnectionError(msg)

    async with serving(fails_twice) as url:
        gateway = sandbox(url)
        voice_id = await submitted(gateway)
    assert [voice_id] * 3 == [receipt.voice_id for receipt in seen]
    assert [[False, False, True]] == [results(push) for push in gateway.receipts]


async def test_an_answer_that_comes_too_late_makes_the_callback_run_again(
    serving: Serving,
) -> None:
    seen: list[Receipt] = []
    second = asyncio.Event()

    async def slow(receipt: Receipt) -> None:
        seen.append(receipt)
        if len(seen) == 2:
            second.set()
        await second.wait()

    async with serving(slow) as url:
        gateway = sandbox(url, receipt_timeout=0.5, receipt_interval=0.0)
        voice_id = await submitted(gateway)
    assert [(voice_id, "2")] * 2 == [(receipt.voice_id, receipt.code) for receipt in seen]
    assert [[False, True]] == [results(push) for push in gateway.receipts]
