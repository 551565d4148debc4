"""Reserves and gives back in a quota that is not in the client's `Store`.

A quota in this process's memory answers at once. A `LimitStore` of the caller's
may hang, fail, or ignore a cancellation, and the request has a deadline.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import anyio

from .errors import IhuyiVoiceError, NotSentError
from .quota import never_waits

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from ._limits import Limits
    from .quota import RecipientQuota
    from .request_log import RequestLog

NO_MORE_THREADS = ("can't start new thread",)
"""The text of the RuntimeError at the system's limit of threads; it has no class of its own."""

_T = TypeVar("_T")


class Reserving(Protocol):
    """A submit that passed the check.

    Attributes:
        reserved: the token of its reservation, None without one.
    """

    reserved: str | None

    def mobile(self) -> str:
        """The number itself."""

    def masked_mobile(self) -> str:
        """The number as it may be shown."""


class _Raised:
    """What a call raised in its own task."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


async def _caught(call: Callable[[], Coroutine[object, object, _T]]) -> _T | _Raised:
    """Run the caller's code and return what it raises; SystemExit in a task would end the loop."""
    try:
        return await call()
    except asyncio.CancelledError:
        # The task records the cancellation.
        raise
    except BaseException as error:  # noqa: BLE001 - raised again where the call is awaited
        return _Raised(error)


class Reservations:
    """The calls to one quota.

    Args:
        quota: the limits.
        timeout: seconds for a reservation without a deadline of its own.
        limits: has the seconds for giving a reservation back.
        log: gets a warning when a reservation cannot be given back.
    """

    def __init__(
        self, quota: RecipientQuota, timeout: float, limits: Limits, log: RequestLog
    ) -> None:
        self._quota = quota
        self._waits = not never_waits(quota)
        self._timeout = timeout
        self._release_seconds = limits.release
        self._log = log
        # Calls to the quota's store that may outlive their request.
        self._calls: set[asyncio.Task[Any]] = set()

    async def reserve(self, admitted: Reserving, deadline: float | None = None) -> None:
        """Reserve one call in the number's quota; nothing is sent.

        Args:
            admitted: the submit.
            deadline: until when to wait for the quota's store, in monotonic
                seconds; the client's timeout from now by default.

        Raises:
            QuotaExceededError: the number's limit is reached.
            NotSentError: the quota's store failed, or did not answer in time.
        """
        try:
            if self._waits:
                if deadline is None:
                    deadline = time.monotonic() + self._timeout
                admitted.reserved = await self._reserve_by(deadline, admitted)
            else:
                admitted.reserved = await self._quota.reserve(admitted.mobile())
        except IhuyiVoiceError:
            raise
        except Exception as exception:
            msg = f"the quota's store failed ({named(exception)})"
            raise NotSentError(msg) from exception

    async def _reserve_by(self, deadline: float, admitted: Reserving) -> str:
        """Reserve, but wait only until the deadline, even for a store that ignores cancellation."""
        asked = self._ask(lambda: self._quota.reserve(admitted.mobile()))
        try:
            await asyncio.wait((asked,), timeout=max(0.0, deadline - time.monotonic()))
        except BaseException:
            self._abandon(asked, admitted)
            raise
        if not asked.done():
            self._abandon(asked, admitted)
            msg = f"the quota's store did not answer within {self._timeout:g} s"
            raise NotSentError(msg)
        if asked.cancelled():
            msg = "the quota's store failed (CancelledError)"
            raise NotSentError(msg)
        token = asked.result()
        if isinstance(token, _Raised):
            raise token.error
        return token

    def _abandon(self, asked: asyncio.Task[str | _Raised], admitted: Reserving) -> None:
        """Cancel a reservation; give it back where the store makes it late."""

        def give_back(late: asyncio.Task[str | _Raised]) -> None:
            if late.cancelled():
                return
            token = late.result()
            if not isinstance(token, _Raised):  # pragma: no branch - a late failure
                self._release(admitted, token)

        asked.cancel()
        asked.add_done_callback(give_back)

    def _ask(self, call: Callable[[], Coroutine[object, object, _T]]) -> asyncio.Task[_T | _Raised]:
        """Start a call to the quota's store in its own task.

        An abandoned call goes on in the background, so the task is kept until it
        is done.
        """
        asked = asyncio.get_running_loop().create_task(_caught(call))
        self._calls.add(asked)
        asked.add_done_callback(self._calls.discard)
        return asked

    async def give_back(self, admitted: Reserving) -> None:
        """Release the reservation of a submit that was not sent.

        Also during a cancellation. A store that fails here, or does not answer
        within some seconds, keeps the reservation; the outcome does not change.
        """
        if admitted.reserved is None:
            return
        if not self._waits:
            await self._quota.release(admitted.mobile(), admitted.reserved)
            return
        released = self._release(admitted, admitted.reserved)
        with anyio.CancelScope(shield=True):
            await asyncio.wait((released,), timeout=self._release_seconds)
        if not released.done():
            released.cancel()
            self._warn_of_kept_slot(admitted, f"no answer within {self._release_seconds:g} s")
            return
        failed = None if released.cancelled() else released.result()
        # SystemExit and KeyboardInterrupt reach the caller.
        if failed is not None and not isinstance(failed.error, Exception):
            raise failed.error

    def _release(self, admitted: Reserving, token: str) -> asyncio.Task[_Raised | None]:
        """Start to give a reservation back; a failure is logged."""

        def warn(done: asyncio.Task[_Raised | None]) -> None:
            if not done.cancelled() and (failed := done.result()) is not None:
                self._warn_of_kept_slot(admitted, named(failed.error))

        released = self._ask(lambda: self._quota.release(admitted.mobile(), token))
        released.add_done_callback(warn)
        return released

    def _warn_of_kept_slot(self, admitted: Reserving, why: str) -> None:
        self._log.warn(
            "submit %s: nothing was sent, and the quota's store did not give its slot back (%s):"
            " the call counts until its window has passed",
            admitted.masked_mobile(),
            why,
        )


def named(exception: BaseException) -> str:
    """The class of an exception from outside the package, with the system's text of an OSError.

    The rest of its text is not shown: it may hold anything.
    """
    name = type(exception).__name__
    if isinstance(exception, OSError) and isinstance(exception.errno, int):
        return f"{name}: {os.strerror(exception.errno)}"
    if exception.args == NO_MORE_THREADS:
        return f"{name}: {NO_MORE_THREADS[0]}"
    return name
