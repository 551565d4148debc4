"""The calls in flight in a loop thread."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

from .life_cycle import State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..client import AsyncVoiceClient
    from .handover import Handover
    from .life_cycle import LifeCycle

T = TypeVar("T")

CLOSED = "this client is closed: make a new one"


class Calls:
    """The calls in flight: each is a task of the loop, with a `Handover` for its end.

    Attributes:
        client: the open client of the loop, after `open`.
        loop: the event loop, after `open`.
        stopping: set in the loop when it is to end.
    """

    client: AsyncVoiceClient
    loop: asyncio.AbstractEventLoop

    def __init__(self, life: LifeCycle) -> None:
        self._life = life
        self.stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        # Of the calls that have not ended, for the case that the loop ends first.
        self._handovers: dict[Handover[Any], None] = {}
        self._cancels_new = False

    # --- for other threads ------------------------------------------------------

    def begin(self, start: Callable[[AsyncVoiceClient], Awaitable[T]], end: Handover[T]) -> None:
        """Run a coroutine in the loop, in the caller's context, and hand its end over.

        Cancelling the handover cancels the coroutine.

        anyio's BlockingPortal waits for the loop once more, until the task
        exists, and asyncio's run_coroutine_threadsafe needs one more round of
        the loop to notice the end. That is a third of a call's time, so
        neither is used.

        Raises:
            RuntimeError: no call can begin any more.
        """
        self._handovers[end] = None
        # `give_up` cancels every handover that it finds, and the state is CLOSED by then. So
        # either it finds this one, or this check sees the state.
        if self._life.state is not State.CLOSED:
            # The loop may have been closed meanwhile.
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._start, start, end)
                return
        self._forget(end)
        raise RuntimeError(CLOSED)

    def runs_here(self) -> bool:
        """Whether the calling thread is the loop's."""
        with contextlib.suppress(RuntimeError, AttributeError):
            return asyncio.get_running_loop() is self.loop
        return False

    def give_up(self) -> None:
        """End the waits for calls that nothing runs any more. The state must be CLOSED."""
        for end in list(self._handovers):
            end.cancel()  # pragma: no cover - only a race gets here

    # --- in the loop ------------------------------------------------------------

    def open(self, client: AsyncVoiceClient) -> None:
        """Let calls begin, with a client that is open in the running loop."""
        self.client = client
        self.loop = asyncio.get_running_loop()

    def cancel(self) -> None:
        """Cancel the calls in flight, and each call that starts later."""
        self._cancels_new = True
        for task in self._tasks:
            task.cancel()

    async def wait(self) -> None:
        """Wait until no call is in flight."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self, start: Callable[[AsyncVoiceClient], Awaitable[T]], end: Handover[T]) -> None:
        """Start a call in a task of its own."""
        if end.cancelled():
            # Ctrl-C has returned already: the request must not be written any more.
            self._forget(end)
            return
        task = self.loop.create_task(_run(self.client, start, end))
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._forget(end)
            # A task that was canceled before its first step has not ended its handover.
            end.cancel()

        def cancel(end: Handover[T]) -> None:
            if end.cancelled():
                # A closed loop has no task to cancel.
                with contextlib.suppress(RuntimeError):
                    self.loop.call_soon_threadsafe(task.cancel)

        task.add_done_callback(ended)
        end.add_done_callback(cancel)
        if self._cancels_new:  # pragma: no cover - only a race gets here
            task.cancel()

    def _forget(self, end: Handover[Any]) -> None:
        self._handovers.pop(end, None)


async def _run(
    client: AsyncVoiceClient,
    start: Callable[[AsyncVoiceClient], Awaitable[T]],
    end: Handover[T],
) -> None:
    """Run one call. Raises nothing: SystemExit would end the loop and all other calls."""
    try:
        result = await start(client)
    except asyncio.CancelledError:
        end.cancel()
    except BaseException as error:  # noqa: BLE001 - the thread that waits gets it
        end.set_exception(error)
    else:
        end.set_result(result)
