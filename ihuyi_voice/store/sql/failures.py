"""What a database's exception means: its scope, and one line of text for the user."""

from __future__ import annotations

import sqlite3
from typing import TypeAlias

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

from ..entry import FailureScope

ErrorTypes: TypeAlias = tuple[type[Exception], ...]
DATABASE_ERRORS: ErrorTypes = (SQLAlchemyError, sqlite3.Error, OSError)

# Classes of SQLSTATE: connection, insufficient resources, an operator, the system,
# PostgreSQL itself, access, permissions and missing tables, a read-only server.
_DATABASE_STATES = ("08", "53", "57", "58", "XX", "28", "3D", "3F", "42", "25")
# lock_not_available and query_canceled. The class 40 asks to repeat the transaction.
_LOCK_STATES = ("55P03", "57014")

# PyMySQL's error codes. Lock wait timeout and deadlock.
_LOCK_CODES = (1205, 1213)
# Shutdown, lost and killed connections, an idle one that the server has closed.
_CONNECTION_CODES = (1053, 1927, 2006, 2013, 2055, 4031)
# Raised by a trigger, CHECK constraints of MySQL and MariaDB, a value that does not fit.
_KEY_CODES = (1644, 3819, 4025, 1366)

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
    # Before SQLSTATE, which PyMySQL has too: there it does not tell a lock from other failures.
    code = _code_of(cause)
    if code is not None:
        return _scope_of_code(code, error)
    state = getattr(cause, "sqlstate", None)
    if state is None:
        # A constraint, a trigger or a value: SQLite reports nothing else about a single row.
        concerns_key = isinstance(cause, sqlite3.IntegrityError | sqlite3.DataError)
        return FailureScope.KEY if concerns_key else FailureScope.DATABASE
    if state in _LOCK_STATES or state.startswith("40"):
        return FailureScope.ROW_LOCK
    return FailureScope.DATABASE if state.startswith(_DATABASE_STATES) else FailureScope.KEY


def _code_of(cause: BaseException) -> int | None:
    """The error code of a PyMySQL exception; None for those of other drivers."""
    if not type(cause).__module__.startswith("pymysql"):
        return None
    code = cause.args[0] if cause.args else None
    return code if isinstance(code, int) else 0


def _scope_of_code(code: int, error: Exception) -> FailureScope:
    if code in _LOCK_CODES:
        return FailureScope.ROW_LOCK
    if code in _CONNECTION_CODES:
        return FailureScope.CONNECTION
    if code in _KEY_CODES or isinstance(error, IntegrityError | DataError):
        return FailureScope.KEY
    return FailureScope.DATABASE


def may_not_create(cause: BaseException) -> bool:
    """Whether the user of the database lacks the right to create or change tables."""
    # PostgreSQL: insufficient_privilege. MySQL: denied for a database, a table, any.
    return getattr(cause, "sqlstate", None) == "42501" or _code_of(cause) in (1044, 1142, 1227)


def without_frames(error: BaseException) -> BaseException:
    """Remove an exception's frames, whose variables may hold a password."""
    error.__context__ = error.__cause__ = None
    # PyMySQL keeps the socket's exception there.
    vars(error).pop("original_exception", None)
    return error.with_traceback(None)


def describe(cause: BaseException) -> str:
    """What happened, on one line."""
    text = " ".join(str(cause).split())
    if isinstance(cause, sqlite3.Error):
        for part, plain in _PLAIN_TEXTS.items():
            if part in text:
                return plain
    if _code_of(cause) and len(cause.args) > 1:
        text = " ".join(str(cause.args[1]).split())
        return f"{text} ({type(cause).__name__} {cause.args[0]})"
    return f"{text} ({type(cause).__name__})"
