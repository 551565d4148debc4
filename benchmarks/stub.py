"""The stub gateway: accepts every submit, as fast as Python can.

`python -m benchmarks.stub` prints its port and serves on loopback until its
standard input ends, so that it ends with its parent. It only looks for the end of
each request: the stub must never be what is measured. With `--check` it
also verifies each dynamic password; `GET /` returns its counts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import re
import ssl
import sys
import time
from email.utils import formatdate
from selectors import SelectSelector
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qs

from benchmarks import API_KEY

if TYPE_CHECKING:
    from collections.abc import Callable

_content_length = re.compile(rb"(?i)\r\ncontent-length: *(\d+)").search


def http_answer(body: bytes) -> bytes:
    """A whole answer, with the headers that a common server sends."""
    head = (
        "HTTP/1.1 200 OK\r\n"
        "Server: nginx\r\n"
        f"Date: {formatdate(usegmt=True)}\r\n"
        "Content-Type: application/json; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: keep-alive\r\n"
        "\r\n"
    )
    return head.encode() + body


ACCEPTED = http_answer('{"code":2,"msg":"提交成功","voiceid":"197362477"}'.encode())


def is_signed(body: bytes) -> bool:
    """Whether the password of a form is what the vendor's formula makes of it."""
    form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
    with contextlib.suppress(KeyError):
        text = form["account"] + API_KEY + form["mobile"] + form["content"] + form["time"]
        return form["password"] == hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
    return False


class Gateway:
    """What all connections share: how to answer, and what was counted.

    Args:
        latency: seconds from the last byte of a request to its answer.
        check: verify the dynamic passwords.
    """

    def __init__(self, *, latency: float, check: bool) -> None:
        self.latency = latency
        self.check = check
        self.connections = 0
        self.requests = 0
        self.wrongly_signed = 0

    def counted(self) -> dict[str, float]:
        """The counts since the start, and the CPU seconds they took."""
        return {
            "connections": self.connections,
            "requests": self.requests,
            "wrongly_signed": self.wrongly_signed,
            "cpu": time.process_time(),
        }


class Connection(asyncio.Protocol):
    """One connection: requests in, one after another or many at once, answers out."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._loop = asyncio.get_running_loop()
        self._unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count it."""
        self._transport = cast("asyncio.Transport", transport)
        self._gateway.connections += 1

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole, and keep the rest."""
        if self._unread:
            data = self._unread + data
        begin = 0
        while (head_end := data.find(b"\r\n\r\n", begin)) >= 0:
            length = _content_length(data, begin, head_end + 2)
            end = head_end + 4 + (int(length[1]) if length else 0)
            if end > len(data):
                break
            if data.startswith(b"GET ", begin):
                self._write(http_answer(json.dumps(self._gateway.counted()).encode()))
            else:
                self._submit(data[head_end + 4 : end])
            begin = end
        self._unread = data[begin:]

    def _submit(self, body: bytes) -> None:
        gateway = self._gateway
        gateway.requests += 1
        if gateway.check and not is_signed(body):
            gateway.wrongly_signed += 1
        if gateway.latency:
            self._loop.call_later(gateway.latency, self._write, ACCEPTED)
        else:
            self._transport.write(ACCEPTED)

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)


class _Parent(asyncio.Protocol):
    """The standard input: the parent process holds its other end."""

    def __init__(self, gone: Callable[[], None]) -> None:
        self._gone = gone

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._gone()


async def serve(gateway: Gateway, context: ssl.SSLContext | None) -> None:
    """Serve on a free port of loopback until the standard input ends."""
    loop = asyncio.get_running_loop()
    orphaned = asyncio.Event()
    await loop.connect_read_pipe(lambda: _Parent(orphaned.set), sys.stdin)
    server = await loop.create_server(
        lambda: Connection(gateway), "127.0.0.1", 0, backlog=1024, ssl=context
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await orphaned.wait()
    server.close()


def new_loop(*, punctual: bool) -> asyncio.AbstractEventLoop:
    """The fastest event loop available, or the most punctual one.

    epoll, which uvloop uses too, rounds timers up to whole milliseconds: at 50 ms
    that alone is 2 % of the throughput. select does not.
    """
    if punctual:
        return asyncio.SelectorEventLoop(SelectSelector())
    try:
        import uvloop  # noqa: PLC0415 - may be missing
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def context_of(certificate: str | None) -> ssl.SSLContext | None:
    """The server's TLS settings; None for no TLS."""
    if certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="benchmarks.stub", description=__doc__)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before an answer")
    parser.add_argument("--check", action="store_true", help="verify the dynamic passwords")
    parser.add_argument("--certificate", help="a file with key and certificates: serve over TLS")
    options = parser.parse_args()
    gateway = Gateway(latency=options.latency, check=options.check)
    # Left open at the end: connections may still be up, and the process goes anyway.
    new_loop(punctual=bool(options.latency)).run_until_complete(
        serve(gateway, context_of(options.certificate))
    )


if __name__ == "__main__":
    main()
