"""`ihuyi-voice bulk`: a call for each row of a file. Real phones ring."""

from __future__ import annotations

import functools
import json
import math
import shlex
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from ...client import AsyncVoiceClient
from ...errors import IhuyiVoiceError, InvalidRequestError, StoreError
from ...models import DEFAULT_BASE_URL
from ...sync.client import VoiceClient
from ..account import (
    EXIT_USAGE,
    Account,
    ApiId,
    ApiKeyFile,
    AsJson,
    BaseUrl,
    Timeout,
    fail,
    fail_interrupted,
    run_async,
)
from ..chosen_store import NONE, Chosen, fail_of_store, open_chosen
from ..signals import Interruptions
from . import options  # noqa: TC001 - typer reads the annotations
from .columns import ColumnOptions
from .consent import Consent
from .file import BulkFile, BulkFileError, Check
from .known import Known, look_up
from .progress import OutFile, SendOptions, Tally, outcome_table, say, send
from .summary import Summary

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...store.base import KnownKeys
    from ...store.store import Store

# How many names of ignored columns are shown.
_MOST_NAMES = 20


def bulk(  # noqa: PLR0913 - one argument per option
    file: options.File,
    *,
    mobile_column: options.MobileColumn = None,
    content_column: options.ContentColumn = None,
    key_column: options.KeyColumn = None,
    encoding: options.Encoding = None,
    draw_codes: options.DrawCodes = False,
    allow_mixed_lengths: options.AllowMixedLengths = False,
    partial: options.Partial = False,
    concurrency: options.Concurrency = 50,
    rate: options.Rate = None,
    out: options.Out = None,
    show_codes: options.ShowCodes = False,
    dry_run: options.DryRun = False,
    limit: options.Limit = None,
    wait_for_quota: options.WaitForQuota = False,
    store: Chosen = None,
    job: options.Job = None,
    celery: options.CeleryApp = None,
    yes: options.Yes = False,
    api_id: ApiId = None,
    api_key_file: ApiKeyFile = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    timeout: Timeout = 15.0,
    as_json: AsJson = False,
) -> None:
    """Place [bold]a call for each row[/bold] of a file. Real phones ring.

    The command checks the whole file, prints what it found, and asks before it sends.
    Run it again after a crash: it sends only the rows that never reached the
    gateway or were refused. It knows a row by its idempotency_key, or else by its
    number, its code and the job, which is the file's name unless --job says
    otherwise. With --store none, it knows no row and every phone rings again.
    The first Ctrl-C, SIGTERM or SIGHUP starts no more requests and finishes those
    in flight; a second one stops at once.
    """
    if rate is not None and not math.isfinite(rate):
        fail("nothing was sent: --rate must be a finite number of starts per second")
    if draw_codes and out is None and not dry_run:
        fail("nothing was sent: --draw-codes needs --out, the only place that gets the codes")
    if job is not None and not (job.strip() and job.isprintable()):
        fail("nothing was sent: --job needs a name of printable characters")
    if celery is not None and (out is not None or draw_codes or wait_for_quota or key_column):
        fail(
            "nothing was sent: --celery takes no --out, --draw-codes, --wait-for-quota and"
            " --key-column"
        )
    columns = ColumnOptions(mobile_column, content_column, key_column)
    run = _Run(
        open_file=functools.partial(
            BulkFile, file, limit, columns, draw_codes=draw_codes, encoding=encoding
        ),
        celery=celery,
        job=job or ("standard input" if file == "-" else Path(file).name),
        store=store,
        out=out,
        show_codes=show_codes or draw_codes,
        dry_run=dry_run,
        consent=Consent(yes=yes, mixed_lengths=allow_mixed_lengths, partial=partial),
        account=Account(api_id, api_key_file, base_url, timeout),
        sending=SendOptions(concurrency, rate, wait_for_quota, with_keys=store != NONE),
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
        fail(str(error))
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
            self._ask(check.good - self.known.rows, doubts)
            out = _open_out(self.out, show_codes=self.show_codes)
            run_async(self._send_rows, client, rows, out, signals)

    def _enqueue(self, celery: str, rows: BulkFile, check: Check, doubts: list[str]) -> None:
        """Ask, and let workers send."""
        if check.keys:
            fail(
                "nothing was sent: the file has keys of its own, and a job derives the keys of its"
                " rows"
            )
        from ..job import enqueue, load_jobs, pairs  # noqa: PLC0415 - it imports the parts of this command

        jobs = load_jobs(celery)
        self._ask(check.good, doubts)
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
            fail(str(error))
        say(self.console, f"job {self.job!r}: {status.total} rows enqueued")
        if not status.is_enqueued:
            say(self.console, f"the job was {status.state.value} meanwhile: resume it")
        command = ["ihuyi-voice", "job", self.job, "status", "--celery", celery, "--follow"]
        say(self.console, f"next: {shlex.join(command)}")

    def _check(self, rows: BulkFile) -> Check:
        check = rows.check()
        self.rows = check.rows
        _print_check(self.console, rows.name, check, with_store=self.store != NONE)
        return check

    def _refuse_to_overwrite(self) -> None:
        if self.out is not None and self.out.exists():
            fail(
                f"nothing was sent: {self.out} exists already: give --out a new file, so that no"
                " outcome is lost"
            )

    def _look_up(self, rows: BulkFile, check: Check, keys: KnownKeys) -> None:
        """Give every row its key, and say which rows are not sent again."""
        self.known = look_up(rows, check, keys, self.account.fingerprints(), self.job)
        for line in self.known.lines(self.rows):
            say(self.console, line)

    def _ask(self, to_send: int, doubts: list[str]) -> None:
        """Return if the calls may be placed; otherwise end the program."""
        if not to_send:
            # Without a balance query, so that this works while the gateway is unreachable.
            say(self.console, "to send 0")
            return
        remaining = _print_balance(self.console, self.account, to_send)
        doubts = doubts + self.consent.doubts_of_balance(to_send, remaining)
        self.consent.ask(self.console, to_send, self.account.base_url, doubts)

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
        fail(
            f"nothing was sent: {store.place} keeps the limits of numbers and no keys, so a second"
            " run could not know the rows of the first: give --store a path, or a URL of"
            f" PostgreSQL or MySQL, or --store {NONE}"
        )
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
        fail(f"nothing was sent: cannot write {path}: {error.strerror or error}")


def _print_balance(console: Console, account: Account, to_send: int) -> int:
    try:
        with account.client(VoiceClient) as client:
            remaining = client.query_balance().remaining
    except IhuyiVoiceError as error:
        fail(f"nothing was sent: the balance is not known: {error}")
    say(console, f"to send {to_send}, balance {remaining}")
    if remaining < to_send:
        short = to_send - remaining
        say(console, f"the balance is {short} short: the run will stop when it is used up")
    return remaining


def _print_check(console: Console, name: str, check: Check, *, with_store: bool) -> None:
    summary = f"{name}: rows {check.rows}, bad {check.bad}, duplicate numbers {check.duplicates}"
    say(console, summary)
    for line, problem in check.problems:
        say(console, f"  {check.numbered_by} {line}: {problem}")
    if check.bad > len(check.problems):
        say(console, f"  and {check.bad - len(check.problems)} more")
    if check.ignored:
        most = check.ignored[:_MOST_NAMES]
        more = len(check.ignored) - len(most)
        say(
            console,
            f"ignored columns: {', '.join(most)}{f' and {more} more' if more else ''}",
        )
    if check.mixed_lengths:
        counts = ", ".join(f"{n} of {length} digits" for length, n in sorted(check.lengths.items()))
        say(
            console,
            f"the codes differ in length: {counts}. A spreadsheet drops leading zeros: 0042 becomes"
            " 42, and the phone would read out a wrong code",
        )
    if check.drawn:
        say(
            console,
            f"rows without content: {check.drawn}; the command draws a code for each, and writes it"
            " into the --out file",
        )
    if check.revealing_keys:
        say(
            console,
            f"rows whose idempotency_key contains their number or code: {check.revealing_keys};"
            " keys are stored and written unchanged, so choose others for new rows",
        )
    if check.keys and not with_store:
        say(
            console,
            f"rows with an idempotency_key: {check.keys}; within this file a key is sent once,"
            " across runs nothing remembers it with --store none",
        )
