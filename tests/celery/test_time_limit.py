"""A worker whose processes Celery kills at a hard time limit."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from ihuyi_voice import OutcomeStatus
from ihuyi_voice.celery import JobState
from ihuyi_voice.sandbox import Chaos

from .site import kill, rows

if TYPE_CHECKING:
    from .site import Site


def test_a_hard_time_limit_loses_no_row(site: Site) -> None:
    site.gateway.balance = 10_000
    site.gateway.chaos = Chaos(latency=0.05)
    site.environment["REQUEST_TIMEOUT"] = "5"
    concurrency = 2
    # More than the limit allows, in one chunk.
    site.jobs.submit(rows(150), job="spring", chunk_size=150, concurrency=concurrency)
    command = [sys.executable, "-m", "celery", "-A", "tests.celery.limited", "worker", "-c", "1"]
    with (
        (site.folder / "worker limited").open("wb") as log,
        subprocess.Popen(
            [*command, "--without-mingle", "--without-gossip", "-l", "INFO"],
            cwd=site.folder,
            env=site.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as worker,
    ):
        try:
            status = site.status_at_end()
        finally:
            worker.send_signal(signal.SIGTERM)
            kill(worker)
    assert JobState.COMPLETED is status.state, site.said()
    killed = site.said().count("Hard time limit (3s) exceeded")
    assert killed > 0
    unknown = status.counts[OutcomeStatus.UNKNOWN]
    # None, where a process was killed between two requests.
    assert unknown <= concurrency * killed
    assert 150 == unknown + status.counts[OutcomeStatus.ACCEPTED]
    assert {1} == set(site.calls().values())
