"""How often one number may be called: a limit that is checked before the send.

The vendor's FAQ allows 2 calls a minute and 10 a day to one number, an
aggregator's published limits also 5 an hour. Whether the vendor counts refused
calls, and over which kind of window, is not known. So every call counts that
the gateway may have received, over any window.
"""

from __future__ import annotations

import os
import secrets
from enum import Enum
from itertools import count
from typing import TYPE_CHECKING

from .errors import QuotaExceededError
from .models import check_count, mask_mobile
from .store.limits import DAY
from .store.memory import MemoryLimits

if TYPE_CHECKING:
    from collections.abc import Callable

    from .store.base import LimitStore
    from .store.limits import Windows

MINUTE = 60.0
HOUR = 3600.0


class _Tokens:
    """Names for reservations, unique among all processes that share a store."""

    def __init__(self) -> None:
        self.renew()
        if hasattr(os, "register_at_fork"):  # pragma: no branch - absent on Windows alone
            os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self._prefix = secrets.token_hex(8)
        self._numbers = count()

    def new(self) -> str:
        return f"{self._prefix}{next(self._numbers):x}"


_tokens = _Tokens()


class QuotaDefault(Enum):
    """The one value that means "a quota of its own", where None means "no quota"."""

    DEFAULT = "RecipientQuota()"

    def __repr__(self) -> str:
        return self.value


class RecipientQuota:
    """At most so many calls to one number, exact over any window.

    A start is reserved before the send, given back when nothing was sent, and
    kept in every other case: an unknown outcome counts as a call.

    Where the starts are kept: in `store`, if it is given; else in the `Store`
    of the client, where the limit holds for all processes that share it; else
    in this process's memory. In memory, one quota may be shared by several
    clients and threads.

    Args:
        per_minute: calls within any 60 seconds, None for no such limit.
        per_day: calls within any 24 hours, None for no such limit.
        store: a `LimitStore` of your own.
        per_hour: calls within any 60 minutes, None for no such limit.
        clock: seconds, for tests with limits in memory; the monotonic clock by
            default. A store has a clock of its own.

    Raises:
        TypeError, ValueError: a limit is not a whole number of at least 1, all
            are None (pass `quota=None` to the client instead), or both `store`
            and `clock` are given.
    """

    def __init__(
        self,
        per_minute: int | None = 2,
        per_day: int | None = 10,
        store: LimitStore | None = None,
        *,
        per_hour: int | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        windows: list[tuple[int, float]] = []
        for name, limit, seconds in (
            ("per_minute", per_minute, MINUTE),
            ("per_hour", per_hour, HOUR),
            ("per_day", per_day, DAY),
        ):
            if limit is not None:
                check_count(name, limit)
                windows.append((limit, seconds))
        if not windows:
            msg = (
                "per_minute, per_hour and per_day are all None: pass quota=None to the client for"
                " no limit"
            )
            raise ValueError(msg)
        if store is not None and clock is not None:
            msg = "clock is for limits in memory, and a store has a clock of its own: leave one out"
            raise ValueError(msg)
        self.windows: Windows = tuple(windows)
        self._has_own_store = store is not None
        self.has_own_clock: bool = clock is not None
        if store is None:
            store = MemoryLimits() if clock is None else MemoryLimits(clock)
        if isinstance(store, MemoryLimits):
            store.keep_for(self.windows)
        self._store: LimitStore = store
        hourly = "" if per_hour is None else f" per_hour={per_hour},"
        self._text = f"RecipientQuota(per_minute={per_minute},{hourly} per_day={per_day})"

    def __repr__(self) -> str:
        return self._text

    @property
    def may_move(self) -> bool:
        """Whether a client with a `Store` keeps the starts there."""
        return not self._has_own_store

    async def reserve(self, mobile: str) -> str:
        """Reserve one start of a call to `mobile` now.

        Returns:
            The token of the reservation, which `release` takes.

        Raises:
            QuotaExceededError: a limit is reached; nothing is reserved.
        """
        token = _tokens.new()
        try:
            wait = float(await self._store.reserve(mobile, token, self.windows))
        except BaseException:
            # What the clock and the store raise must not find the number in this frame.
            del mobile
            raise
        if wait > 0.0:
            masked = mask_mobile(mobile)
            del mobile
            raise QuotaExceededError(masked, wait)
        return token

    async def release(self, mobile: str, token: str) -> None:
        """Give a reservation back, because nothing was sent."""
        try:
            await self._store.release(mobile, token)
        except BaseException:
            del mobile
            raise


def never_waits(quota: RecipientQuota) -> bool:
    """Whether its calls return at once, because it is in this process's memory."""
    return type(quota) is RecipientQuota and type(quota._store) is MemoryLimits  # noqa: SLF001 - the same module
