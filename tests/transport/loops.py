"""The loops a client may run on, and certificates for it to trust."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, TypeVar

import anyio
import pytest
import trustme

from ihuyi_voice import AsyncVoiceClient
from ihuyi_voice._loops import fast_loop_factory
from ihuyi_voice.transport.base import Exchange

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

MOBILE = "13912345678"
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": fast_loop_factory(),
}


def run(loop: str, body: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine function on one of the loops."""
    return anyio.run(body, backend_options={"loop_factory": LOOPS[loop]})


def contexts(*names: str) -> tuple[ssl.SSLContext, ssl.SSLContext, trustme.CA]:
    """A server's context with a certificate for `names`, a client's that trusts it, and whom."""
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(server)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return server, trusting, authority


def client(url: str, **options: object) -> AsyncVoiceClient:
    """A client without a quota, that gives up after 5 s."""
    return AsyncVoiceClient(
        "id",
        "k3y-that-no-log-may-show",
        **{"base_url": url, "timeout": 5.0, "quota": None, **options},  # type: ignore[arg-type]
    )


def recorded_exchanges() -> list[Exchange]:
    """The exchanges that clients make from now on; only for a process of its own."""
    exchanges: list[Exchange] = []

    class Recorded(Exchange):
        def __init__(self, deadline: float, began: float | None = None) -> None:
            super().__init__(deadline, began)
            exchanges.append(self)

    pytest.MonkeyPatch().setattr("ihuyi_voice._pipeline.Exchange", Recorded)
    return exchanges
