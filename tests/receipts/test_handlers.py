"""The handlers over real HTTP: what a push is answered, and when the callback is called."""

from __future__ import annotations

import asyncio
import functools
import gzip
import logging
import threading
import traceback
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from ihuyi_voice.receipts.handlers import (
    MAX_RECEIPT_BYTES,
    Receipt,
    ReceiptApp,
    aiohttp_receipt_handler,
    asgi_receipt_app,
)
from tests.receipts.servers import (
    BODY,
    PATH,
    aiohttp_serving,
    asgi_serving,
    push,
    starlette_serving,
)
from tests.sandbox.http import (
    DEADLINE,
    FORM,
    Response,
    ask,
    connected,
    parsed,
    received,
    request_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    Serving = Callable[..., AbstractAsyncContextManager[str]]

OTHER = BODY.replace(b"code=2", b"code=3")


@pytest.fixture(params=[aiohttp_serving, starlette_serving])
def serving(request: pytest.FixtureRequest) -> Serving:
    serving: Serving = request.param
    return serving


def outcome(response: Response) -> tuple[int, bytes]:
    return response.status, response.body


SUCCESS = (200, b"success")
NO_CALL = b"not a receipt: it has neither an id nor a mobile number: it names no call"


class Seen(list[Receipt]):
    """A callback that keeps what it is called with, and fails the first so many times."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__()
        self.failures = failures

    def __call__(self, receipt: Receipt) -> None:
        self.append(receipt)
        if len(self) <= self.failures:
            msg = f"13912345678 has the code 1125 in {receipt.raw['mobilephone']}"
            raise LookupError(msg)


# --- what is answered -------------------------------------------------------


async def test_a_receipt_is_answered_with_the_bare_text(serving: Serving) -> None:
    seen = Seen()
    async with serving(seen) as url:
        response = await push(url)
    assert SUCCESS == outcome(response)
    assert {k.lower(): v for k, v in response.headers.items()}["content-type"] == (
        "text/plain; charset=utf-8"
    )
    assert [("197362477", "13912345678", "2")] == [(r.voice_id, r.mobile, r.code) for r in seen]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded; charset=gbk"},
    ],
)
async def test_the_headers_of_a_push_do_not_matter(
    serving: Serving, headers: dict[str, str]
) -> None:
    seen = Seen()
    body = BODY.replace(b"ok", "已送达".encode("gbk"))
    async with serving(seen) as url:
        assert SUCCESS == outcome(await ask(url, "POST", PATH, body, headers))
    assert ["已送达"] == [receipt.msg for receipt in seen]


@pytest.mark.parametrize(
    ("why", "body"),
    [
        (NO_CALL, b""),
        (NO_CALL, b'{"code": 2, "voiceid": "7"}'),
        (NO_CALL, b"code=DELIVRD&voiceid=0"),
        (b"not a receipt: it has more than 100 fields", BODY + b"&x=y" * 100),
    ],
)
async def test_what_is_no_receipt_is_refused(
    serving: Serving, why: bytes, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()
    async with serving(seen) as url:
        assert (400, why) == outcome(await push(url, body))
    assert [] == seen
    assert why.decode().removeprefix("not a receipt: ") in caplog.text


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_only_a_post_is_a_push(serving: Serving, method: str) -> None:
    seen = Seen()
    async with serving(seen) as url:
        response = await ask(url, method, f"{PATH}?{BODY.decode()}")
    assert (405, b"POST a receipt") == outcome(response)
    assert "POST" == {k.lower(): v for k, v in response.headers.items()}["allow"]
    assert [] == seen


def chunked(body: bytes, size: int = 1000) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


async def test_a_body_in_chunks_is_read(serving: Serving) -> None:
    seen = Seen()
    head = request_bytes("POST", PATH, headers={**FORM, "Transfer-Encoding": "chunked"})
    async with serving(seen) as url, connected(url) as (reader, writer):
        for piece in (head, chunked(BODY[:20]), chunked(BODY[20:], 7), b"0\r\n\r\n"):
            writer.write(piece)
            await writer.drain()
        assert SUCCESS == outcome(parsed(await received(reader)))
    assert 1 == len(seen)


@pytest.mark.parametrize("length", ["exactly the limit", "one byte more"])
@pytest.mark.parametrize("in_chunks", [False, True])
async def test_a_body_is_bounded(serving: Serving, length: str, in_chunks: bool) -> None:
    seen = Seen()
    body = BODY.ljust(MAX_RECEIPT_BYTES + (length == "one byte more"), b"x")
    request = request_bytes("POST", PATH, body, FORM)
    if in_chunks:
        head = request_bytes("POST", PATH, headers={**FORM, "Transfer-Encoding": "chunked"})
        request = head + chunked(body) + b"0\r\n\r\n"
    async with serving(seen) as url, connected(url) as (reader, writer):
        writer.write(request)
        response = parsed(await received(reader))
    if "more" in length:
        assert (413, b"more than 65536 bytes", []) == (*outcome(response), seen)
    else:
        # What was added spoils the time, which is no reason to refuse it.
        assert (SUCCESS, [None]) == (outcome(response), [r.reported_at for r in seen])


async def test_a_body_without_end_is_not_read_to_its_end(serving: Serving) -> None:
    head = request_bytes("POST", PATH, headers={**FORM, "Transfer-Encoding": "chunked"})
    async with serving(Seen()) as url, connected(url) as (reader, writer):
        writer.write(head + chunked(b"x" * MAX_RECEIPT_BYTES * 2))
        # The rest never comes, and is not waited for.
        head_of_answer = await asyncio.wait_for(reader.readuntil(b"\r\n"), DEADLINE)
    assert b"413" in head_of_answer


async def test_a_caller_that_leaves_in_mid_body_does_no_harm(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()
    async with serving(seen) as url:
        async with connected(url) as (_, writer):
            writer.write(request_bytes("POST", PATH, BODY, FORM)[:-10])
            await writer.drain()
        assert SUCCESS == outcome(await push(url))
    assert 1 == len(seen)
    ours = [record for record in caplog.records if record.name.startswith("ihuyi_voice")]
    assert [] == [record for record in ours if record.levelno >= logging.WARNING]


async def test_a_body_that_aiohttp_cannot_read_is_no_receipt() -> None:
    seen = Seen()
    async with aiohttp_serving(seen) as url:
        packed = await ask(url, "POST", PATH, BODY, {**FORM, "Content-Encoding": "gzip"})
    assert (400, b"not a receipt: its body broke off") == outcome(packed)
    assert [] == seen


async def test_a_small_body_that_unpacks_to_a_large_one_is_bounded_too() -> None:
    bomb = gzip.compress(b"x" * 1_000_000)
    assert len(bomb) < 2000
    async with aiohttp_serving(Seen()) as url:
        assert (
            413 == (await ask(url, "POST", PATH, bomb, {**FORM, "Content-Encoding": "gzip"})).status
        )


@pytest.mark.parametrize(
    ("said", "body"),
    [
        ((False, "DB:0142", "13912345678"), BODY.replace(b"code=2", b"code=DB%3A0142")),
        ((True, "DELIVRD", "13912345678"), BODY.replace(b"code=2", b"code=DELIVRD")),
        ((False, "", "13912345678"), BODY.replace(b"code=2", b"stat=2")),
        ((False, "CL26:-37", "13912345678"), BODY.replace(b"code=2", b"code=+CL26:-37+")),
        ((True, "2", "13912345678"), BODY.replace(b"2017-08-02+14:31:51", b"yesterday")),
        ((True, "2", "n/a"), BODY.replace(b"13912345678", b"n/a")),
        ((True, "2", "13912345678;13800138000"), BODY + b"&mobilephone=13912345678;13800138000"),
        ((False, "失败", "１３９"), "code=失败&mobilephone=１３９".encode("gbk")),
    ],
)
async def test_no_receipt_is_refused_for_its_code_its_time_or_its_number(
    serving: Serving, said: tuple[bool, str, str], body: bytes
) -> None:
    seen = Seen()
    async with serving(seen) as url:
        assert SUCCESS == outcome(await push(url, body))
    assert [said] == [(r.delivered, r.code, r.mobile) for r in seen]


async def test_whatever_a_receipt_holds_is_one_short_line_of_the_log_without_numbers(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    codes = {
        b"DB:0142": "DB:0142",
        b"UNDELIV%0D%0AERROR+forged": r"'UNDELIV\r\nERROR forged'",
        b"x%E2%80%A8%1B[2J": r"'x\u2028\x1b[2J'",
        b"2+voice_id=9": "'2 voice_id=9'",
        b"139+1234-5678": "139****5678",
        b"x" * 60_000: f"'{'x' * 40}…'",
    }
    async with serving(Seen(failures=1)) as url:
        for code in codes:
            await push(url, BODY.replace(b"code=2", b"code=" + code))
    failure, *taken = [r.getMessage() for r in caplog.records if r.name == "ihuyi_voice.receipts"]
    assert failure.startswith("the receipt 139****5678 code=DB:0142 voice_id=197362477 is to be")
    assert [
        f"receipt 139****5678 code={shown} voice_id=197362477" for shown in [*codes.values()][1:]
    ] == taken


# --- once for each id and code ----------------------------------------------


async def test_a_receipt_that_is_pushed_again_is_answered_and_not_told_again(
    serving: Serving,
) -> None:
    seen = Seen()
    async with serving(seen) as url:
        for _ in range(3):
            assert SUCCESS == outcome(await push(url))
        assert SUCCESS == outcome(await push(url, OTHER))
        assert SUCCESS == outcome(await push(url, BODY.replace(b"voiceid=1", b"smsid=1")))
        assert SUCCESS == outcome(await push(url, BODY.replace(b"voiceid=1", b"voiceid=2")))
    assert [("197362477", "2"), ("197362477", "3"), ("297362477", "2")] == [
        (receipt.voice_id, receipt.code) for receipt in seen
    ]


async def test_without_an_id_any_difference_tells_receipts_apart(serving: Serving) -> None:
    seen = Seen()
    bare = BODY.replace(b"voiceid=197362477", b"voiceid=0")
    pushes = [
        bare,
        bare,
        bare.replace(b"139", b"138"),
        bare.replace(b"code=2", b"code=3"),
        bare.replace(b"14:31", b"14:32"),
        # Perhaps the id, under an unknown name.
        bare + b"&msgid=1",
        bare + b"&msgid=2",
        bare,
    ]
    async with serving(seen) as url:
        for body in pushes:
            assert SUCCESS == outcome(await push(url, body))
    assert 6 == len(seen)


async def test_without_a_code_any_difference_tells_receipts_apart(serving: Serving) -> None:
    seen = Seen()
    # Perhaps the code, under a name that is not known.
    states = [b"stat=ringing", b"stat=DELIVRD", b"stat=DELIVRD"]
    async with serving(seen) as url:
        for state in states:
            assert SUCCESS == outcome(await push(url, b"voiceid=7&" + state))
    assert ["ringing", "DELIVRD"] == [receipt.raw["stat"] for receipt in seen]


async def test_a_failure_is_not_answered_with_success_so_that_it_is_pushed_again(
    serving: Serving,
) -> None:
    seen = Seen(failures=2)
    async with serving(seen) as url:
        outcomes = [outcome(await push(url)) for _ in range(4)]
    assert [(500, b"not taken, push it again")] * 2 + [SUCCESS] * 2 == outcomes
    assert 3 == len(seen)


async def test_pushes_at_the_same_time_wait_for_the_first(serving: Serving) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    seen = Seen()

    async def slow(receipt: Receipt) -> None:
        seen(receipt)
        begun.set()
        await go_on.wait()

    async with serving(slow) as url:
        pushes = [asyncio.create_task(push(url))]
        await begun.wait()
        pushes += [asyncio.create_task(push(url)) for _ in range(2)]
        begun.clear()
        # Another receipt overtakes them: only its repetitions wait for a receipt.
        pushes.append(asyncio.create_task(push(url, OTHER)))
        await begun.wait()
        assert not any(task.done() for task in pushes)
        go_on.set()
        assert [SUCCESS] * 4 == [outcome(response) for response in await asyncio.gather(*pushes)]
    assert ["2", "3"] == [receipt.code for receipt in seen]


async def test_pushes_at_the_same_time_share_a_failure(serving: Serving) -> None:
    begun, go_on = threading.Event(), threading.Event()
    seen = Seen(failures=1)

    def slow(receipt: Receipt) -> None:
        begun.set()
        go_on.wait(DEADLINE)
        seen(receipt)

    async with serving(slow) as url:
        first = asyncio.create_task(push(url))
        await asyncio.to_thread(begun.wait, DEADLINE)
        async with connected(url) as (reader, writer):
            writer.write(request_bytes("POST", PATH, BODY, FORM))
            # What comes after it on another connection is read after it.
            assert (400, NO_CALL) == outcome(await push(url, b"x"))
            go_on.set()
            second = parsed(await received(reader))
        assert [500, 500] == [(await first).status, second.status]
        assert SUCCESS == outcome(await push(url))
    assert 2 == len(seen)


async def test_only_so_many_receipts_are_remembered(serving: Serving) -> None:
    seen = Seen()
    codes = [1, 2, 1, 3, 1, 2]
    async with serving(seen, remember=2) as url:
        for code in codes:
            await push(url, b"voiceid=7&code=%d" % code)
    # 3 pushed out 2, which had not been pushed for longest.
    assert ["1", "2", "3", "2"] == [receipt.code for receipt in seen]


# --- callbacks --------------------------------------------------------------


async def test_a_callback_that_blocks_does_not_hold_up_the_loop(serving: Serving) -> None:
    loop_thread = threading.get_ident()
    seen = []
    go_on = threading.Event()

    def blocks(receipt: Receipt) -> None:
        seen.append((threading.get_ident(), go_on.wait(DEADLINE), receipt.code))

    async with serving(blocks) as url:
        pushed = asyncio.create_task(push(url))
        assert 400 == (await push(url, b"")).status
        go_on.set()
        assert SUCCESS == outcome(await pushed)
    ((thread, gone_on, code),) = seen
    assert (True, "2") == (gone_on, code)
    assert loop_thread != thread


async def test_any_kind_of_callback_will_do(serving: Serving) -> None:
    seen = Seen()

    async def tell(to: Seen, receipt: Receipt) -> None:
        await asyncio.sleep(0)
        to(receipt)

    class Teller:
        async def __call__(self, receipt: Receipt) -> None:
            await tell(seen, receipt)

    callbacks = [
        seen,
        functools.partial(tell, seen),
        Teller(),
        lambda receipt: tell(seen, receipt),
        seen.append,
    ]
    for callback in callbacks:
        async with serving(callback) as url:
            assert SUCCESS == outcome(await push(url))
    assert 5 == len(seen)


async def test_a_failure_is_logged_without_the_number_or_what_was_said(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(Seen(failures=1)) as url:
        await push(url)
        await push(url)
    ours = [record for record in caplog.records if record.name == "ihuyi_voice.receipts"]
    assert [logging.ERROR, logging.INFO] == [record.levelno for record in ours]
    failure, taken = (record.getMessage() for record in ours)
    assert failure.startswith(
        "the receipt 139****5678 code=2 voice_id=197362477 is to be pushed again:"
        " the callback raised LookupError ("
    )
    assert f"{__file__}:" in failure
    assert "in __call__" in failure
    assert "receipt 139****5678 code=2 voice_id=197362477" == taken
    for secret in ("13912345678", "1125"):
        assert secret not in caplog.text


@pytest.mark.parametrize("make", [aiohttp_receipt_handler, asgi_receipt_app])
def test_wrong_arguments_are_told_at_once(make: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match=r"^callback must be a function of a Receipt, not str$"):
        make("print")
    with pytest.raises(ValueError, match=r"^remember must be at least 1, not 0$"):
        make(print, remember=0)
    with pytest.raises(TypeError, match=r"^remember must be an int, not float$"):
        make(print, remember=1.0)


# --- ASGI -------------------------------------------------------------------


async def test_it_can_be_mounted_and_is_then_found_with_a_slash_at_the_end() -> None:
    seen = Seen()
    app = Starlette(routes=[Mount(PATH, asgi_receipt_app(seen))])
    async with asgi_serving(app) as url:
        assert SUCCESS == outcome(await ask(url, "POST", f"{PATH}/", BODY))
        assert 307 == (await ask(url, "POST", PATH, BODY)).status
    assert 1 == len(seen)


async def test_it_is_a_route_of_fastapi_which_answers_a_get_itself() -> None:
    seen = Seen()
    app = FastAPI()
    app.routes.append(Route(PATH, asgi_receipt_app(seen), methods=["POST"]))
    async with asgi_serving(app) as url:
        assert SUCCESS == outcome(await push(url))
        assert SUCCESS == outcome(await push(url))
        assert 405 == (await ask(url, "GET", PATH)).status
    assert 1 == len(seen)


async def test_it_is_an_application_of_its_own() -> None:
    seen = Seen()
    async with asgi_serving(asgi_receipt_app(seen)) as url:
        assert SUCCESS == outcome(await push(url))
    assert 1 == len(seen)


async def test_a_web_socket_is_refused() -> None:
    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    async def receive() -> dict[str, object]:
        raise NotImplementedError  # pragma: no cover - nothing is read

    await asgi_receipt_app(print)({"type": "websocket"}, receive, send)
    assert [{"type": "websocket.close"}] == sent


async def test_no_frame_that_an_error_passes_shows_the_number() -> None:
    pieces = [BODY, b""]

    async def receive() -> dict[str, object]:
        if not pieces:
            raise LookupError
        return {"type": "http.request", "body": pieces.pop(0), "more_body": True}

    async def send(message: dict[str, object]) -> None:
        raise NotImplementedError  # pragma: no cover - there is no answer

    with pytest.raises(LookupError) as caught:
        await asgi_receipt_app(print)({"type": "http", "method": "POST"}, receive, send)
    frames = frames_of(caught.value)
    assert ["__call__", "_answer", "answer", "read"] == [name for name, _ in frames]
    assert [] == [name for name, shown in frames if "13912345678" in shown]


async def test_a_piece_of_a_body_may_be_empty_before_its_end() -> None:
    seen = Seen()
    assert 200 == await pushed_to(asgi_receipt_app(seen), b"", BODY[:20], b"", BODY[20:], b"")
    assert ["197362477"] == [receipt.voice_id for receipt in seen]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("kind", ["async", "blocking"])
def test_what_a_cancelled_push_has_begun_goes_on_and_counts(backend: str, kind: str) -> None:
    seen = Seen()
    go_on_in_thread = threading.Event()

    async def main() -> int:
        begun, go_on = anyio.Event(), anyio.Event()

        async def slow(receipt: Receipt) -> None:
            seen(receipt)
            begun.set()
            await go_on.wait()

        def blocks(receipt: Receipt) -> None:
            seen(receipt)
            anyio.from_thread.run_sync(begun.set)
            go_on_in_thread.wait(DEADLINE)

        app = asgi_receipt_app(slow if kind == "async" else blocks)
        async with anyio.create_task_group() as pushing:
            pushing.start_soon(pushed_to, app)
            await begun.wait()
            pushing.cancel_scope.cancel()
            go_on.set()
            go_on_in_thread.set()
        return await pushed_to(app)

    assert 200 == anyio.run(main, backend=backend)
    assert 1 == len(seen)


def test_what_ends_with_its_loop_is_not_taken() -> None:
    seen = Seen()

    async def main() -> ReceiptApp:
        begun = asyncio.Event()

        async def slow(receipt: Receipt) -> None:
            seen(receipt)
            if len(seen) == 1:
                begun.set()
                await asyncio.Event().wait()

        app = asgi_receipt_app(slow)
        pushed = asyncio.create_task(pushed_to(app))
        await begun.wait()
        pushed.cancel()
        return app

    assert 200 == asyncio.run(pushed_to(asyncio.run(main())))
    assert 2 == len(seen)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("kind", ["async", "blocking"])
def test_it_runs_under_either_loop(backend: str, kind: str) -> None:
    seen = Seen()

    async def tell(receipt: Receipt) -> None:
        await anyio.lowlevel.checkpoint()
        seen(receipt)

    assert 200 == anyio.run(
        pushed_to, asgi_receipt_app(tell if kind == "async" else seen), backend=backend
    )
    assert 1 == len(seen)


def frames_of(error: BaseException) -> list[tuple[str, str]]:
    """Our frames, each with its local variables as tools print them."""
    captured = traceback.TracebackException.from_exception(error, capture_locals=True)
    ours = [frame for frame in captured.stack if frame.filename.endswith("receipts/handlers.py")]
    return [(frame.name, repr(frame.locals)) for frame in ours]


async def pushed_to(app: ReceiptApp, *pieces: bytes) -> int:
    """The status of the answer to a push that arrives in pieces."""
    left = list(pieces or (BODY,))
    statuses = []

    async def receive() -> dict[str, object]:
        piece = left.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(left)}

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app({"type": "http", "method": "POST"}, receive, send)
    (status,) = statuses
    assert isinstance(status, int)
    return status
