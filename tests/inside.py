"""Where tests look inside a client, in one place: what no public name shows or sets.

A test that needs another such look adds it here, so that a new name in the
package changes this module and no test.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ihuyi_voice._limits import Limits
from ihuyi_voice.sync.bulk import BlockingBulkRun
from ihuyi_voice.transport.aiohttp import AiohttpTransport

if TYPE_CHECKING:
    import anyio
    from aiohttp import BaseConnector

    from ihuyi_voice import AsyncVoiceClient, BulkRun, RecipientQuota, SubmitResult
    from ihuyi_voice._pipeline import Pipeline

# For a client whose attempts to connect fail, so that its test need not wait for the next one.
QUICK = Limits(first_backoff=0.001)


def pipeline_of(voice: AsyncVoiceClient) -> Pipeline:
    return voice._opened()


def slots_of(voice: AsyncVoiceClient) -> anyio.Semaphore:
    return voice._opened().slots


def transport_of(voice: AsyncVoiceClient) -> AiohttpTransport:
    transport = voice._opened()._transport
    assert isinstance(transport, AiohttpTransport)
    return transport


def connector_of(voice: AsyncVoiceClient) -> BaseConnector:
    connector = transport_of(voice)._session.connector
    assert connector is not None
    return connector


async def submit_that_waits_for_a_slot(
    voice: AsyncVoiceClient, mobile: str, content: str
) -> asyncio.Task[SubmitResult]:
    """A submit that waits because the one slot of its client is taken."""
    slots = slots_of(voice)
    slots.acquire_nowait()
    submit = asyncio.create_task(voice.submit(mobile, content))
    while not slots.statistics().tasks_waiting:
        await asyncio.sleep(0)
    return submit


def shorten(quota: RecipientQuota, *windows: tuple[int, float]) -> None:
    """Replace the quota's windows: so many calls within so many seconds."""
    quota._limits = windows


def taken(run: BulkRun) -> int:
    """How many rows the run has taken."""
    return run._intake.taken


def waiting_for_quota(run: BulkRun) -> int:
    """How many rows of the run wait for their number's quota."""
    return run._intake.waiting


def waits_for_room(run: BulkRun | BlockingBulkRun) -> bool:
    """Whether the run takes no row because its outcomes are not read."""
    inner = run._run if isinstance(run, BlockingBulkRun) else run
    return inner._intake.waits_for_room


def waits_for_rate(run: BulkRun) -> bool:
    """Whether the run waits for the next start that its rate allows."""
    return run._pace.pause.is_waiting


def unread(run: BulkRun | BlockingBulkRun) -> int:
    """How many outcomes of the run can be read at once."""
    return len(run._outcomes)
