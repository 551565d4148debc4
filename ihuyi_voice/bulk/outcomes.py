"""The outcomes of a bulk run between the loop that makes them and the consumer that reads.

The loop puts outcomes in; any thread may take them out. No lock is held and
no outcome travels as the result of a future, so neither a cancelled wait nor
a signal handler's exception can lose one.
"""

from __future__ import annotations

from collections import deque
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..models import Outcome


class _Request(NamedTuple):
    """A call that the loop asked for, once so many outcomes were read."""

    at: int
    call: Callable[[], None]


class OutcomeQueue:
    """Outcomes in the order in which they were made, read in the loop that makes them.

    To take one:

        for outcome in queue.taking:
            return outcome

    and nothing else. It raises IndexError where there is none. The outcome is
    removed in C code, and between that and the return Python runs no signal
    handler and switches no thread: an interrupted consumer has not taken it,
    or has it. A call in between, of `next` or `popleft`, would lose it.

    Attributes:
        ended: whether no outcome will be put in any more.
        taking: removes outcomes, as said above.
    """

    def __init__(self) -> None:
        self.ended: bool = False
        self._outcomes: deque[Outcome] = deque()
        self.taking: map[Outcome] = map(deque.popleft, repeat(self._outcomes))
        self._put = 0
        self._news: anyio.Event | None = None
        # What the loop asks for, and which of it was called already.
        self._request: _Request | None = None
        self._called: _Request | None = None

    def __len__(self) -> int:
        return len(self._outcomes)

    # --- the loop's side ----------------------------------------------------------

    @property
    def read(self) -> int:
        """How many outcomes the consumer has taken."""
        return self._put - len(self._outcomes)

    def put(self, outcome: Outcome) -> None:
        """Add an outcome."""
        # Counted first: another thread may count one as read too early, never too late.
        self._put += 1
        self._outcomes.append(outcome)
        self._tell()

    def end(self) -> None:
        """Say that there are no more."""
        self.ended = True
        self.hurry()

    def hurry(self) -> None:
        """Let waiting consumers have what there is."""
        if self._news is not None:
            self._news.set()

    def call_after(self, count: int, call: Callable[[], None]) -> None:
        """Call this in the loop once the consumer has read so many more outcomes.

        It replaces what was asked for before.
        """
        self._request = _Request(self.read + count, call)

    # --- the consumer's side ------------------------------------------------------

    def is_over(self) -> bool:
        """Whether every outcome there will ever be was taken."""
        # In this order: none is put in once it has ended.
        return self.ended and not self._outcomes

    def announce(self) -> None:
        """Make the call that the loop asked for, if it is due; to be done before taking."""
        request = self._request
        if request is self._called or request is None:
            return
        if self._put - len(self._outcomes) >= request.at:
            self._make(request.call)
            # Interrupted before this it is made again, which does no harm.
            self._called = request

    async def wait(self) -> None:
        """Wait until there is an outcome, or no more will come."""
        while not self._outcomes and not self.ended:
            if self._news is None or self._news.is_set():
                self._news = anyio.Event()
            await self._news.wait()

    # --- how the one reaches the other --------------------------------------------

    _tell = hurry

    def _make(self, call: Callable[[], None]) -> None:
        call()
