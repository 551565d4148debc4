"""The sandbox gateway over HTTP: the gateway's own path, the inbox page, and `/_sandbox/`.

It reads requests, passes them to the gateway, writes the answers, and applies
faults to the socket. It decides nothing and remembers nothing. `connection.py`
takes the request lines that aiohttp refuses, `forms.py` reads the fields.

What the real gateway does with an unknown path, HTTP method or `?method=` is not
known; here the answer is a page of HTML that says what is wrong, and the request
is recorded. `?method=` is taken in any case.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from email.utils import formatdate
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, cast

from aiohttp import web

from ihuyi_voice._limits import SandboxLimits
from ihuyi_voice.wire import PATH

from .connection import Connection
from .control_api import CONTROL_PATH, ControlApi, error
from .faults import as_sent
from .forms import method_in, read_fields
from .guard import is_from_browser, refusal
from .page_files import problem
from .receipt_delivery import Pusher
from .received import received

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from aiohttp.typedefs import Handler, Middleware

    from .core import GatewayCore
    from .faults import Roll
    from .history import Kind, Received
    from .reasons import Method
    from .rules import Reply

logger: logging.Logger = logging.getLogger("ihuyi_voice.sandbox")

MAX_BODY_BYTES = 64 * 1024
"""No form of a submit comes near it; a longer body is refused with 413."""

_TOO_LARGE = problem("too_large")
_BAD_METHOD = problem("bad_method")
_BAD_EXPECTATION = problem("expectation")
_WORDS = {
    400: problem("broken_body"),
    404: problem("unknown_path"),
    405: problem("http_method"),
    413: _TOO_LARGE,
}
# With these, the body was not read as a whole.
_UNREADABLE = (400, 413, 417)

_METHODS: dict[str, Method] = {"submit": "Submit", "getnum": "GetNum"}

# Connections of a load run arrive faster than aiohttp's 128 allow for.
_BACKLOG = 1024

_USUAL = SandboxLimits()


@asynccontextmanager
async def serving(
    gateway: GatewayCore, host: str, port: int, limits: SandboxLimits = _USUAL
) -> AsyncIterator[str]:
    """Serve `gateway` over HTTP and yield the base URL; stop promptly at the end."""
    stopping = asyncio.Event()
    pusher = Pusher(gateway, limits)
    middlewares = [_explaining(gateway), _guarded(host)]
    app = web.Application(middlewares=middlewares, client_max_size=MAX_BODY_BYTES)
    app.add_routes(ControlApi(gateway, stopping, limits).routes())
    app.add_routes(_GatewayPath(gateway, pusher, stopping).routes())
    # handler_cancellation: the fault `no_answer` ends when its caller disconnects.
    runner = web.AppRunner(
        app, handler_cancellation=True, access_log=None, shutdown_timeout=limits.shutdown
    )
    await runner.setup()
    try:
        async with _listening(runner, gateway, host, port) as (address, real_port):
            _warn_unless_loopback(address, real_port)
            shown = f"[{address}]" if ":" in address else address
            yield f"http://{shown}:{real_port}"
    finally:
        stopping.set()
        await runner.cleanup()
        await pusher.close()
        # The transports close their sockets in the loop's next turn.
        await asyncio.sleep(0)


@asynccontextmanager
async def _listening(
    runner: web.AppRunner, gateway: GatewayCore, host: str, port: int
) -> AsyncIterator[tuple[str, int]]:
    """Accept connections and yield the address and the port."""

    def record(connection: Connection, line: bytes, reason: str) -> None:
        gateway.record("unreadable", line.decode("utf-8", "replace"), reason, connection.ip, 400)

    loop = asyncio.get_running_loop()
    # Not by a site of the runner: it would make aiohttp's own connections.
    http_server = cast("web.Server", runner.server)
    # The runner's requests are all of this class, which aiohttp's annotation does not say.
    handler = cast("Handler", http_server.request_handler)
    http_server.request_handler = _expecting(gateway, handler)  # type: ignore[assignment]
    connect = partial(Connection, http_server, loop, record)
    server = await loop.create_server(connect, host, port, backlog=_BACKLOG)
    try:
        yield server.sockets[0].getsockname()[:2]
    finally:
        server.close()


def _warn_unless_loopback(address: str, port: int) -> None:
    if not ip_address(address).is_loopback:
        logger.warning(
            "the sandbox gateway listens on %s port %d, which is NOT only this machine: every"
            " machine that reaches it can read all numbers and codes sent to it, submit, and"
            " change it through %s; pass host='127.0.0.1' unless that is what you want",
            address,
            port,
            CONTROL_PATH,
        )


# --- before and after every handler


def _explaining(gateway: GatewayCore) -> Middleware:
    """Answer a refusal as its path does: JSON from the control API, else a page of HTML.

    No answer repeats the path: programs that build their URL wrongly put the password
    there. What a program sent to the gateway is recorded; what a browser asks for by
    itself, such as an icon, is not.
    """

    @web.middleware
    async def explain(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as refused:
            path, status = request.rel_url.raw_path, refused.status
            is_control = path == "/" or path.startswith(CONTROL_PATH)
            allowed = refused.headers.get("Allow", "").split(",")
            headers = {"Allow": ", ".join(allowed)} if status == 405 else None
            if is_control:
                words = _control_words(status, allowed) or refused.text
                return error(status, str(words), headers)
            words = refused.text if refused.text == _BAD_METHOD else _WORDS.get(status)
            words = words or refused.text or ""
            if not is_from_browser(request.headers):
                kind: Kind = "unreadable" if status in _UNREADABLE else "unknown"
                line = f"{request.method} {request.rel_url}"
                shown = _received(request, await _body_of(request, refused), gateway)
                ip = request.remote or ""
                gateway.record(kind, line, words, ip, status, request=shown)
            return _page(status, words, headers)

    return explain


def _control_words(status: int, allowed: list[str]) -> str | None:
    return {
        404: "there is no such path",
        405: f"use {' or '.join(allowed)}",
        413: _TOO_LARGE,
    }.get(status)


def _expecting(gateway: GatewayCore, handler: Handler) -> Handler:
    """Refuse any `Expect` but 100-continue; aiohttp's own page repeats the header's value.

    Around the whole application, because aiohttp looks at the header before any middleware.
    """
    explain = _explaining(gateway)

    async def refuse(_request: web.Request) -> web.StreamResponse:
        raise web.HTTPExpectationFailed(text=_BAD_EXPECTATION)

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Expect", "").lower() in ("", "100-continue"):
            return await handler(request)
        return await explain(request, refuse)

    return handle


def _guarded(host: str) -> Middleware:
    """Let no other site's page in; `host` is what the server was asked to listen on."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        # By the route, not by the raw path: the router decodes the path first.
        resource = request.match_info.route.resource
        is_gateway = resource is not None and resource.canonical == PATH
        if not is_gateway or is_from_browser(request.headers):
            # Even a GET of the gateway's own path may place a call.
            method = "POST" if is_gateway else request.method
            reason = refusal(method, request.headers, host, on_loopback=_on_loopback(request))
            if reason is not None:
                raise web.HTTPForbidden(text=reason)
        return await handler(request)

    return guard


def _on_loopback(request: web.Request) -> bool:
    """Whether the caller reached a loopback address; True once it has left."""
    transport = request.transport
    name = None if transport is None else transport.get_extra_info("sockname")
    return name is None or ip_address(name[0]).is_loopback


# --- the gateway's own path


class _GatewayPath:
    """Answers submits and balance queries, until `stopping` is set."""

    def __init__(self, gateway: GatewayCore, pusher: Pusher, stopping: asyncio.Event) -> None:
        self._gateway = gateway
        self._pusher = pusher
        self._stopping = stopping
        self._dated = (0, formatdate(0, usegmt=True))

    def routes(self) -> list[web.RouteDef]:
        return [web.get(PATH, self._answer, allow_head=False), web.post(PATH, self._answer)]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        query = request.rel_url.raw_query_string
        method = _METHODS.get(method_in(query))
        if method is None:
            raise web.HTTPNotFound(text=_BAD_METHOD)
        roll = self._gateway.roll()
        if roll.fault == "close_before_reading":
            self._record_unread(request, roll.fault)
            await self._pause(roll.delay)
            return _close(request)
        try:
            body = await request.read()
        except web.RequestPayloadError:
            raise web.HTTPBadRequest from None
        content_type = request.headers.get("Content-Type", "")
        form = read_fields(query, content_type, body if request.method == "POST" else b"")
        ip, shown = request.remote or "", _received(request, body, self._gateway)
        reply = self._gateway.answer(method, form, ip, roll, shown)
        if reply.call is not None and self._gateway.receipt_url is not None:
            self._pusher.schedule(reply)
        await self._pause(roll.delay)
        return await self._send(request, reply, roll)

    def _record_unread(self, request: web.Request, fault: str) -> None:
        line, ip = f"{request.method} {request.rel_url}", request.remote or ""
        shown = _received(request, b"", self._gateway)
        self._gateway.record("closed", line, "", ip, 0, fault=fault, request=shown)

    async def _pause(self, seconds: float) -> None:
        if seconds:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _send(self, request: web.Request, reply: Reply, roll: Roll) -> web.StreamResponse:
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
        # By the gateway's clock, not the machine's: a client compares its clock with
        # `Date`, and the time window is checked with the gateway's clock.
        second, text = int(time), self._dated[1]
        if second != self._dated[0]:
            text = formatdate(second, usegmt=True)
            self._dated = second, text
        return text


async def _body_of(request: web.Request, refused: web.HTTPException) -> bytes:
    """The body of a request that was refused for something else.

    b"" when the body is what is wrong, or when the caller may wait before it sends one.
    """
    if refused.status in _UNREADABLE:
        return b""
    try:
        return await request.read()
    except (web.HTTPException, web.RequestPayloadError):
        return b""


def _received(request: web.Request, body: bytes, gateway: GatewayCore) -> Received:
    """The request as it is recorded."""
    url = request.rel_url
    return received(
        method=request.method,
        path=_without_surrogates(url.raw_path),
        query=_without_surrogates(url.raw_query_string),
        headers=[
            (_without_surrogates(name), _without_surrogates(value))
            for name, value in request.headers.items()
        ],
        body=body,
        keys=gateway.keys,
    )


def _without_surrogates(text: str) -> str:
    # aiohttp makes them of raw bytes, and JSON does not take them.
    return text.encode("utf-8", "replace").decode()


def _close(request: web.Request) -> web.Response:
    """End the connection; what is returned can no longer be written to it."""
    request.protocol.force_close()
    return web.Response()


async def _send_half(request: web.Request, reply: Reply, half: bytes) -> web.StreamResponse:
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
