"""`ihuyi-voice job`: look at a job of many workers, cancel it, or resume it."""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing, contextmanager
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from ..errors import InvalidRequestError, StoreError
from ..models import OutcomeStatus
from ..store.jobs import JobState
from .account import EXIT_STATUSES, AsJson, fail
from .bulk import options as bulk_options  # noqa: TC001 - typer reads the annotations
from .bulk.columns import ColumnOptions
from .bulk.file import BulkFile, BulkFileError, FileRow
from .chosen_store import VARIABLE, fail_of_store, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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


class KnowsJobs(Protocol):
    """What `status` and `cancel` need: a store's `Jobs`, or a `BulkJobs`."""

    def status(self, job: str) -> JobStatus:
        """A job as it is now."""

    def cancel(self, job: str) -> None:
        """Let no worker start more rows of a job."""


CeleryApp = Annotated[
    str | None,
    typer.Option(
        "--celery",
        metavar="MODULE:NAME",
        help="The Celery application that has a BulkJobs, or the BulkJobs itself, as"
        " module:name. The module is looked for in the working directory too. resume needs it.",
        show_default=False,
    ),
]
JobStore = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        envvar=VARIABLE,
        help="The store of the job, for status and cancel; not needed with --celery.",
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
    celery: CeleryApp = None,
    store: JobStore = None,
    mobile_column: bulk_options.MobileColumn = None,
    content_column: bulk_options.ContentColumn = None,
    encoding: bulk_options.Encoding = None,
    limit: bulk_options.Limit = None,
    concurrency: bulk_options.Concurrency = 50,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show the progress until the job has ended.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look at a [bold]job[/bold] that workers send, cancel it, or resume it."""
    if (file is not None) != (action is JobAction.RESUME):
        fail("resume needs the job's file, and no other action takes one")
    if file is not None and celery is None:
        fail("resume needs --celery: the application whose workers send the rows")
    try:
        with _opened(celery, store) as jobs:
            if action is JobAction.CANCEL:
                jobs.cancel(name)
            if file is not None and celery is not None:
                columns = ColumnOptions(mobile_column, content_column, None)
                with closing(
                    BulkFile(file, limit, columns, draw_codes=False, encoding=encoding)
                ) as rows:
                    rows.check()
                    enqueue(
                        name,
                        lambda: load_jobs(celery).resume(
                            name, pairs(rows), concurrency=concurrency
                        ),
                    )
            status = _followed(jobs, name) if follow else jobs.status(name)
    except StoreError as error:
        fail_of_store(error)
    except (LookupError, InvalidRequestError, BulkFileError) as error:
        fail(str(error))
    _print(status, as_json=as_json)
    raise typer.Exit(_exit_status(status))


@contextmanager
def _opened(celery: str | None, store: str | None) -> Iterator[KnowsJobs]:
    """What knows the jobs; without an application, the store alone."""
    if celery is not None:
        yield load_jobs(celery)
        return
    if not store:
        fail(f"name the job's store by --store or {VARIABLE}, or its application by --celery")
    with open_store(store, create=False) as opened:
        yield opened.jobs


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


def enqueue(name: str, act: Callable[[], JobStatus]) -> JobStatus:
    """Submit or resume a job; a broker that fails ends the program."""
    from kombu.exceptions import OperationalError  # noqa: PLC0415 - it needs an extra

    try:
        return act()
    except OperationalError as error:
        fail(
            f"the broker failed: {error}. The rows that were enqueued are sent; resume job"
            f" {name!r} for the others",
            EXIT_STATUSES[OutcomeStatus.NOT_SENT],
        )


def pairs(rows: Iterable[FileRow]) -> Iterator[tuple[str, str]]:
    """The good rows of a file, without keys: a job derives the keys of its rows."""
    return ((row.mobile, row.content) for row in rows if not row.problem)


def _followed(jobs: KnowsJobs, name: str) -> JobStatus:
    """Show the progress until the job has ended, or Ctrl-C; returns its last status."""
    bar = Progress(
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
    )
    task = bar.add_task("", total=None)
    status = jobs.status(name)
    try:
        with bar:
            while True:
                bar.update(
                    task,
                    completed=status.done,
                    # Without rows there is no percentage.
                    total=status.total or None,
                    description=_in_one_line(status),
                )
                if status.state in _ENDED:
                    break
                time.sleep(_PAUSE)
                status = jobs.status(name)
    except KeyboardInterrupt:
        typer.echo(f"ihuyi-voice: job {name!r} goes on", err=True)
    return status


def _in_one_line(status: JobStatus) -> str:
    counts = status.counts
    shown = [OutcomeStatus.ACCEPTED, OutcomeStatus.REFUSED, OutcomeStatus.UNKNOWN]
    others = [one for one, count in counts.items() if count and one not in shown]
    words = [f"{one.value} {counts[one]}" for one in (*shown, *others)]
    return "  ".join([status.state.value, *words])


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
    if not status.is_enqueued:
        console.print("not all rows are enqueued: if no program does that now, resume the job")
    console.print(table)


def _exit_status(status: JobStatus) -> int:
    if status.state not in _ENDED:
        return 0
    if status.counts[OutcomeStatus.UNKNOWN]:
        return EXIT_STATUSES[OutcomeStatus.UNKNOWN]
    if status.state is JobState.COMPLETED and status.counts[OutcomeStatus.ACCEPTED] == status.total:
        return 0
    return EXIT_STATUSES[OutcomeStatus.REFUSED]
