"""The event loop of `VoiceClient` and the command line: uvloop where it is installed.

This module does not touch the loop of an application.
"""

from __future__ import annotations

import asyncio
import socket

# Loaded here because the loops load it at their first use, and it registers
# itself for the interpreter's exit, which fails after the main thread has ended.
from concurrent.futures import ThreadPoolExecutor  # noqa: F401 - imported to be loaded
from functools import partial
from typing import TYPE_CHECKING

from ._threads import unpatched

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
        return asyncio.new_event_loop
    if not _is_sound(getattr(uvloop, "__version__", "")):
        return asyncio.new_event_loop

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
