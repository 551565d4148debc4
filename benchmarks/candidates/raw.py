"""The limit: asyncio's sockets without any checks.

No deadline, no status, no headers: each read counts as one whole answer.
Do not send this way; it is the base line for the other candidates.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import orjson

from benchmarks import TARGET

from .job import signed_body

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .job import Job, Row


class _Run:
    """Rows that are being sent over several connections."""

    def __init__(self, rows: Iterable[Row], connections: int) -> None:
        self.rows: Iterator[Row] = iter(rows)
        self.busy = connections
        self.accepted = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class _Connection(asyncio.Protocol):
    """Sends the next row as soon as the answer to the last has come."""

    def __init__(self, host: str) -> None:
        self._head = (
            f"POST {TARGET} HTTP/1.1\r\n"
            f"Host: {host}\r\n"
            "Content-Type: application/x-www-form-urlencoded\r\n"
            "Content-Length: "
        ).encode()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def start(self, run: _Run) -> None:
        self._run = run
        self._send_next()

    def data_received(self, data: bytes) -> None:
        answer = orjson.loads(data[data.index(b"\r\n\r\n") :])
        self._run.accepted += answer["code"] == 2
        self._send_next()

    def connection_lost(self, exc: Exception | None) -> None:
        # Also called when the end is reached and the connection closed.
        if not self._run.ended.done():
            self._run.ended.set_exception(exc or ConnectionError("the stub hung up"))

    def _send_next(self) -> None:
        run = self._run
        row = next(run.rows, None)
        if row is None:
            run.busy -= 1
            if not run.busy and not run.ended.done():
                run.ended.set_result(None)
            return
        body = signed_body(*row)
        self.transport.write(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))


async def loop(job: Job) -> int:
    """One protocol per connection; no task but the one that waits for the end."""
    where = urlsplit(job.base_url)
    connections = [
        (
            await asyncio.get_running_loop().create_connection(
                lambda: _Connection(where.netloc), where.hostname or "", where.port or 80
            )
        )[1]
        for _ in range(job.concurrency)
    ]

    async def send_all(rows: Iterable[Row]) -> int:
        run = _Run(rows, len(connections))
        for connection in connections:
            connection.start(run)
        await run.ended
        return run.accepted

    accepted = await job.measure_async(send_all)
    for connection in connections:
        connection.transport.close()
    return accepted
