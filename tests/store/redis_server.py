"""A temporary Redis server for the tests, on a free port of the loopback interface."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from typing import TYPE_CHECKING

import pytest
import redis

if TYPE_CHECKING:
    from collections.abc import Iterator


class RedisServer:
    """A running server; it can be frozen, stopped and started again with the same port and data."""

    def __init__(self, program: str, folder: str, *options: str) -> None:
        self._program = program
        self._folder = folder
        self.port: int = free_port()
        self.start(*options)

    def start(self, *options: str) -> None:
        """Start it and wait until it accepts connections.

        Args:
            options: further options, such as `"--requirepass", "hunter2"`.
        """
        self._process = subprocess.Popen(
            [
                *(self._program, "--port", str(self.port), "--bind", "127.0.0.1"),
                *("--dir", self._folder, "--save", "", "--appendonly", "yes"),
                # No test depends on data that survives a crash of the machine.
                *("--appendfsync", "no", "--daemonize", "no", *options),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:  # pragma: no branch - it ends where the server fails
            said.append(line)
            if "Ready to accept connections" in line:
                return
        pytest.fail(f"redis-server does not start: {''.join(said)}")  # pragma: no cover

    def stop(self) -> None:
        """Stop it, cut its connections, and let it save its data."""
        self.thaw()
        self._process.terminate()
        self._process.communicate(timeout=60)

    def kill(self) -> None:
        """Let it crash, also while it is frozen."""
        self._process.kill()
        self._process.communicate(timeout=60)

    def restart(self, *options: str) -> None:
        self.stop()
        self.start(*options)

    def freeze(self) -> None:
        """Let it accept connections and answer nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port)

    def empty(self, database: int = 0) -> str:
        """The URL of a database without keys."""
        with self.client() as client:
            client.flushall()
        return self.url(database)

    def url(self, database: int = 0, *, login: str = "") -> str:
        return f"redis://{login}127.0.0.1:{self.port}/{database}"


def free_port() -> int:
    """A free port that no connection gets as its own while the server is stopped.

    Clients of a stopped server connect again and again. From the range of the
    system's own choice, one of them could take the server's port.
    """
    for _ in range(100):
        port = secrets.choice(range(10_000, 32_000))
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    pytest.fail("no port is free")  # pragma: no cover - depends on the machine


@contextlib.contextmanager
def running_redis(*options: str) -> Iterator[RedisServer]:
    """A server while the block runs; without Redis the test is skipped, and fails in CI."""
    program = shutil.which("redis-server")
    if program is None:  # pragma: no cover - depends on the machine
        reason = "Redis's server is not installed: apt-get install redis-server"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        server = RedisServer(program, folder, *options)
        try:
            yield server
        finally:
            server.stop()
