"""The loop thread of one client, across forks and at the interpreter's exit."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .life_cycle import Stop
from .loop_thread import LoopThread

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..client import AsyncVoiceClient
    from ..request_log import DeferredLog

# Kept, because a child that frees such a thread closes its parent's loop and sockets.
_inherited: list[LoopThread] = []


class LoopThreads:
    """The loop thread of one client, in each process. Holds no reference to the client.

    There is one at a time. A thread that has ended, or that a fork left in the
    parent, has exactly one successor.

    Attributes:
        current: the loop thread that was used last; it may have ended since.
        cancel_seconds: how long to wait for the calls that were canceled.
    """

    def __init__(
        self,
        make_client: Callable[[], AsyncVoiceClient],
        log: DeferredLog,
        cancel_seconds: float,
    ) -> None:
        self.current: LoopThread = LoopThread(make_client)
        self.cancel_seconds: float = cancel_seconds
        self._log = log
        self._exiting = False

    def running(self, seconds: float) -> LoopThread:
        """The loop thread of this process, started within `seconds` if it does not run.

        Raises:
            NotSentError: the thread cannot be started.
        """
        while True:
            thread = self.current
            while not thread.is_usable():
                if thread.pid != os.getpid():
                    _inherited.append(thread)
                thread = thread.successor()
            self.current = thread
            if thread.start(seconds):
                return thread

    def close(self, seconds: float) -> None:
        """Let the calls end within `seconds`, cancel the rest, and end the thread."""
        thread = self.current
        if not thread.stop(Stop.AFTER_CALLS, seconds):
            thread.stop(Stop.CANCEL, self.cancel_seconds)

    def exit(self) -> None:
        """Cancel the calls and end the thread: the client is unreachable, or the program exits."""
        self._exiting = True
        self.current.stop(Stop.CANCEL, self.cancel_seconds)
        self._log.write_at_exit()

    def after_call(self) -> None:
        """End the thread of a call that was made at exit, after the finalizer ran."""
        if self._exiting:
            self.exit()
