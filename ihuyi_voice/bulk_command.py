"""`ihuyi-voice bulk`: a call for each row of a file."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import anyio
import typer
from rich.console import Console

from ._loops import fast_loop_factory
from .bulk_file import BulkFile, BulkFileError, Check
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
from .client import AsyncVoiceClient
from .errors import IhuyiVoiceError
from .models import DEFAULT_BASE_URL, OutcomeStatus
from .sync import VoiceClient

EXIT_ALL_ACCEPTED = 0

EXIT_HELP = """

Exit status: 0 all rows accepted · 3 some were not, and none is unknown (refused, limited, not
sent, bad, or the run was stopped) · 6 [bold]some are unknown: their phones may have rung[/bold] ·
2 nothing was sent: a bad option, file or credentials, or no balance to be had. With --dry-run:
0 all rows are good, 2 not.
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
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before sending.")] = False,
    api_id: ApiId = None,
    api_key_file: ApiKeyFile = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    timeout: Timeout = 15.0,
    as_json: AsJson = False,
) -> None:
    """Place [bold]a call for each row[/bold] of a file. Real phones ring.

    It checks the whole file, says what it found, and asks before it sends.
    Ctrl-C once starts no more and finishes what is in flight; twice stops at
    once.
    """
    if rate is not None and not math.isfinite(rate):
        fail("--rate must be a finite number of starts per second")
    account = Account(api_id, api_key_file, base_url, timeout)
    console = Console(stderr=True)
    with contextlib.closing(_open(file, limit)) as rows:
        try:
            check = rows.check()
            _print_check(console, rows.name, check)
            if dry_run:
                raise typer.Exit(EXIT_USAGE if check.bad else 0)
            client = account.client(AsyncVoiceClient, concurrency)
            options = SendOptions(concurrency, rate, wait_for_quota)
            if out is not None and out.exists():
                fail(f"{out} is there already: give --out a new file, so that no outcome is lost")
            _print_balance(console, account, check)
            if not yes:
                _ask(check)
            written = _open_out(out, show_codes=show_codes)
            tally = anyio.run(
                _send,
                client,
                rows,
                check.rows,
                options,
                console,
                written,
                backend_options={"loop_factory": fast_loop_factory()},
            )
        except BulkFileError as error:
            fail(str(error))
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


def _print_check(console: Console, name: str, check: Check) -> None:
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
    if check.keys:
        _say(
            console,
            f"rows with an idempotency_key: {check.keys}; within this file a key is sent once,"
            " across runs nothing remembers it",
        )


def _print_balance(console: Console, account: Account, check: Check) -> None:
    try:
        with account.client(VoiceClient) as client:
            remaining = client.query_balance().remaining
    except IhuyiVoiceError as error:
        fail(f"no balance, so nothing is sent: {error}")
    _say(console, f"to send {check.good}, balance {remaining}")
    if remaining < check.good:
        _say(console, f"the balance is {check.good - remaining} short: the run will stop there")


def _ask(check: Check) -> None:
    if not sys.stdin.isatty():
        fail("there is no terminal to ask on: give --yes to send")
    if not typer.confirm(f"Place {check.good} calls?", err=True):
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


def _tally_report(tally: Tally) -> dict[str, object]:
    return {
        "rows": tally.total,
        **{status.value: tally.of(status) for status in OutcomeStatus},
        "codes": {str(code): n for (_, code), n in tally.counts.items() if code is not None},
        "stopped": tally.stopped,
        "interrupted": tally.interrupted,
    }


def _exit_status(tally: Tally) -> int:
    if tally.of(OutcomeStatus.UNKNOWN):
        return EXIT_STATUSES[OutcomeStatus.UNKNOWN]
    if tally.of(OutcomeStatus.ACCEPTED) == tally.total and not (tally.stopped or tally.interrupted):
        return EXIT_ALL_ACCEPTED
    return EXIT_STATUSES[OutcomeStatus.REFUSED]
