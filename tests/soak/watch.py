"""Asks for a job's status all the time, and checks each answer."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from ihuyi_voice import OutcomeStatus, StoreError
from ihuyi_voice.celery import JobState
from tests.celery.site import ENDED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ihuyi_voice.celery import JobStatus
    from tests.celery.site import Site

ACCEPTED = OutcomeStatus.ACCEPTED


class Watch:
    """The statuses of a job, asked for by a thread of its own.

    Attributes:
        asked: how many statuses were checked.
        failed: how often there was no status.
        wrong: what was wrong, with the status.
        may_fall: set before the job is resumed: outcomes that do not count as
            done may disappear then.
    """

    def __init__(self, site: Site, job: str = "spring") -> None:
        self.asked = 0
        self.failed = 0
        self.wrong: list[str] = []
        self.may_fall = False
        self._site = site
        self._job = job
        self._last: JobStatus | None = None
        self._over = threading.Event()

    def ask(self) -> None:
        """Ask until the block is left."""
        while not self._over.wait(0.03):
            try:
                status = self._site.jobs.status(self._job)
            except (StoreError, LookupError):  # pragma: no cover - depends on the moment
                # The store is away, or the job is not submitted yet.
                self.failed += 1
                continue
            # After the status: each accepted row is at the gateway before it is counted.
            self._check(status, self._site.gateway.placed)
            self.asked += 1
            self._last = status

    def stop(self) -> None:
        self._over.set()

    def _check(self, now: JobStatus, placed: int) -> None:
        last = self._last or now
        faults = {
            "more rows done than enqueued": now.done > now.total,
            "not all rows accounted for": now.done + now.pending != now.total,
            "more accepted than placed": now.counts[ACCEPTED] > placed,
            "completed before all rows have an outcome": (
                now.state is JobState.COMPLETED and (now.pending > 0 or not now.is_enqueued)
            ),
            "a cause without a stop": (now.state is JobState.STOPPED) != bool(now.stopped_by),
            "an end without its time": (now.state in ENDED) != (now.finished is not None),
            "rows done before the start": now.done > 0 and now.started is None,
            "accepted rows disappeared": now.counts[ACCEPTED] < last.counts[ACCEPTED],
            "outcomes disappeared": now.done < last.done and not self.may_fall,
            "rows disappeared": now.total < last.total,
        }
        self.wrong += [f"{fault}: {last} {now}" for fault, is_so in faults.items() if is_so]


@contextlib.contextmanager
def watching(site: Site) -> Iterator[Watch]:
    """Watch the job while the block runs; then no status may have been wrong."""
    watch = Watch(site)
    thread = threading.Thread(target=watch.ask)
    thread.start()
    try:
        yield watch
    finally:
        watch.stop()
        thread.join()
    assert [] == watch.wrong[:5], len(watch.wrong)
    assert watch.asked > 0
