"""`ihuyi-voice job`: look at a job of many workers, cancel it, or resume it."""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from ..errors import InvalidRequestError, StoreError
from ..models import OutcomeStatus
from ..store.jobs import JobState
from .account import EXIT_STATUSES, AsJson, fail
from .bulk.columns import ColumnOptions
from .bulk.file import BulkFile, BulkFileError, FileRow
from .chosen_store import fail_of_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..celery import BulkJobs
    from ..store.jobs import JobStatus

EXIT_HELP = """

Exit status: 0 the job has not ended, or all its rows were accepted · 3 some were not, or the job
was stopped or canceled · 6 [bold]some are unknown: their phones may have rung[/bold] · 2 a bad
option, or no such job · 4 the store or the broker could not be used.
"""

_ENDED = (JobState.COMPLETED, JobState.STOPPED, JobState.CANCELED)
# Seconds between two looks at a job.
_PAUSE = 0.5


class JobAction(str, Enum):
    """What to do with a job."""

    STATUS = "status"
    CANCEL = "cancel"
    RESUME = "resume"


CeleryApp = Annotated[
    str,
    typer.Option(
        "--celery",
        metavar="MODULE:NAME",
        help="The Celery application that has a BulkJobs, or the BulkJobs itself, as"
        " module:name. The module is looked for in the working directory too.",
        show_default=False,
    ),
]


def job(  # noqa: PLR0913 - one argument per option
    name: Annotated[str, typer.Argument(help="The job.")],
    action: Annotated[
        JobAction,
        typer.Argument(
            help="status: print its state and outcomes. cancel: no worker starts more rows."
            " resume: enqueue its file again; only rows that were not accepted are sent."
        ),
    ] = JobAction.STATUS,
    file: Annotated[
        str | None,
        typer.Argument(
            help="With resume: the same file as for bulk, or - for standard input.",
            show_default=False,
        ),
    ] = None,
    *,
    celery: CeleryApp,
    encoding: Annotated[
        str | None, typer.Option(help="The file's encoding.", show_default="utf-8")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="As for bulk.", show_default=False)
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show the progress until the job has ended.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look at a [bold]job[/bold] that workers send, cancel it, or resume it."""
    if (file is not None) != (action is JobAction.RESUME):
        fail("resume needs the job's file, and no other action takes one")
    jobs = load_jobs(celery)
    try:
        if action is JobAction.CANCEL:
            jobs.cancel(name)
        if file is not None:
            options = ColumnOptions(None, None, None)
            with closing(
                BulkFile(file, limit, options, draw_codes=False, encoding=encoding)
            ) as rows:
                rows.check()
                jobs.resume(name, pairs(rows))
        status = _followed(jobs, name) if follow else jobs.status(name)
    except StoreError as error:
        fail_of_store(error)
    except (LookupError, InvalidRequestError, BulkFileError) as error:
        fail(str(error))
    _print(status, as_json=as_json)
    raise typer.Exit(_exit_status(status))


def load_jobs(target: str) -> BulkJobs:
    """The `BulkJobs` that `module:name` is, or has; an option that names none ends the program."""
    try:
        from ..celery import jobs_of  # noqa: PLC0415 - it needs an extra
    except ModuleNotFoundError as error:  # pragma: no cover - the tests have it
        fail(f"--celery needs {error.name}: pip install 'ihuyi-voice[celery]'")
    module, _, name = target.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = jobs_of(getattr(import_module(module), name))
    except (ImportError, AttributeError, ValueError) as error:
        fail(f"--celery {target}: {error}")
    if found is None:
        fail(f"--celery {target} is no Celery application with a BulkJobs")
    return found


def pairs(rows: Iterable[FileRow]) -> Iterator[tuple[str, str]]:
    """The good rows of a file, without keys: a job derives the keys of its rows."""
    return ((row.mobile, row.content) for row in rows if not row.problem)


def _followed(jobs: BulkJobs, name: str) -> JobStatus:
    """Show the progress until the job has ended; returns its last status."""
    bar = Progress(
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
    )
    task = bar.add_task("", total=None)
    with bar:
        while True:
            status = jobs.status(name)
            counts = status.counts
            bar.update(
                task,
                completed=status.done,
                total=status.total,
                description=f"{status.state.value}  accepted {counts[OutcomeStatus.ACCEPTED]}"
                f"  refused {counts[OutcomeStatus.REFUSED]}"
                f"  unknown {counts[OutcomeStatus.UNKNOWN]}",
            )
            if status.state in _ENDED:
                return status
            time.sleep(_PAUSE)


def _print(status: JobStatus, *, as_json: bool) -> None:
    counts = {one.value: count for one, count in status.counts.items()}
    if as_json:
        report = {
            "job": status.job,
            "state": status.state.value,
            "counts": counts,
            "total": status.total,
            "pending": status.pending,
            "is_enqueued": status.is_enqueued,
            "rate": status.rate,
            "started": status.started,
            "finished": status.finished,
            "stopped_by": status.stopped_by,
        }
        typer.echo(json.dumps(report))
        return
    table = Table("", "rows", box=box.SIMPLE)
    for word, count in [*counts.items(), ("pending", status.pending), ("total", status.total)]:
        table.add_row(word, str(count))
    console = Console()
    console.print(f"{status.job}: {status.state.value}", markup=False, highlight=False)
    if status.stopped_by is not None:
        console.print(f"stopped by {status.stopped_by}", markup=False, soft_wrap=True)
    console.print(table)


def _exit_status(status: JobStatus) -> int:
    if status.state not in _ENDED:
        return 0
    if status.counts[OutcomeStatus.UNKNOWN]:
        return EXIT_STATUSES[OutcomeStatus.UNKNOWN]
    if status.counts[OutcomeStatus.ACCEPTED] == status.total:
        return 0
    return EXIT_STATUSES[OutcomeStatus.REFUSED]
