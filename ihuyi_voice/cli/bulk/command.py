"""`ihuyi-voice bulk`: a call for each row of a file."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import sys
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import islice
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import anyio
import typer
from rich.console import Console

from ..._loops import fast_loop_factory
from ...client import AsyncVoiceClient
from ...errors import IhuyiVoiceError, LedgerError
from ...models import DEFAULT_BASE_URL, OutcomeStatus
from ...store.entry import EntryState
from ...sync.client import VoiceClient
from ..account import (
    EXIT_STATUSES,
    EXIT_USAGE,
    Account,
    ApiId,
    ApiKeyFile,
    AsJson,
    BaseUrl,
    Timeout,
    fail,
    fail_interrupted,
)
from ..ledger import fail_of_ledger, open_ledger
from ..signals import Interruptions
from .columns import ColumnOptions
from .file import BulkFile, BulkFileError, Check
from .keys import RowKeys
from .progress import OutFile, SendOptions, Tally, outcome_table, send

if TYPE_CHECKING:
    from ...store.entry import Fingerprints
    from ...store.ledger import Ledger

EXIT_ALL_ACCEPTED = 0
# Names of ignored columns that are shown.
_MOST_NAMES = 20

EXIT_HELP = """

Exit status:
0  all rows accepted, now or earlier
3  some were not, and none is unknown: refused, limited, not sent, bad, stopped
6  [bold]some are unknown: their phones may have rung[/bold]
2  nothing was sent: a bad option, file or credentials, no balance to be had,
or a doubt that --yes alone does not answer
4  nothing was sent because the ledger could not be used; or some outcomes
could not be recorded in it
128 and the signal's number (130 for Ctrl-C): interrupted, nothing was sent
A run that a signal stops has the status of its outcomes: 3 or 6.
With --dry-run: 0 the file can be sent as it is, 2 not.
"""


def bulk(  # noqa: PLR0913 - one argument per option
    file: Annotated[
        str,
        typer.Argument(
            help="CSV (comma, semicolon, tab or |), JSON lines or a JSON array; - for standard"
            " input. Columns are found by their names: mobile, phone, tel, 手机号; content, code,"
            " otp, pin, 验证码; and, if you like, idempotency_key. Without a header: exactly two"
            " columns, number and code. Text in UTF-8, or UTF-16 with a byte order mark."
        ),
    ],
    *,
    mobile_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="The column of the numbers, by its name or its place from 1 (a JSON object's by"
            " its name).",
            show_default=False,
        ),
    ] = None,
    content_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="The column of the codes to read out, given in the same way.",
            show_default=False,
        ),
    ] = None,
    key_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="The column of the idempotency keys, given in the same way. Keys are stored and"
            " written as they are.",
            show_default=False,
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            help="The file's encoding, such as gbk for plain CSV of a Chinese Excel.",
            show_default="utf-8",
        ),
    ] = None,
    draw_codes: Annotated[
        bool,
        typer.Option(
            "--draw-codes",
            help="Draw a code for each row without one, which is a bad row otherwise. Needs --out,"
            " and writes the codes into it as --show-codes does.",
        ),
    ] = False,
    allow_mixed_lengths: Annotated[
        bool,
        typer.Option(
            "--allow-mixed-lengths",
            help="Send although the file's codes differ in length, as when a spreadsheet dropped"
            " leading zeros.",
        ),
    ] = False,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial",
            help="Send although the balance is smaller than the number of rows: the run stops when"
            " it is used up.",
        ),
    ] = False,
    concurrency: Annotated[
        int, typer.Option(min=1, help="How many requests may be in flight at once.")
    ] = 50,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Starts per second at most.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A new file for the outcomes, one line per row as they finish: JSON lines when it"
            " ends in .jsonl, CSV otherwise.",
            show_default=False,
        ),
    ] = None,
    show_codes: Annotated[
        bool, typer.Option("--show-codes", help="Write the codes into the --out file too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every row and send none. No account needed.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Only the first so many rows.", show_default=False),
    ] = None,
    wait_for_quota: Annotated[
        bool,
        typer.Option(
            "--wait-for-quota",
            help="Let a number called twice within a minute wait its turn, instead of leaving its"
            " row out as limited.",
        ),
    ] = False,
    ledger: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Remember in this file what was sent, so that the same command can be run again"
            " after any crash: what may have rung is never sent again. An SQLite file, made when"
            " it is not there, or postgresql+psycopg://user@host/database. Rows without an"
            " idempotency_key get one made from their number and content.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes",
            "-y",
            help="Do not ask before sending. It answers neither for codes of mixed lengths nor for"
            " a balance that is too small: those have options of their own.",
        ),
    ] = False,
    api_id: ApiId = None,
    api_key_file: ApiKeyFile = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    timeout: Timeout = 15.0,
    as_json: AsJson = False,
) -> None:
    """Place [bold]a call for each row[/bold] of a file. Real phones ring.

    It checks the whole file, says what it found, and asks before it sends.
    With --ledger, run it again after a crash and only what never reached the
    gateway, or was refused, is sent.
    Ctrl-C, SIGTERM or SIGHUP once starts no more and finishes what is in
    flight; a second one stops at once.
    """
    if rate is not None and not math.isfinite(rate):
        fail("--rate must be a finite number of starts per second")
    if draw_codes and out is None and not dry_run:
        fail("--draw-codes needs --out: the codes are written there and nowhere else")
    job = _Job(
        file=file,
        ledger=ledger,
        out=out,
        show_codes=show_codes or draw_codes,
        dry_run=dry_run,
        consent=Consent(yes=yes, mixed_lengths=allow_mixed_lengths, partial=partial),
        account=Account(api_id, api_key_file, base_url, timeout),
        options=SendOptions(concurrency, rate, wait_for_quota, with_keys=ledger is not None),
    )
    with Interruptions() as signals:
        try:
            rows = BulkFile(
                file,
                limit,
                ColumnOptions(mobile_column, content_column, key_column),
                draw_codes=draw_codes,
                encoding=encoding,
            )
            with contextlib.closing(rows):
                job.run(rows, signals)
        except BulkFileError as error:
            fail(str(error))
        except LedgerError as error:
            # While it was asked: what fails later is the outcome of a row.
            fail_of_ledger(error)
        except (KeyboardInterrupt, typer.Abort) as error:
            # Once the run began, its outcomes are reported however it ended.
            if job.tally.run is None:
                fail_interrupted(error)
        with contextlib.suppress(KeyboardInterrupt):
            job.report(as_json=as_json)
    raise typer.Exit(_exit_status(job.tally))


@dataclass
class _Job:
    """One use of the command: what to send, from where, and its outcomes."""

    file: str
    ledger: str | None
    out: Path | None
    show_codes: bool
    dry_run: bool
    consent: Consent
    account: Account
    options: SendOptions
    tally: Tally = field(default_factory=Tally)
    rows: int = 0
    console: Console = field(default_factory=lambda: Console(stderr=True))

    def run(self, rows: BulkFile, signals: Interruptions) -> None:
        """Check the file, ask, and send."""
        check = rows.check()
        self.rows = check.rows
        _print_check(self.console, rows.name, check, with_ledger=self.ledger is not None)
        doubts = self.consent.doubts_of_codes(check)
        if self.dry_run:
            raise typer.Exit(EXIT_USAGE if check.bad or doubts else 0)
        if self.out is not None and self.out.exists():
            fail(f"{self.out} is there already: give --out a new file, so that no outcome is lost")
        with contextlib.ExitStack() as stack:
            book = None
            if self.ledger is not None:
                book = stack.enter_context(open_ledger(self.ledger, create=True))
            client = self.account.client(AsyncVoiceClient, self.options.concurrency or 1, book)
            to_send = check.good
            if book is not None:
                fingerprints = self.account.fingerprints()
                to_send -= _look_up(self.console, rows, check, book, fingerprints)
            if to_send:
                remaining = _print_balance(self.console, self.account, to_send)
                doubts += self.consent.doubts_of_balance(to_send, remaining)
                self.consent.ask(self.console, to_send, self.account.base_url, doubts)
            else:
                # No balance is needed, so this works while the gateway is away.
                _say(self.console, "to send 0")
            written = _open_out(self.out, show_codes=self.show_codes)
            anyio.run(
                self._send,
                client,
                rows,
                written,
                signals,
                backend_options={"loop_factory": fast_loop_factory()},
            )

    async def _send(
        self,
        client: AsyncVoiceClient,
        rows: BulkFile,
        out: OutFile | None,
        signals: Interruptions,
    ) -> None:
        async with client:
            try:
                await send(
                    client, rows, self.rows, self.options, self.console, self.tally, out, signals
                )
            finally:
                if out is not None:
                    out.close()

    def report(self, *, as_json: bool) -> None:
        """Print the outcomes of the rows, and what to do next."""
        # For machines too, a person may look at what the run said.
        console = self.console if as_json else Console()
        if as_json:
            typer.echo(json.dumps(_tally_report(self.tally, self.rows)))
        else:
            console.print(outcome_table(self.tally))
        for line in next_steps(self.tally, self.rows, self.file, self.out, self.ledger):
            _say(console, line)


@dataclass(frozen=True)
class Consent:
    """What was agreed to by options, and who is asked for the rest."""

    yes: bool
    mixed_lengths: bool
    partial: bool

    def doubts_of_codes(self, check: Check) -> list[str]:
        """Codes that may not be what was meant, unless that was allowed."""
        if self.mixed_lengths or not check.mixed_lengths:
            return []
        doubt = (
            "the codes differ in length, so leading zeros may be lost: correct the file, or give"
            " --allow-mixed-lengths if they are right"
        )
        return [doubt]

    def doubts_of_balance(self, to_send: int, remaining: int) -> list[str]:
        """A balance that is too small, unless that was allowed."""
        if self.partial or remaining >= to_send:
            return []
        doubt = (
            f"the balance of {remaining} is too small for {to_send} calls: top it up, send fewer"
            " rows with --limit, or give --partial to send until it is used up"
        )
        return [doubt]

    def ask(self, console: Console, to_send: int, base_url: str, doubts: list[str]) -> None:
        """Return when the calls may be placed; else end the program."""
        if self.yes and not doubts:
            return
        if not sys.stdin.isatty():
            if doubts:
                fail(f"nothing was sent: {'; and '.join(doubts)}")
            fail("there is no terminal to ask on: give --yes to send")
        for doubt in doubts:
            _say(console, f"Careful: {doubt}.")
        if not typer.confirm(question(to_send, base_url), err=True):
            fail("nothing was sent", EXIT_ALL_ACCEPTED)


def question(to_send: int, base_url: str) -> str:
    """What is asked before sending; it names the gateway."""
    parts = urlsplit(base_url)
    text = f"Place {to_send} call{'' if to_send == 1 else 's'} via {parts.netloc}"
    # What listens on this machine may be a sandbox, or may pass the calls on.
    return text + ("?" if _is_loopback(parts.hostname or "") else ": real phones ring. Go on?")


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def _open_out(path: Path | None, *, show_codes: bool) -> OutFile | None:
    if path is None:
        return None
    try:
        return OutFile(path, show_codes=show_codes)
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror or error}")


def _look_up(
    console: Console, rows: BulkFile, check: Check, book: Ledger, fingerprints: Fingerprints
) -> int:
    """Give every row its key; say, and count, what the ledger keeps from being sent again."""
    if check.keyless and book.hashed_with_another_key(fingerprints.hashed_with):
        fail(
            "this ledger knows rows that were sent with another API key, by which they cannot be"
            " recognised: give every row an idempotency_key of its own, or finish with the old key"
            " and take a new ledger"
        )
    if book.is_new:
        # With a mistyped name every phone would ring again: say that it is new.
        _say(console, "this ledger is new: it knows of no earlier call")
    rows.row_keys = lambda: RowKeys(fingerprints, book.id)
    states: Counter[EntryState] = Counter()
    keys = (row.key for row in rows if row.key is not None and not row.problem)
    while some := list(islice(keys, 1000)):
        states.update(book.known(some).values())
    accepted = states[EntryState.ACCEPTED]
    unknown = states[EntryState.UNKNOWN] + states[EntryState.CLAIMED]
    if accepted or unknown:
        _say(
            console,
            f"of these the ledger knows: accepted {accepted}, unknown {unknown}; they are not sent"
            " again",
        )
    return accepted + unknown


def _print_check(console: Console, name: str, check: Check, *, with_ledger: bool) -> None:
    say = f"{name}: rows {check.rows}, bad {check.bad}, duplicate numbers {check.duplicates}"
    _say(console, say)
    for line, problem in check.problems:
        _say(console, f"  {check.numbered_by} {line}: {problem}")
    if check.bad > len(check.problems):
        _say(console, f"  and {check.bad - len(check.problems)} more")
    if check.ignored:
        most = check.ignored[:_MOST_NAMES]
        more = len(check.ignored) - len(most)
        _say(
            console,
            f"ignored columns: {', '.join(most)}{f' and {more} more' if more else ''}",
        )
    if check.mixed_lengths:
        counts = ", ".join(f"{n} of {length} digits" for length, n in sorted(check.lengths.items()))
        _say(
            console,
            f"the codes differ in length: {counts}. A spreadsheet drops leading zeros: 0042 becomes"
            " 42, and a phone would be read a code that is wrong",
        )
    if check.drawn:
        _say(
            console,
            f"rows without content: {check.drawn}; a code is drawn for each, and written into the"
            " --out file",
        )
    if check.telling_keys:
        _say(
            console,
            f"rows whose idempotency_key contains their number or code: {check.telling_keys}; keys"
            " are stored and written as they are, so choose others for new rows",
        )
    if check.keys and not with_ledger:
        _say(
            console,
            f"rows with an idempotency_key: {check.keys}; within this file a key is sent once,"
            " across runs nothing remembers it without --ledger",
        )


def _print_balance(console: Console, account: Account, to_send: int) -> int:
    try:
        with account.client(VoiceClient) as client:
            remaining = client.query_balance().remaining
    except IhuyiVoiceError as error:
        fail(f"no balance, so nothing is sent: {error}")
    _say(console, f"to send {to_send}, balance {remaining}")
    if remaining < to_send:
        _say(console, f"the balance is {to_send - remaining} short: the run will stop there")
    return remaining


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def next_steps(
    tally: Tally, rows: int, file: str, out: Path | None, ledger: str | None
) -> list[str]:
    """What a person has to know once the table is printed: of the run, not of one row."""
    lines = []
    if tally.stopped_by_row:
        lines.append(
            f"Stopped before the end, because more rows would end in the same way: {tally.stopped}"
        )
    elif tally.stopped:
        lines.append(f"Stopped before the end: {tally.stopped}")
    if tally.interrupted:
        lines.append("Interrupted before the end.")
    if tally.unrecorded:
        lines.append(
            f"The ledger did not record {tally.unrecorded} outcomes. Run this again with the very"
            " same ledger only, which does not send them again; without it their phones would ring"
            " once more."
        )
    if unknown := tally.of(OutcomeStatus.UNKNOWN):
        lines.append(f"Unknown rows: {unknown}, {_where_listed(out, ledger)}.")
    if tally.cut_short:
        lines.append(
            f"Rows left: {_left(tally, rows)} of {rows}. {_how_to_go_on(tally, file, out, ledger)}"
        )
    return lines


def _left(tally: Tally, rows: int) -> int:
    """Rows that were not reached, and rows that were taken and not sent."""
    return rows - tally.total + tally.of(OutcomeStatus.NOT_SENT)


def _where_listed(out: Path | None, ledger: str | None) -> str:
    if ledger is not None:
        return f"listed by: ihuyi-voice ledger {shlex.quote(ledger)}"
    if out is not None:
        return f"listed in {out} with the status unknown"
    return "listed nowhere, because there was neither --ledger nor --out"


def _how_to_go_on(tally: Tally, file: str, out: Path | None, ledger: str | None) -> str:
    if ledger is not None:
        new_out = " and a new --out file" if out is not None else ""
        return (
            f"To go on, run the same command again with the same --ledger{new_out}: no phone that"
            " rang, or may have rung, is called again."
        )
    called = tally.of(OutcomeStatus.ACCEPTED) + tally.of(OutcomeStatus.UNKNOWN)
    if not called:
        return "No phone was called: the same command may be run again."
    if out is not None:
        return (
            f"To go on, remove from {file} the rows that {out} shows as accepted or unknown, and"
            f" run what remains; the whole of {file} would call {called} phones a second time. With"
            " --ledger the same command goes on by itself."
        )
    return (
        f"Do not run {file} again as it is: {called} phones would be called a second time, and"
        " nothing here shows which; look at the account's page. With --ledger the same command goes"
        " on by itself."
    )


def _tally_report(tally: Tally, rows: int) -> dict[str, object]:
    report: dict[str, object] = {
        "rows": tally.total,
        **{status.value: tally.of(status) for status in OutcomeStatus},
        "codes": {str(code): n for (_, code), n in tally.counts.items() if code is not None},
        "stopped": tally.stopped,
        "interrupted": tally.interrupted,
        "unrecorded": tally.unrecorded,
    }
    return report | {"left": _left(tally, rows)} if tally.cut_short else report


def _exit_status(tally: Tally) -> int:
    if tally.of(OutcomeStatus.UNKNOWN):
        return EXIT_STATUSES[OutcomeStatus.UNKNOWN]
    if tally.unrecorded:
        return EXIT_STATUSES[OutcomeStatus.NOT_SENT]
    done = tally.of(OutcomeStatus.ACCEPTED) + tally.of(OutcomeStatus.REPLAYED)
    if done == tally.total and not tally.cut_short:
        return EXIT_ALL_ACCEPTED
    return EXIT_STATUSES[OutcomeStatus.REFUSED]
