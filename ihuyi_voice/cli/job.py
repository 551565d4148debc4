"""`ihuyi-voice job`: look at a job of many workers, cancel it, or resume it."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from .account import AsJson, fail
from .bulk import options as bulk_options  # noqa: TC001 - typer reads the annotations
from .chosen_store import VARIABLE
from .language import gettext as _
from .language import mark

HELP = mark(
    "Look at a [bold]job[/bold] that workers send, cancel it, or resume it.\n\n"
    "status exits with 0 while the job runs or if all its rows were accepted; with 3 if some were"
    " not, or the job was stopped or canceled; with 6 if some are unknown: their phones may have"
    " rung. cancel exits with 0 if the job is canceled then; rows that workers already took may"
    " still ring. resume asks before it enqueues, and exits like status."
)


class JobAction(str, Enum):
    """What to do with a job."""

    STATUS = "status"
    CANCEL = "cancel"
    RESUME = "resume"


CeleryApp = Annotated[
    str | None,
    typer.Option(
        "--celery",
        metavar="MODULE:NAME",
        help=mark(
            "The Celery application that has a BulkJobs, or the BulkJobs itself, as module:name."
            " The module is looked for in the working directory too. resume needs it."
        ),
        show_default=False,
    ),
]
JobStore = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        envvar=VARIABLE,
        help=mark("The store of the job, for status and cancel; not needed with --celery."),
        show_default=False,
    ),
]


def job(  # noqa: PLR0913 - one argument per option
    name: Annotated[str, typer.Argument(help=mark("The job."))],
    action: Annotated[
        JobAction,
        typer.Argument(
            help=mark(
                "status: print its state and outcomes. cancel: no worker takes more rows. resume:"
                " enqueue its file again; rows that were accepted or are unknown are not sent."
            )
        ),
    ] = JobAction.STATUS,
    file: Annotated[
        str | None,
        typer.Argument(
            help=mark("With resume: the same file as for bulk, or - for standard input."),
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
    partial: bulk_options.Partial = False,
    yes: bulk_options.Yes = False,
    follow: Annotated[
        bool,
        typer.Option("--follow", help=mark("Show the progress until the job has ended.")),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Act on the job and show its state; see `HELP`."""
    if (file is not None) != (action is JobAction.RESUME):
        fail(_("resume needs the job's file, and no other action takes one"))
    if file is not None and celery is None:
        fail(_("resume needs --celery: the application whose workers send the rows"))
    # Imported here, because `--help` must not load the client.
    from .bulk.columns import ColumnOptions  # noqa: PLC0415 - see above
    from .bulk.consent import Consent  # noqa: PLC0415 - see above
    from .bulk.file import BulkFile  # noqa: PLC0415 - see above
    from .job_actions import KnowsJobs, resume, run  # noqa: PLC0415 - see above

    def act(jobs: KnowsJobs) -> None:
        if action is JobAction.CANCEL:
            jobs.cancel(name)
        if file is not None and celery is not None:
            columns = ColumnOptions(mobile_column, content_column, None)
            resume(
                name,
                celery,
                lambda: BulkFile(file, limit, columns, draw_codes=False, encoding=encoding),
                concurrency,
                # The codes were agreed to when the job was submitted.
                Consent(yes=yes, mixed_lengths=True, partial=partial),
            )

    is_cancel = action is JobAction.CANCEL
    run(name, act, celery=celery, store=store, is_cancel=is_cancel, follow=follow, as_json=as_json)
