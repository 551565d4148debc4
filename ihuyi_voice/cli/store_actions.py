"""The actions of `ihuyi-voice store`: each opens the store, does one thing and prints it."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import typer
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import OutcomeStatus, StoreError
from .account import EXIT_STATUSES, fail
from .chosen_store import VARIABLE, fail_of_store, open_store, own_path
from .language import gettext as _
from .language import local, mark, ngettext

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..store.entry import UnknownClaim
    from ..store.store import Store

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_MEANINGS = {
    "accepted": mark("placed: the key is never sent again"),
    "refused": mark("refused by the gateway: the key may be sent again"),
    "not_sent": mark("nothing was sent: the key may be sent again"),
    "unknown": mark("the phone may have rung: look at the account's page, then resolve"),
}


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
        fail(local(error.args[0]))


def list_unknown(url: str, *, as_json: bool) -> None:
    """Print the unknown calls, the oldest first."""
    with _opened(url) as opened:
        claims = opened.unknown()
    if as_json:
        for claim in claims:
            typer.echo(json.dumps(_facts(claim)))
    elif claims:
        _print_claims(claims)
    else:
        typer.echo(_("no unknown calls"))
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
    table.add_column(_("key"), no_wrap=True, min_width=max(cell_len(claim.key) for claim in claims))
    table.add_column(_("mobile"), no_wrap=True, min_width=11)
    table.add_column(_("claimed at"), no_wrap=True, min_width=19)
    table.add_column(_("age"), no_wrap=True, justify="right")
    table.add_column(_("resolvable"), no_wrap=True)
    table.add_column(_("reason"))
    for claim in claims:
        moment = claim.claimed_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        reason = claim.reason or _("its process ended without an outcome")
        wait = math.ceil(claim.resolvable_in)
        when = _("in {seconds} s").format(seconds=wait) if wait else _("now")
        # As Text, because brackets in a key are no markup.
        cells = (claim.key, claim.mobile, moment, _age(claim.age), when, reason)
        table.add_row(*(Text(cell) for cell in cells))
    _print_wide(table)
    typer.echo(
        _(
            "These phones may have rung. Look each up on the account's page, then:"
            " ihuyi-voice store URL resolve KEY --placed (or --not-placed)"
        )
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


def summary(url: str, *, as_json: bool) -> None:
    """Count the keys by state."""
    with _opened(url) as opened:
        counts = opened.summary()
    if as_json:
        typer.echo(json.dumps(counts))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(_("state"))
    table.add_column(_("keys"), justify="right")
    table.add_column(_("meaning"))
    for state, count in counts.items():
        table.add_row(state, str(count), _(_MEANINGS[state]))
    _print_wide(table)


def resolve(url: str, key: str, *, placed: bool, as_json: bool) -> None:
    """Record what the account's page shows for one call."""
    with _opened(url) as opened:
        opened.resolve(key, placed=placed)
    if as_json:
        typer.echo(json.dumps({"key": key, "placed": placed}))
    elif placed:
        typer.echo(_("{key}: recorded as placed; it is never sent again").format(key=key))
    else:
        typer.echo(_("{key}: recorded as not placed; it may be sent again").format(key=key))


def purge(url: str, older_than: timedelta, *, as_json: bool) -> None:
    """Delete settled keys and expired verifications."""
    with _opened(url) as opened:
        count = opened.purge(older_than)
    if as_json:
        typer.echo(json.dumps({"purged": count}))
    else:
        text = ngettext("{count} entry deleted", "{count} entries deleted", count)
        typer.echo(text.format(count=count))


def upgrade(url: str, *, as_json: bool) -> None:
    """Run the missing steps of the schema."""
    # Opening it runs the steps that are missing.
    with _opened(url) as opened:
        place, version = opened.place, opened.schema_version
    if as_json:
        typer.echo(json.dumps({"schema_version": version}))
    elif version is None:
        text = _("{place} has no schema: there is nothing to upgrade")
        typer.echo(text.format(place=place))
    else:
        typer.echo(_("{place}: schema version {version}").format(place=place, version=version))


def duration(text: str) -> timedelta:
    """The duration that `--older-than` names; anything else ends the program."""
    match = re.fullmatch(r"(\d{1,6})([smhd])", text, re.ASCII)
    if match is None:
        fail(_("--older-than must be like 30d, 12h, 15m or 30s, not {text!r}").format(text=text))
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
