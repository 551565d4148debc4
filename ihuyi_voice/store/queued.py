"""`QueuedStore`: what the stores that send through a `Writer` have in common.

The writer's thread and its batches are in `writer/`; what a batch does in one kind
of store is in `sql/connection.py` and `redis/connection.py`.
"""

from __future__ import annotations

import math
import weakref
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from ..errors import StoreError
from .limits import Release, Reservation
from .store import Store
from .verifications import Verifications

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from .limits import Windows
    from .verifications import Transaction
    from .writer.writer import Writer

T = TypeVar("T")

# Seconds to wait for the last batch: in `close`, and at the end of the program.
_CLOSE_TIMEOUT, _EXIT_TIMEOUT = 30.0, 10.0

NOTHING_SENT = "nothing was sent, no phone rang"
"""The end of the reason where a store fails before a request."""


class QueuedStore(Store):
    """A `Store` that keeps limits and verifications, and queues every write in a `Writer`.

    Args:
        writer: of this store alone; `close` stops it, and so does the end of the program.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._finalizer = weakref.finalize(self, writer.stop, _EXIT_TIMEOUT, greenlets_run=False)

    @property
    def limits(self) -> Self:
        """See `Store`."""
        return self

    @property
    def verifications(self) -> Verifications:
        """See `Store`."""
        return Verifications(self)

    def close(self) -> None:
        """See `Store`."""
        self._finalizer.detach()
        self._writer.stop(_CLOSE_TIMEOUT)

    def __repr__(self) -> str:
        state = "closed" if self._writer.closed else "open"
        return f"<{type(self).__name__} {self.place} {state}>"

    # --- for the clients -------------------------------------------------------

    async def run(self, step: Callable[[Transaction], T], deadline: float) -> T:
        """See `StepRunner`."""
        return await self._writer.run(step, deadline)

    async def run_later(self, step: Callable[[Transaction], object], deadline: float) -> None:  # noqa: ARG002 - it never waits
        """See `StepRunner`."""
        self._writer.run_later(step)

    async def reserve(
        self, number: str, token: str, windows: Windows, *, deadline: float = math.inf
    ) -> float:
        """See `LimitStore`; it fails at the deadline (monotonic seconds).

        Raises:
            StoreError: the store failed, or the deadline passed first.
            RuntimeError: the store is closed.
        """
        try:
            return await self._writer.reserve(Reservation(number, token, windows), deadline)
        except StoreError as error:
            msg = f"{error.reason}; {NOTHING_SENT}"
            raise StoreError(msg) from error.__cause__

    async def release(self, number: str, token: str) -> None:
        """See `LimitStore`; where it fails, it is retried until the program ends.

        Raises:
            StoreError: it is not recorded yet.
            RuntimeError: the store is closed.
        """
        await self._writer.release(Release(number, token))


def check_age(older_than: timedelta) -> None:
    """Raise ValueError unless `purge` may be given this age."""
    if older_than < timedelta(0):
        msg = f"older_than must not be negative, not {older_than}"
        raise ValueError(msg)
