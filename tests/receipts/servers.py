"""Real servers that take receipts: aiohttp.web, and Starlette under uvicorn."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import uvicorn
from aiohttp import web
from starlette.applications import Starlette
from starlette.routing import Route

from ihuyi_voice.receipts.handlers import Receipt, aiohttp_receipt_handler, asgi_receipt_app
from tests.sandbox.http import FORM, Response, ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import ASGIApp

PATH = "/receipts/a-long-secret"
BODY = b"code=2&msg=ok&mobilephone=13912345678&voiceid=197362477&report_time=2017-08-02+14:31:51"


async def push(url: str, body: bytes = BODY) -> Response:
    """One push, as the gateway makes it."""
    return await ask(url, "POST", PATH, body, FORM)


@asynccontextmanager
async def aiohttp_serving(
    callback: Callable[[Receipt], object], *, remember: int = 10_000
) -> AsyncIterator[str]:
    """An aiohttp.web application; yields its base URL."""
    app = web.Application()
    app.router.add_route("*", PATH, aiohttp_receipt_handler(callback, remember=remember))
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def starlette_serving(
    callback: Callable[[Receipt], object], *, remember: int = 10_000
) -> AsyncIterator[str]:
    """A Starlette application under uvicorn; yields its base URL."""
    app = Starlette(routes=[Route(PATH, asgi_receipt_app(callback, remember=remember))])
    async with asgi_serving(app) as url:
        yield url


@asynccontextmanager
async def asgi_serving(app: ASGIApp) -> AsyncIterator[str]:
    """Any ASGI application under uvicorn; yields its base URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = _Server(
            uvicorn.Config(
                app, http="h11", ws="none", lifespan="on", log_config=None, access_log=False
            )
        )
        async with _running(server, listening):
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@asynccontextmanager
async def _running(server: _Server, listening: socket.socket) -> AsyncIterator[None]:
    task = asyncio.create_task(server.serve([listening]))
    up = asyncio.create_task(server.is_up.wait())
    await asyncio.wait({task, up}, return_when=asyncio.FIRST_COMPLETED)
    try:
        assert up.done()
        yield
    finally:
        up.cancel()
        server.should_exit = True
        await task


class _Server(uvicorn.Server):
    """Says when it is up, so that no test has to poll."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()
