"""The sandbox gateway over HTTP: the gateway's own path, the inbox page, and `/_sandbox/`.

It reads requests, hands them to the gateway, writes the answers, and does to
the socket what the chaos says. It judges nothing and remembers nothing.

aiohttp's low-level server is used without its application layer: nothing here
needs the router, and a load run is several times as fast without it.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from email.utils import formatdate
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING

from aiohttp import web

from ihuyi_voice.wire import CONTENT_TYPE, PATH

from .control_api import CONTROL_PATH, EVENTS, Answer, Controls, error, page
from .events import Feed
from .faults import as_sent
from .guard import gateway_refusal, refusal
from .page_files import HEADERS
from .receipt_delivery import Pusher
from .rules import parse_form

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from .faults import Roll
    from .gateway import SandboxGateway
    from .rules import Method, Reply

logger: logging.Logger = logging.getLogger("ihuyi_voice.sandbox")

MAX_BODY_BYTES = 64 * 1024
"""No form of a submit comes near it; a longer body is refused with 413."""

_TOO_LARGE = f"Content Too Large: more than {MAX_BODY_BYTES} bytes"

_METHODS: dict[str, Method] = {"Submit": "Submit", "GetNum": "GetNum"}

# Connections of a load run arrive faster than aiohttp's 128 allow for.
_BACKLOG = 1024

# For requests whose body is still under way when the server stops.
_SHUTDOWN_SECONDS = 0.25

# The page is told what happened at most ten times a second, and shown every
# 15 s that the server still lives.
_TURN_SECONDS = 0.1
_TURNS_UNTIL_A_SIGN = 150
_SIGN_OF_LIFE = b":\n\n"
_RECONNECT = b"retry: 1000\n\n"


@asynccontextmanager
async def serving(gateway: SandboxGateway, host: str, port: int) -> AsyncIterator[str]:
    """Serve `gateway` over HTTP and yield the base URL; stop promptly at the end."""
    stopping = asyncio.Event()
    pusher = Pusher(gateway)
    requests = _Requests(gateway, host, pusher, stopping)
    # With the cancellation, an answer that never comes ends when its caller leaves.
    server = web.Server(requests.answer, handler_cancellation=True, access_log=None)
    runner = web.ServerRunner(server, shutdown_timeout=_SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=_BACKLOG).start()
        address, real_port = runner.addresses[0][:2]
        _warn_unless_loopback(address, real_port)
        shown = f"[{address}]" if ":" in address else address
        yield f"http://{shown}:{real_port}"
    finally:
        stopping.set()
        await runner.cleanup()
        await pusher.close()
        # The transports close their sockets in the loop's next turn.
        await asyncio.sleep(0)


def _warn_unless_loopback(address: str, port: int) -> None:
    if not ip_address(address).is_loopback:
        logger.warning(
            "the sandbox gateway listens on %s port %d, which is NOT only this machine: whoever"
            " reaches it can read every number and code sent to it, submit, and steer it through"
            " %s; pass host='127.0.0.1' unless that is what you want",
            address,
            port,
            CONTROL_PATH,
        )


class _Requests:
    """Answers each request of one server."""

    def __init__(
        self, gateway: SandboxGateway, asked: str, pusher: Pusher, stopping: asyncio.Event
    ) -> None:
        self._gateway = gateway
        self._asked = asked
        self._pusher = pusher
        self._stopping = stopping
        self._dated = (0, formatdate(0, usegmt=True))
        self._controls = Controls(gateway)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.rel_url.raw_path
        if path == PATH:
            return await self._answer_gateway(request)
        if path == "/" or path.startswith(CONTROL_PATH):
            return await self._answer_page(request)
        return _page(404, f"Not Found: the gateway answers at {PATH}")

    # --- the gateway's own path

    async def _answer_gateway(self, request: web.BaseRequest) -> web.StreamResponse:
        own_address = partial(_own_address, request)
        refused = gateway_refusal(request.headers, self._asked, own_address)
        if refused is not None:
            return _page(403, f"Forbidden: {refused}")
        query = parse_form(request.rel_url.raw_query_string)
        method = _METHODS.get(query.get("method", ""))
        if method is None:
            return _page(404, "Not Found: ?method= must be Submit or GetNum")
        if request.method not in ("GET", "POST"):
            return _page(405, "Method Not Allowed: GET or POST", {"Allow": "GET, POST"})
        roll = self._gateway.roll()
        if roll.fault == "close_before_reading":
            await self._pause(roll.delay)
            return _close(request)
        body = await _body(request)
        if body is None:
            return _page(413, _TOO_LARGE)
        form = query if request.method == "GET" else _form(request, body)
        reply = self._gateway.answer(method, form, request.remote or "", roll)
        if reply.call is not None and self._gateway.receipt_url is not None:
            self._pusher.schedule(reply)
        await self._pause(roll.delay)
        return await self._send(request, reply, roll)

    async def _pause(self, seconds: float) -> None:
        if seconds:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _send(self, request: web.BaseRequest, reply: Reply, roll: Roll) -> web.StreamResponse:
        if roll.fault is None or roll.fault == "code":
            return web.Response(
                body=reply.body,
                headers={
                    "Content-Type": reply.content_type,
                    "Date": self._date(reply.time),
                    "Server": "ihuyi-voice-sandbox",
                },
            )
        status, body = as_sent(reply.body, roll)
        if roll.fault in ("html_502", "garbage"):
            return web.Response(status=status, body=body, content_type="text/html")
        if roll.fault == "truncate":
            return await _send_half(request, reply, body)
        if roll.fault == "no_answer":
            await self._stopping.wait()
        return _close(request)

    def _date(self, time: float) -> str:
        # By the gateway's clock, not the machine's: a client that compares the
        # two clocks must find what the time window was held against.
        second, text = int(time), self._dated[1]
        if second != self._dated[0]:
            text = formatdate(second, usegmt=True)
            self._dated = second, text
        return text

    # --- the page and /_sandbox/

    async def _answer_page(self, request: web.BaseRequest) -> web.StreamResponse:
        refused = refusal(request.method, request.headers, self._asked, _own_address(request))
        if refused is not None:
            return _response(error(403, refused))
        path, is_get = request.rel_url.raw_path, request.method == "GET"
        if path == "/":
            return _response(page()) if is_get else _response(error(405, "use GET"))
        name = path.removeprefix(CONTROL_PATH)
        if name == EVENTS and is_get:
            return await self._stream(request)
        body = await _body(request)
        if body is None:
            return _response(error(413, _TOO_LARGE))
        return _response(self._controls.answer(request.method, name, body))

    async def _stream(self, request: web.BaseRequest) -> web.StreamResponse:
        """Tell one page what happens, a few times a second, until it leaves."""
        query = parse_form(request.rel_url.raw_query_string)
        feed = Feed(self._gateway, request.headers.get("Last-Event-ID", query.get("after", "")))
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream", **HEADERS})
        await stream.prepare(request)
        # A page that leaves in the middle of an event is nothing to complain about.
        with suppress(ConnectionError):
            await stream.write(_RECONNECT)
            quiet = 0
            while not self._stopping.is_set():
                event = feed.event()
                quiet = 0 if event else quiet + 1
                if quiet and quiet % _TURNS_UNTIL_A_SIGN == 0:
                    event = _SIGN_OF_LIFE
                if event:
                    await stream.write(event)
                # Even when there is more, others have their turn in between.
                await (asyncio.sleep(0) if feed.more else self._pause(_TURN_SECONDS))
        return stream


async def _body(request: web.BaseRequest) -> bytes | None:
    """The body, or None when it is longer than any that is meant for here."""
    if not request.body_exists:
        return b""
    if "Expect" in request.headers:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


def _form(request: web.BaseRequest, body: bytes) -> dict[str, str]:
    # As the real gateway: without its content type a form is not seen as one.
    content_type = request.headers.get("Content-Type", "").partition(";")[0]
    if content_type.strip().lower() != CONTENT_TYPE:
        return {}
    return parse_form(body.decode("utf-8", "replace"))


def _own_address(request: web.BaseRequest) -> str:
    """The address that the caller has reached; empty once the caller has left."""
    transport = request.transport
    name = None if transport is None else transport.get_extra_info("sockname")
    return "" if name is None else str(name[0])


def _close(request: web.BaseRequest) -> web.Response:
    """End the connection; what is returned can no longer be written to it."""
    request.protocol.force_close()
    return web.Response()


async def _send_half(request: web.BaseRequest, reply: Reply, half: bytes) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Type": reply.content_type})
    answer.content_length = len(reply.body)
    await answer.prepare(request)
    await answer.write(half)
    # Closing sends what is buffered first.
    request.protocol.force_close()
    return answer


def _page(status: int, text: str, headers: Mapping[str, str] | None = None) -> web.Response:
    page = f"<html><head><title>{status}</title></head><body><h1>{status} {text}</h1></body></html>"
    return web.Response(status=status, text=page, content_type="text/html", headers=headers)


def _response(answer: Answer) -> web.Response:
    return web.Response(body=answer.body, status=answer.status, headers=answer.headers)
