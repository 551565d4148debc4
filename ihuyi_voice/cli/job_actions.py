"""What `ihuyi-voice job` does: open what knows the job, and show its state."""

from __future__ import annotations

import json
import re
import shlex
import sys
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from .._extras import INSTALL
from ..errors import InvalidRequestError, OutcomeStatus, StoreError
from ..store.jobs import JobState
from .account import account_of_environment, fail, fail_interrupted
from .bulk.consent import known_balance, question_for_workers
from .bulk.file import BulkFile, BulkFileError, FileRow
from .bulk.progress import say
from .chosen_store import VARIABLE, fail_of_store, open_store
from .job_progress import ENDED, followed
from .language import gettext as _
from .language import local
from .statuses import EXIT_STATUSES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ..celery import BulkJobs
    from ..store.jobs import JobStatus
    from .bulk.consent import Consent

_NOT_SENT_AGAIN = (OutcomeStatus.ACCEPTED, OutcomeStatus.REPLAYED)


class KnowsJobs(Protocol):
    """What `status` and `cancel` need: a store's `Jobs`, or a `BulkJobs`."""

    def status(self, job: str) -> JobStatus:
        """A job as it is now."""

    def cancel(self, job: str) -> None:
        """Let no worker start more rows of a job."""


def run(  # noqa: PLR0913 - the options of the command
    name: str,
    act: Callable[[KnowsJobs], None],
    *,
    celery: str | None,
    store: str | None,
    is_cancel: bool,
    follow: bool,
    as_json: bool,
) -> NoReturn:
    """Act on a job, show its state, and end the program with its exit status.

    Args:
        name: of the job.
        act: what to do before the state is shown.
        celery: the application that has the job; None for the store alone.
        store: where the job is, if there is no application.
        is_cancel: whether `act` cancels the job.
        follow: show the progress until the job has ended.
        as_json: print JSON.
    """
    try:
        with _opened(celery, store) as (jobs, place):
            act(jobs)
            status = followed(jobs, name) if follow else jobs.status(name)
    except StoreError as error:
        fail_of_store(error)
    except (LookupError, InvalidRequestError, BulkFileError) as error:
        fail(local(error))
    _print(status, place, as_json=as_json)
    if is_cancel and status.state is JobState.CANCELED:
        text = _("no worker takes more rows; rows that workers already took may still ring a phone")
        typer.echo(f"ihuyi-voice: {text}", err=True)
        raise typer.Exit
    raise typer.Exit(_exit_status(status))


def resume(
    name: str,
    celery: str,
    open_file: Callable[[], BulkFile],
    concurrency: int,
    consent: Consent,
) -> None:
    """Ask, and enqueue the job's file again."""
    jobs = load_jobs(celery)
    with closing(open_file()) as rows:
        good = rows.check().good
        counts = jobs.status(name).counts
        to_send = good - sum(counts[one] for one in _NOT_SENT_AGAIN) - _unresolved(jobs, name)
        _ask(to_send, good, celery, consent)
        enqueue(name, lambda: jobs.resume(name, pairs(rows), concurrency=concurrency))


def _unresolved(jobs: BulkJobs, name: str) -> int:
    """How many calls of the job are unknown in the store. A resume does not send them.

    The job's own count still has those that a person resolved, and they may be sent.
    """
    is_of_job = re.compile(rf"job:{re.escape(name)}:[0-9]+").fullmatch
    unknown = jobs._opened_store().unknown()  # noqa: SLF001 - ours
    return sum(is_of_job(claim.key) is not None for claim in unknown)


def _ask(to_send: int, rows: int, celery: str, consent: Consent) -> None:
    """Return if the rows may be enqueued; otherwise end the program."""
    console = Console(stderr=True)
    text = _("rows {rows}, accepted or unknown earlier {earlier}")
    say(console, text.format(rows=rows, earlier=rows - to_send))
    if to_send <= 0:
        say(console, _("to send 0"))
        return
    try:
        remaining = known_balance(console, account_of_environment(), to_send)
        doubts = [] if remaining is None else consent.doubts_of_balance(to_send, remaining)
        consent.ask(console, question_for_workers(to_send, celery), doubts)
    except (KeyboardInterrupt, typer.Abort) as interruption:
        fail_interrupted(interruption)


@contextmanager
def _opened(celery: str | None, store: str | None) -> Iterator[tuple[KnowsJobs, str]]:
    """What knows the jobs, and where their store is; without an application, the store alone."""
    if celery is not None:
        jobs = load_jobs(celery)
        yield jobs, jobs._opened_store().place  # noqa: SLF001 - ours
        return
    if not store:
        text = _("name the job's store by --store or {variable}, or its application by --celery")
        fail(text.format(variable=VARIABLE))
    with open_store(store, create=False) as opened:
        yield opened.jobs, opened.place


def load_jobs(target: str) -> BulkJobs:
    """The `BulkJobs` that `module:name` is, or has; an option that names none ends the program."""
    try:
        from ..celery import jobs_of  # noqa: PLC0415 - it needs an extra
    except ModuleNotFoundError as error:  # pragma: no cover - the tests have it
        text = _("--celery needs {package}: {install}")
        fail(text.format(package=error.name, install=_(INSTALL).format(extra="celery")))
    module, name = (target.partition(":"))[::2]
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = jobs_of(getattr(import_module(module), name))
    except (ImportError, AttributeError, ValueError) as error:
        fail(f"--celery {target}: {local(error)}")
    if found is None:
        text = _("--celery {target} is no Celery application with a BulkJobs")
        fail(text.format(target=target))
    return found


def enqueue(name: str, act: Callable[[], JobStatus]) -> JobStatus:
    """Submit or resume a job; a broker that fails ends the program."""
    from kombu.exceptions import OperationalError  # noqa: PLC0415 - it needs an extra

    try:
        return act()
    except OperationalError as error:
        text = _(
            "the broker failed: {error}. The rows that were enqueued are sent; resume job {name!r}"
            " for the others"
        )
        fail(text.format(error=error, name=name), EXIT_STATUSES[OutcomeStatus.NOT_SENT])


def pairs(rows: Iterable[FileRow]) -> Iterator[tuple[str, str]]:
    """The good rows of a file, without keys: a job derives the keys of its rows."""
    return ((row.mobile, row.content) for row in rows if not row.problem)


def _print(status: JobStatus, place: str, *, as_json: bool) -> None:
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
    table = Table("", _("rows"), box=box.SIMPLE)
    for word, count in [
        *counts.items(),
        (_("to send"), status.pending),
        (_("total"), status.total),
    ]:
        table.add_row(_(word), str(count))
    console = Console()
    console.print(f"{status.job}: {_(status.state.value)}", markup=False, highlight=False)
    if status.stopped_by is not None:
        text = _("stopped by {cause}").format(cause=local(status.stopped_by))
        console.print(text, markup=False, soft_wrap=True)
    if not status.is_enqueued:
        console.print(
            _("not all rows are enqueued: if no program does that now, resume the job"),
            soft_wrap=True,
        )
    console.print(table)
    if unknown := status.counts[OutcomeStatus.UNKNOWN]:
        where = _("listed by: ihuyi-voice store {place}").format(place=shlex.quote(place))
        say(console, _("Unknown rows: {count}, {where}.").format(count=unknown, where=where))
        say(
            console,
            _(
                "Resolve each there, then resume the job: it counts the placed calls as accepted"
                " and sends the others. Until then they stay unknown here."
            ),
        )


def _exit_status(status: JobStatus) -> int:
    if status.state not in ENDED:
        return 0
    if status.counts[OutcomeStatus.UNKNOWN]:
        return EXIT_STATUSES[OutcomeStatus.UNKNOWN]
    if status.state is JobState.COMPLETED and status.counts[OutcomeStatus.ACCEPTED] == status.total:
        return 0
    return EXIT_STATUSES[OutcomeStatus.REFUSED]
