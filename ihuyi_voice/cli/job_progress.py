"""The progress of a job: a bar on a terminal, elsewhere a line every few seconds."""

from __future__ import annotations

import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from ..errors import OutcomeStatus
from ..store.jobs import JobState
from .bulk.progress import say
from .language import gettext as _

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..store.jobs import JobStatus
    from .job_actions import KnowsJobs

ENDED = (JobState.COMPLETED, JobState.STOPPED, JobState.CANCELED)
# Seconds between two looks at a job, and between two lines about it.
_PAUSE, _PAUSE_OF_LINES = 0.5, 5.0


def followed(jobs: KnowsJobs, name: str) -> JobStatus:
    """Show the progress until the job has ended, or Ctrl-C; returns its last status."""
    console = Console(stderr=True)
    status = jobs.status(name)
    try:
        with _bar(console) if console.is_terminal else nullcontext(_Lines(console).show) as show:
            show(status)
            while status.state not in ENDED:
                time.sleep(_PAUSE)
                status = jobs.status(name)
                show(status)
    except KeyboardInterrupt:
        typer.echo(_("ihuyi-voice: job {name!r} goes on").format(name=name), err=True)
    return status


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[JobStatus], None]]:
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None)

        def show(status: JobStatus) -> None:
            # Without rows there is no percentage.
            total = status.total or None
            bar.update(task, completed=status.done, total=total, description=_in_one_line(status))

        yield show


class _Lines:
    """A line for the first status, for each change of state, and every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._state: JobState | None = None
        self._seconds = 0.0

    def show(self, status: JobStatus) -> None:
        if status.state is not self._state or self._seconds >= _PAUSE_OF_LINES:
            say(self._console, f"{status.done}/{status.total}  {_in_one_line(status)}")
            self._state, self._seconds = status.state, 0.0
        self._seconds += _PAUSE


def _in_one_line(status: JobStatus) -> str:
    counts = status.counts
    shown = [OutcomeStatus.ACCEPTED, OutcomeStatus.REFUSED, OutcomeStatus.UNKNOWN]
    others = [one for one, count in counts.items() if count and one not in shown]
    words = [f"{_(one.value)} {counts[one]}" for one in (*shown, *others)]
    return "  ".join([_(status.state.value), *words])
