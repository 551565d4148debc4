"""What a database's exception means: its scope, and one line of text for the user."""

from __future__ import annotations

import sqlite3
from typing import TypeAlias

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ..entry import FailureScope

ErrorTypes: TypeAlias = tuple[type[Exception], ...]
DATABASE_ERRORS: ErrorTypes = (SQLAlchemyError, sqlite3.Error, OSError)

# Classes of SQLSTATE: connection, insufficient resources, an operator, the system,
# PostgreSQL itself, access, permissions and missing tables, a read-only server.
_DATABASE_STATES = ("08", "53", "57", "58", "XX", "28", "3D", "3F", "42", "25")
# lock_not_available and query_canceled. The class 40 asks to repeat the transaction.
_LOCK_STATES = ("55P03", "57014")

_PLAIN_TEXTS = {
    "not a database": "it is not an SQLite database",
    "locked": "another process keeps it locked",
    "readonly": "it is read-only",
    "disk is full": "the disk is full",
    "unable to open": "it cannot be opened or created",
}


def driver_error(error: Exception) -> BaseException:
    """The driver's own exception, where SQLAlchemy has wrapped it."""
    cause: BaseException | None = getattr(error, "orig", None)
    return error if cause is None else cause


def scope_of(error: Exception) -> FailureScope:
    """What a failure means for other transactions."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return FailureScope.CONNECTION
    cause = driver_error(error)
    state = getattr(cause, "sqlstate", None)
    if state is None:
        # A constraint, a trigger or a value: SQLite reports nothing else about a single row.
        concerns_key = isinstance(cause, sqlite3.IntegrityError | sqlite3.DataError)
        return FailureScope.KEY if concerns_key else FailureScope.DATABASE
    if state in _LOCK_STATES or state.startswith("40"):
        return FailureScope.ROW_LOCK
    return FailureScope.DATABASE if state.startswith(_DATABASE_STATES) else FailureScope.KEY


def without_frames(error: BaseException) -> BaseException:
    """Remove an exception's frames, whose variables may hold a password."""
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)


def describe(cause: BaseException) -> str:
    """What happened, on one line."""
    text = " ".join(str(cause).split())
    if isinstance(cause, sqlite3.Error):
        for part, plain in _PLAIN_TEXTS.items():
            if part in text:
                return plain
    return f"{text} ({type(cause).__name__})"
