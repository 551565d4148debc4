"""One use of `ihuyi-voice bulk`: check the file, ask, send, and print the outcomes."""

from __future__ import annotations

import functools
import json
import shlex
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from ...client import AsyncVoiceClient
from ...errors import InvalidRequestError, OutcomeStatus, StoreError
from ..account import EXIT_USAGE, Account, fail, fail_interrupted, run_async
from ..chosen_store import NONE, fail_of_store, open_chosen
from ..language import gettext as _
from ..language import local, ngettext
from ..signals import Interruptions
from ..statuses import EXIT_STATUSES
from .consent import about_duplicates, print_balance, question, question_for_workers
from .file import BulkFile, BulkFileError, Check
from .known import Known, look_up
from .progress import OutFile, SendOptions, Tally, outcome_table, say, send
from .summary import Summary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

    from ...store.base import KnownKeys
    from ...store.store import Store
    from .columns import ColumnOptions
    from .consent import Consent

# How many names of ignored columns are shown.
_MOST_NAMES = 20


@dataclass(frozen=True)
class Reading:
    """How the file is read: the arguments of `BulkFile` of the same names."""

    limit: int | None
    encoding: str | None
    draw_codes: bool


def run(  # noqa: PLR0913 - the parts of one use
    file: str,
    columns: ColumnOptions,
    reading: Reading,
    *,
    celery: str | None,
    job: str | None,
    store: str | None,
    out: Path | None,
    show_codes: bool,
    dry_run: bool,
    consent: Consent,
    account: Account,
    sending: SendOptions,
    as_json: bool,
) -> NoReturn:
    """Send the file, print the outcomes, and end the program with their exit status."""
    run = _Run(
        open_file=functools.partial(
            BulkFile,
            file,
            reading.limit,
            columns,
            draw_codes=reading.draw_codes,
            encoding=reading.encoding,
        ),
        celery=celery,
        job=job or ("standard input" if file == "-" else Path(file).name),
        store=store,
        out=out,
        show_codes=show_codes,
        dry_run=dry_run,
        consent=consent,
        account=account,
        sending=sending,
    )
    with Interruptions() as signals:
        _send(run, signals)
        if celery is not None:
            raise typer.Exit
        summary = Summary(run.tally, run.rows, file, out, run.place, run.known)
        with suppress(KeyboardInterrupt):
            _print_summary(summary, as_json=as_json)
    raise typer.Exit(summary.exit_status())


def _send(run: _Run, signals: Interruptions) -> None:
    """Check, ask and send; an error before the first row was sent ends the program."""
    try:
        run.send(signals)
    except BulkFileError as error:
        fail(local(error))
    except StoreError as error:
        # Raised by the lookup before the run: a later failure is the outcome of a row.
        fail_of_store(error)
    except (KeyboardInterrupt, typer.Abort) as error:
        # Once the run began, its outcomes are reported even if it was interrupted.
        if run.tally.run is None:
            fail_interrupted(error)


@dataclass
class _Run:
    """One use of the command: what to send, from where, and its outcomes.

    Attributes:
        store: as `--store` says.
        place: where the store is, None without one.
        known: the rows that were called earlier.
    """

    open_file: Callable[[], BulkFile]
    celery: str | None
    job: str
    store: str | None
    out: Path | None
    show_codes: bool
    dry_run: bool
    consent: Consent
    account: Account
    sending: SendOptions
    tally: Tally = field(default_factory=Tally)
    rows: int = 0
    place: str | None = None
    known: Known = field(default_factory=Known)
    console: Console = field(default_factory=lambda: Console(stderr=True))

    def send(self, signals: Interruptions) -> None:
        """Check the file, ask, and send."""
        with ExitStack() as stack:
            rows = stack.enter_context(closing(self.open_file()))
            check = self._check(rows)
            doubts = self.consent.doubts_of_codes(check)
            if self.dry_run:
                raise typer.Exit(EXIT_USAGE if check.bad or doubts else 0)
            self._refuse_to_overwrite()
            self.account.check()
            if self.celery is not None:
                self._enqueue(self.celery, rows, check, doubts)
                return
            store = open_chosen(self.store)
            if store is not None:
                self.place = stack.enter_context(store).place
                self._look_up(rows, check, _keys_of(store))
            client = self.account.client(AsyncVoiceClient, self.sending.concurrency or 1, store)
            self._ask(check.good - self.known.rows, check.duplicates, doubts)
            out = _open_out(self.out, show_codes=self.show_codes)
            run_async(self._send_rows, client, rows, out, signals)

    def _enqueue(self, celery: str, rows: BulkFile, check: Check, doubts: list[str]) -> None:
        """Ask, and let workers send."""
        if check.keys:
            fail(
                _(
                    "nothing was sent: the file has keys of its own, and a job derives the keys of"
                    " its rows"
                )
            )
        from ..job_actions import enqueue, load_jobs, pairs  # noqa: PLC0415 - it imports the parts of this command

        jobs = load_jobs(celery)
        self._ask(check.good, check.duplicates, doubts, celery)
        sending = self.sending
        try:
            status = enqueue(
                self.job,
                lambda: jobs.submit(
                    pairs(rows),
                    job=self.job,
                    rate=sending.rate,
                    concurrency=sending.concurrency or 1,
                ),
            )
        except InvalidRequestError as error:
            fail(local(error))
        except (StoreError, BulkFileError, KeyboardInterrupt) as error:
            # Some chunks may be in the broker.
            reason = local(error) or type(error).__name__
            text = _(
                "enqueueing ended early: {reason}. The rows that were enqueued are sent; resume job"
                " {name!r} for the others"
            )
            ends_with = getattr(error, "status", EXIT_STATUSES[OutcomeStatus.NOT_SENT])
            fail(text.format(reason=reason, name=self.job), ends_with)
        text = ngettext(
            "job {name!r}: {count} row enqueued",
            "job {name!r}: {count} rows enqueued",
            status.total,
        )
        say(self.console, text.format(name=self.job, count=status.total))
        if not status.is_enqueued:
            text = _("the job was {state} meanwhile: resume it")
            say(self.console, text.format(state=_(status.state.value)))
        command = ["ihuyi-voice", "job", self.job, "status", "--celery", celery, "--follow"]
        say(self.console, _("next: {command}").format(command=shlex.join(command)))

    def _check(self, rows: BulkFile) -> Check:
        check = rows.check()
        self.rows = check.rows
        _print_check(self.console, rows.name, check, with_store=self.store != NONE)
        return check

    def _refuse_to_overwrite(self) -> None:
        if self.out is not None and self.out.exists():
            text = _(
                "nothing was sent: {file} exists already: give --out a new file, so that no"
                " outcome is lost"
            )
            fail(text.format(file=self.out))

    def _look_up(self, rows: BulkFile, check: Check, keys: KnownKeys) -> None:
        """Give every row its key, and say which rows are not sent again."""
        self.known = look_up(rows, check, keys, self.account.fingerprints(), self.job)
        for line in self.known.lines(self.rows):
            say(self.console, line)

    def _ask(
        self, to_send: int, duplicates: int, doubts: list[str], workers: str | None = None
    ) -> None:
        """Return if the calls may be placed, by workers or here; otherwise end the program."""
        if not to_send:
            # Without a balance query, so that this works while the gateway is unreachable.
            say(self.console, _("to send 0"))
            return
        remaining = print_balance(self.console, self.account, to_send)
        doubts = doubts + self.consent.doubts_of_balance(to_send, remaining)
        text = question(to_send, self.account.base_url)
        if workers is not None:
            text = question_for_workers(to_send, workers)
        self.consent.ask(self.console, about_duplicates(duplicates) + text, doubts)

    async def _send_rows(
        self,
        client: AsyncVoiceClient,
        rows: BulkFile,
        out: OutFile | None,
        signals: Interruptions,
    ) -> None:
        async with client:
            with nullcontext() if out is None else closing(out):
                await send(
                    client, rows, self.rows, self.sending, self.console, self.tally, out, signals
                )


def _keys_of(store: Store) -> KnownKeys:
    if store.known_keys is None:
        text = _(
            "nothing was sent: {place} keeps the limits of numbers and no keys, so a second run"
            " could not know the rows of the first: give --store a path, or a URL of PostgreSQL or"
            " MySQL, or --store none"
        )
        fail(text.format(place=store.place))
    return store.known_keys


def _print_summary(summary: Summary, *, as_json: bool) -> None:
    """Print the outcomes of the rows, and what to do next."""
    # With --json standard output is for programs: people read stderr.
    console = Console(stderr=as_json)
    if as_json:
        typer.echo(json.dumps(summary.report()))
    else:
        console.print(outcome_table(summary.tally))
    for line in summary.next_steps():
        say(console, line)


def _open_out(path: Path | None, *, show_codes: bool) -> OutFile | None:
    if path is None:
        return None
    try:
        return OutFile(path, show_codes=show_codes)
    except OSError as error:
        text = _("nothing was sent: cannot write {path}: {reason}")
        fail(text.format(path=path, reason=error.strerror or error))


def _print_check(console: Console, name: str, check: Check, *, with_store: bool) -> None:
    for line in _findings(name, check, with_store=with_store):
        say(console, line)


def _findings(name: str, check: Check, *, with_store: bool) -> Iterator[str]:
    """For a person: what the check of the file found, line by line."""
    rows = ngettext("{count} row", "{count} rows", check.rows).format(count=check.rows)
    duplicates = ngettext(
        "{count} duplicate number", "{count} duplicate numbers", check.duplicates
    ).format(count=check.duplicates)
    yield _("{name}: {rows}, {bad} bad, {duplicates}").format(
        name=name, rows=rows, bad=check.bad, duplicates=duplicates
    )
    numbered_by = _("line") if check.numbered_by == "line" else _("item")
    for line, problem in check.problems:
        text = _("  {what} {line}: {problem}")
        yield text.format(what=numbered_by, line=line, problem=local(problem))
    if more := check.bad - len(check.problems):
        yield _("  and {count} more").format(count=more)
    yield from _repeats(check, numbered_by)
    if check.ignored:
        yield _ignored(check.ignored)
    if check.mixed_lengths:
        counts = ", ".join(
            _("{count} of {length} digits").format(count=count, length=length)
            for length, count in sorted(check.lengths.items())
        )
        yield _(
            "the codes differ in length: {counts}. A spreadsheet drops leading zeros: 0042 becomes"
            " 42, and the phone would read out a wrong code"
        ).format(counts=counts)
    if check.drawn:
        yield _(
            "rows without content: {count}; the command draws a code for each, and writes it into"
            " the --out file"
        ).format(count=check.drawn)
    if check.revealing_keys:
        yield _(
            "rows whose idempotency_key contains their number or code: {count}; keys are stored"
            " and written unchanged, so choose others for new rows"
        ).format(count=check.revealing_keys)
    if check.keys and not with_store:
        yield _(
            "rows with an idempotency_key: {count}; within this file a key is sent once, across"
            " runs nothing remembers it with --store none"
        ).format(count=check.keys)


def _repeats(check: Check, numbered_by: str) -> Iterator[str]:
    for line, earlier in check.repeats:
        text = _("  {what} {line} repeats the number of {what} {earlier}: both are sent")
        yield text.format(what=numbered_by, line=line, earlier=earlier)
    if more := check.duplicates - len(check.repeats):
        yield _("  and {count} more").format(count=more)
    if check.repeats:
        yield _(
            "each row is a call of its own: delete the rows that must not ring their number again"
        )


def _ignored(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    if more := len(names[_MOST_NAMES:]):
        text = _("ignored columns: {names} and {count} more")
        return text.format(names=shown, count=more)
    return _("ignored columns: {names}").format(names=shown)
