"""Both classes of verifiers by one face: blocking, in the thread of the test."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Literal

from ihuyi_voice import AsyncVerifier, AsyncVoiceClient, Verifier, VoiceClient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from ihuyi_voice import CheckResult, Store, Verification, VerificationEvent, VerificationStore
    from ihuyi_voice.testing import VoiceGateway

    Kind = Literal["asyncio", "blocking"]

MOBILE = "13912345678"
OTHER = "13800000000"
KEY = b"the application's own secret key"
TTL, COOLDOWN, ATTEMPTS = 300, 60, 5
MEMORY = ""
"""The place of no store."""


class Clock:
    """A clock that shows the time it was set to."""

    def __init__(self) -> None:
        self.time = 1_700_000_000.0
        self.fault: Exception | None = None

    def __call__(self) -> float:
        if self.fault is not None:
            raise self.fault
        return self.time

    def pass_(self, seconds: float) -> None:
        self.time += seconds


class Face:
    """A verifier with its client, and the events it reported.

    Args:
        kind: of which class.
        url: of the gateway.
        store: the client's.
        client: further settings of the client.
        kept_in: the verifier's own store.
        options: further settings of the verifier.

    Attributes:
        client: of the same kind.
        verifier: the `AsyncVerifier` or `Verifier`.
        events: in the order in which they were reported.
    """

    def __init__(
        self,
        kind: Kind,
        url: str,
        *,
        store: Store | None = None,
        client: dict[str, Any] | None = None,
        kept_in: VerificationStore | None = None,
        **options: Any,
    ) -> None:
        self.kind = kind
        self.clock: Clock = options.get("clock") or Clock()
        self.events: list[VerificationEvent] = []
        settings: dict[str, Any] = {
            "base_url": url,
            "quota": None,
            "connect_attempts": 1,
            "store": store,
            **(client or {}),
        }
        options = {"key": KEY, "store": kept_in, "on_event": [self.events.append], **options}
        self._loop = asyncio.new_event_loop()
        if kind == "asyncio":
            self.client: AsyncVoiceClient | VoiceClient = AsyncVoiceClient(
                "sandbox", "sandbox-key", **settings
            )
            self.verifier: Any = AsyncVerifier(self.client, **options)
        else:
            self.client = VoiceClient("sandbox", "sandbox-key", **settings)
            self.verifier = Verifier(self.client, **options)

    def names(self) -> list[str]:
        """The names of the events since the last time they were read."""
        names = [event.name.value for event in self.events]
        self.events.clear()
        return names

    def start(self, mobile: Any = MOBILE, *, purpose: Any = "login", **more: Any) -> Verification:
        started: Verification = self.run(self.verifier.start, mobile, purpose=purpose, **more)
        return started

    def resend(self, id_: Any, mobile: Any = MOBILE, purpose: Any = "login") -> Verification:
        resent: Verification = self.run(self.verifier.resend, id_, mobile=mobile, purpose=purpose)
        return resent

    def check(
        self, id_: Any, code: Any, mobile: Any = MOBILE, purpose: Any = "login"
    ) -> CheckResult:
        result: CheckResult = self.run(
            self.verifier.check, id_, code, mobile=mobile, purpose=purpose
        )
        return result

    def cancel(self, id_: Any) -> Verification:
        canceled: Verification = self.run(self.verifier.cancel, id_)
        return canceled

    def get(self, id_: Any) -> Verification:
        found: Verification = self.run(self.verifier.get, id_)
        return found

    def run(self, method: Callable[..., Any], *args: Any, **more: Any) -> Any:
        """Call a method, and run its coroutine to the end where it has one."""
        end = method(*args, **more)
        return self._loop.run_until_complete(end) if asyncio.iscoroutine(end) else end

    def together(self, *calls: Callable[[], Awaitable[Any]]) -> list[Any]:
        """Run coroutines of an `AsyncVerifier` at the same time; what they return or raise."""

        async def all_of_them() -> list[Any]:
            tasks = [asyncio.ensure_future(call()) for call in calls]
            return await asyncio.gather(*tasks, return_exceptions=True)

        return self._loop.run_until_complete(all_of_them())

    def close(self) -> None:
        self.close_client()
        self.close_loop()

    def close_client(self) -> None:
        if isinstance(self.client, AsyncVoiceClient):
            self._loop.run_until_complete(self.client.aclose())
        else:
            self.client.close()

    def reopen_loop(self) -> None:
        """To call what is closed."""
        self._loop = asyncio.new_event_loop()

    def close_loop(self) -> None:
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


@contextlib.contextmanager
def opened(kind: Kind, url: str, **options: Any) -> Iterator[Face]:
    face = Face(kind, url, **options)
    try:
        yield face
    finally:
        face.close()


def codes_heard(gateway: VoiceGateway, mobile: str = MOBILE) -> list[str]:
    """The codes that were read out to a number, one for each call."""
    return [call.content for call in gateway.calls if call.mobile == mobile]


def wrong(code: str, by: int = 1) -> str:
    """Another code of the same length."""
    return f"{(int(code) + by) % 10 ** len(code):0{len(code)}d}"


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition of other threads or processes that offer no event."""
    end = time.monotonic() + 30
    while not condition():  # pragma: no cover - depends on how fast it is
        assert time.monotonic() < end
        time.sleep(0.001)
