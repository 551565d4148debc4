"""`RedisStore`: limits and verifications in a Redis server. It keeps no idempotency keys.

`server.py` reads the URL and opens connections, `connection.py` sends what
`writer/` has queued, and `steps.py` runs the steps of verifications.

What a failover may lose. Redis confirms a reservation before it is on the disk
and before a replica has it. A crash of the server, or a replica that takes over,
may lose the last moments: with `appendonly yes` and `appendfsync everysec` about
a second of them, without persistence everything. A number whose last starts are
lost may be called more often than its limit within one window. It is never
called twice for one request: no request is sent again, and Redis keeps no keys.
The last changes of a verification may be lost too: a new one is then unknown, a
guess is not counted, and the code of an approval that is lost is accepted again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NoReturn

from ...errors import InvalidRequestError
from ..queued import QueuedStore, check_age
from ..store import checked_clock
from ..writer.writer import Writer
from .server import Server, server_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from typing_extensions import Self

    from ...models import Secret
    from ..entry import UnknownClaim


class RedisStore(QueuedStore):
    """A `Store` in Redis 5 or newer: limits and verifications, and no idempotency keys.

    After a crash of the server or a failover, the last starts of a number and
    the last changes of a verification may be lost. `redis.py` says what follows,
    and what that depends on.
    """

    def __init__(self, server: Server) -> None:
        self.is_new: bool = False
        self._server = server
        super().__init__(Writer(server.connect, time.time, place=server.place, on_server=True))

    @classmethod
    def at(
        cls,
        url: Secret,
        *,
        create: bool,  # noqa: ARG003 - there is nothing to create
        patience: float,  # noqa: ARG003 - it is for keys
        clock: Callable[[], float] | None,
    ) -> Self:
        """What `Store.open` calls, with arguments that it has checked."""
        server = server_of(url, None if clock is None else checked_clock(clock))
        if isinstance(server, Exception):
            raise server
        # Fails now rather than at the first call.
        server.connect().close()
        return cls(server)

    @property
    def place(self) -> str:
        """See `Store`."""
        return self._server.place

    # --- for the operator ------------------------------------------------------

    def unknown(self) -> list[UnknownClaim]:
        """See `Store`: none, because Redis keeps no keys."""
        self._writer.check_usable()
        return []

    def resolve(self, key: str, *, placed: bool) -> NoReturn:  # noqa: ARG002 - as `Store`'s
        """See `Store`: always an InvalidRequestError."""
        self._writer.check_usable()
        msg = (
            f"{self.place} keeps no idempotency keys, so there is none to resolve: a key must"
            " survive a crash of the server, and Redis may lose its last writes. Name the store in"
            " SQLite, PostgreSQL or MySQL that has the key"
        )
        raise InvalidRequestError(msg)

    def summary(self) -> dict[str, int]:
        """See `Store`: all zero, because Redis keeps no keys."""
        self._writer.check_usable()
        return {"accepted": 0, "refused": 0, "not_sent": 0, "unknown": 0}

    def purge(self, older_than: timedelta) -> int:
        """See `Store`: always 0, because starts and verifications expire by themselves."""
        check_age(older_than)
        self._writer.check_usable()
        return 0
