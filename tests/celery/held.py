"""The recipe's worker, which may stop where a test wants to kill it.

With HELD in the environment its first call, once it is settled and before
Celery hears of it, tells its process's number in that file and goes no further.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from ihuyi_voice import VoiceClient
from tests.celery import calls
from tests.celery.calls import app

if TYPE_CHECKING:
    from ihuyi_voice import SubmitResult

__all__ = ["app"]

# As long as the test is ready to wait for the broker.
app.conf.broker_transport_options = {"visibility_timeout": 1}


class HeldClient(VoiceClient):
    def submit(
        self, mobile: str, content: str, *, idempotency_key: str | None = None
    ) -> SubmitResult:
        result = super().submit(mobile, content, idempotency_key=idempotency_key)
        held = Path(os.environ["HELD"])
        while not held.exists():  # pragma: no cover - what is killed tells no coverage
            Path("number").write_text(str(os.getpid()), encoding="ascii")
            Path("number").rename(held)
            signal.pause()
        return result


if "HELD" in os.environ:  # pragma: no branch - without it, another test measures the recipe
    # The recipe looks the class up when it makes its client.
    vars(calls).update(VoiceClient=HeldClient)
