"""Keeps a writer's connection out of forked children.

A child must not inherit an open SQLite connection. SQLite locks the file with
POSIX locks, which a fork does not pass on, but the connection's memory still
says that it holds them: the child would write without a lock, or delete the
write-ahead log while the parent uses it. Closing the inherited file descriptor
in the child does not help: SQLite would clean up what the parent still needs.
So every connection is closed before the fork, under the lock that is held
during each transaction, and parent and child each open their own.

A PostgreSQL connection that could not be closed in time is left to the parent:
the child keeps the object, so that it is never closed, and opens another.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..base import Connection
    from .writer import Writer

_writers: weakref.WeakSet[Writer] = weakref.WeakSet()
_inherited: list[Connection] = []
_forking = threading.local()


def register(writer: Writer) -> None:
    """Prepare a writer for every fork of this process from now on."""
    _writers.add(writer)


def leave_to_parent(connection: Connection | None) -> None:
    """Never close a connection that this child has inherited."""
    if connection is not None:
        _inherited.append(connection)


def _before() -> None:
    _forking.writers = [(writer, writer.before_fork()) for writer in list(_writers)]


def _after_in_parent() -> None:
    for writer, held in _forking.writers:
        writer.after_fork_in_parent()
        for lock in held:
            lock.release()
    _forking.writers = []


def _after_in_child() -> None:
    for writer, _ in _forking.writers:
        writer.after_fork_in_child()
    _forking.writers = []


if hasattr(os, "register_at_fork"):  # pragma: no branch - absent on Windows only
    os.register_at_fork(
        before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
    )
