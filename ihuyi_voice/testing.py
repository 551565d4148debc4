"""`VoiceGateway`: the sandbox for tests, which the pytest fixture `voice_gateway` gives.

It adds what a test asks for: which code was read out to a number, and a wait for
the next call. Nothing here knows pytest.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from threading import Condition
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from .sandbox import SandboxGateway
from .wire import normalize_mobile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .sandbox import Attempt, Call
    from .sandbox.faults import Roll
    from .sandbox.history import Received
    from .sandbox.reasons import Method
    from .sandbox.rules import Reply


class VoiceGateway(SandboxGateway):
    """A `SandboxGateway` with its URL and with what a test asserts.

    Every setting of a sandbox can be set at any time:
    `voice_gateway.blacklist = ["13912345678"]`, `voice_gateway.chaos = Chaos(...)`.

    Numbers are given in any spelling that `submit` takes.

    Attributes:
        url: its base URL while it is served, such as `http://127.0.0.1:41234`.
    """

    url: str = ""

    def __init__(self) -> None:
        super().__init__()
        self._call_placed = Condition()
        # The calls that a wait has returned, by identity: two calls may be equal.
        self._returned: dict[int, Call] = {}

    def answer(
        self,
        method: Method,
        form: Mapping[str, str],
        ip: str,
        roll: Roll,
        request: Received | None = None,
    ) -> Reply:
        """As the sandbox does; then wake those that wait for a call."""
        reply = super().answer(method, form, ip, roll, request)
        if reply.call is not None:
            with self._call_placed:
                self._call_placed.notify_all()
        return reply

    def last_code(self, mobile: str) -> str:
        """The verification code of the last call placed to a number.

        Raises:
            AssertionError: none was placed; the text says to which numbers
                calls were placed and what was refused.
            InvalidRequestError: `mobile` is no mainland number.
        """
        __tracebackhide__ = True
        number = normalize_mobile(mobile)
        for call in reversed(self.calls):
            if call.mobile == number:
                return call.content
        msg = f"no call was placed to {number}; {self._history_in_words()}"
        raise AssertionError(msg)

    def wait_for_call(self, mobile: str, timeout: float = 5.0) -> Call:
        """Wait for the next call to a number, in a test that is not asynchronous.

        The next is the oldest that no wait has returned yet. So the first wait
        gives the first call and the second wait the second, whether a call was
        placed before the wait or is placed while it waits.

        Args:
            mobile: the number.
            timeout: seconds.

        Raises:
            AssertionError: none was placed in time; the text says what was.
            InvalidRequestError: `mobile` is no mainland number.
            RuntimeError: an event loop runs in this thread: the wait would
                block it, and the code under test with it.
        """
        __tracebackhide__ = True
        number = normalize_mobile(mobile)
        _refuse_in_a_running_loop()
        return self._wait(_Wait(number), timeout)

    async def wait_for_call_async(self, mobile: str, timeout: float = 5.0) -> Call:  # noqa: ASYNC109 - as its blocking twin
        """As `wait_for_call`, in an asynchronous test: the loop keeps running.

        A wait that is cancelled leaves the call to the next wait.
        """
        __tracebackhide__ = True
        wait = _Wait(normalize_mobile(mobile))
        # A separate thread: the code under test may need all others.
        limiter = anyio.CapacityLimiter(1)
        try:
            return await to_thread.run_sync(
                self._wait, wait, timeout, abandon_on_cancel=True, limiter=limiter
            )
        except BaseException:
            self._give_up(wait)
            raise

    def _wait(self, wait: _Wait, timeout: float) -> Call:
        __tracebackhide__ = True
        with self._call_placed:
            self._call_placed.wait_for(lambda: self._is_over(wait), timeout)
            if wait.call is not None:
                return wait.call
        msg = (
            f"no call was placed to {wait.number} within {timeout} s that no wait had returned"
            f" before; {self._history_in_words()}"
        )
        raise AssertionError(msg)

    def _is_over(self, wait: _Wait) -> bool:
        if wait.call is None and not wait.given_up:
            wait.call = self._next_call(wait.number)
            if wait.call is not None:
                self._returned[id(wait.call)] = wait.call
        return wait.given_up or wait.call is not None

    def _give_up(self, wait: _Wait) -> None:
        with self._call_placed:
            wait.given_up = True
            if wait.call is not None:
                del self._returned[id(wait.call)]
            self._call_placed.notify_all()

    def _next_call(self, number: str) -> Call | None:
        for call in self.calls:
            if call.mobile == number and id(call) not in self._returned:
                return call
        return None

    def _history_in_words(self) -> str:
        """The numbers that were called, and every refusal."""
        attempts = self.attempts
        placed = Counter(attempt.mobile for attempt in attempts if attempt.placed)
        refused = [_refusal(attempt) for attempt in attempts if not attempt.placed]
        calls = ", ".join(f"{number} ({count})" for number, count in placed.items())
        return f"calls placed: {calls or 'none'}; refused: {'; '.join(refused) or 'none'}"


class _Wait:
    """One wait for one call; the condition's lock guards it."""

    __slots__ = ("call", "given_up", "number")

    def __init__(self, number: str) -> None:
        self.number = number
        self.given_up = False
        self.call: Call | None = None


def _refuse_in_a_running_loop() -> None:
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return
    if task is None:
        # No task runs: this is beside the loop, as in a test with Playwright's blocking API.
        return
    msg = (
        "wait_for_call would block the event loop that is running in this thread, and the code"
        " under test with it: write `await voice_gateway.wait_for_call_async(...)`"
    )
    raise RuntimeError(msg)


def _refusal(attempt: Attempt) -> str:
    return f"{attempt.mobile or 'no number'} with {attempt.code} {attempt.msg}"
