"""`ihuyi-voice store`: inspect a store, and record by hand how unknown calls ended."""

from __future__ import annotations

import json
import math
import re
import sys
from contextlib import contextmanager
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import StoreError
from ..models import OutcomeStatus
from ..store.store import Store
from .account import EXIT_STATUSES, AsJson, fail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..store.entry import UnknownClaim

EXIT_HELP = """

Exit status: 0 done · 2 a bad option, no such store or key, or a key that cannot be resolved ·
4 the store could not be used. With [bold]list[/bold]: 6 if there are unknown calls.
"""

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_MEANINGS = {
    "accepted": "placed: the key is never sent again",
    "refused": "refused by the gateway: the key may be sent again",
    "not_sent": "nothing was sent: the key may be sent again",
    "unknown": "the phone may have rung: look at the account's page, then resolve",
}


class Action(str, Enum):
    """What to do with the store."""

    LIST = "list"
    SUMMARY = "summary"
    RESOLVE = "resolve"
    PURGE = "purge"


def store(  # noqa: PLR0913 - one argument per option
    file: Annotated[
        str,
        typer.Argument(
            help="The SQLite file, or postgresql+psycopg://user@host/database; its password is"
            " read from PGPASSWORD or ~/.pgpass."
        ),
    ],
    action: Annotated[
        Action,
        typer.Argument(
            help="list: print the unknown calls, the oldest first. summary: count keys by state."
            " resolve: record what the account's page shows for one call. purge: delete settled"
            " keys; a deleted key may be sent again."
        ),
    ] = Action.LIST,
    key: Annotated[
        str | None, typer.Argument(help="With resolve: the idempotency key.", show_default=False)
    ] = None,
    *,
    placed: Annotated[
        bool | None,
        typer.Option(
            "--placed/--not-placed",
            help="With resolve: the call was placed, so its key is never sent again; or it was not"
            " placed, so the key may be sent again.",
            show_default=False,
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            help="With purge: only keys that last changed longer ago than this, like 30d, 12h, 15m"
            " or 30s.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Inspect a [bold]store[/bold], and resolve its unknown calls. No phone rings."""
    if (key is not None or placed is not None) and action is not Action.RESOLVE:
        fail("a key, --placed and --not-placed go with resolve")
    if older_than is not None and action is not Action.PURGE:
        fail("--older-than goes with purge")
    if action is Action.RESOLVE:
        if key is None or placed is None:
            fail("resolve needs a key, and --placed or --not-placed")
        _resolve(file, key, placed=placed, as_json=as_json)
    elif action is Action.PURGE:
        if older_than is None:
            fail("purge needs --older-than, like --older-than 30d")
        _purge(file, _duration(older_than), as_json=as_json)
    elif action is Action.SUMMARY:
        _summary(file, as_json=as_json)
    else:
        _list(file, as_json=as_json)


def open_store(file: str, *, create: bool) -> Store:
    """Open the store; an error ends the program.

    Args:
        file: a path or a URL, as `Store.open` takes it, without a password.
        create: whether to create a missing store.
    """
    # Before the URL is parsed: a parser's error could show the password.
    if "://" in file and re.search(r"://[^:/@]*:[^@]*@|[?&]password=", file):
        fail(
            "no password on the command line, where other users can read it: leave it out of"
            " the URL, and set PGPASSWORD or write it into ~/.pgpass"
        )
    try:
        return Store.open(file, create=create)
    except StoreError as error:
        fail_of_store(error)
    except (ModuleNotFoundError, LookupError, ValueError) as error:
        fail(str(error))


def fail_of_store(error: StoreError) -> NoReturn:
    """End the program because the store failed before anything was sent."""
    fail(str(error), EXIT_STATUSES[OutcomeStatus.NOT_SENT])


@contextmanager
def _opened(file: str) -> Iterator[Store]:
    with open_store(file, create=False) as book:
        try:
            yield book
        except StoreError as error:
            fail_of_store(error)
        except (LookupError, ValueError) as error:
            fail(str(error.args[0]))


def _list(file: str, *, as_json: bool) -> None:
    with _opened(file) as book:
        claims = book.unknown()
    if as_json:
        for claim in claims:
            typer.echo(json.dumps(_facts(claim)))
    elif claims:
        _print_claims(claims)
    else:
        typer.echo("no unknown calls")
    if claims:
        raise typer.Exit(EXIT_STATUSES[OutcomeStatus.UNKNOWN])


def _facts(claim: UnknownClaim) -> dict[str, object]:
    return {
        "key": claim.key,
        "mobile": claim.mobile,
        "claimed_at": claim.claimed_at.isoformat(timespec="seconds"),
        "age": round(claim.age, 1),
        "reason": claim.reason,
        "resolvable_in": math.ceil(claim.resolvable_in),
    }


def _print_claims(claims: list[UnknownClaim]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    # People copy the key and look up the number: never cut them, even in a narrow terminal.
    table.add_column("key", no_wrap=True, min_width=max(cell_len(claim.key) for claim in claims))
    table.add_column("mobile", no_wrap=True, min_width=11)
    table.add_column("claimed at", no_wrap=True, min_width=19)
    table.add_column("age", no_wrap=True, justify="right")
    table.add_column("resolvable", no_wrap=True)
    table.add_column("reason")
    for claim in claims:
        moment = claim.claimed_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        reason = claim.reason or "its process ended without an outcome"
        wait = math.ceil(claim.resolvable_in)
        when = f"in {wait} s" if wait else "now"
        # As Text, because brackets in a key are no markup.
        cells = (claim.key, claim.mobile, moment, _age(claim.age), when, reason)
        table.add_row(*(Text(cell) for cell in cells))
    _print_wide(table)
    typer.echo(
        "These phones may have rung. Look each up on the account's page, then:"
        " ihuyi-voice store FILE resolve KEY --placed (or --not-placed)"
    )


def _print_wide(table: Table) -> None:
    """Print it as wide as the terminal, or wider if a column needs it."""
    console = Console()
    unbounded = console.options.update(max_width=sys.maxsize)
    console.width = max(console.width, console.measure(table, options=unbounded).minimum)
    console.print(table)


def _age(seconds: float) -> str:
    for unit, name in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= name:
            return f"{seconds / name:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def _summary(file: str, *, as_json: bool) -> None:
    with _opened(file) as book:
        counts = book.summary()
    if as_json:
        typer.echo(json.dumps(counts))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("state")
    table.add_column("keys", justify="right")
    table.add_column("meaning")
    for state, count in counts.items():
        table.add_row(state, str(count), _MEANINGS[state])
    _print_wide(table)


def _resolve(file: str, key: str, *, placed: bool, as_json: bool) -> None:
    with _opened(file) as book:
        book.resolve(key, placed=placed)
    if as_json:
        typer.echo(json.dumps({"key": key, "placed": placed}))
    elif placed:
        typer.echo(f"{key}: recorded as placed; it is never sent again")
    else:
        typer.echo(f"{key}: recorded as not placed; it may be sent again")


def _purge(file: str, older_than: timedelta, *, as_json: bool) -> None:
    with _opened(file) as book:
        count = book.purge(older_than)
    typer.echo(json.dumps({"purged": count}) if as_json else f"forgotten: {count}")


def _duration(text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,6})([smhd])", text, re.ASCII)
    if match is None:
        fail(f"--older-than must be like 30d, 12h, 15m or 30s, not {text!r}")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
