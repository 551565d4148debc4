"""The unknown calls of a store for people: people copy the keys, so no key is cut or broken."""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING

import typer
from rich.cells import cell_len
from rich.console import Console

from .language import gettext as _

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..store.entry import UnknownClaim

_GAP = "  "


def print_unknown(claims: Sequence[UnknownClaim], url: str) -> None:
    """Print a line for each call, or two where a key is too long for that.

    Args:
        claims: at least one.
        url: the store as the user names it.
    """
    reasons = list(dict.fromkeys(map(_reason, claims)))
    with_number = len(reasons) > 1
    header = [_("key"), _("mobile"), _("claimed at"), _("resolve"), _("why")]
    rows = [header[: 4 + with_number]]
    for claim in claims:
        moment = claim.claimed_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        cells = [claim.key, claim.mobile, moment, _when(claim)]
        rows.append([*cells, str(reasons.index(_reason(claim)) + 1)] if with_number else cells)
    for line in _lines(rows, Console().width):
        typer.echo(line)
    typer.echo()
    for number, reason in enumerate(reasons, 1):
        if with_number:
            typer.echo(_("why {number}: {reason}").format(number=number, reason=reason))
        else:
            typer.echo(_("why: {reason}").format(reason=reason))
    if wait := max(map(_wait, claims)):
        text = _(
            "all may be resolved in {seconds} s: until then the network may still deliver a request"
        )
        typer.echo(text.format(seconds=wait))
    for line in _advice(shlex.quote(url), len(claims)):
        typer.echo(line)


def _reason(claim: UnknownClaim) -> str:
    return claim.reason or _("its process ended without an outcome")


def _wait(claim: UnknownClaim) -> int:
    """In whole seconds: the figure that `resolve` names when it refuses."""
    return math.ceil(claim.resolvable_in)


def _when(claim: UnknownClaim) -> str:
    wait = _wait(claim)
    return _("in {seconds} s").format(seconds=wait) if wait else _("now")


def _lines(rows: list[list[str]], width: int) -> list[str]:
    lines = _aligned(rows)
    if max(map(cell_len, lines)) <= width:
        return lines
    others = _aligned([row[1:] for row in rows])
    pairs = zip(rows, others, strict=True)
    return [line for row, other in pairs for line in (row[0], f"{_GAP}{other}")]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return [
        _GAP.join(
            cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def _advice(store: str, count: int) -> list[str]:
    command = f"ihuyi-voice store {store}"
    lines = [
        _("These phones may have rung. Look each up on the account's page, then record it:"),
        _("  {command} resolve KEY... --placed (or --not-placed)").format(command=command),
    ]
    if count > 1:
        text = _("If all were placed, or none was, this resolves all of them (or --not-placed):")
        lines += [text, f"  {command} --json | {command} resolve - --placed"]
    return lines
