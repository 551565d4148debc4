"""Handlers for receipts: what the gateway reports after a call has ended.

The account's owner registers a URL with the vendor. The gateway POSTs a form to
it, at most 3 times, until the answer is the bare text `success`. With aiohttp:

    async def on_receipt(receipt: Receipt) -> None:
        if await placed_by_us(receipt.voice_id): ...

    app.router.add_post("/receipts/a-long-secret", aiohttp_receipt_handler(on_receipt))

With Starlette's `Route`, in a list of routes or, as in FastAPI, added to those of an app:

    route = Route("/receipts/a-long-secret", asgi_receipt_app(on_receipt), methods=["POST"])
    app.routes.append(route)

What is not known, and what to do about it:

- The names of the voice product's fields are not published. `parse_receipt` reads
  those of the vendor's SMS manual, and the names that the id has elsewhere in
  the family; `Receipt.raw` has every field. Ask the vendor whether the voice product
  sends receipts at all.
- No signature is documented: anyone who knows the URL can invent receipts, so
  a receipt is a hint, not proof. Make the path a long secret, accept requests
  from the vendor's addresses only (at the proxy or firewall), and match
  `voice_id` with the ids that `submit` returned before you act on a receipt.
- The codes differ from those of a submit and are not always numbers: operators'
  texts come through, such as `DB:0142`. Only 2 is documented. So
  `Receipt.code` is the str that came, and `delivered` means `2` or `DELIVRD`.

The gateway gives up after three refusals, and the receipt is lost. So no receipt is
refused for its code, its time or its number: a value that cannot be read is kept as is.

This module never calls the gateway. Logs and reprs show only masked numbers.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
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
    from collections.abc import Mapping

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
"""The whole answer that makes the gateway stop repeating a receipt."""

MAX_RECEIPT_BYTES = 64 * 1024
"""Far more than any receipt has; a longer body is refused with 413."""

# --- calling the user's function ----------------------------------------------


def _key(receipt: Receipt) -> bytes:
    """Identifies a receipt, so that its repetitions are recognised."""
    if receipt.voice_id is not None and receipt.code:
        identity = [receipt.voice_id, receipt.code]
    else:
        # The id or the code may be there under an unknown name: only equal forms
        # are repetitions.
        identity = [repr(sorted(receipt.raw.items()))]
    # A digest, because a code may be as long as a body.
    return hashlib.sha256(repr(identity).encode(errors="backslashreplace")).digest()


# Returns the next piece of a body; empty at its end.
_Read = Callable[[], Awaitable[bytes]]


class _Answer(NamedTuple):
    """The answer to a request, as text/plain."""

    status: int
    text: str


_TOO_LARGE = _Answer(413, f"more than {MAX_RECEIPT_BYTES} bytes")
_POST_ONLY = _Answer(405, "POST a receipt")
_INCOMPLETE = _Answer(400, "not a receipt: its body is incomplete")


class _Body:
    """The body of a request. No repr shows it: it holds a number."""

    __slots__ = ("_read",)

    def __init__(self) -> None:
        self._read = bytearray()

    def add(self, piece: bytes) -> bool:
        """Add a piece; return whether more follow. An empty piece is the end."""
        self._read += piece
        return bool(piece)

    @property
    def is_too_large(self) -> bool:
        return len(self._read) > MAX_RECEIPT_BYTES

    def receipt(self) -> Receipt | InvalidReceiptError:
        return read_receipt(bytes(self._read))


class _Receiver:
    """Answers the requests of one handler, whatever server it runs in."""

    def __init__(self, callback: Callable[[Receipt], object], remember: int) -> None:
        check_count("remember", remember)
        is_callable: bool = callable(callback)
        if not is_callable:
            msg = f"callback must be a function of a Receipt, not {type(callback).__name__}"
            raise TypeError(msg)
        self._callback = callback
        self._remember = remember
        # The receipts that were accepted, the least recent first.
        self._accepted: dict[bytes, None] = {}

    async def answer(self, read: _Read) -> _Answer:
        body = _Body()
        while body.add(await read()):
            if body.is_too_large:
                return _TOO_LARGE
        receipt = body.receipt()
        if isinstance(receipt, InvalidReceiptError):
            logger.warning("refused a request that is not a receipt: %s", receipt)
            return _Answer(400, f"not a receipt: {receipt}")
        if await self._accept(receipt):
            return _Answer(200, RECEIPT_REPLY)
        return _Answer(500, "not accepted, send it again")

    async def _accept(self, receipt: Receipt) -> bool:
        """Whether the user's function accepts it, or has accepted it earlier."""
        key = _key(receipt)
        if key not in self._accepted and not await self._called(receipt):
            return False
        self._accepted.pop(key, None)
        self._accepted[key] = None
        if len(self._accepted) > self._remember:
            del self._accepted[next(iter(self._accepted))]
        return True

    async def _called(self, receipt: Receipt) -> bool:
        try:
            await self._call(receipt)
        except Exception as error:  # noqa: BLE001 - the user's function may raise anything
            # Neither its text nor its source lines: they may hold a number or a code.
            tb = extract_tb(error.__traceback__)
            frames = "; ".join(f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in tb)
            logger.error(  # noqa: TRY400 - logging.exception writes text and lines
                "receipt %s: the callback raised %s, the gateway will send it again (%s)",
                receipt.log_text(),
                type(error).__qualname__,
                frames,
            )
            return False
        logger.info("receipt %s", receipt.log_text())
        return True

    async def _call(self, receipt: Receipt) -> None:
        from anyio import to_thread  # noqa: PLC0415 - parsing alone does not need anyio

        if inspect.iscoroutinefunction(self._callback):
            await self._callback(receipt)
            return
        returned = await to_thread.run_sync(self._callback, receipt)
        # A lambda or a callable object may return an awaitable.
        if inspect.isawaitable(returned):
            await returned


def aiohttp_receipt_handler(
    callback: Callable[[Receipt], object], *, remember: int = 10_000
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """A handler for aiohttp.web that receives the gateway's receipts.

        app.router.add_post("/receipts/a-long-secret", aiohttp_receipt_handler(on_receipt))

    The module's docstring says what a receipt does not prove.

    The handler answers `success` once `callback` has returned; 500 when it raised, so
    that the gateway sends the receipt again (at most 3 times in all); 400 for a body
    that is not a receipt (neither an id nor a number, or more than 100 fields), 405
    for any method but POST, 413 for a body above 64 KiB. No receipt is refused for
    its code, its time or its number. The form is read as UTF-8 or GBK, whatever its
    headers say.

    Args:
        callback: called with each receipt. A coroutine function is awaited; any other
            is called in a thread, so that it may block. It should be quick: how long
            the gateway waits for an answer is not known.
            It may be called again for the same receipt: after it raised or was
            cancelled, while an earlier call for it still runs, after a restart, and in
            another worker. Before acting, check in your own database whether
            (`receipt.voice_id`, `receipt.code`) was handled before.
        remember: how many accepted receipts this handler remembers in this process,
            about 250 bytes each. A remembered receipt is answered with `success`
            without a call of `callback`. Receipts are equal if their ids and codes
            are, or their whole forms where one of these is missing.

    Raises:
        ValueError: `remember` is below 1.
        TypeError: an argument is of the wrong type.
    """
    receiver = _Receiver(callback, remember)

    async def handle(request: web.Request) -> web.StreamResponse:
        from aiohttp import web  # noqa: PLC0415 - ASGI servers do not need aiohttp.web

        answer = _POST_ONLY
        if request.method == "POST":
            try:
                answer = await receiver.answer(request.content.readany)
            except (ConnectionError, web.RequestPayloadError):
                # Disconnected mid-body, or a body that cannot be decoded.
                answer = _INCOMPLETE
        response = web.Response(status=answer.status, text=answer.text)
        if answer is _POST_ONLY:
            response.headers["Allow"] = "POST"
        if answer is _TOO_LARGE:
            # The rest of the body is not read.
            response.force_close()
        return response

    return handle


class ReceiptApp:
    """An ASGI application that receives the gateway's receipts; see `asgi_receipt_app`."""

    __slots__ = ("_receiver",)

    def __init__(self, receiver: _Receiver) -> None:
        self._receiver = receiver

    async def __call__(
        self,
        scope: Mapping[str, object],
        receive: Callable[[], Awaitable[Mapping[str, object]]],
        send: Callable[[dict[str, object]], Awaitable[None]],
    ) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            try:
                await _send(send, await self._answer(scope, receive))
            except _DisconnectedError:
                # Disconnected mid-body: no receipt, and no caller to answer.
                return
        else:
            # A WebSocket that is closed before it was accepted is refused with 403.
            await send({"type": "websocket.close"})

    async def _answer(
        self, scope: Mapping[str, object], receive: Callable[[], Awaitable[Mapping[str, object]]]
    ) -> _Answer:
        if scope["method"] != "POST":
            return _POST_ONLY
        return await self._receiver.answer(_reading(receive))


def asgi_receipt_app(
    callback: Callable[[Receipt], object], *, remember: int = 10_000
) -> ReceiptApp:
    """An ASGI application that receives receipts, for Starlette, FastAPI and others.

        route = Route("/receipts/a-long-secret", asgi_receipt_app(on_receipt), methods=["POST"])
        app.routes.append(route)

    It serves every path that is routed to it. Mounted (`app.mount("/receipts/a-long-secret",
    ...)`), it is found only under that path with a slash at the end: without the slash
    Starlette answers a redirect, which the gateway is not known to follow.

    Answers, arguments and exceptions are those of `aiohttp_receipt_handler`.
    """
    return ReceiptApp(_Receiver(callback, remember))


class _DisconnectedError(Exception):
    """The caller disconnected mid-body; never leaves this module."""


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
            # ASGI allows an empty piece before the end.
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
    """Answer the lifespan protocol; there is nothing to start or stop."""
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})
