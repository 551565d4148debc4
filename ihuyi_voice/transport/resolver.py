"""Looks up host names in its own daemon threads.

The loop's default executor uses threads that are joined at the interpreter's
exit: one look-up that hangs keeps the process alive, and none can start once
the main thread has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

from aiohttp.abc import AbstractResolver

from .._threads import start_raw_thread, unpatched

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.abc import ResolveResult

# A look-up cannot be cancelled. While this many have not ended, the next one is refused.
_MOST_LOOK_UPS = 8

_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
_AS_NUMBERS = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV


class DaemonResolver(AbstractResolver):
    """The system's look-up in a daemon thread, with a deadline.

    Args:
        seconds: how long to wait for each look-up.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._running = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of `host`.

        Raises:
            OSError: the host has none, or the look-up failed or took too long.
        """
        if self._running == _MOST_LOOK_UPS:
            msg = f"{_MOST_LOOK_UPS} earlier look-ups have not ended"
            raise OSError(msg)
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[ResolveResult]] = loop.create_future()

        def end(result: list[ResolveResult] | OSError) -> None:
            self._running -= 1
            if found.done():
                # The request has stopped waiting.
                return
            if isinstance(result, OSError):
                found.set_exception(result)
            else:
                found.set_result(result)

        def run() -> None:
            result = _look_up(host, port, family)
            # The loop may have been closed meanwhile.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(end, result)

        _start(run)
        self._running += 1
        done, _ = await asyncio.wait((found,), timeout=self._seconds)
        if not done:
            found.cancel()
            msg = f"the look-up took longer than {self._seconds:g} s"
            raise OSError(msg)
        return found.result()

    async def close(self) -> None:
        """Do nothing: a look-up that hangs cannot be cancelled."""


def _start(run: Callable[[], None]) -> None:
    try:
        start_raw_thread(run)
    except RuntimeError as failure:
        # "can't start new thread": the system's limit.
        raise OSError(str(failure)) from None


def _look_up(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult] | OSError:
    """The addresses or the error. It is not raised: no caller in this thread could catch it."""
    getaddrinfo = unpatched("socket", "getaddrinfo")
    try:
        infos = getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
        return [
            {
                "hostname": host,
                "host": _numeric(address),
                "port": port,
                "family": family,
                "proto": proto,
                "flags": _NUMERIC,
            }
            for family, _, proto, _, address in infos
            if family in {socket.AF_INET, socket.AF_INET6}
        ]
    except OSError as error:
        return error.with_traceback(None)
    except Exception as error:  # noqa: BLE001 - such as a host name that cannot be encoded
        return OSError(f"{type(error).__name__} in the look-up")


def _numeric(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    if len(address) == 4 and address[3]:
        # A link-local address is complete only with its interface.
        host: str = unpatched("socket", "getnameinfo")(address, _AS_NUMBERS)[0]
        return host
    return address[0]
