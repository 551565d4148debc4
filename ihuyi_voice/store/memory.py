"""Limits and verifications in this process's memory: what there is without a store."""

from __future__ import annotations

import math
import os
import time
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeVar

from .._threads import unpatched
from .limits import KEEP_SECONDS, Start, release, seconds_to_wait

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from .limits import Windows
    from .verifications import Record

T = TypeVar("T")


class MemoryLimits:
    """The starts of each number in this process; a `LimitStore`.

    Safe to share between threads and clients, and between quotas of different
    limits: a start is kept for as long as any of them needs it. A forked child
    goes on with its own copy.

    A number takes about 330 bytes after one call and about 1,800 after ten
    calls within one day. A number without a call for the longest window is
    forgotten: each reservation removes up to two such numbers, so the memory
    follows the numbers called within one day.

    Args:
        clock: seconds; the monotonic clock by default.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # The starts of each number, the last one last.
        self._starts: OrderedDict[str, tuple[Start, ...]] = OrderedDict()
        # The longest window of all quotas that share it.
        self._longest = 0.0
        # The limits that were added last.
        self._windows: Windows = ()
        # The moment from which the oldest number may be forgotten.
        self._quiet_from = -math.inf
        self._renew_lock()
        _all.add(self)

    def __len__(self) -> int:
        """How many numbers are remembered."""
        return len(self._starts)

    async def reserve(self, number: str, token: str, windows: Windows) -> float:
        """See `LimitStore`."""
        try:
            now = self._clock()
        except BaseException:
            # What the caller's clock raises must not find the number in this frame.
            del number
            raise
        with self._lock:
            if windows is not self._windows:
                self._add(windows)
            starts = self._starts.get(number)
            if starts is None:
                self._starts[number] = (Start(now, token),)
            else:
                wait = seconds_to_wait(starts, now, windows)
                if wait > 0.0:
                    return wait
                # Never before an earlier one, also where the clock was set back.
                start = Start(max(now, starts[-1].at), token)
                self._starts[number] = (*self._needed(starts, now), start)
                self._starts.move_to_end(number)
            if now >= self._quiet_from:
                self._forget_quiet(now)
            return 0.0

    async def release(self, number: str, token: str) -> None:
        """See `LimitStore`."""
        with self._lock:
            starts = release(self._starts.get(number, ()), token)
            if starts:
                self._starts[number] = starts
            else:
                self._starts.pop(number, None)

    def keep_for(self, windows: Windows) -> None:
        """Keep from now on what these limits need; a quota does it when it is made."""
        with self._lock:
            self._add(windows)

    def _add(self, windows: Windows) -> None:
        self._windows = windows
        self._longest = max(self._longest, *(seconds for _, seconds in windows))

    def _needed(self, starts: tuple[Start, ...], now: float) -> tuple[Start, ...]:
        """The starts that the longest window holds."""
        before = now - self._longest
        past = sum(start.at <= before for start in starts) if starts[0].at <= before else 0
        return starts[past:]

    def _forget_quiet(self, now: float) -> None:
        # The order is that of the last reservation, so the oldest comes first.
        for _ in range(2):
            number = next(iter(self._starts))
            self._quiet_from = self._starts[number][-1].at + self._longest
            if self._quiet_from > now:
                return
            del self._starts[number]

    def _renew_lock(self) -> None:
        # Loop threads take it, and they are not greenlets.
        self._lock: threading.Lock = unpatched("_thread", "allocate_lock")()


class MemoryVerifications:
    """Verifications in this process's memory; a `Transaction` and what runs it.

    Expired records are removed as new ones are created.

    Args:
        clock: Unix time in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._starts: OrderedDict[str, tuple[Start, ...]] = OrderedDict()
        self._renew_lock()
        _all.add(self)

    async def run(self, step: Callable[[MemoryVerifications], T], deadline: float) -> T:  # noqa: ARG002 - it never waits
        """See `StepRunner`."""
        with self._lock:
            return step(self)

    async def run_later(
        self, step: Callable[[MemoryVerifications], object], deadline: float
    ) -> None:
        """See `StepRunner`."""
        await self.run(step, deadline)

    def now(self) -> float:
        """See `Transaction`."""
        return self._clock()

    def find(self, id: str) -> Record | None:  # noqa: A002 - its name
        """See `Transaction`."""
        return self._records.get(id)

    def save(self, record: Record, *, is_new: bool = False) -> None:
        """See `Transaction`."""
        self._records[record.id] = record
        if is_new:
            self._forget_expired()

    def starts(self, number: str) -> tuple[Start, ...]:
        """See `Transaction`."""
        return self._starts.get(number, ())

    def save_starts(self, number: str, starts: Sequence[Start]) -> None:
        """See `Transaction`."""
        self._starts[number] = tuple(starts)
        self._starts.move_to_end(number)

    def purge(self, before: float) -> int:
        """See `Transaction`."""
        expired = [record.id for record in self._records.values() if record.expires_at < before]
        for id_ in expired:
            del self._records[id_]
        return len(expired)

    def _forget_expired(self) -> None:
        # In the order of their creation or last change: the oldest come first.
        before = self._clock() - KEEP_SECONDS
        for _ in range(2):
            record = next(iter(self._records.values()))
            if record.expires_at < before:
                del self._records[record.id]
            number, starts = next(iter(self._starts.items()), ("", ()))
            if number and (not starts or starts[-1].at < before):
                del self._starts[number]

    def _renew_lock(self) -> None:
        self._lock: threading.Lock = unpatched("_thread", "allocate_lock")()


_all: weakref.WeakSet[MemoryLimits | MemoryVerifications] = weakref.WeakSet()


def _renew_locks() -> None:
    # A fork may happen while another thread, which the child lacks, holds a lock.
    for kept in _all:
        kept._renew_lock()  # noqa: SLF001 - the same module


if hasattr(os, "register_at_fork"):  # pragma: no branch - absent on Windows alone
    os.register_at_fork(after_in_child=_renew_locks)
