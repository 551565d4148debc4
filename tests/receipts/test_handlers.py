"""The handlers over real HTTP: their answers, and when they call the callback."""

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
    """A callback that keeps its receipts and raises in the first `failures` calls."""

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
async def test_headers_do_not_matter(serving: Serving, headers: dict[str, str]) -> None:
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
async def test_a_body_that_is_not_a_receipt_is_refused(
    serving: Serving, why: bytes, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()
    async with serving(seen) as url:
        assert (400, why) == outcome(await push(url, body))
    assert [] == seen
    assert why.decode().removeprefix("not a receipt: ") in caplog.text


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_other_methods_than_post_are_refused(serving: Serving, method: str) -> None:
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
        # The added bytes make the time unreadable, which is no reason to refuse it.
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
    assert (400, b"not a receipt: its body is incomplete") == outcome(packed)
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


async def test_a_receipt_is_one_short_log_line_without_numbers(
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
    failure, *accepted = [
        r.getMessage() for r in caplog.records if r.name == "ihuyi_voice.receipts"
    ]
    assert failure.startswith("receipt 139****5678 code=DB:0142 voice_id=197362477: the callback")
    assert [
        f"receipt 139****5678 code={shown} voice_id=197362477" for shown in [*codes.values()][1:]
    ] == accepted


# --- once for each id and code ----------------------------------------------


async def test_a_receipt_that_is_pushed_again_is_answered_without_a_second_call(
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


async def test_without_a_code_any_difference_makes_another_receipt(serving: Serving) -> None:
    seen = Seen()
    # Perhaps the code, under a name that is not known.
    states = [b"stat=ringing", b"stat=DELIVRD", b"stat=DELIVRD"]
    async with serving(seen) as url:
        for state in states:
            assert SUCCESS == outcome(await push(url, b"voiceid=7&" + state))
    assert ["ringing", "DELIVRD"] == [receipt.raw["stat"] for receipt in seen]


async def test_after_a_failure_the_callback_is_called_again(
    serving: Serving,
) -> None:
    seen = Seen(failures=2)
    async with serving(seen) as url:
        outcomes = [outcome(await push(url)) for _ in range(4)]
    assert [(500, b"not accepted, send it again")] * 2 + [SUCCESS] * 2 == outcomes
    assert 3 == len(seen)


async def test_a_repetition_during_the_first_call_calls_again(serving: Serving) -> None:
    begun = asyncio.Queue[Receipt]()
    go_on = asyncio.Event()

    async def slow(receipt: Receipt) -> None:
        begun.put_nowait(receipt)
        await go_on.wait()

    async with serving(slow) as url:
        pushes = [asyncio.create_task(push(url)) for _ in range(2)]
        receipts = [await asyncio.wait_for(begun.get(), DEADLINE) for _ in range(2)]
        go_on.set()
        assert [SUCCESS] * 2 == [outcome(response) for response in await asyncio.gather(*pushes)]
        assert SUCCESS == outcome(await push(url))
    # What the docstring names to recognise it.
    assert [("197362477", "2")] * 2 == [(receipt.voice_id, receipt.code) for receipt in receipts]
    assert begun.empty()


async def test_the_least_recent_receipt_is_forgotten_first(serving: Serving) -> None:
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


async def test_every_kind_of_callback_is_called(serving: Serving) -> None:
    seen = Seen()

    async def report(to: Seen, receipt: Receipt) -> None:
        await asyncio.sleep(0)
        to(receipt)

    class Reporter:
        async def __call__(self, receipt: Receipt) -> None:
            await report(seen, receipt)

    callbacks = [
        seen,
        functools.partial(report, seen),
        Reporter(),
        lambda receipt: report(seen, receipt),
        seen.append,
    ]
    for callback in callbacks:
        async with serving(callback) as url:
            assert SUCCESS == outcome(await push(url))
    assert 5 == len(seen)


async def test_a_failure_is_logged_without_number_and_error_text(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(Seen(failures=1)) as url:
        await push(url)
        await push(url)
    ours = [record for record in caplog.records if record.name == "ihuyi_voice.receipts"]
    assert [logging.ERROR, logging.INFO] == [record.levelno for record in ours]
    failure, accepted = (record.getMessage() for record in ours)
    assert failure.startswith(
        "receipt 139****5678 code=2 voice_id=197362477:"
        " the callback raised LookupError, the gateway will send it again ("
    )
    assert f"{__file__}:" in failure
    assert "in __call__" in failure
    assert "receipt 139****5678 code=2 voice_id=197362477" == accepted
    for secret in ("13912345678", "1125"):
        assert secret not in caplog.text


@pytest.mark.parametrize("make", [aiohttp_receipt_handler, asgi_receipt_app])
def test_wrong_arguments_are_refused_at_once(make: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match=r"^callback must be a function of a Receipt, not str$"):
        make("print")
    with pytest.raises(ValueError, match=r"^remember must be at least 1, not 0$"):
        make(print, remember=0)
    with pytest.raises(TypeError, match=r"^remember must be an int, not float$"):
        make(print, remember=1.0)


# --- ASGI -------------------------------------------------------------------


async def test_a_mounted_app_is_found_with_a_slash_at_the_end() -> None:
    seen = Seen()
    app = Starlette(routes=[Mount(PATH, asgi_receipt_app(seen))])
    async with asgi_serving(app) as url:
        assert SUCCESS == outcome(await ask(url, "POST", f"{PATH}/", BODY))
        assert 307 == (await ask(url, "POST", PATH, BODY)).status
    assert 1 == len(seen)


async def test_the_app_is_a_route_of_fastapi_which_answers_a_get_itself() -> None:
    seen = Seen()
    app = FastAPI()
    app.routes.append(Route(PATH, asgi_receipt_app(seen), methods=["POST"]))
    async with asgi_serving(app) as url:
        assert SUCCESS == outcome(await push(url))
        assert SUCCESS == outcome(await push(url))
        assert 405 == (await ask(url, "GET", PATH)).status
    assert 1 == len(seen)


async def test_the_app_runs_alone() -> None:
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
def test_after_a_cancelled_call_the_callback_is_called_again(backend: str) -> None:
    seen = Seen()

    async def main() -> int:
        begun = anyio.Event()

        async def slow(receipt: Receipt) -> None:
            seen(receipt)
            if not begun.is_set():
                begun.set()
                await anyio.sleep_forever()

        app = asgi_receipt_app(slow)
        async with anyio.create_task_group() as pushing:
            pushing.start_soon(pushed_to, app)
            await begun.wait()
            pushing.cancel_scope.cancel()
        return await pushed_to(app)

    assert 200 == anyio.run(main, backend=backend)
    assert 2 == len(seen)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("kind", ["async", "blocking"])
def test_the_app_runs_under_asyncio_and_trio(backend: str, kind: str) -> None:
    seen = Seen()

    async def report(receipt: Receipt) -> None:
        await anyio.lowlevel.checkpoint()
        seen(receipt)

    assert 200 == anyio.run(
        pushed_to, asgi_receipt_app(report if kind == "async" else seen), backend=backend
    )
    assert 1 == len(seen)


def frames_of(error: BaseException) -> list[tuple[str, str]]:
    """Our frames, each with its local variables as tools print them."""
    captured = traceback.TracebackException.from_exception(error, capture_locals=True)
    ours = [frame for frame in captured.stack if frame.filename.endswith("receipts/handlers.py")]
    return [(frame.name, repr(frame.locals)) for frame in ours]


async def pushed_to(app: ReceiptApp, *pieces: bytes) -> int:
    """The status of the answer to a receipt that arrives in pieces."""
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
