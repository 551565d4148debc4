"""A server on loopback that follows a script, such as a close mid-answer, and counts.

Its counts are the ground truth of the network tests: how many submits
arrived whole, over how many connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

_content_length = re.compile(rb"(?i)\r\ncontent-length: *(\d+)").search

ACCEPTED = b'{"code":2,"msg":"ok","voiceid":"197362477"}'


def http_answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    """A whole HTTP answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Connection:
    """One accepted connection and the rogue that serves it."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rogue: Rogue
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.rogue = rogue

    async def read_request(self) -> bytes:
        """Read one request to its last byte and count it; b"" when there is none."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        length = _content_length(head)
        body = await self.reader.readexactly(int(length[1]) if length else 0)
        self.rogue.requests.append(head + body)
        return head + body

    async def send(self, data: bytes) -> None:
        """Write and flush."""
        self.writer.write(data)
        await self.writer.drain()

    async def until_hung_up(self) -> None:
        """Wait until the other side has closed."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Behaviour(Protocol):
    """What a rogue does with one connection; it is closed afterwards."""

    async def __call__(self, connection: Connection) -> None:
        """Do it."""


class Rogue:
    """The running server.

    Attributes:
        url: where it listens.
        requests: every request that arrived whole, head and body.
        connections: how many connections were accepted.
    """

    def __init__(self, behaviour: Behaviour) -> None:
        self.url = ""
        self.requests: list[bytes] = []
        self.connections = 0
        self._behaviour = behaviour
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def submits(self) -> int:
        """How many submits arrived whole."""
        return sum(b"?method=Submit " in request for request in self.requests)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._behaviour(Connection(reader, writer, self))
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort() if writer.is_closing() else writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self._tasks.discard(task)

    @property
    def open_connections(self) -> int:
        """How many connections have not ended yet."""
        return len(self._tasks)

    @contextlib.asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Rogue]:
        """Listen on a free port of loopback until the block is left."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        try:
            yield self
        finally:
            server.close()
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await server.wait_closed()
