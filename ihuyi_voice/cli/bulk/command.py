"""`ihuyi-voice bulk`: a call for each row of a file. Real phones ring."""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from ...client import AsyncVoiceClient
from ...errors import IhuyiVoiceError, LedgerError
from ...models import DEFAULT_BASE_URL
from ...store.entry import EntryState
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
from ..ledger import fail_of_ledger, open_ledger
from ..signals import Interruptions
from . import options  # noqa: TC001 - typer reads the annotations
from .columns import ColumnOptions
from .consent import Consent
from .file import BulkFile, BulkFileError, Check
from .keys import RowKeys
from .progress import OutFile, SendOptions, Tally, outcome_table, say, send
from .summary import Summary

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ...store.entry import Fingerprints
    from ...store.ledger import Ledger

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
    ledger: options.LedgerFile = None,
    yes: options.Yes = False,
    api_id: ApiId = None,
    api_key_file: ApiKeyFile = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    timeout: Timeout = 15.0,
    as_json: AsJson = False,
) -> None:
    """Place [bold]a call for each row[/bold] of a file. Real phones ring.

    The command checks the whole file, prints what it found, and asks before it sends.
    With --ledger, run it again after a crash: it sends only the rows that never
    reached the gateway or were refused.
    The first Ctrl-C, SIGTERM or SIGHUP starts no more requests and finishes those
    in flight; a second one stops at once.
    """
    if rate is not None and not math.isfinite(rate):
        fail("nothing was sent: --rate must be a finite number of starts per second")
    if draw_codes and out is None and not dry_run:
        fail("nothing was sent: --draw-codes needs --out, the only place that gets the codes")
    columns = ColumnOptions(mobile_column, content_column, key_column)
    job = _Job(
        open_file=functools.partial(
            BulkFile, file, limit, columns, draw_codes=draw_codes, encoding=encoding
        ),
        ledger=ledger,
        out=out,
        show_codes=show_codes or draw_codes,
        dry_run=dry_run,
        consent=Consent(yes=yes, mixed_lengths=allow_mixed_lengths, partial=partial),
        account=Account(api_id, api_key_file, base_url, timeout),
        sending=SendOptions(concurrency, rate, wait_for_quota, with_keys=ledger is not None),
    )
    with Interruptions() as signals:
        _run(job, signals)
        summary = Summary(job.tally, job.rows, file, out, ledger)
        with suppress(KeyboardInterrupt):
            _print_summary(summary, as_json=as_json)
    raise typer.Exit(summary.exit_status())


def _run(job: _Job, signals: Interruptions) -> None:
    """Run the job; an error before the first row is sent ends the program."""
    try:
        job.run(signals)
    except BulkFileError as error:
        fail(str(error))
    except LedgerError as error:
        # From the look-up before the run: later the outcome of a row reports it.
        fail_of_ledger(error)
    except (KeyboardInterrupt, typer.Abort) as error:
        # Once the run began, its outcomes are reported even if it was interrupted.
        if job.tally.run is None:
            fail_interrupted(error)


@dataclass
class _Job:
    """One use of the command: what to send, from where, and its outcomes."""

    open_file: Callable[[], BulkFile]
    ledger: str | None
    out: Path | None
    show_codes: bool
    dry_run: bool
    consent: Consent
    account: Account
    sending: SendOptions
    tally: Tally = field(default_factory=Tally)
    rows: int = 0
    console: Console = field(default_factory=lambda: Console(stderr=True))

    def run(self, signals: Interruptions) -> None:
        """Check the file, ask, and send."""
        with ExitStack() as stack:
            rows = stack.enter_context(closing(self.open_file()))
            check = self._check(rows)
            doubts = self.consent.doubts_of_codes(check)
            if self.dry_run:
                raise typer.Exit(EXIT_USAGE if check.bad or doubts else 0)
            self._refuse_to_overwrite()
            ledger = None
            if self.ledger is not None:
                ledger = stack.enter_context(open_ledger(self.ledger, create=True))
            client = self.account.client(AsyncVoiceClient, self.sending.concurrency or 1, ledger)
            to_send = check.good - self._settled_earlier(rows, check, ledger)
            self._ask(to_send, doubts)
            out = _open_out(self.out, show_codes=self.show_codes)
            run_async(self._send, client, rows, out, signals)

    def _check(self, rows: BulkFile) -> Check:
        check = rows.check()
        self.rows = check.rows
        _print_check(self.console, rows.name, check, with_ledger=self.ledger is not None)
        return check

    def _refuse_to_overwrite(self) -> None:
        if self.out is not None and self.out.exists():
            fail(
                f"nothing was sent: {self.out} exists already: give --out a new file, so that no"
                " outcome is lost"
            )

    def _settled_earlier(self, rows: BulkFile, check: Check, ledger: Ledger | None) -> int:
        """How many rows the ledger knows as done: they are not sent again."""
        if ledger is None:
            return 0
        return _look_up(self.console, rows, check, ledger, self.account.fingerprints())

    def _ask(self, to_send: int, doubts: list[str]) -> None:
        """Return if the calls may be placed; otherwise end the program."""
        if not to_send:
            # Without a balance query, so that this works while the gateway is unreachable.
            say(self.console, "to send 0")
            return
        remaining = _print_balance(self.console, self.account, to_send)
        doubts = doubts + self.consent.doubts_of_balance(to_send, remaining)
        self.consent.ask(self.console, to_send, self.account.base_url, doubts)

    async def _send(
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


def _look_up(
    console: Console, rows: BulkFile, check: Check, ledger: Ledger, fingerprints: Fingerprints
) -> int:
    """Give every row its key; count and print the rows that the ledger knows as done."""
    if check.keyless and ledger.hashed_with_another_key(fingerprints.hashed_with):
        fail(
            "nothing was sent: this ledger holds rows that were sent with another API key, and"
            " this key cannot recognise them: give every row its own idempotency_key, or finish"
            " with the old API key and then use a new ledger"
        )
    if ledger.is_new:
        # If its name is mistyped, every phone would ring again: say that it is new.
        say(console, "this ledger is new: it holds no earlier call")
    rows.row_keys = lambda: RowKeys(fingerprints, ledger.id)
    states: Counter[EntryState] = Counter()
    keys = (row.key for row in rows if row.key is not None and not row.problem)
    while some := list(islice(keys, 1000)):
        states.update(ledger.known(some).values())
    accepted = states[EntryState.ACCEPTED]
    unknown = states[EntryState.UNKNOWN] + states[EntryState.CLAIMED]
    if accepted or unknown:
        say(
            console,
            f"the ledger knows of these rows: accepted {accepted}, unknown {unknown}; they are not"
            " sent again",
        )
    return accepted + unknown


def _print_check(console: Console, name: str, check: Check, *, with_ledger: bool) -> None:
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
    if check.keys and not with_ledger:
        say(
            console,
            f"rows with an idempotency_key: {check.keys}; a key is sent once in this run, but"
            " only --ledger remembers it for the next run",
        )
