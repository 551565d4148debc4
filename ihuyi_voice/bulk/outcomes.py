"""The queue between the loop that makes the outcomes of a bulk run and their consumer.

The loop puts outcomes in; any thread may take them out. There is no lock, and
no outcome is the result of a future, so neither a cancelled wait nor an
exception of a signal handler can lose one.
"""

from __future__ import annotations

from collections import deque
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..models import Outcome


class _Callback(NamedTuple):
    """What to call in the loop once the consumer has read `at` outcomes in all."""

    at: int
    call: Callable[[], None]


class OutcomeQueue:
    """Outcomes in the order in which they were made; the consumer runs in the same loop.

    Take an outcome exactly like this:

        for outcome in queue.taking:
            return outcome

    It raises IndexError if the queue is empty. C code removes the outcome, and
    between that and the `return` Python runs no signal handler and switches no
    thread: an interrupted consumer either has the outcome or has not taken it.
    A call of `next` or `popleft` instead could lose one.

    Attributes:
        ended: whether no more outcomes will be put in.
        taking: removes outcomes, see above.
    """

    def __init__(self) -> None:
        self.ended: bool = False
        self._outcomes: deque[Outcome] = deque()
        self.taking: map[Outcome] = map(deque.popleft, repeat(self._outcomes))
        self._put = 0
        self._news: anyio.Event | None = None
        self._callback: _Callback | None = None
        # The latest callback that was called.
        self._called: _Callback | None = None

    def __len__(self) -> int:
        return len(self._outcomes)

    # --- for the loop -----------------------------------------------------------

    @property
    def read(self) -> int:
        """How many outcomes the consumer has taken."""
        return self._put - len(self._outcomes)

    def put(self, outcome: Outcome) -> None:
        """Add an outcome."""
        # Counted first: another thread may count one as read too early, never too late.
        self._put += 1
        self._outcomes.append(outcome)
        self._notify()

    def end(self) -> None:
        """No more outcomes will be put in."""
        self.ended = True
        self.flush()

    def flush(self) -> None:
        """Wake waiting consumers for the outcomes that are there."""
        if self._news is not None:
            self._news.set()

    def call_after(self, count: int, call: Callable[[], None]) -> None:
        """Call this in the loop after the consumer has read so many more outcomes.

        It replaces the callback of an earlier `call_after`.
        """
        self._callback = _Callback(self.read + count, call)

    # --- for the consumer -------------------------------------------------------

    def is_over(self) -> bool:
        """Whether the consumer has taken the last outcome."""
        # In this order: none is put in once it has ended.
        return self.ended and not self._outcomes

    def run_callback_if_due(self) -> None:
        """Make the call of `call_after` if it is due. A consumer does this before it takes one."""
        callback = self._callback
        if callback is self._called or callback is None:
            return
        if self._put - len(self._outcomes) >= callback.at:
            self._call_in_loop(callback.call)
            # If an interrupt skips this line, a second call does no harm.
            self._called = callback

    async def wait(self) -> None:
        """Wait until there is an outcome, or no more will come."""
        while not self._outcomes and not self.ended:
            if self._news is None or self._news.is_set():
                self._news = anyio.Event()
            await self._news.wait()

    # --- for subclasses, whose consumers are in other threads ---------------------

    _notify = flush

    def _call_in_loop(self, call: Callable[[], None]) -> None:
        call()
