"""The store's SQLite file: opening it, waiting for its lock, detecting that it is lost.

Only `sqlite3`; `connection.py` reads and writes the content.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..._threads import unpatched
from ...errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds that another process may lock the file before the database counts as failed.
BUSY_TIMEOUT = 5.0
# Seconds that SQLite itself waits each time; `until_free` does the rest.
_TRY_TIMEOUT = 0.005
# The real one: no other greenlet may run between two steps of a transaction.
_sleep = unpatched("time", "sleep")


class Identity(NamedTuple):
    """A file, independent of its name."""

    device: int
    inode: int


def identity_of(path: str) -> Identity:
    """The file at a path; OSError where there is none."""
    found = os.stat(path)  # noqa: PTH116 - once per transaction, and cheaper
    return Identity(found.st_dev, found.st_ino)


def is_still(path: str, identity: Identity) -> bool:
    """Whether that file is still at the path, and is not empty."""
    try:
        found = os.stat(path)  # noqa: PTH116 - as `identity_of`
    except FileNotFoundError:
        return False
    # A truncated store is lost. The write-ahead log may be empty.
    return identity == (found.st_dev, found.st_ino) and (found.st_size > 0 or path.endswith("-wal"))


def lost(path: str) -> str:
    """The message about a file that was lost while it was in use."""
    return (
        f"{path} was deleted, emptied or replaced while it was in use: without it every call"
        " would be placed again. Put the file back, and then open it again"
    )


def check_path(path: Path) -> None:
    """Refuse a path that cannot hold a store, with a clearer message than SQLite's.

    This library never opens the file itself: closing it would release the
    locks of every SQLite connection of this process.
    """
    if sqlite3.sqlite_version_info < (3, 35):
        msg = f"{path} needs SQLite 3.35 or newer, and this Python has {sqlite3.sqlite_version}"
        raise StoreError(msg)
    if path.is_dir():
        msg = f"{path} is a folder"
        raise StoreError(msg)
    if not path.parent.is_dir():
        msg = f"{path} cannot be created, because there is no folder {path.parent}"
        raise StoreError(msg)


def open_for_writing(path: str, *, create: bool) -> sqlite3.Connection:
    """Open a connection whose commits are on the disk when they return.

    `create` is true only while the store is opened, so that a file that is
    lost later is noticed and not created again.
    """
    connection = _sqlite(path, "mode=rwc" if create else "mode=rw", _TRY_TIMEOUT)
    try:
        until_free(lambda: _set_up_sqlite(connection))
    except BaseException:
        connection.close()
        raise
    return connection


def open_for_reading(path: str) -> sqlite3.Connection:
    """Open a connection for which a read-only file in a read-only folder is enough.

    SQLite creates a file for the write-ahead log even to read, so it cannot
    open a store in a read-only folder. `immutable` can. It is kept for the
    operator who must list the unknown claims of a disk that the kernel has
    remounted read-only after an error, or of a read-only snapshot.
    """
    connection = _sqlite(path, "mode=rw", BUSY_TIMEOUT)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException as error:
        connection.close()
        if not isinstance(error, sqlite3.OperationalError) or not _cannot_change(path):
            raise
        return _sqlite(path, "immutable=1", BUSY_TIMEOUT)
    return connection


def _cannot_change(path: str) -> bool:
    """Whether no log can be created, and no existing log holds later changes."""
    real = os.path.realpath(path)
    log = Path(f"{real}-wal")
    return not os.access(Path(real).parent, os.W_OK) and not (log.exists() and log.stat().st_size)


def _sqlite(path: str, options: str, timeout: float) -> sqlite3.Connection:
    # The thread that forks closes the connection of the writer's thread.
    return sqlite3.connect(
        f"{Path(path).as_uri()}?{options}",
        uri=True,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
    )


def _set_up_sqlite(connection: sqlite3.Connection) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode != "wal":
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        msg = f"it cannot use a write-ahead log there, only {mode}; use a local disk"
        raise sqlite3.NotSupportedError(msg)
    connection.execute("PRAGMA synchronous = FULL")


def until_free(act: Callable[[], object]) -> None:
    """Call `act`, and repeat it while another connection locks the file.

    SQLite's own waiting backs off to 100 ms, and a busy writer would take the
    lock again before that.
    """
    end = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            act()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
        else:
            return
        _sleep(random.uniform(0.0005, 0.004))  # noqa: S311 - no secret
