"""Receipts that the sandbox pushes over real HTTP to a receiver in the test."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ihuyi_voice._limits import SandboxLimits
from ihuyi_voice.sandbox import Chaos, ReceiptPush, SandboxGateway, receipt_delivery
from ihuyi_voice.sandbox.history import History
from ihuyi_voice.sandbox.server import serving
from tests.sandbox.forms import MOBILE, NOW, submit_form
from tests.sandbox.http import DEADLINE, ask, exchange, submit_bytes
from tests.sandbox.receiver import Receiver


def sandbox(receiver: Receiver, **settings: float | str) -> Watched:
    quick: dict[str, float | str] = {"receipt_delay": 0.0, "receipt_interval": 0.0}
    return Watched(receipt_url=receiver.url, **quick | settings)


class Watched(SandboxGateway):
    """Shows when a receipt is not pushed any more."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(clock=lambda: NOW, **settings)
        self.end = asyncio.Event()

    def put_receipt(self, history: History, receipt: ReceiptPush) -> bool:
        kept = super().put_receipt(history, receipt)
        if receipt.ended:
            self.end.set()
        return kept


async def ended(gateway: Watched) -> ReceiptPush:
    """The one receipt, when it is not pushed any more."""
    await asyncio.wait_for(gateway.end.wait(), DEADLINE)
    (receipt,) = gateway.receipts
    return receipt


async def place(url: str, mobile: str = MOBILE) -> None:
    await exchange(url, submit_bytes(submit_form(mobile)))


async def test_a_placed_call_is_reported() -> None:
    async with Receiver().listening() as receiver:
        gateway = sandbox(receiver)
        async with gateway.serve() as url:
            await place(url)
            form = await receiver.pushed()
            receipt = await ended(gateway)
    assert {
        "code": "2",
        "msg": "已接听",
        "mobilephone": MOBILE,
        "voiceid": "100000001",
        "report_time": "2023-11-15 06:13:20",
    } == form
    assert "application/x-www-form-urlencoded" == receiver.content_type
    assert (1, "100000001", 2, True) == (
        receipt.number, receipt.voice_id, receipt.code, receipt.accepted,
    )  # fmt: skip
    assert [(NOW, True, "success")] == [(t.time, t.accepted, t.result) for t in receipt.tries]


async def test_the_id_has_the_name_that_was_set_and_the_time_is_that_of_the_report() -> None:
    async with Receiver().listening() as receiver:
        gateway = sandbox(receiver, receipt_id="smsid", receipt_delay=0.01)
        gateway.clock = lambda: NOW + 0.995
        async with gateway.serve() as url:
            await place(url)
            form = await receiver.pushed()
    assert ("100000001", "2023-11-15 06:13:21") == (form["smsid"], form["report_time"])
    assert "voiceid" not in form


async def test_a_refused_submit_and_a_balance_query_are_not_reported() -> None:
    async with Receiver().listening() as receiver:
        gateway = sandbox(receiver)
        async with gateway.serve() as url:
            await place(url, "")
            await place(url)
            assert MOBILE == (await receiver.pushed())["mobilephone"]
    assert [2] == [receipt.number for receipt in gateway.receipts]


async def test_a_call_whose_answer_was_lost_is_reported_too() -> None:
    async with Receiver().listening() as receiver:
        gateway = sandbox(receiver)
        gateway.chaos = Chaos(close_after_placing=1)
        async with gateway.serve() as url:
            await place(url)
            assert "2" == (await receiver.pushed())["code"]


async def test_without_a_url_no_receipt_is_sent() -> None:
    gateway = SandboxGateway(clock=lambda: NOW)
    async with gateway.serve() as url:
        await place(url)
    assert [] == gateway.receipts


async def test_chaos_says_that_a_call_was_not_delivered() -> None:
    async with Receiver().listening() as receiver:
        gateway = sandbox(receiver)
        gateway.chaos = Chaos(receipt_undelivered=0.5, seed=1)
        codes = []
        async with gateway.serve() as url:
            for _ in range(20):
                await place(url)
                codes.append((await receiver.pushed())["code"])
    assert {"0", "2"} == set(codes)


async def test_draws_for_receipts_do_not_change_the_draws_for_faults() -> None:
    one, other = SandboxGateway(), SandboxGateway()
    one.chaos = Chaos(garbage=0.5, seed=1)
    other.chaos = Chaos(garbage=0.5, receipt_undelivered=0.5, seed=1)
    rolls = []
    for gateway in (one, other):
        drawn = []
        for _ in range(50):
            drawn.append(gateway.roll())
            gateway.roll_receipt()
        rolls.append(drawn)
    assert rolls[0] == rolls[1]


async def test_after_any_answer_but_success_a_receipt_is_repeated_up_to_three_times() -> None:
    answers = ((500, "success"), (200, "Success"), (200, "success"))
    async with Receiver(*answers).listening() as receiver:
        gateway = sandbox(receiver)
        async with gateway.serve() as url:
            await place(url)
            forms = [await receiver.pushed() for _ in range(3)]
            receipt = await ended(gateway)
    assert forms[0] == forms[1] == forms[2]
    assert [
        "answered 500 'success', not 'success'",
        "answered 200 'Success', not 'success'",
        "success",
    ] == [tried.result for tried in receipt.tries]
    assert receipt.accepted


async def test_a_receipt_is_given_up_after_the_third_try() -> None:
    async with Receiver((200, "success\n")).listening() as receiver:
        gateway = sandbox(receiver)
        async with gateway.serve() as url:
            await place(url)
            receipt = await ended(gateway)
    assert (3, 3, False) == (receiver.count, len(receipt.tries), receipt.accepted)


async def test_the_wait_grows_by_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    delays = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def at_once(
        delay: float, callback: Any, *arguments: Any, **options: Any
    ) -> asyncio.TimerHandle:
        # aiohttp's own timers are left as they are.
        is_push = callback.__module__ == receipt_delivery.__name__
        delays.extend([delay] if is_push else [])
        return call_later(0.0 if is_push else delay, callback, *arguments, **options)

    monkeypatch.setattr(loop, "call_later", at_once)
    async with Receiver((200, "no")).listening() as receiver:
        gateway = sandbox(receiver, receipt_delay=1.0, receipt_interval=60.0)
        async with gateway.serve() as url:
            await place(url)
            await ended(gateway)
    assert [1.0, 60.0, 120.0] == delays
    assert 3 == receiver.count


@pytest.mark.parametrize("status", [302, 307])
async def test_a_redirect_is_not_followed(status: int) -> None:
    async with Receiver().listening() as elsewhere, Receiver((status, "")).listening() as receiver:
        receiver.location = elsewhere.url
        gateway = sandbox(receiver)
        async with gateway.serve() as url:
            await place(url)
            receipt = await ended(gateway)
    assert 0 == elsewhere.count
    assert f"answered {status}, a redirect, which is not followed" == receipt.tries[0].result


async def test_a_receiver_that_refuses_the_connection() -> None:
    async with Receiver().listening() as receiver:
        gateway = sandbox(receiver)
    async with gateway.serve() as url:
        await place(url)
        receipt = await ended(gateway)
    assert 3 == len(receipt.tries)
    assert receipt.tries[0].result.startswith("not delivered: Cannot connect to host 127.0.0.1")


async def test_a_receiver_that_takes_too_long() -> None:
    async with Receiver().listening() as receiver:
        receiver.hold = asyncio.Event()
        gateway = sandbox(receiver, receipt_timeout=0.02)
        async with gateway.serve() as url:
            await place(url)
            receipt = await ended(gateway)
    assert ["no answer within 0.02 s"] * 3 == [tried.result for tried in receipt.tries]


async def test_a_long_answer_is_cut_and_shown_harmlessly() -> None:
    async with Receiver((200, "<b>\x07" * 10_000)).listening() as receiver:
        gateway = sandbox(receiver)
        async with gateway.serve() as url:
            await place(url)
            receipt = await ended(gateway)
    result = receipt.tries[0].result
    assert result.startswith(r"answered 200 '<b>\x07<b>")
    assert result.endswith("…, not 'success'")
    assert len(result) < 200


async def test_answers_do_not_wait_for_deliveries_and_few_deliveries_run_at_once() -> None:
    async with Receiver().listening() as receiver:
        receiver.hold = asyncio.Event()
        gateway = sandbox(receiver)
        async with gateway.serve() as url:
            for _ in range(20):
                await place(url)
            for _ in range(8):
                await receiver.pushed()
            assert 8 == receiver.most_running
            receiver.hold.set()
            for _ in range(12):
                await receiver.pushed()
    assert 8 == receiver.most_running


async def test_beyond_a_bound_a_receipt_is_given_up_at_once() -> None:
    async with Receiver().listening() as receiver:
        gateway = sandbox(receiver, receipt_delay=3600)
        async with serving(gateway, "127.0.0.1", 0, SandboxLimits(receipts_waiting=1)) as url:
            await place(url)
            await place(url)
    first, second = gateway.receipts
    assert ((), False) == (first.tries, first.ended)
    assert (["not pushed: too many others wait"], True) == (
        [tried.result for tried in second.tries], second.ended,
    )  # fmt: skip


@pytest.mark.parametrize("what", ["clear", "reset"])
async def test_a_cleared_receipt_is_not_sent(what: str) -> None:
    async with Receiver((200, "no")).listening() as receiver:
        gateway = sandbox(receiver, receipt_interval=0.01)
        async with gateway.serve() as url:
            await place(url)
            await receiver.pushed()
            getattr(gateway, what)()
            # The other's three pushes take longer than the rest of the first's.
            await place(url, "13800000000")
            await ended(gateway)
    assert 4 == receiver.count
    assert ["13800000000"] == [receipt.mobile for receipt in gateway.receipts]


async def test_a_receipt_that_is_cleared_before_its_time_is_not_sent() -> None:
    async with Receiver().listening() as receiver:
        gateway = sandbox(receiver, receipt_delay=0.02)
        async with gateway.serve() as url:
            await place(url)
            gateway.clear()
            await place(url, "13800000000")
            assert "13800000000" == (await receiver.pushed())["mobilephone"]
    assert 1 == receiver.count


async def test_stopping_does_not_wait_for_deliveries_and_leaves_no_task() -> None:
    tasks = asyncio.all_tasks()
    async with Receiver().listening() as receiver:
        receiver.hold = asyncio.Event()
        gateway = sandbox(receiver)
        async with gateway.serve() as url:
            for _ in range(10):
                await place(url)
            await receiver.pushed()
            gateway.receipt_delay = 3600
            await place(url)
        assert not [task for task in asyncio.all_tasks() - tasks if "Pusher" in repr(task)]


async def test_the_receipts_can_be_read_over_http() -> None:
    async with Receiver().listening() as receiver:
        gateway = sandbox(receiver)
        async with gateway.serve() as url:
            await place(url)
            await ended(gateway)
            body = (await ask(url, "GET", "/_sandbox/receipts")).body
    assert b'"result":"success"' in body


async def test_an_answer_given_without_http_sends_no_receipt() -> None:
    gateway = SandboxGateway(clock=lambda: NOW, receipt_url="http://127.0.0.1:9/")
    pusher = receipt_delivery.Pusher(gateway, SandboxLimits())
    refused = gateway.answer("Submit", {}, "127.0.0.1", gateway.roll())
    pusher.schedule(refused)
    await pusher.close()
    assert [] == gateway.receipts


async def test_the_receipt_of_a_call_that_is_cleared_during_its_answer_is_not_sent() -> None:
    before = History()

    class Cleared(SandboxGateway):
        def roll_receipt(self) -> bool:
            self.clear()
            return super().roll_receipt()

        @property
        def history(self) -> History:
            return before

    async with Receiver().listening() as receiver:
        gateway = Cleared(clock=lambda: NOW, receipt_url=receiver.url, receipt_delay=0)
        async with gateway.serve() as url:
            await place(url)
    assert ([], 0) == (gateway.receipts, receiver.count)
