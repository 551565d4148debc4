"""A temporary MariaDB server for the tests, reached through a free port of loopback.

MariaDB refuses to run as root, so root runs it as `mysql`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pymysql
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pymysql.cursors import Cursor

_TABLES = (
    "ihuyi_voice_meta, ihuyi_voice_calls, ihuyi_voice_starts, ihuyi_voice_verifications,"
    " ihuyi_voice_jobs, ihuyi_voice_job_outcomes"
)


class MariaDbServer:
    """A running server; it can be stopped and started again."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._user = "mysql" if os.geteuid() == 0 else None
        if self._user is not None:  # pragma: no branch - depends on who runs the tests
            shutil.chown(folder, self._user)
        folder.chmod(0o755)
        self._run(
            "mariadb-install-db", "--auth-root-authentication-method=normal", "--skip-test-db"
        )
        self.start()
        self.execute("CREATE DATABASE store")

    def start(self) -> None:
        # No test depends on data that survives a crash of the machine.
        self._process = subprocess.Popen(
            [
                self._program,
                *self._common,
                f"--socket={self._folder}/socket",
                "--bind-address=127.0.0.1",
                f"--port={self.port}",
                f"--pid-file={self._folder}/pid",
                f"--log-error={self._folder}/log",
                "--innodb-flush-method=nosync",
                "--innodb-buffer-pool-size=32M",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=self._user,
            extra_groups=None if self._user is None else [],
        )
        end = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < end, "MariaDB does not start"
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except pymysql.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """Stop the server and cut its connections."""
        self._process.terminate()
        self._process.wait(timeout=60)

    def connect(self, user: str = "root") -> pymysql.Connection[Cursor]:
        return pymysql.connect(
            host="127.0.0.1", port=self.port, user=user, autocommit=True, ssl_disabled=True
        )

    def execute(self, statement: str) -> tuple[tuple[object, ...], ...]:
        """Execute one statement as root; returns its rows."""
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return tuple(cursor.fetchall())

    def empty(self) -> str:
        """The SQLAlchemy URL of a database without a store."""
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("USE store")
            cursor.execute("SET sql_notes = 0")
            cursor.execute(f"DROP TABLE IF EXISTS {_TABLES}")
        return self.url

    def url_of(self, user: str) -> str:
        return f"mysql+pymysql://{user}@127.0.0.1:{self.port}/store"

    @property
    def url(self) -> str:
        # PyMySQL reads all authorities' certificates for each connection, also where it then
        # uses no TLS: 20 ms.
        return f"{self.url_of('root')}?ssl_disabled=true"

    @property
    def _common(self) -> list[str]:
        return ["--no-defaults", f"--datadir={self._folder}/data"]

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [program, *self._common, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=60,
            user=self._user,
            extra_groups=None if self._user is None else [],
            cwd=self._folder,
        )


@contextlib.contextmanager
def running_server() -> Iterator[MariaDbServer]:
    """A server while the block runs; without MariaDB the test is skipped, and fails in CI."""
    # Not on the PATH of every user.
    program = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")
    if program is None:  # pragma: no cover - depends on the machine
        reason = "MariaDB's server is not installed: apt-get install mariadb-server"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="my-", dir="/tmp") as folder:
        server = MariaDbServer(program, Path(folder))
        try:
            yield server
        finally:
            server.stop()
