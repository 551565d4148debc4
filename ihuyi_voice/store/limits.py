"""How often one number may be called: the rule, and what a store keeps for it.

Pure: no clock and no I/O. `memory.py` and `sql/` keep the starts of each number
as these functions return them; `redis.py` has the same rule in a script of its
own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

DAY = 86_400.0

KEEP_SECONDS = DAY
"""How long a shared store keeps a start: as long as the longest window.

Not only as long as the windows of the client that asks: another client of the
same store may have a longer one.
"""

Windows: TypeAlias = "tuple[tuple[int, float], ...]"
"""Limits: (count, seconds) for each, at most that many starts within any such time."""


class Start(NamedTuple):
    """One call to a number that was started, or may have been.

    Attributes:
        at: by the store's clock, in seconds.
        token: names the reservation; `release` takes it.
    """

    at: float
    token: str


class Limited(NamedTuple):
    """A number and how often it may be called.

    Attributes:
        number: the keyed hash of the number.
        windows: the limits.
    """

    number: str
    windows: Windows


class Reservation(NamedTuple):
    """One call to be reserved.

    Attributes:
        number: the keyed hash of the number.
        token: names the reservation.
        windows: the limits of the client that asks.
    """

    number: str
    token: str
    windows: Windows


class Release(NamedTuple):
    """One reservation to be given back, because nothing was sent."""

    number: str
    token: str


def seconds_to_wait(starts: Sequence[Start], now: float, windows: Windows) -> float:
    """Seconds until one more start is allowed; 0.0 where it is allowed now.

    Args:
        starts: of one number, the latest last.
        now: by the store's clock.
        windows: the limits.
    """
    wait = 0.0
    for count, seconds in windows:
        if len(starts) >= count:
            # At most the window: a clock that was set back must not lock a number out.
            wait = max(wait, min(starts[-count].at + seconds - now, seconds))
    return wait


def reserve(
    starts: Sequence[Start], reservation: Reservation, now: float
) -> tuple[Start, ...] | float:
    """The starts with one more, or the seconds until that is allowed.

    A reservation whose token is among the starts is there already: the commit
    that made it seemed to fail.
    """
    if any(start.token == reservation.token for start in starts):
        return tuple(starts)
    wait = seconds_to_wait(starts, now, reservation.windows)
    if wait > 0.0:
        return wait
    # Never before an earlier one, also where the clock was set back.
    at = max(now, starts[-1].at) if starts else now
    kept = (start for start in starts if start.at > now - KEEP_SECONDS)
    return (*kept, Start(at, reservation.token))


def release(starts: Sequence[Start], token: str) -> tuple[Start, ...]:
    """The starts without the one that has this token."""
    return tuple(start for start in starts if start.token != token)
