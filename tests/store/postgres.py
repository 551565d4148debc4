"""A temporary PostgreSQL server for the tests, reached through a Unix socket.

Debian's binaries refuse to run as root, so root runs them as `postgres`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


class PostgresServer:
    """A running server; it can be stopped and started again."""

    def __init__(self, binaries: Path, folder: Path, address: str = "") -> None:
        self._binaries = binaries
        self._address = address
        self._folder = folder
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user is not None:  # pragma: no branch - depends on who runs the tests
            shutil.chown(folder, self._user)
        folder.chmod(0o755)
        self._call("initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync")
        with (folder / "data" / "pg_hba.conf").open("a") as trusted:
            trusted.write("host all all samenet trust\n")
        self.start()

    def start(self) -> None:
        # No test depends on data that survives a crash of the machine.
        options = f"-c listen_addresses='{self._address}' -c fsync=off -k {self._folder}"
        self._call("pg_ctl", "start", "-w", "-l", f"{self._folder}/log", "-o", options)

    def stop(self) -> None:
        """Stop the server and cut its connections."""
        self._call("pg_ctl", "stop", "-w", "-m", "fast")

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(f"host={self._folder} user=postgres", autocommit=True)

    def empty(self) -> str:
        """The SQLAlchemy URL of a database without a store."""
        with contextlib.closing(self.connect()) as connection:
            connection.execute(
                "DROP TABLE IF EXISTS ihuyi_voice_meta, ihuyi_voice_calls, ihuyi_voice_starts,"
                " ihuyi_voice_verifications, ihuyi_voice_jobs, ihuyi_voice_job_outcomes"
            )
        return self.url

    def encoded(self, encoding: str) -> str:
        """The URL of a new database with that encoding."""
        with contextlib.closing(self.connect()) as connection:
            connection.execute(
                f"CREATE DATABASE {encoding} ENCODING '{encoding}' LC_COLLATE 'C'"
                " LC_CTYPE 'C' TEMPLATE template0"
            )
        return self.url.replace("/postgres?", f"/{encoding.lower()}?")

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@/postgres?host={self._folder}"

    def _call(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._binaries / program, "-D", self._folder / "data", *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=60,
            user=self._user,
            extra_groups=None if self._user is None else [],
            cwd=self._folder,
        )


def find_binaries() -> Path | None:
    """The folder of `initdb` and `pg_ctl` of the newest installed release."""
    on_path = shutil.which("initdb")
    folders = [
        *sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name)),
        *([Path(on_path).parent] if on_path else []),
    ]
    found = [folder for folder in folders if (folder / "initdb").exists()]
    return found[-1] if found else None


@contextlib.contextmanager
def running_server(address: str = "") -> Iterator[PostgresServer]:
    """A server while the block runs; without PostgreSQL the test is skipped, and fails in CI.

    Args:
        address: where it listens beside its Unix socket; "" for nowhere.
    """
    binaries = find_binaries()
    if binaries is None:  # pragma: no cover - depends on the machine
        reason = "PostgreSQL's server is not installed: apt-get install postgresql"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    # The path of a socket must be short.
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as folder:
        server = PostgresServer(binaries, Path(folder), address)
        try:
            yield server
        finally:
            server.stop()
