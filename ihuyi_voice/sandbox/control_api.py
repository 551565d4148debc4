"""The inbox page and `/_sandbox/`: the history, the settings and the chaos over HTTP.

Who may ask is decided in `guard.py`. A refusal is JSON, `{"error": reason}`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from .events import Events, details, other_details, records_json, settings_json
from .faults import NO_CHAOS, Chaos, json_object
from .page_files import CONTENT_SECURITY_POLICY, FILES, HEADERS
from .rules import JSON

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp.typedefs import Handler

    from ihuyi_voice._limits import SandboxLimits

    from .core import GatewayCore

CONTROL_PATH = "/_sandbox/"

_SIGN_OF_LIFE = b":\n\n"
_RECONNECT = b"retry: 1000\n\n"


def error(status: int, text: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """A refusal and its reason."""
    return _json(orjson.dumps({"error": text}), status, headers)


def _json(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    all_headers = {"Content-Type": JSON, **HEADERS, **(headers or {})}
    return web.Response(body=body, status=status, headers=all_headers)


class ControlApi:
    """The handlers for one gateway, until `stopping` is set."""

    def __init__(
        self, gateway: GatewayCore, stopping: asyncio.Event, limits: SandboxLimits
    ) -> None:
        self._gateway = gateway
        self._limits = limits
        self._stopping = stopping

    def routes(self) -> list[web.RouteDef]:
        """The routes of all handlers."""

        def get(path: str, handler: Handler) -> web.RouteDef:
            return web.get(path, handler, allow_head=False)

        return [
            get("/", self._page),
            get("/_sandbox/page/{name}", self._file),
            get("/_sandbox/events", self._events),
            get("/_sandbox/calls", self._calls),
            get("/_sandbox/attempts", self._attempts),
            web.delete("/_sandbox/attempts", self._clear),
            get("/_sandbox/attempts/{number}", self._attempt),
            get("/_sandbox/others", self._others),
            get("/_sandbox/others/{number}", self._other),
            get("/_sandbox/counts", self._counts),
            get("/_sandbox/receipts", self._receipts),
            get("/_sandbox/settings", self._settings),
            web.patch("/_sandbox/settings", self._change_settings),
            web.post("/_sandbox/reset", self._reset),
            get("/_sandbox/chaos", self._chaos),
            web.put("/_sandbox/chaos", self._replace_chaos),
            web.patch("/_sandbox/chaos", self._change_chaos),
            web.delete("/_sandbox/chaos", self._end_chaos),
        ]

    # --- the page

    async def _page(self, _: web.Request) -> web.Response:
        return _file("index.html", {"Content-Security-Policy": CONTENT_SECURITY_POLICY})

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in FILES:
            raise web.HTTPNotFound
        return _file(name)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Send the events to one page until it disconnects."""
        events = Events(self._gateway)
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream", **HEADERS})
        await stream.prepare(request)
        # A page may disconnect in the middle of an event.
        with suppress(ConnectionError):
            await stream.write(_RECONNECT)
            quiet_turns = 0
            while not self._stopping.is_set():
                event = events.next()
                quiet_turns = 0 if event else quiet_turns + 1
                if quiet_turns == self._limits.quiet_turns:
                    event, quiet_turns = _SIGN_OF_LIFE, 0
                if event:
                    await stream.write(event)
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), self._limits.turn)
        return stream

    # --- the history

    async def _calls(self, _: web.Request) -> web.Response:
        return _json(records_json(self._gateway.calls))

    async def _attempts(self, _: web.Request) -> web.Response:
        return _json(records_json(self._gateway.attempts))

    async def _attempt(self, request: web.Request) -> web.Response:
        found = self._gateway.find(_number_in(request))
        if found is None:
            return error(404, "there is no such attempt, or it is no longer remembered")
        return _json(details(*found))

    async def _others(self, _: web.Request) -> web.Response:
        return _json(records_json(self._gateway.others))

    async def _other(self, request: web.Request) -> web.Response:
        found = self._gateway.find_other(_number_in(request))
        if found is None:
            return error(404, "there is no such request, or it is no longer remembered")
        return _json(other_details(found))

    async def _counts(self, _: web.Request) -> web.Response:
        """What a hidden page asks for from time to time, instead of holding a stream."""
        history = self._gateway.history
        return _json(orjson.dumps({"taken": history.taken, "others_taken": history.others_taken}))

    async def _receipts(self, _: web.Request) -> web.Response:
        return _json(records_json(self._gateway.receipts))

    async def _clear(self, _: web.Request) -> web.Response:
        self._gateway.clear()
        return _json(b'{"cleared":true}')

    async def _reset(self, _: web.Request) -> web.Response:
        self._gateway.reset()
        return _json(b'{"reset":true}')

    # --- the settings and the chaos

    async def _settings(self, _: web.Request) -> web.Response:
        return _json(settings_json(self._gateway))

    async def _change_settings(self, request: web.Request) -> web.Response:
        body = await request.read()
        try:
            self._gateway.change(json_object(body, 'such as {"balance": 5}'))
        except ValueError as reason:
            return error(400, str(reason))
        return await self._settings(request)

    async def _chaos(self, _: web.Request) -> web.Response:
        return _json(self._gateway.chaos.to_json())

    async def _replace_chaos(self, request: web.Request) -> web.Response:
        return self._set_chaos(await request.read())

    async def _change_chaos(self, request: web.Request) -> web.Response:
        """Change what is named and leave the rest, which another page may have just set."""
        body = await request.read()
        try:
            changed = json_object(body, 'such as {"balance": 5}')
        except ValueError as reason:
            return error(400, str(reason))
        settings = orjson.loads(self._gateway.chaos.to_json()) | changed
        return self._set_chaos(orjson.dumps(settings))

    async def _end_chaos(self, request: web.Request) -> web.Response:
        self._gateway.chaos = NO_CHAOS
        return await self._chaos(request)

    def _set_chaos(self, body: bytes) -> web.Response:
        try:
            self._gateway.chaos = Chaos.from_json(body)
        except ValueError as reason:
            return error(400, str(reason))
        return _json(self._gateway.chaos.to_json())


def _number_in(request: web.Request) -> int:
    """The number in the path; 0, which no request has, where it is not a number."""
    number = request.match_info["number"]
    return int(number) if number.isascii() and number.isdigit() and len(number) < 16 else 0


def _file(name: str, headers: Mapping[str, str] | None = None) -> web.Response:
    content_type, body = FILES[name]
    all_headers = {"Content-Type": content_type, **HEADERS, **(headers or {})}
    return web.Response(body=body, headers=all_headers)
