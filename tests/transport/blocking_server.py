"""A server in threads of its own, so that a test may block the client's loop.

Each connection waits for the test's word before it does anything but answer.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from typing import TYPE_CHECKING

from tests.rogue import http_answer

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

_content_length = re.compile(rb"(?i)\r\ncontent-length: *(\d+)").search
_content = re.compile(rb"content=(\d+)").search


def accepted(content: str) -> bytes:
    """The answer to the request with this content: its id holds the content."""
    return http_answer(b'{"code":2,"msg":"ok","voiceid":"97%s"}' % content.encode())


class BlockingServer:
    """Answers each request, and does with its connections what a test says.

    Attributes:
        url: where it listens.
        contents: the content of each request that arrived whole.
        connections: those that were accepted, in their order.
        silent: answer no further request.
        unanswered: the contents that get no answer in any case.
        resetting: reset each connection after an answer.
        unasked: sent once after the first answer, when the test calls `send_unasked`.
    """

    def __init__(self, tls: ssl.SSLContext | None, host: str = "127.0.0.1") -> None:
        self.contents: list[str] = []
        self.connections: list[socket.socket] = []
        self.silent = False
        self.resetting = False
        self.unanswered: set[str] = set()
        self.unasked = b""
        self._go, self._gone = threading.Event(), threading.Event()
        self._tls = tls
        self._listening = socket.create_server((host, 0), backlog=100)
        self.arrived = threading.Semaphore(0)
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://{host}:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                # Or else the system may hold back what follows an answer.
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            self.connections.append(connection)
            while content := read_content(connection):
                self.contents.append(content)
                silent = self.silent or content in self.unanswered
                if not silent:
                    connection.sendall(accepted(content))
                    self._send_unasked(connection)
                if self.resetting:
                    connection.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                    connection.close()
                self.arrived.release()
                if silent or self.resetting:
                    # The test reads on.
                    return

    def _send_unasked(self, connection: socket.socket) -> None:
        # In this thread: two threads cannot share a TLS connection.
        if self.unasked:
            self._go.wait()
            connection.sendall(self.unasked)
            self.unasked = b""
            self._gone.set()

    def send_unasked(self) -> None:
        """Send what was not asked for; it is in the client's buffer when this returns."""
        self._go.set()
        self._gone.wait()

    def close_idle(self) -> None:
        """Close every connection from this side, and see the bytes out."""
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Close everything."""
        # A close alone does not end the thread's `accept`.
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for connection in self.connections:
            connection.close()


def read_content(connection: socket.socket) -> str:
    """The content of the next request; "" when there is none."""
    request = b""
    while b"\r\n\r\n" not in request:
        if not (received := connection.recv(65536)):
            return ""
        request += received
    head, _, body = request.partition(b"\r\n\r\n")
    length = _content_length(head)
    assert length is not None
    while len(body) < int(length[1]):  # pragma: no cover - aiohttp 3.11 sends it apart
        body += connection.recv(65536)
    found = _content(body)
    assert found is not None
    return found[1].decode()


@contextlib.contextmanager
def serving(tls: ssl.SSLContext | None) -> Iterator[BlockingServer]:
    """Run it while the block lasts."""
    server = BlockingServer(tls)
    try:
        yield server
    finally:
        server.stop()
