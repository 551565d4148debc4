"""`ihuyi-voice store`: inspect a store, and record by hand how unknown calls ended."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from contextlib import contextmanager
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import StoreError
from ..models import OutcomeStatus
from .account import EXIT_STATUSES, AsJson, fail
from .chosen_store import VARIABLE, fail_of_store, open_store, own_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..store.entry import UnknownClaim
    from ..store.store import Store

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
    UPGRADE = "upgrade"


def store(  # noqa: PLR0913 - one argument per option
    url: Annotated[
        str,
        typer.Argument(
            help="The SQLite file, or a URL like postgresql+psycopg://user@host/database without"
            " its password, which is read from PGPASSWORD or ~/.pgpass. -: the store that submit"
            f" and bulk use, which is IHUYI_VOICE_STORE or else {own_path()}."
        ),
    ],
    action: Annotated[
        Action,
        typer.Argument(
            help="list: print the unknown calls, the oldest first. summary: count keys by state."
            " resolve: record what the account's page shows for one call. purge: delete settled"
            " keys, expired verifications and ended jobs with their outcomes, and print how many;"
            " a deleted key may be sent again."
            " upgrade: run the schema steps that a newer release brings, and print the schema"
            " version."
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
            help="With purge: only keys that last changed, verifications that expired, and jobs"
            " that ended, longer ago than this, like 30d, 12h, 15m or 30s.",
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
        _resolve(url, key, placed=placed, as_json=as_json)
    elif action is Action.PURGE:
        if older_than is None:
            fail("purge needs --older-than, like --older-than 30d")
        _purge(url, _duration(older_than), as_json=as_json)
    elif action is Action.SUMMARY:
        _summary(url, as_json=as_json)
    elif action is Action.UPGRADE:
        _upgrade(url, as_json=as_json)
    else:
        _list(url, as_json=as_json)


@contextmanager
def _opened(url: str) -> Iterator[Store]:
    if url == "-":
        url = os.environ.get(VARIABLE) or str(own_path())
    try:
        with open_store(url, create=False) as opened:
            yield opened
    except StoreError as error:
        fail_of_store(error)
    except (LookupError, ValueError) as error:
        fail(str(error.args[0]))


def _list(url: str, *, as_json: bool) -> None:
    with _opened(url) as opened:
        claims = opened.unknown()
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
        " ihuyi-voice store URL resolve KEY --placed (or --not-placed)"
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


def _summary(url: str, *, as_json: bool) -> None:
    with _opened(url) as opened:
        counts = opened.summary()
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


def _resolve(url: str, key: str, *, placed: bool, as_json: bool) -> None:
    with _opened(url) as opened:
        opened.resolve(key, placed=placed)
    if as_json:
        typer.echo(json.dumps({"key": key, "placed": placed}))
    elif placed:
        typer.echo(f"{key}: recorded as placed; it is never sent again")
    else:
        typer.echo(f"{key}: recorded as not placed; it may be sent again")


def _purge(url: str, older_than: timedelta, *, as_json: bool) -> None:
    with _opened(url) as opened:
        count = opened.purge(older_than)
    typer.echo(json.dumps({"purged": count}) if as_json else f"forgotten: {count}")


def _upgrade(url: str, *, as_json: bool) -> None:
    # Opening it runs the steps that are missing.
    with _opened(url) as opened:
        place, version = opened.place, opened.schema_version
    if as_json:
        typer.echo(json.dumps({"schema_version": version}))
    elif version is None:
        typer.echo(f"{place} has no schema: there is nothing to upgrade")
    else:
        typer.echo(f"{place}: schema version {version}")


def _duration(text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,6})([smhd])", text, re.ASCII)
    if match is None:
        fail(f"--older-than must be like 30d, 12h, 15m or 30s, not {text!r}")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
