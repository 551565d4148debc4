"""How often one number may be called: a limit that is checked before the send.

The vendor's FAQ allows 2 calls a minute and 10 a day to one number. Whether it
counts refused calls, and over which kind of window, is not known. So every
call counts that the gateway may have received, over any window.

No I/O here: a store that several machines share implements `QuotaStore` and is
passed in.
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
    """The one value that means "a quota of its own", where None means "no quota"."""

    DEFAULT = "RecipientQuota()"

    def __repr__(self) -> str:
        return self.value


class QuotaStore(Protocol):
    """Where reservations are kept. Both calls must be atomic per number.

    `limits` is a sequence of (count, seconds): within any window of that many
    seconds there may be at most that many reservations.

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
        """Give back one reservation made at `reserved_at`, if there still is one."""


class MemoryQuotaStore:
    """Reservations in this process's memory: an exact log per number.

    Safe to share between threads and clients, and between quotas of different
    limits: a reservation is kept for as long as any of them needs it. A forked
    child goes on with its own copy.

    A number takes about 200 bytes after one call and about 500 after ten calls
    within one day. A number without a call for the longest window is
    forgotten: each reservation removes up to two such numbers, so the memory
    follows the numbers called within one day.
    """

    def __init__(self) -> None:
        # The moments of the reservations of each number, the last one last.
        self._reservations: OrderedDict[str, tuple[float, ...]] = OrderedDict()
        # The largest count and the longest window of all quotas on this store.
        self._largest = 0
        self._longest = 0.0
        # The limits that were added last.
        self._limits: Sequence[tuple[int, float]] = ()
        # The moment from which the oldest number may be forgotten.
        self._quiet_from = -math.inf
        self._renew_lock()
        _stores.add(self)

    def __len__(self) -> int:
        """How many numbers are remembered."""
        return len(self._reservations)

    async def reserve(self, mobile: str, now: float, limits: Sequence[tuple[int, float]]) -> float:
        """See `QuotaStore.reserve`."""
        with self._lock:
            if limits is not self._limits:
                self._add(limits)
            moments = self._reservations.get(mobile)
            if moments is None:
                self._reservations[mobile] = (now,)
            else:
                wait = max(
                    moments[-count] + seconds - now if len(moments) >= count else 0.0
                    for count, seconds in limits
                )
                if wait > 0.0:
                    return wait
                # No window holds more than the largest count.
                self._reservations[mobile] = (*moments, now)[-self._largest :]
                self._reservations.move_to_end(mobile)
            if now >= self._quiet_from:
                self._forget_quiet(now)
            return 0.0

    async def release(self, mobile: str, reserved_at: float) -> None:
        """See `QuotaStore.release`."""
        with self._lock:
            moments = list(self._reservations.get(mobile, ()))
            if reserved_at not in moments:
                return
            moments.remove(reserved_at)
            if moments:
                self._reservations[mobile] = tuple(moments)
            else:
                del self._reservations[mobile]

    def keep_for(self, limits: Sequence[tuple[int, float]]) -> None:
        """Keep from now on what these limits need; a quota does it when it is made."""
        with self._lock:
            self._add(limits)

    def _add(self, limits: Sequence[tuple[int, float]]) -> None:
        self._limits = limits
        self._largest = max(self._largest, *(count for count, _ in limits))
        self._longest = max(self._longest, *(seconds for _, seconds in limits))

    def _forget_quiet(self, now: float) -> None:
        # The order is that of the last reservation, so the oldest comes first.
        for _ in range(2):
            mobile = next(iter(self._reservations))
            self._quiet_from = self._reservations[mobile][-1] + self._longest
            if self._quiet_from > now:
                return
            del self._reservations[mobile]

    def _renew_lock(self) -> None:
        # Loop threads take it, and they are not greenlets.
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
        if isinstance(self._store, MemoryQuotaStore):
            self._store.keep_for(self._limits)
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
