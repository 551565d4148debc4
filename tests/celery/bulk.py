"""The application of the bulk jobs' tests."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from celery import Celery

from ihuyi_voice import VoiceClient
from ihuyi_voice.celery import BulkJobs

if TYPE_CHECKING:
    from ihuyi_voice import SubmitEvent

app = Celery("bulk", broker=os.environ["REDIS_URL"])
app.conf.broker_transport_options = {"visibility_timeout": int(os.environ["VISIBILITY_TIMEOUT"])}
app.conf.worker_prefetch_multiplier = 1

# What a killed worker had in flight is unknown, and its chunk ends, only after this time.
timeout = float(os.environ.get("REQUEST_TIMEOUT", "15"))
VoiceClient.from_env = partial(VoiceClient.from_env, timeout=timeout)  # type: ignore[method-assign]


def note(event: SubmitEvent) -> None:
    """Write when a row began, its outcome and its masked number."""
    with Path(f"events of {os.getpid()}").open("a") as file:
        print(event.ended_at - event.seconds, event.status.value, event.mobile, file=file)


jobs = BulkJobs(app, store=os.environ["CALLS_STORE"], on_event=[note])
