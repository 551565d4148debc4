"""Both clients by one face, blocking, in the thread of the test."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Literal

from ihuyi_voice import AsyncVoiceClient, IhuyiVoiceError, VoiceClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ihuyi_voice import Outcome, SubmitEvent

    Kind = Literal["asyncio", "blocking"]

KINDS = ("asyncio", "blocking")
MOBILE, MASKED, CODE = "13912345678", "139****5678", "407193"


class Face:
    """A client that keeps its events.

    Attributes:
        events: in the order in which they were reported.
        client: of the kind.
    """

    def __init__(self, kind: Kind, url: str, functions: tuple[Any, ...], **options: Any) -> None:
        self.events: list[SubmitEvent] = []
        settings: dict[str, Any] = {
            "base_url": url,
            "quota": None,
            "on_event": [self.events.append, *functions],
            **options,
        }
        self.client: Any
        if kind == "asyncio":
            self.client = AsyncVoiceClient("sandbox", "sandbox-key", **settings)
        else:
            self.client = VoiceClient("sandbox", "sandbox-key", **settings)
        self.loop = asyncio.new_event_loop()

    def call(self, name: str, *args: Any, **more: Any) -> object:
        """Call a method. Returns its result, or the library's error."""
        try:
            result = getattr(self.client, name)(*args, **more)
            return self.loop.run_until_complete(result) if asyncio.iscoroutine(result) else result
        except IhuyiVoiceError as error:
            return error

    def run(self, rows: Any, **more: Any) -> list[Outcome]:
        """Run to the end, whatever ends it. Returns the outcomes in the order of the rows."""
        made: list[Outcome] = []
        with contextlib.suppress(IhuyiVoiceError):
            if isinstance(self.client, VoiceClient):
                with self.client.submit_many(rows, **more) as run:
                    made.extend(run)
            else:
                self.loop.run_until_complete(self._run(made, rows, more))
        return sorted(made, key=lambda outcome: outcome.index)

    async def _run(self, made: list[Outcome], rows: Any, more: dict[str, Any]) -> None:
        async with self.client.submit_many(rows, **more) as run:
            async for outcome in run:
                made.append(outcome)  # noqa: PERF401 - the iteration may raise at its end

    def close(self) -> None:
        if isinstance(self.client, VoiceClient):
            self.client.close()
        else:
            self.loop.run_until_complete(self.client.aclose())
        self.loop.close()


@contextlib.contextmanager
def opened(
    kind: Kind, url: str, *functions: Callable[[SubmitEvent], object], **options: Any
) -> Iterator[Face]:
    """A face, closed at the end."""
    face = Face(kind, url, functions, **options)
    try:
        yield face
    finally:
        face.close()
