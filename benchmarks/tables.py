"""The figures and the marks on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .marks import Mark
    from .rounds import Cell, Figures


def title(cell: Cell) -> str:
    """What a cell is, for people."""
    return f"{cell.candidate.title}, uvloop" if cell.uvloop else cell.candidate.title


def figures_table(shown: Sequence[Cell], best: Mapping[str, Figures]) -> Table:
    """The candidates, the cheapest last."""
    table = Table(title="64 connections, best of rounds", title_justify="left")
    table.add_column("candidate")
    table.add_column("name")
    for heading in ("CPU us per send", "sends per second", "memory MB", "stub busy"):
        table.add_column(heading, justify="right")
    for cell in sorted(shown, key=lambda cell: -best[cell.key].cpu_us):
        figures = best[cell.key]
        table.add_row(
            title(cell),
            cell.key,
            f"{figures.cpu_us:.1f}",
            f"{figures.per_second:,.0f}",
            f"{figures.rss_mb:.1f}",
            f"{figures.stub_busy:.0%}",
            style="bold" if cell.candidate.ours else None,
        )
    return table


def marks_table(marks: Sequence[Mark]) -> Table:
    """The marks, and whether they are met."""
    table = Table(title="The marks, as ratios within this run", title_justify="left")
    for heading in ("what", "mark"):
        table.add_column(heading)
    for heading in ("measured", "on uvloop"):
        table.add_column(heading, justify="right")
    table.add_column("met")
    for mark in marks:
        table.add_row(
            mark.what,
            mark.mark,
            _number(mark.measured, mark.unit),
            _number(mark.on_uvloop, mark.unit),
            {True: "yes", False: "[bold]no[/bold]", None: "-"}[mark.met],
        )
    return table


def _number(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.2f}{unit}"
