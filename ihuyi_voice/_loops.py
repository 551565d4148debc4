"""The event loop for threads and commands of our own.

An application's loop is the application's business; the loop here is for
`VoiceClient` and the command line. It is uvloop where that is installed.
"""

from __future__ import annotations

import asyncio
import socket

# Loaded here because nothing may register itself for the interpreter's exit
# once the main thread has ended, and the loops load it at their first use.
from concurrent.futures import ThreadPoolExecutor  # noqa: F401 - imported to be loaded
from functools import partial
from typing import TYPE_CHECKING

from ._threads import unpatched

if TYPE_CHECKING:
    from collections.abc import Callable

# Releases before it close file descriptors twice: with 0.22.1 one connection's
# bytes went over another.
_UVLOOP_AT_LEAST = (0, 23)


def fast_loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the fastest loop there is here."""
    try:
        import uvloop  # noqa: PLC0415 - an extra, and only this needs it
    except ImportError:
        return asyncio.new_event_loop
    if not _is_sound(getattr(uvloop, "__version__", "")):
        return asyncio.new_event_loop

    class ForkableLoop(uvloop.Loop):
        """uvloop without libuv's thread pool.

        At the exit of a forked child libuv joins the pool's threads, which
        the child does not have, and crashes (uvloop 0.22, libuv 1.48).
        uvloop uses the pool to look up addresses, numeric ones included.
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
