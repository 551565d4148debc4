"""The life cycle of a loop thread: its states, and which thread takes which step.

There are no locks: a signal handler may use a client while the thread that it
interrupted is between any two lines of this subpackage. Where two threads
compete, one atomic step decides.
"""

from __future__ import annotations

import threading
from enum import Enum
from typing import Generic, TypeVar

from .._threads import Event

T = TypeVar("T")


class State(Enum):
    """How far a loop thread has come."""

    NEW = "no caller has begun to start it"
    STARTING = "a caller starts it, and its client is not open yet"
    OPEN = "calls can begin"
    CLOSED = "no call can begin any more; the thread has ended, or ends soon"


class Stop(Enum):
    """How a loop thread was asked to stop."""

    NOT_ASKED = "not asked"
    AFTER_CALLS = "after the calls in flight have ended"
    CANCEL = "cancel the calls in flight"


class FirstValue(Generic[T]):
    """Keeps the first value that is offered, in one atomic step."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[None, T] = {}

    def offer(self, value: T) -> T:
        """Offer a value. Returns the first value that was offered."""
        return self._kept.setdefault(None, value)

    def is_set(self) -> bool:
        """Whether a value was offered."""
        return bool(self._kept)


class LifeCycle:
    """The steps of one loop thread. No step is ever undone.

    Attributes:
        stop: how the thread was asked to stop. The latest request counts.
        failure: why the thread could not start.
        started: set when the client is open or can no longer be opened.
        ended: set when every call has its end and the client is closed.
    """

    __slots__ = ("_closed", "_decider", "_launcher", "ended", "failure", "started", "stop")

    def __init__(self) -> None:
        # The identifier of the thread that launches the loop thread. Others wait.
        self._launcher: FirstValue[int] = FirstValue()
        # Decides whether the thread runs: the thread itself, or a request to stop.
        self._decider: FirstValue[object] = FirstValue()
        self._closed = False
        self.stop: Stop = Stop.NOT_ASKED
        self.failure: BaseException | None = None
        self.started: Event = Event()
        self.ended: Event = Event()

    @property
    def state(self) -> State:
        """The state of the thread."""
        if self._closed:
            return State.CLOSED
        if self.started.is_set():
            return State.OPEN
        return State.STARTING if self._launcher.is_set() else State.NEW

    def may_launch(self) -> bool:
        """Whether the calling thread is the one that launches the loop thread.

        It may launch it twice: a signal handler can interrupt the first launch
        and use the client as well.
        """
        me = threading.get_ident()
        return self._launcher.offer(me) == me

    def decides_first(self) -> bool:
        """Whether the caller decides if the thread runs.

        True for the first caller only: a new thread, which then runs, or a
        request to stop, after which no thread runs.
        """
        decider = object()
        return self._decider.offer(decider) is decider

    def close(self) -> None:
        """Let no call begin any more."""
        self._closed = True

    def end(self) -> None:
        """End every wait for this thread. The state must be CLOSED."""
        self.ended.set()
        self.started.set()
