"""How often one number may be called: a limit of our own, kept before the send.

The vendor's FAQ allows 2 calls a minute and 10 a day to one number; whether it
counts refused calls, and over which kind of window, is not known. So every
call counts that may have been seen by the gateway, over any window.

No I/O here: a store that several machines share is written against
`QuotaStore` and handed in.
"""

from __future__ import annotations

import math
import os
import time
import weakref
from collections import OrderedDict
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from ._threads import unpatched
from .errors import QuotaExceededError
from .models import check_count, mask_mobile

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

MINUTE = 60.0
DAY = 86_400.0


class QuotaDefault(Enum):
    """The one value that stands for "a quota of its own", where None means "no quota"."""

    DEFAULT = "RecipientQuota()"

    def __repr__(self) -> str:
        return self.value


class QuotaStore(Protocol):
    """Where reservations are kept. Both calls must be atomic per number.

    `limits` is a sequence of (count, seconds): within any window of that many
    seconds at most that many reservations may stand.

    A client waits for `reserve` until the request's deadline and for `release`
    for 2 seconds, and then cancels the call. A reservation that is returned
    after that is released. One that is made and not returned stays until its
    window has passed.
    """

    async def reserve(self, mobile: str, now: float, limits: Sequence[tuple[int, float]]) -> float:
        """Reserve at `now` (seconds) if every limit allows it.

        Returns:
            0.0 when reserved, else the seconds until it would be allowed,
            and then nothing is reserved.
        """

    async def release(self, mobile: str, reserved_at: float) -> None:
        """Give back one reservation made at `reserved_at`, if it still stands."""


class MemoryQuotaStore:
    """Reservations in this process's memory: an exact log per number.

    Safe to share between threads and clients. A forked child goes on with a
    copy of its own.

    A number takes about 150 bytes when it was called once and about 500 with
    ten calls standing. A number that was quiet for the longest window is
    forgotten: each reservation clears away up to two such numbers, so the
    memory follows the numbers called within one day.
    """

    def __init__(self) -> None:
        # One moment, or several. A tuple for each number would be one more object
        # for the garbage collector to look at, which costs more than all the rest.
        self._reservations: OrderedDict[str, float | tuple[float, ...]] = OrderedDict()
        # The moment from which a number may be quiet for the longest window.
        self._quiet_from = -math.inf
        self._renew_lock()
        _stores.add(self)

    def __len__(self) -> int:
        """How many numbers are remembered."""
        return len(self._reservations)

    async def reserve(self, mobile: str, now: float, limits: Sequence[tuple[int, float]]) -> float:
        """See `QuotaStore.reserve`."""
        with self._lock:
            if mobile in self._reservations:
                standing = self._standing(mobile)
                wait = max(
                    standing[-count] + seconds - now if len(standing) >= count else 0.0
                    for count, seconds in limits
                )
                if wait > 0.0:
                    return wait
                # No window can ever hold more than its count: older ones are done with.
                keep = max(count for count, _ in limits)
                self._reservations[mobile] = (*standing, now)[-keep:]
                self._reservations.move_to_end(mobile)
            else:
                self._reservations[mobile] = now
            if now >= self._quiet_from:
                self._forget_quiet(now, limits)
            return 0.0

    async def release(self, mobile: str, reserved_at: float) -> None:
        """See `QuotaStore.release`."""
        with self._lock:
            standing = list(self._standing(mobile))
            if reserved_at not in standing:
                return
            standing.remove(reserved_at)
            if standing:
                self._reservations[mobile] = tuple(standing)
            else:
                del self._reservations[mobile]

    def _standing(self, mobile: str) -> tuple[float, ...]:
        """The moments of a number's reservations, the last one last."""
        standing = self._reservations.get(mobile, ())
        return standing if isinstance(standing, tuple) else (standing,)

    def _forget_quiet(self, now: float, limits: Sequence[tuple[int, float]]) -> None:
        longest = max(seconds for _, seconds in limits)
        # The order is that of the last reservation, so the quietest comes first.
        for _ in range(2):
            mobile = next(iter(self._reservations))
            self._quiet_from = self._standing(mobile)[-1] + longest
            if self._quiet_from > now:
                return
            del self._reservations[mobile]

    def _renew_lock(self) -> None:
        # Loop threads take it, which are no greenlets.
        self._lock: threading.Lock = unpatched("_thread", "allocate_lock")()


_stores: weakref.WeakSet[MemoryQuotaStore] = weakref.WeakSet()


def _renew_locks() -> None:
    # A fork may happen while another thread, which the child lacks, holds a lock.
    for store in _stores:
        store._renew_lock()  # noqa: SLF001 - the same module


if hasattr(os, "register_at_fork"):  # pragma: no branch - absent on Windows alone
    os.register_at_fork(after_in_child=_renew_locks)


class RecipientQuota:
    """At most so many calls to one number, exact over any window.

    A slot is reserved before the send, given back when nothing was sent, and
    kept in every other case: an unknown outcome counts as a call. One quota
    may be shared by several clients and threads.

    Args:
        per_minute: calls within any 60 seconds, None for no such limit.
        per_day: calls within any 24 hours, None for no such limit.
        store: where reservations are kept; this process's memory by default.
        clock: seconds; the monotonic clock by default, or the wall clock when
            a store is given, because other machines must agree with it.

    Raises:
        TypeError, ValueError: a limit is not a whole number of at least 1, or
            both are None (pass `quota=None` to the client instead).
    """

    def __init__(
        self,
        per_minute: int | None = 2,
        per_day: int | None = 10,
        store: QuotaStore | None = None,
        *,
        clock: Callable[[], float] | None = None,
    ) -> None:
        limits: list[tuple[int, float]] = []
        for name, count, seconds in (
            ("per_minute", per_minute, MINUTE),
            ("per_day", per_day, DAY),
        ):
            if count is not None:
                check_count(name, count)
                limits.append((count, seconds))
        if not limits:
            msg = "per_minute and per_day are both None: pass quota=None to the client for no limit"
            raise ValueError(msg)
        self._limits = tuple(limits)
        self._store = MemoryQuotaStore() if store is None else store
        self._clock = clock or (time.monotonic if store is None else time.time)
        self._text = f"RecipientQuota(per_minute={per_minute}, per_day={per_day})"

    def __repr__(self) -> str:
        return self._text

    async def reserve(self, mobile: str) -> float:
        """Reserve one call to `mobile` now.

        Returns:
            The moment of the reservation, which `release` takes.

        Raises:
            QuotaExceededError: a limit is reached; nothing is reserved.
        """
        try:
            now = self._clock()
            wait = float(await self._store.reserve(mobile, now, self._limits))
        except BaseException:
            # What the clock and the store raise must not find the number in this frame.
            del mobile
            raise
        if wait > 0.0:
            masked = mask_mobile(mobile)
            del mobile
            raise QuotaExceededError(masked, wait)
        return now

    async def release(self, mobile: str, reserved_at: float) -> None:
        """Give a reservation back, because nothing was sent."""
        try:
            await self._store.release(mobile, reserved_at)
        except BaseException:
            del mobile
            raise


def never_waits(quota: RecipientQuota) -> bool:
    """Whether its calls return at once, because it is in this process's memory."""
    return type(quota) is RecipientQuota and type(quota._store) is MemoryQuotaStore  # noqa: SLF001 - the same module
