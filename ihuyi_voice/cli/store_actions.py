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
from rich.console import Console
from rich.table import Table

from ..errors import OutcomeStatus, StoreError
from .account import EXIT_STATUSES, EXIT_USAGE, fail
from .chosen_store import VARIABLE, fail_of_store, open_store, own_path
from .language import gettext as _
from .language import local, mark, ngettext
from .unknown_calls import print_unknown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..store.entry import UnknownClaim
    from ..store.store import Store

OWN = "-"
"""In the place of a URL: the store that `submit` and `bulk` use."""

STDIN = "-"
"""In the place of a key: those on standard input, one a line."""

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_MEANINGS = {
    "accepted": mark("placed: the key is never sent again"),
    "refused": mark("refused by the gateway: the key may be sent again"),
    "not_sent": mark("nothing was sent: the key may be sent again"),
    "unknown": mark("the phone may have rung: look at the account's page, then resolve"),
}


@contextmanager
def _opened(url: str) -> Iterator[Store]:
    is_default = url == OWN
    if is_default:
        url = os.environ.get(VARIABLE) or str(own_path())
    try:
        with open_store(url, create=False) as opened:
            if is_default:
                typer.echo(_("store: {place}").format(place=opened.place), err=True)
            yield opened
    except StoreError as error:
        fail_of_store(error)


def list_unknown(url: str, *, as_json: bool) -> None:
    """Print the unknown calls, the oldest first."""
    with _opened(url) as opened:
        claims = opened.unknown()
    if as_json:
        for claim in claims:
            typer.echo(json.dumps(_facts(claim)))
    elif claims:
        print_unknown(claims, url)
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


def _print_wide(table: Table) -> None:
    """Print it as wide as the terminal, or wider if a column needs it."""
    console = Console()
    unbounded = console.options.update(max_width=sys.maxsize)
    console.width = max(console.width, console.measure(table, options=unbounded).minimum)
    console.print(table)


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


def resolve(url: str, keys: Iterable[str], *, placed: bool, as_json: bool) -> None:
    """Record what the account's page shows for some calls; each key has a result of its own.

    Args:
        url: of the store.
        keys: `-` among them for the keys on standard input.
        placed: whether the calls were placed.
        as_json: print a JSON object for each key.
    """
    asked = list(dict.fromkeys(_with_those_of_stdin(keys)))
    if not asked:
        fail(_("there is no key on standard input"))
    problems = 0
    with _opened(url) as opened:
        for key in asked:
            problem = _resolve_one(opened, key, placed=placed)
            problems += problem is not None
            _print_resolved(key, problem, placed=placed, as_json=as_json)
    if problems and len(asked) > 1:
        text = _("resolved {resolved} of {count} keys")
        fail(text.format(resolved=len(asked) - problems, count=len(asked)))
    if problems:
        raise typer.Exit(EXIT_USAGE)


def _with_those_of_stdin(keys: Iterable[str]) -> Iterator[str]:
    for key in keys:
        if key == STDIN:
            yield from (
                _key_in(line.strip()) for line in sys.stdin.read().splitlines() if line.strip()
            )
        else:
            yield key


def _key_in(line: str) -> str:
    """The key of a line: a key as it is, or what `list --json` prints of a call."""
    if not line.startswith("{"):
        return line
    try:
        key = json.loads(line)["key"]
    except (ValueError, LookupError):
        key = None
    if not isinstance(key, str):
        fail(_("standard input has a line that is neither a key nor JSON with a key"))
    return key


def _resolve_one(opened: Store, key: str, *, placed: bool) -> str | None:
    """Returns why the key could not be resolved."""
    try:
        opened.resolve(key, placed=placed)
    except (LookupError, ValueError) as error:
        return str(error)
    return None


def _print_resolved(key: str, problem: str | None, *, placed: bool, as_json: bool) -> None:
    if problem is not None:
        typer.echo(f"ihuyi-voice: {local(problem)}", err=True)
    if as_json:
        result = {"placed": placed} if problem is None else {"error": problem}
        typer.echo(json.dumps({"key": key, **result}))
    elif problem is None and placed:
        typer.echo(_("{key}: recorded as placed; it is never sent again").format(key=key))
    elif problem is None:
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
