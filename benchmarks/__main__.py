"""Measure this library beside its peers, and show the figures.

Needs the extra `bench` (`pip install -e '.[bench]'`); a peer that is not
installed is left out. Nothing is asserted: a mark that is not met is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console

from . import latency
from .candidates import CANDIDATES
from .marks import Mark, marks
from .plot import Bar, bar_chart
from .rounds import Cell, Figures, Measured, best_imports, cells, is_installed, run_rounds
from .tables import figures_table, marks_table, title

_PACKAGES = ("ihuyi-voice", "aiohttp", "httpx", "requests", "uvloop", "orjson", "anyio")

# Of which the rounds of a quick run may take most, and the imports the rest.
_QUICK_SECONDS = 36.0
_FULL_SECONDS = 3_600.0

# From this share of the wall time on, the stub limits what is measured.
_CROWDED = 0.8


def main() -> None:
    """The command."""
    options = _options()
    console = Console()
    try:
        wanted = cells(quick=options.quick, only=options.only)
    except ValueError as error:
        raise SystemExit(str(error)) from None

    rounds = options.rounds or (3 if options.quick else 5)
    began = time.monotonic()
    with console.status("starting") as status:
        measured = run_rounds(
            wanted,
            rounds=rounds,
            seconds=_QUICK_SECONDS if options.quick else _FULL_SECONDS,
            report=status.update,
        )
        imports, feel = {}, None
        if options.only is None:
            status.update("imports")
            imports = best_imports(3 if options.quick else 12)
            if not options.quick:
                status.update("latency over TLS")
                feel = latency.measure(rounds=5, count=3_000)
    best = {key: Figures.of(runs) for key, runs in measured.items()}
    reached = marks(best, imports, None if feel is None else latency.p99_at_100(feel))
    # The other cells serve a mark and need no line in the table.
    shown = [cell for cell in wanted if cell.key.removesuffix("/uvloop") in CANDIDATES]

    about = _about(quick=options.quick)
    # Wide enough for the table when the output goes to a file.
    console = Console(width=max(console.width, 132)) if not console.is_terminal else console
    if shown:
        console.print(figures_table(shown, best))
    if feel is not None:
        console.print(latency.table_of(feel))
    console.print(marks_table(reached))
    crowded = ", ".join(cell.key for cell in shown if best[cell.key].stub_busy > _CROWDED)
    done = max(map(len, measured.values()), default=0)
    _print_notes(console, about, crowded, rounds=done, began=began)
    if options.json:
        document = _document(about, wanted, measured, best, reached, imports)
        options.json.write_text(
            json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    if options.plot:
        options.plot.write_text(_chart(shown, best), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="in under 45 s: rougher, and without the large runs"
    )
    parser.add_argument("--rounds", type=_positive, help="5, or as many as fit in a quick run")
    parser.add_argument(
        "--only",
        type=lambda names: set(names.split(",")),
        metavar="NAME,...",
        help="candidates; add /uvloop to a name for that loop",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="write a bar chart")
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        msg = "at least 1"
        raise argparse.ArgumentTypeError(msg)
    return number


def _about(*, quick: bool) -> dict[str, object]:
    """The circumstances of the figures: machine, load, versions."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # noqa: PERF203 - seven rounds
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": versions,
        "quick": quick,
    }


def _print_notes(
    console: Console, about: dict[str, object], crowded: str, *, rounds: int, began: float
) -> None:
    missing = [
        candidate.name
        for candidate in CANDIDATES.values()
        if not is_installed(candidate, uvloop=False)
    ]
    if missing:
        console.print(f"not installed and left out: {', '.join(missing)}")
    if crowded:
        console.print(
            f"the stub was busy nearly all the time and limits the sends per second: {crowded}"
        )
    console.print(
        f"Python {about['python']}, {about['cpus']} CPUs, load {about['load']:.1f},"
        f" {rounds} rounds, {time.monotonic() - began:.0f} s"
    )


def _document(  # noqa: PLR0913, PLR0917 - the parts of the document
    about: dict[str, object],
    wanted: list[Cell],
    measured: dict[str, list[Measured]],
    best: dict[str, Figures],
    reached: list[Mark],
    imports: dict[str, float],
) -> dict[str, object]:
    return {
        **about,
        "candidates": [
            {
                "key": cell.key,
                "title": title(cell),
                "loop": "uvloop" if cell.uvloop else "asyncio",
                "rows": cell.count,
                "ours": cell.candidate.ours,
                **asdict(best[cell.key]),
                "rounds": [asdict(run) for run in measured[cell.key]],
            }
            for cell in wanted
        ],
        "imports": imports,
        "marks": [asdict(mark) for mark in reached],
    }


def _chart(shown: list[Cell], best: dict[str, Figures]) -> str:
    bars = [
        Bar(
            title(cell),
            best[cell.key].cpu_us,
            f"{best[cell.key].cpu_us:.0f} us, {best[cell.key].per_second:,.0f} a second",
            cell.candidate.ours,
        )
        for cell in sorted(shown, key=lambda cell: best[cell.key].cpu_us)
    ]
    return bar_chart("CPU microseconds per send: less is better", bars)


if __name__ == "__main__":
    main()
