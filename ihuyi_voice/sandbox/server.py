"""The sandbox gateway over HTTP: the gateway's own path, and `/_sandbox/` to steer it.

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
from ipaddress import ip_address
from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from ihuyi_voice.wire import CONTENT_TYPE, PATH

from .chaos import NO_CHAOS, Chaos
from .state import JSON, parse_form

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from .chaos import Roll
    from .gateway import SandboxGateway
    from .state import Method, Reply

logger: logging.Logger = logging.getLogger("ihuyi_voice.sandbox")

CONTROL_PATH = "/_sandbox/"

MAX_BODY_BYTES = 64 * 1024
"""No form of a submit comes near it; a longer body is refused with 413."""

_METHODS: dict[str, Method] = {"Submit": "Submit", "GetNum": "GetNum"}

# Connections of a load run arrive faster than aiohttp's 128 allow for.
_BACKLOG = 1024

# For requests whose body is still under way when the server stops.
_SHUTDOWN_SECONDS = 0.25


@asynccontextmanager
async def serving(gateway: SandboxGateway, host: str, port: int) -> AsyncIterator[str]:
    """Serve `gateway` over HTTP and yield the base URL; stop promptly at the end."""
    stopping = asyncio.Event()
    requests = _Requests(gateway, stopping)
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

    def __init__(self, gateway: SandboxGateway, stopping: asyncio.Event) -> None:
        self._gateway = gateway
        self._stopping = stopping
        self._dated = (0, formatdate(0, usegmt=True))
        self._controls = {
            ("GET", "calls"): self._get_calls,
            ("GET", "attempts"): self._get_attempts,
            ("POST", "reset"): self._reset,
            ("GET", "chaos"): self._get_chaos,
            ("PUT", "chaos"): self._put_chaos,
            ("DELETE", "chaos"): self._delete_chaos,
        }

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.rel_url.raw_path
        if path == PATH:
            return await self._answer_gateway(request)
        if path.startswith(CONTROL_PATH):
            return await self._answer_control(request, path.removeprefix(CONTROL_PATH))
        return _page(404, f"Not Found: the gateway answers at {PATH}")

    # --- the gateway's own path

    async def _answer_gateway(self, request: web.BaseRequest) -> web.StreamResponse:
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
            return _too_large()
        form = query if request.method == "GET" else _form(request, body)
        reply = self._gateway.answer(method, form, request.remote or "", roll)
        await self._pause(roll.delay)
        return await self._send(request, reply, roll)

    async def _pause(self, seconds: float) -> None:
        if seconds:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _send(self, request: web.BaseRequest, reply: Reply, roll: Roll) -> web.StreamResponse:
        answer = web.Response(
            body=reply.body,
            headers={
                "Content-Type": reply.content_type,
                "Date": self._date(reply.time),
                "Server": "ihuyi-voice-sandbox",
            },
        )
        if roll.fault is None or roll.fault == "code":
            return answer
        if roll.fault == "html_502":
            return _page(502, "Bad Gateway")
        if roll.fault == "garbage":
            return web.Response(body=roll.garbage, content_type="text/html")
        if roll.fault == "truncate":
            return await _send_half(request, reply)
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

    # --- /_sandbox/

    async def _answer_control(self, request: web.BaseRequest, name: str) -> web.Response:
        control = self._controls.get((request.method, name))
        if control is None:
            methods = [method for method, known in self._controls if known == name]
            if not methods:
                return _error(404, f"there is no {CONTROL_PATH}{name}")
            return _error(405, f"use {' or '.join(methods)}", {"Allow": ", ".join(methods)})
        if request.method != "GET" and _is_from_another_site(request):
            return _error(403, "refused: the request comes from a page of another site")
        body = await _body(request)
        if body is None:
            return _too_large()
        return control(body)

    def _get_calls(self, _: bytes) -> web.Response:
        return _json(orjson.dumps(self._gateway.calls))

    def _get_attempts(self, _: bytes) -> web.Response:
        return _json(orjson.dumps(self._gateway.attempts))

    def _reset(self, _: bytes) -> web.Response:
        self._gateway.reset()
        return _json(b'{"reset":true}')

    def _get_chaos(self, _: bytes) -> web.Response:
        return _json(self._gateway.chaos.to_json())

    def _put_chaos(self, body: bytes) -> web.Response:
        try:
            self._gateway.chaos = Chaos.from_json(body)
        except ValueError as error:
            return _error(400, str(error))
        return self._get_chaos(body)

    def _delete_chaos(self, body: bytes) -> web.Response:
        self._gateway.chaos = NO_CHAOS
        return self._get_chaos(body)


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


def _is_from_another_site(request: web.BaseRequest) -> bool:
    """True for a browser's request from a page that the sandbox did not serve."""
    origin = request.headers.get("Origin")
    host = request.headers.get("Host", "")
    return origin is not None and origin.partition("://")[2].lower() != host.lower()


def _close(request: web.BaseRequest) -> web.Response:
    """End the connection; what is returned can no longer be written to it."""
    request.protocol.force_close()
    return web.Response()


async def _send_half(request: web.BaseRequest, reply: Reply) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Type": reply.content_type})
    answer.content_length = len(reply.body)
    await answer.prepare(request)
    await answer.write(reply.body[: len(reply.body) // 2])
    # Closing sends what is buffered first.
    request.protocol.force_close()
    return answer


def _page(status: int, text: str, headers: Mapping[str, str] | None = None) -> web.Response:
    page = f"<html><head><title>{status}</title></head><body><h1>{status} {text}</h1></body></html>"
    return web.Response(status=status, text=page, content_type="text/html", headers=headers)


def _too_large() -> web.Response:
    return _page(413, f"Content Too Large: more than {MAX_BODY_BYTES} bytes")


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": JSON})


def _error(status: int, text: str, headers: Mapping[str, str] | None = None) -> web.Response:
    body = orjson.dumps({"error": text})
    return web.Response(status=status, body=body, headers={"Content-Type": JSON, **(headers or {})})
