"""The event loop of `VoiceClient` and the command line: uvloop where it is installed.

This module does not touch the loop of an application.
"""

from __future__ import annotations

import asyncio
import selectors
import socket

# Loaded here because the loops load it at their first use, and it registers
# itself for the interpreter's exit, which fails after the main thread has ended.
from concurrent.futures import ThreadPoolExecutor  # noqa: F401 - imported to be loaded
from functools import partial
from typing import TYPE_CHECKING

from ._threads import threads_are_greenlets, unpatched

if TYPE_CHECKING:
    from collections.abc import Callable

# Older releases close file descriptors twice: with 0.22.1 the bytes of one
# connection went over another.
_UVLOOP_AT_LEAST = (0, 23)


def fast_loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """The factory of the fastest event loop that is installed."""
    try:
        import uvloop  # noqa: PLC0415 - an extra, and only this needs it
    except ImportError:
        return _asyncio_loop_factory()
    if not _is_sound(getattr(uvloop, "__version__", "")):
        return _asyncio_loop_factory()

    class ForkableLoop(uvloop.Loop):
        """uvloop without libuv's thread pool.

        When a forked child exits, libuv joins the pool's threads, which the
        child does not have, and crashes (uvloop 0.22, libuv 1.48). uvloop uses
        the pool to look up addresses, numeric addresses included.
        """

        async def getaddrinfo(  # type: ignore[no-untyped-def]  # noqa: ANN202, PLR0913 - uvloop's
            self,
            host,  # noqa: ANN001 - uvloop's
            port,  # noqa: ANN001 - uvloop's
            *,
            family=0,  # noqa: ANN001 - uvloop's
            type=0,  # noqa: A002, ANN001 - uvloop's
            proto=0,  # noqa: ANN001 - uvloop's
            flags=0,  # noqa: ANN001 - uvloop's
        ):
            look_up = partial(unpatched("socket", "getaddrinfo"), host, port, family, type, proto)
            try:
                return look_up(flags | socket.AI_NUMERICHOST)
            except socket.gaierror:
                return await self.run_in_executor(None, look_up, flags)

    return ForkableLoop


def _is_sound(uvloop_version: str) -> bool:
    try:
        major, minor = map(int, uvloop_version.split(".")[:2])
    except ValueError:
        return False
    return (major, minor) >= _UVLOOP_AT_LEAST


def _asyncio_loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    return new_selector_loop if threads_are_greenlets() else asyncio.new_event_loop


class _SelectSelector(selectors.SelectSelector):
    """For Windows, which has no poll. Both frameworks replace `select.select`."""

    def _select(
        self, r: list[int], w: list[int], _: object, timeout: float | None = None
    ) -> tuple[list[int], list[int], list[int]]:
        # On Windows, a connection attempt that failed is only in the third list.
        readable, writable, failed = unpatched("select", "select")(r, w, w, timeout)
        return readable, writable + failed, []


def new_selector_loop() -> asyncio.AbstractEventLoop:
    """An event loop of asyncio that blocks its real thread, not a greenlet."""
    try:
        poll = unpatched("select", "poll")
    except AttributeError:
        return asyncio.SelectorEventLoop(_SelectSelector())
    select = (poll, unpatched("select", "POLLIN"), unpatched("select", "POLLOUT"))

    class PollSelector(selectors._PollLikeSelector):  # noqa: SLF001 - both frameworks replace or remove the public classes
        _selector_cls, _EVENT_READ, _EVENT_WRITE = select

    return asyncio.SelectorEventLoop(PollSelector())
