"""The ledger's SQLite file: how it is opened, waited for and known again.

Pure `sqlite3`; what is in the file is `ledger_store.py`'s business.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..._threads import unpatched
from ...errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds that another process may hold the file, before the database counts as failed.
BUSY_TIMEOUT = 5.0
# Seconds that SQLite itself waits each time; `until_free` does the rest.
_TRY_TIMEOUT = 0.005
# Not a greenlet's: no other may come between two steps of a transaction.
_sleep = unpatched("time", "sleep")


class Identity(NamedTuple):
    """Which file it is, whatever its name."""

    device: int
    inode: int


def identity_of(path: str) -> Identity:
    """Which file the name leads to now; OSError where it leads to none."""
    found = os.stat(path)  # noqa: PTH116 - once a transaction, so the cheaper one
    return Identity(found.st_dev, found.st_ino)


def is_still(path: str, identity: Identity) -> bool:
    """Whether the name leads to that file, and there is something in it."""
    try:
        found = os.stat(path)  # noqa: PTH116 - as `identity_of`
    except FileNotFoundError:
        return False
    # Emptied in place, a ledger is none any more; the log is empty now and then.
    return identity == (found.st_dev, found.st_ino) and (found.st_size > 0 or path.endswith("-wal"))


def lost(path: str) -> str:
    """What is said of a file that is not there any more."""
    return (
        f"{path} was deleted, emptied or replaced while it was in use: without it every call"
        " would be placed again, so put it back first, and open it anew"
    )


def check_path(path: Path) -> None:
    """Refuse a path that can hold no ledger, in clearer words than SQLite's.

    Nothing of ours opens the file itself: closing it would take SQLite's
    locks away from every other connection of this process.
    """
    if sqlite3.sqlite_version_info < (3, 35):
        msg = f"{path} needs SQLite 3.35 or newer, and this Python has {sqlite3.sqlite_version}"
        raise LedgerError(msg)
    if path.is_dir():
        msg = f"{path} is a folder"
        raise LedgerError(msg)
    if not path.parent.is_dir():
        msg = f"{path} cannot be created, for there is no folder {path.parent}"
        raise LedgerError(msg)


def open_for_writing(path: str, *, create: bool) -> sqlite3.Connection:
    """A connection whose commits are on the disk when they return.

    The file is created when the ledger is opened and never again: one that is
    lost must be noticed.
    """
    connection = _sqlite(path, "mode=rwc" if create else "mode=rw", _TRY_TIMEOUT)
    try:
        until_free(lambda: _set_up_sqlite(connection))
    except BaseException:
        connection.close()
        raise
    return connection


def open_for_reading(path: str) -> sqlite3.Connection:
    """A connection that does with a file, and a folder, that are read-only."""
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
    """Whether the log that SQLite needs even for reading can and need not be made."""
    real = os.path.realpath(path)
    log = Path(f"{real}-wal")
    return not os.access(Path(real).parent, os.W_OK) and not (log.exists() and log.stat().st_size)


def _sqlite(path: str, how: str, timeout: float) -> sqlite3.Connection:
    # The thread that forks closes the connection of the thread that writes.
    return sqlite3.connect(
        f"{Path(path).as_uri()}?{how}",
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
        msg = f"no write-ahead log can be had there, only {mode}; a local disk has one"
        raise sqlite3.NotSupportedError(msg)
    connection.execute("PRAGMA synchronous = FULL")


def until_free(act: Callable[[], object]) -> None:
    """Do it as soon as no other connection forbids it.

    SQLite's own waiting backs off to 100 ms, in which a busy writer always
    comes back first.
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
