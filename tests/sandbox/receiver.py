"""A receiver of receipts with answers that the test chooses."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from aiohttp import web

from tests.sandbox.http import DEADLINE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Receiver:
    """Keeps what was pushed. `answers` are (status, text), given in order; the last one repeats."""

    def __init__(self, *answers: tuple[int, str]) -> None:
        self._answers = list(answers) or [(200, "success")]
        self._pushes: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self.count = 0
        self.running = 0
        self.most_running = 0
        self.hold: asyncio.Event | None = None
        self.content_type = ""
        self.location = ""
        self.url = ""

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.count += 1
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            self.content_type = request.headers["Content-Type"]
            await self._pushes.put(dict(parse_qsl(await request.text())))
            if self.hold is not None:
                await self.hold.wait()
        finally:
            self.running -= 1
        status, text = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        headers = {"Location": self.location} if self.location else None
        return web.Response(status=status, text=text, headers=headers)

    async def pushed(self) -> dict[str, str]:
        """The next form."""
        return await asyncio.wait_for(self._pushes.get(), DEADLINE)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Receiver]:
        server = web.Server(self.answer, handler_cancellation=True)
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = "http://127.0.0.1:{}/secret".format(*runner.addresses[0][1:])
        yield self
        await runner.cleanup()
        # The transports close their sockets in the loop's next turn.
        await asyncio.sleep(0)
