"""One HTTP request over a bare socket, so that no client adds, repeats or corrects anything."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from ihuyi_voice.wire import CONTENT_TYPE, SUBMIT_TARGET

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

DEADLINE = 20.0
"""Seconds after which a test that hangs fails."""

FORM = {"Content-Type": CONTENT_TYPE}


@dataclass(frozen=True)
class Response:
    """What came back until the connection was closed; status 0 when nothing did."""

    status: int
    headers: dict[str, str]
    body: bytes


def request_bytes(
    method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> bytes:
    """The request as it goes over the wire, asking for the connection to be closed."""
    lines = {"Host": "localhost", "Connection": "close"}
    if body:
        lines["Content-Length"] = str(len(body))
    lines |= headers or {}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + body


def submit_bytes(form: Mapping[str, str]) -> bytes:
    """A POST of a submit."""
    return request_bytes("POST", SUBMIT_TARGET, urlencode(form).encode(), FORM)


@asynccontextmanager
async def connected(
    url: str,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the gateway, closed at the end."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def received(reader: asyncio.StreamReader) -> bytes:
    """Everything that arrives until the connection is closed or reset."""
    data = bytearray()
    with suppress(ConnectionError):
        while chunk := await asyncio.wait_for(reader.read(65_536), DEADLINE):
            data += chunk
    return bytes(data)


async def exchange(url: str, request: bytes) -> Response:
    """Send one request and read until the connection is closed."""
    async with connected(url) as (reader, writer):
        writer.write(request)
        return parsed(await received(reader))


def parsed(data: bytes) -> Response:
    """The response in `data`."""
    if not data:
        return Response(0, {}, b"")
    head, _, body = data.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in rest)
    return Response(int(first.split()[1]), headers, body)


async def ask(
    url: str,
    method: str,
    target: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """One request and its response."""
    return await exchange(url, request_bytes(method, target, body, headers))
