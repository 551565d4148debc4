"""Where tests look inside a client, in one place: what no public name shows or sets.

A test that needs another such look adds it here, so that a new name in the
package changes this module and no test.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ihuyi_voice import VoiceClient
from ihuyi_voice._limits import Limits
from ihuyi_voice.bulk.progress import RunState
from ihuyi_voice.transport.aiohttp import AiohttpTransport

if TYPE_CHECKING:
    import anyio
    from aiohttp import BaseConnector

    from ihuyi_voice import AsyncVoiceClient, BulkRun, RecipientQuota, SubmitResult
    from ihuyi_voice._pipeline import Pipeline
    from ihuyi_voice.models import Settings
    from ihuyi_voice.sync.bulk import BlockingBulkRun
    from ihuyi_voice.sync.loop_thread import LoopThread
    from ihuyi_voice.wire import FormEncoder

# For a client whose attempts to connect fail, so that its test need not wait for the next one.
QUICK = Limits(first_backoff=0.001)


def settings_of(voice: AsyncVoiceClient | VoiceClient) -> Settings:
    return _inner(voice)._settings


def encoder_of(voice: AsyncVoiceClient | VoiceClient) -> FormEncoder:
    return _inner(voice)._encoder


def _inner(voice: AsyncVoiceClient | VoiceClient) -> AsyncVoiceClient:
    return voice._client if isinstance(voice, VoiceClient) else voice


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
    quota.windows = windows


def taken(run: BulkRun) -> int:
    """How many rows the run has taken."""
    return run._intake.taken


def waiting_for_quota(run: BulkRun) -> int:
    """How many rows of the run wait for their number's quota."""
    return len(run._intake._waiting)


def unread(run: BulkRun | BlockingBulkRun) -> int:
    """How many outcomes of the run can be read at once."""
    return len(run._outcomes)


def bells(run: BlockingBulkRun) -> int:
    """How many threads wait for an outcome of the run."""
    return len(run._outcomes._bells)


def has_ended(run: BulkRun) -> bool:
    """Whether nothing of the run goes on in the background."""
    return run._progress.state is RunState.ENDED


def make_due(run: BulkRun) -> None:
    """Let the first row that waits for its number's quota be due now."""
    intake = run._intake
    intake._waiting[0] = intake._waiting[0]._replace(due=0.0)
    intake._make_use_of_room()


def thread_of(voice: VoiceClient) -> LoopThread:
    """The loop thread of a client, whatever its state."""
    return voice._threads.current


def running_thread_of(voice: VoiceClient) -> LoopThread | None:
    """The loop thread of a client in this process, if it runs."""
    return voice._thread


def exit_interpreter(voice: VoiceClient) -> None:
    """Do what the interpreter's exit does to a client that is not closed."""
    voice._threads.exit()
