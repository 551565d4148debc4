"""Receipts: what the gateway pushes once a call has ended, and handlers to receive it.

The account's owner registers a URL with the vendor; the gateway POSTs a form to
it, and repeats that, at most 3 times, until the answer is the bare text
`success`. With aiohttp:

    async def on_receipt(receipt: Receipt) -> None:
        if await placed_by_us(receipt.voice_id): ...

    app.router.add_post("/receipts/a-long-secret", aiohttp_receipt_handler(on_receipt))

With Starlette's `Route`, in a list of routes or, as in FastAPI, added to those of an app:

    route = Route("/receipts/a-long-secret", asgi_receipt_app(on_receipt), methods=["POST"])
    app.routes.append(route)

What is not known, and what to do about it:

- The names of the voice product's fields are not published. Those of the
  vendor's SMS manual are read here, and the names that the id has elsewhere in
  the family; `Receipt.raw` has whatever came. Whether the voice product pushes
  receipts at all is a question for the vendor.
- No signature is documented: anyone who knows the URL can make receipts up, so
  a receipt is a hint and no proof. Make the path a long secret, take requests
  from the vendor's addresses alone (at the proxy or firewall), and match
  `voice_id` with the ids that `submit` returned before believing anything.
- The codes are another vocabulary than those of a submit, and not always numbers:
  operators' texts come through, such as `DB:0142`. Only 2 is documented. So
  `Receipt.code` is a str as it came, and `delivered` means `2` or `DELIVRD`.

A receipt that is refused three times is lost. So none is refused for its code, its
time or its number: what cannot be read is kept as it came.

Nothing here talks to the gateway. Logs and reprs show numbers only masked.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from traceback import extract_tb
from typing import TYPE_CHECKING, NamedTuple

from ..models import check_count
from .parsing import (
    InvalidReceiptError,
    Receipt,
    ReceiptFields,
    parse_receipt,
    read_receipt,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    import anyio
    from aiohttp import web

__all__ = [
    "MAX_RECEIPT_BYTES",
    "RECEIPT_REPLY",
    "InvalidReceiptError",
    "Receipt",
    "ReceiptApp",
    "ReceiptFields",
    "aiohttp_receipt_handler",
    "asgi_receipt_app",
    "parse_receipt",
]

logger: logging.Logger = logging.getLogger("ihuyi_voice.receipts")

RECEIPT_REPLY = "success"
"""The text, and nothing else, that tells the gateway not to push a receipt again."""

MAX_RECEIPT_BYTES = 64 * 1024
"""No receipt comes near it; a longer body is refused with 413."""

# --- calling the user's function once -----------------------------------------


def _key(receipt: Receipt) -> bytes:
    """What is remembered of a receipt, so that its repetitions are known."""
    if receipt.voice_id is not None and receipt.code:
        said = [receipt.voice_id, receipt.code]
    else:
        # The id or the code may be there under an unknown name: only equal forms
        # are repetitions.
        said = [repr(sorted(receipt.raw.items()))]
    # A digest, because a code may be as long as a body.
    return hashlib.sha256(repr(said).encode(errors="backslashreplace")).digest()


class _UnderWay:
    """A receipt that the user's function is looking at just now."""

    __slots__ = ("ended", "taken", "task")

    def __init__(self, ended: anyio.Event) -> None:
        self.ended = ended
        self.taken = False
        # asyncio keeps only weak references to its tasks.
        self.task: asyncio.Task[None] | None = None


# Gives the next piece of a body, empty at its end.
_Read = Callable[[], Awaitable[bytes]]


class _Answer(NamedTuple):
    """What a push is answered, as text/plain."""

    status: int
    text: str


_TOO_LARGE = _Answer(413, f"more than {MAX_RECEIPT_BYTES} bytes")
_POST_ONLY = _Answer(405, "POST a receipt")
_BROKEN_OFF = _Answer(400, "not a receipt: its body broke off")


class _Body:
    """The body of a push. No repr shows it: it holds a number."""

    __slots__ = ("_read",)

    def __init__(self) -> None:
        self._read = bytearray()

    def add(self, piece: bytes) -> bool:
        """Whether there is more to read: an empty piece is the end."""
        self._read += piece
        return bool(piece)

    @property
    def is_too_large(self) -> bool:
        return len(self._read) > MAX_RECEIPT_BYTES

    def receipt(self) -> Receipt | InvalidReceiptError:
        return read_receipt(bytes(self._read))


class _Pushes:
    """Answers the pushes of one handler, whatever server it runs in."""

    def __init__(self, callback: Callable[[Receipt], object], remember: int) -> None:
        check_count("remember", remember)
        is_callable: bool = callable(callback)
        if not is_callable:
            msg = f"callback must be a function of a Receipt, not {type(callback).__name__}"
            raise TypeError(msg)
        self._callback = callback
        self._remember = remember
        self._taken: OrderedDict[bytes, None] = OrderedDict()
        self._under_way: dict[bytes, _UnderWay] = {}

    async def answer(self, read: _Read) -> _Answer:
        body = _Body()
        while body.add(await read()):
            if body.is_too_large:
                return _TOO_LARGE
        receipt = body.receipt()
        if isinstance(receipt, InvalidReceiptError):
            logger.warning("a push that is not a receipt: %s", receipt)
            return _Answer(400, f"not a receipt: {receipt}")
        if await self._take(receipt):
            return _Answer(200, RECEIPT_REPLY)
        return _Answer(500, "not taken, push it again")

    async def _take(self, receipt: Receipt) -> bool:
        """Whether the user's function has taken it, now or earlier."""
        import asyncio  # noqa: PLC0415 - parsing alone needs none of this

        from anyio import CancelScope, Event  # noqa: PLC0415 - as above

        key = _key(receipt)
        if key in self._taken:
            self._taken.move_to_end(key)
            return True
        if other := self._under_way.get(key):
            await other.ended.wait()
            return other.taken
        this = self._under_way[key] = _UnderWay(Event())
        # What was begun goes on to its end, whatever becomes of the push: a thread
        # cannot be cancelled, and a function cut off half-way would be called again.
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            # trio's.
            with CancelScope(shield=True):
                await self._look_at(receipt, key, this)
        else:
            this.task = loop.create_task(self._look_at(receipt, key, this))
            await asyncio.shield(this.task)
        return this.taken

    async def _look_at(self, receipt: Receipt, key: bytes, this: _UnderWay) -> None:
        try:
            this.taken = await self._called(receipt)
        finally:
            # Cancelled at the end of the program, it is not taken.
            del self._under_way[key]
            this.ended.set()
        if this.taken:
            self._taken[key] = None
            if len(self._taken) > self._remember:
                self._taken.popitem(last=False)

    async def _called(self, receipt: Receipt) -> bool:
        try:
            await self._call(receipt)
        except Exception as error:  # noqa: BLE001 - the user's function may raise anything
            # Its text is not logged, nor the lines: they may hold a number or a code.
            tb = extract_tb(error.__traceback__)
            frames = "; ".join(f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in tb)
            logger.error(  # noqa: TRY400 - for the same reason
                "the receipt %s is to be pushed again: the callback raised %s (%s)",
                receipt.log_text(),
                type(error).__qualname__,
                frames,
            )
            return False
        logger.info("receipt %s", receipt.log_text())
        return True

    async def _call(self, receipt: Receipt) -> None:
        from anyio import to_thread  # noqa: PLC0415 - as above

        if inspect.iscoroutinefunction(self._callback):
            await self._callback(receipt)
            return
        returned = await to_thread.run_sync(self._callback, receipt)
        # A lambda or an object may be asynchronous without looking so.
        if inspect.isawaitable(returned):
            await returned


def aiohttp_receipt_handler(
    callback: Callable[[Receipt], object], *, remember: int = 10_000
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """A handler for aiohttp.web that takes the gateway's pushes.

        app.router.add_post("/receipts/a-long-secret", aiohttp_receipt_handler(on_receipt))

    Read at the top of `ihuyi_voice.receipts` what a receipt does not prove.

    It answers `success` once `callback` has returned for a receipt; 500 when it
    raised, so that the gateway pushes again (at most 3 times in all) and
    `callback` is called again; 400 for what is not a receipt (neither an id nor
    a number, or more than 100 fields), 405 for anything but a POST, 413 for a
    body above 64 KiB. No receipt is refused for its code, its time or its
    number. The form is read as UTF-8 or GBK, whatever the headers say of it.

    Args:
        callback: called once for each id and code (where one of them is
            missing: for each form that differs), however often that is pushed;
            a push that arrives while it runs waits and gets the same answer. It
            runs to its end even where the push is cancelled, and its result
            counts. A coroutine function is awaited, any other is called in a
            thread, so that it may block. It should be quick: how long the
            gateway waits for an answer is not known.
        remember: how many receipts that were taken are remembered, the most
            recently pushed; about 250 bytes each. They are remembered by this
            handler in this process: after a restart, or with several workers,
            the same receipt may come to `callback` again.

    Raises:
        ValueError: `remember` is below 1.
        TypeError: an argument is of the wrong type.
    """
    pushes = _Pushes(callback, remember)

    async def handle(request: web.Request) -> web.StreamResponse:
        from aiohttp import web  # noqa: PLC0415 - only for those who serve with it

        answer = _POST_ONLY
        if request.method == "POST":
            try:
                answer = await pushes.answer(request.content.readany)
            except (ConnectionError, web.RequestPayloadError):
                # Disconnected mid-body, or a body that cannot be decoded.
                answer = _BROKEN_OFF
        response = web.Response(status=answer.status, text=answer.text)
        if answer is _POST_ONLY:
            response.headers["Allow"] = "POST"
        if answer is _TOO_LARGE:
            # The rest of the body is not read.
            response.force_close()
        return response

    return handle


class ReceiptApp:
    """An ASGI application that takes the gateway's pushes; made by `asgi_receipt_app`."""

    __slots__ = ("_pushes",)

    def __init__(self, pushes: _Pushes) -> None:
        self._pushes = pushes

    async def __call__(
        self,
        scope: Mapping[str, object],
        receive: Callable[[], Awaitable[Mapping[str, object]]],
        send: Callable[[dict[str, object]], Awaitable[None]],
    ) -> None:
        """Serve one scope, as the ASGI specification has it."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            try:
                await _send(send, await self._answer(scope, receive))
            except _DisconnectedError:
                # Disconnected mid-body: there is no receipt and no caller to answer.
                return
        else:
            # Closed before it is accepted, a WebSocket is refused with 403.
            await send({"type": "websocket.close"})

    async def _answer(
        self, scope: Mapping[str, object], receive: Callable[[], Awaitable[Mapping[str, object]]]
    ) -> _Answer:
        if scope["method"] != "POST":
            return _POST_ONLY
        return await self._pushes.answer(_reading(receive))


def asgi_receipt_app(
    callback: Callable[[Receipt], object], *, remember: int = 10_000
) -> ReceiptApp:
    """An ASGI application that takes the gateway's pushes, for Starlette, FastAPI and others.

        route = Route("/receipts/a-long-secret", asgi_receipt_app(on_receipt), methods=["POST"])
        app.routes.append(route)

    It answers whatever path it is put under. Mounted (`app.mount("/receipts/a-long-secret",
    ...)`) it is found under that path with a slash at the end, and only there: without
    it Starlette answers a redirect, which the gateway is not known to follow.

    What it answers, the arguments and what is raised: as `aiohttp_receipt_handler`.
    Read at the top of `ihuyi_voice.receipts` what a receipt does not prove.
    """
    return ReceiptApp(_Pushes(callback, remember))


class _DisconnectedError(Exception):
    """The caller left before its body was whole; never leaves this module."""


def _reading(receive: Callable[[], Awaitable[Mapping[str, object]]]) -> _Read:
    more = True

    async def read() -> bytes:
        nonlocal more
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _DisconnectedError
            more = bool(message.get("more_body", False))
            piece = message.get("body")
            # A piece may be empty before the end.
            if isinstance(piece, bytes) and piece:
                return piece
        return b""

    return read


async def _send(send: Callable[[dict[str, object]], Awaitable[None]], answer: _Answer) -> None:
    body = answer.text.encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
    ]
    if answer is _POST_ONLY:
        headers.append((b"allow", b"POST"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _live(
    receive: Callable[[], Awaitable[Mapping[str, object]]],
    send: Callable[[dict[str, object]], Awaitable[None]],
) -> None:
    """The lifespan of a server that serves nothing else: there is nothing to start or stop."""
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})
