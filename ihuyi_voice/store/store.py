"""`Store`: what several processes share, opened once and passed to clients.

`sql/` keeps it in a database, `redis.py` in Redis. Each is imported when such a
store is opened, because it needs an extra.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from .._extras import needs_extra
from ..errors import InvalidRequestError, StoreError
from ..models import Secret

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta
    from types import TracebackType

    from typing_extensions import Self

    from .base import ClaimStore, KnownKeys, SharedLimits
    from .entry import UnknownClaim
    from .jobs import Jobs
    from .verifications import VerificationStore

# The scheme of a URL: the module, and the extra that it needs.
_KINDS = {
    "": ("sql", "store"),
    "sqlite": ("sql", "store"),
    "postgresql": ("sql", "postgresql"),
    "mysql": ("sql", "mysql"),
    "mariadb": ("sql", "mysql"),
    "redis": ("redis", "redis"),
    "rediss": ("redis", "redis"),
}
_KINDS_IN_WORDS = (
    "a store is the path of an SQLite file, or a URL that begins with sqlite:///,"
    " postgresql+psycopg://, mysql+pymysql:// or redis://"
)


class Store(ABC):
    """What several processes share: limits per number, and idempotency keys.

    Open it with `Store.open` and pass it to clients. Several clients, threads
    and event loops may share one object, and a forked child goes on with a
    connection of its own.

    ==========================  ========================================  ======  ================
    store                       for                                       limits  idempotency keys
    ==========================  ========================================  ======  ================
    SQLite file                 one machine's processes, on a local disk  yes     yes
    PostgreSQL, MySQL, MariaDB  several machines                          yes     yes
    Redis                       several machines                          yes     no
    ==========================  ========================================  ======  ================

    Redis keeps no keys, because a key must survive a crash.

    A store keeps keyed hashes of numbers, their masked form, keys and
    outcomes. It never keeps a code, a whole number or an API key.

    Attributes:
        is_new: whether opening it created it. A new store knows no earlier
            call; if that is a surprise, its name is mistyped.
    """

    is_new: bool

    @classmethod
    def open(
        cls,
        url: str | os.PathLike[str],
        *,
        create: bool = True,
        patience: float = 2.0,
        clock: Callable[[], float] | None = None,
    ) -> Store:
        """Open a store, create it where there is none, and upgrade an older one.

        Neither an error nor the variables in its traceback show a password
        that `url` contains.

        Args:
            url: the path of an SQLite file, or `sqlite:///path`,
                `postgresql+psycopg://user@host/database`,
                `mysql+pymysql://user@host/database` or `redis://host:port/0`.
                psycopg also reads the password from PGPASSWORD or ~/.pgpass.
                The names of all tables begin with `ihuyi_voice_`, those of all
                Redis keys with `ihuyi_voice:`.
            create: False to open an existing store only. Use it for programs
                that only read, so that a mistyped name creates no new store.
            patience: how long a claim waits for the settlement of a running
                request with the same key, in seconds; 0 to not wait.
            clock: wall-clock seconds, for tests. By default the clock of the
                database or of the Redis server decides; for SQLite, this
                machine's.

        Raises:
            StoreError: it cannot be used; the text says why.
            LookupError: there is none, and `create` is False.
            ModuleNotFoundError: an extra is not installed; the text has the
                command that installs it.
            TypeError: `url` is not a str or path, or `patience` not a number.
            ValueError: `url` names no kind of store, or `patience` is negative
                or not finite.
        """
        # From here on no frame holds the password that `url` may contain.
        hidden, kind = _hidden(url), type(url).__name__
        del url
        if hidden is None:
            msg = f"a store is named by a str or a path, not by {kind}"
            raise TypeError(msg)
        if isinstance(patience, bool) or not isinstance(patience, int | float):
            msg = f"patience is in seconds, an int or a float, not {type(patience).__name__}"
            raise TypeError(msg)
        if not 0 <= patience < math.inf:
            msg = f"patience must be a finite number of seconds, 0 or more, not {patience!r}"
            raise ValueError(msg)
        opener = _opener(hidden)
        if isinstance(opener, Exception):
            raise opener
        return opener(hidden, create=create, patience=patience, clock=clock)

    @property
    @abstractmethod
    def place(self) -> str:
        """Where it is, for messages: a path, or a URL without a password."""

    @property
    @abstractmethod
    def limits(self) -> SharedLimits:
        """Keeps the starts of calls to each number."""

    @property
    @abstractmethod
    def verifications(self) -> VerificationStore:
        """Keeps verifications."""

    @property
    def claims(self) -> ClaimStore | None:
        """Keeps idempotency keys; None where the store cannot."""
        return None

    @property
    def known_keys(self) -> KnownKeys | None:
        """What the command line asks of the keys; None where the store keeps none."""
        return None

    @property
    def jobs(self) -> Jobs:
        """Keeps the jobs of several machines, see `ihuyi_voice.celery`.

        Raises:
            InvalidRequestError: this kind of store keeps none.
        """
        raise jobless(self.place)

    @property
    def schema_version(self) -> int | None:
        """The number of its last schema step; None where it has no schema."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Record what is queued and close the connection; calling it twice does no harm.

        What fails to be recorded is retried for some seconds; after that its
        keys stay unknown. Close the clients first: what they send after this
        cannot be recorded.
        """

    # --- for the operator ------------------------------------------------------

    @abstractmethod
    def unknown(self) -> list[UnknownClaim]:
        """The claims without settlement, the oldest first: their phones may have rung.

        Requests that are being sent at the moment are among them.

        Raises:
            StoreError: the store failed.
            RuntimeError: it is closed.
        """

    @abstractmethod
    def resolve(self, key: str, *, placed: bool) -> None:
        """Record the outcome of an unknown claim, as the account's web page shows it.

        For a minute after the outcome became unknown this is refused. The
        network may still deliver the request, so the page is not final, and a
        key that is sent again could ring its phone twice. There is no wait
        where the connection is known to have been reset.

        Args:
            key: the idempotency key.
            placed: True when the call was placed: the key counts as accepted,
                without a voice id. False when it was not placed: the key may
                be claimed again, and its phone may ring.

        Raises:
            InvalidRequestError: the store keeps no keys.
            LookupError: there is no such key.
            ValueError: the key is settled already, or its request may still be
                delivered; the text says for how long.
            StoreError: the store failed.
            RuntimeError: it is closed.
        """

    @abstractmethod
    def summary(self) -> dict[str, int]:
        """The numbers of keys that are accepted, refused, not_sent and unknown: always these four.

        Raises:
            StoreError: the store failed.
            RuntimeError: it is closed.
        """

    @abstractmethod
    def purge(self, older_than: timedelta) -> int:
        """Delete what has ended for so long; returns how many keys, verifications and jobs.

        A verification ends when it expires. In Redis it is deleted by itself a
        day later, and this is always 0. A job ends when it is completed,
        stopped or canceled; it is deleted with its outcomes, and can no longer
        be resumed.

        A purged key is forgotten: a request with the same key is sent again.
        A claim without settlement is never deleted. Starts that no limit needs
        any more are deleted by themselves.

        Raises:
            ValueError: `older_than` is negative.
            StoreError: the store failed.
            RuntimeError: it is closed.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def keyless(place: str) -> InvalidRequestError:
    """The error for an idempotency key where the store keeps none."""
    return InvalidRequestError(
        f"idempotency_key cannot be kept in {place}: a key must survive a crash of the server,"
        " and Redis may lose its last writes. Use a store in SQLite, PostgreSQL or MySQL for keys;"
        " nothing was sent, no phone rang"
    )


def jobless(place: str) -> InvalidRequestError:
    """The error for a job where the store keeps none."""
    return InvalidRequestError(
        f"a job cannot be kept in {place}: its rows need idempotency keys, which must survive a"
        " crash of the server. Use a store in PostgreSQL or MySQL, or in SQLite on one machine;"
        " nothing was sent, no phone rang"
    )


def checked_clock(clock: Callable[[], float]) -> Callable[[], float]:
    """The caller's clock; its failure becomes a `StoreError`."""

    def now() -> float:
        try:
            moment = float(clock())
        except Exception as error:
            msg = f"its clock failed ({type(error).__name__})"
            raise StoreError(msg) from error
        if not math.isfinite(moment):
            msg = f"its clock failed (it says {moment})"
            raise StoreError(msg)
        return moment

    return now


def _hidden(url: object) -> Secret | None:
    path = os.fspath(url) if isinstance(url, str | os.PathLike) else None
    return Secret(path) if isinstance(path, str) else None


def _opener(url: Secret) -> Callable[..., Store] | Exception:
    """What opens a store of this kind, or the error to raise: this frame holds the password."""
    scheme, separator, _ = url.reveal().partition("://")
    backend = scheme.partition("+")[0] if separator else ""
    if backend not in _KINDS:
        return ValueError(f"{_KINDS_IN_WORDS}, not with {backend}:")
    module, extra = _KINDS[backend]
    try:
        if module == "redis":
            from .redis import RedisStore  # noqa: PLC0415 - it needs an extra

            return RedisStore.at
        from .sql.store import SqlStore  # noqa: PLC0415 - it needs an extra
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("sqlalchemy", "redis"):
            return error.with_traceback(None)
        return ModuleNotFoundError(needs_extra("this store", missing, extra), name=missing)
    return SqlStore.at
