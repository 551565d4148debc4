"""`ihuyi-voice bulk`: a call for each row of a file."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections import Counter
from itertools import islice
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import anyio
import typer
from rich.console import Console

from ._loops import fast_loop_factory
from .bulk_file import BulkFile, BulkFileError, Check
from .bulk_keys import RowKeys
from .bulk_progress import OutFile, SendOptions, Tally, outcome_table, send
from .cli_account import (
    EXIT_STATUSES,
    EXIT_USAGE,
    Account,
    ApiId,
    ApiKeyFile,
    AsJson,
    BaseUrl,
    Timeout,
    fail,
)
from .cli_ledger import fail_of_ledger, open_ledger
from .client import AsyncVoiceClient
from .errors import IhuyiVoiceError, LedgerError
from .ledger_entry import EntryState
from .models import DEFAULT_BASE_URL, OutcomeStatus
from .sync import VoiceClient

if TYPE_CHECKING:
    from .ledger import Ledger
    from .ledger_entry import Fingerprints

EXIT_ALL_ACCEPTED = 0

EXIT_HELP = """

Exit status: 0 all rows accepted, now or earlier · 3 some were not, and none is unknown (refused,
limited, not sent, bad, or the run was stopped) ·
6 [bold]some are unknown: their phones may have rung[/bold] ·
2 nothing was sent: a bad option, file or credentials, or no balance to be had ·
4 nothing was sent because the ledger could not be used, or all is done and the ledger could not
record it. With --dry-run: 0 all rows are good, 2 not.
"""


def bulk(  # noqa: PLR0913 - one argument per option
    file: Annotated[
        str,
        typer.Argument(
            help="CSV or JSON lines, or - for standard input. CSV has a header with mobile and,"
            " if you like, content and idempotency_key, or no header and these columns in this"
            " order; comma, semicolon or tab; UTF-8. Each JSON line is an object with these names."
            " A row without content gets a code of its own."
        ),
    ],
    *,
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
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before sending.")] = False,
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
    Ctrl-C once starts no more and finishes what is in flight; twice stops at
    once.
    """
    if rate is not None and not math.isfinite(rate):
        fail("--rate must be a finite number of starts per second")
    account = Account(api_id, api_key_file, base_url, timeout)
    console = Console(stderr=True)
    with contextlib.ExitStack() as stack:
        rows = stack.enter_context(contextlib.closing(_open(file, limit)))
        try:
            check = rows.check()
            _print_check(console, rows.name, check, with_ledger=ledger is not None)
            if dry_run:
                raise typer.Exit(EXIT_USAGE if check.bad else 0)
            if out is not None and out.exists():
                fail(f"{out} is there already: give --out a new file, so that no outcome is lost")
            book = None
            if ledger is not None:
                book = stack.enter_context(open_ledger(ledger, create=True))
            client = account.client(AsyncVoiceClient, concurrency, book)
            to_send = check.good
            if book is not None:
                to_send -= _look_up(console, rows, check, book, account.fingerprints())
            _print_balance(console, account, to_send)
            if to_send and not yes:
                _ask(to_send)
            written = _open_out(out, show_codes=show_codes)
            tally = anyio.run(
                _send,
                client,
                rows,
                check.rows,
                SendOptions(concurrency, rate, wait_for_quota, with_keys=book is not None),
                console,
                written,
                backend_options={"loop_factory": fast_loop_factory()},
            )
        except BulkFileError as error:
            fail(str(error))
        except LedgerError as error:
            # While it was asked: what fails later is the outcome of a row.
            fail_of_ledger(error)
    if as_json:
        typer.echo(json.dumps(_tally_report(tally), ensure_ascii=False))
    else:
        _print_tally(tally)
    raise typer.Exit(_exit_status(tally))


def _open(file: str, limit: int | None) -> BulkFile:
    try:
        return BulkFile(file, limit)
    except BulkFileError as error:
        fail(str(error))


def _open_out(path: Path | None, *, show_codes: bool) -> OutFile | None:
    if path is None:
        return None
    try:
        return OutFile(path, show_codes=show_codes)
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror or error}")


async def _send(  # noqa: PLR0913, PLR0917 - the arguments of `send`, in a loop
    client: AsyncVoiceClient,
    rows: BulkFile,
    total: int,
    options: SendOptions,
    console: Console,
    out: OutFile | None,
) -> Tally:
    async with client:
        try:
            return await send(client, rows, total, options, console, out)
        finally:
            if out is not None:
                out.close()


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
        # Else a mistyped name would ring every phone again, and nobody would know why.
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
        _say(console, f"  line {line}: {problem}")
    if check.bad > len(check.problems):
        _say(console, f"  and {check.bad - len(check.problems)} more")
    if check.drawn:
        _say(
            console,
            f"rows without content: {check.drawn}; a code is drawn for each, and written down only"
            " with --out and --show-codes",
        )
    if check.keys and not with_ledger:
        _say(
            console,
            f"rows with an idempotency_key: {check.keys}; within this file a key is sent once,"
            " across runs nothing remembers it without --ledger",
        )


def _print_balance(console: Console, account: Account, to_send: int) -> None:
    if not to_send:
        # What the ledger knows is told even when the gateway is away.
        _say(console, "to send 0")
        return
    try:
        with account.client(VoiceClient) as client:
            remaining = client.query_balance().remaining
    except IhuyiVoiceError as error:
        fail(f"no balance, so nothing is sent: {error}")
    _say(console, f"to send {to_send}, balance {remaining}")
    if remaining < to_send:
        _say(console, f"the balance is {to_send - remaining} short: the run will stop there")


def _ask(to_send: int) -> None:
    if not sys.stdin.isatty():
        fail("there is no terminal to ask on: give --yes to send")
    if not typer.confirm(f"Place {to_send} calls?", err=True):
        fail("nothing was sent", EXIT_ALL_ACCEPTED)


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _print_tally(tally: Tally) -> None:
    console = Console()
    console.print(outcome_table(tally))
    if tally.stopped:
        _say(console, f"Stopped before the end: {tally.stopped}")
    if tally.interrupted:
        _say(console, "Interrupted before the end.")
    if tally.unrecorded:
        _say(
            console,
            f"The ledger did not record {tally.unrecorded} outcomes. Run this again with the very"
            " same ledger only, which does not send them again; without it their phones would ring"
            " once more.",
        )


def _tally_report(tally: Tally) -> dict[str, object]:
    return {
        "rows": tally.total,
        **{status.value: tally.of(status) for status in OutcomeStatus},
        "codes": {str(code): n for (_, code), n in tally.counts.items() if code is not None},
        "stopped": tally.stopped,
        "interrupted": tally.interrupted,
        "unrecorded": tally.unrecorded,
    }


def _exit_status(tally: Tally) -> int:
    if tally.of(OutcomeStatus.UNKNOWN):
        return EXIT_STATUSES[OutcomeStatus.UNKNOWN]
    done = tally.of(OutcomeStatus.ACCEPTED) + tally.of(OutcomeStatus.REPLAYED)
    if done == tally.total and not (tally.stopped or tally.interrupted):
        return EXIT_STATUSES[OutcomeStatus.NOT_SENT] if tally.unrecorded else EXIT_ALL_ACCEPTED
    return EXIT_STATUSES[OutcomeStatus.REFUSED]
