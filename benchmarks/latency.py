"""What a user feels: milliseconds of one send over TLS, of a cold client, and its memory.

`python -m benchmarks.latency` measures `submit` beside aiohttp, httpx and requests,
with 1, 10 and 100 sends in flight, and prints a table. Each run has a fresh process;
the candidates take turns, and the least of all rounds counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import trustme
from rich.console import Console
from rich.table import Table

from .candidates.timed import TIMED
from .rounds import ROOT, environment, stub_gateway

if TYPE_CHECKING:
    from collections.abc import Sequence

IN_FLIGHT = (1, 10, 100)
# The package that a candidate needs, where it is not the name of a dependency.
_NEEDS = {"httpx": "httpx", "requests": "requests"}
_PATIENCE = 120.0

Figures = dict[str, dict[str, dict[str, float]]]
"""By candidate and number in flight: what `candidates.timed` measures, each the least."""


def installed() -> list[str]:
    """The candidates whose packages are installed."""
    return [name for name in TIMED if find_spec(_NEEDS.get(name, "aiohttp")) is not None]


def measure(*, rounds: int, count: int, in_flight: Sequence[int] = IN_FLIGHT) -> Figures:
    """Measure every candidate.

    Args:
        rounds: how often each runs.
        count: sends of one run.
        in_flight: how many sends at once; a run for each.
    """
    best: Figures = {name: {str(n): {} for n in in_flight} for name in installed()}
    with tempfile.TemporaryDirectory() as folder:
        authority = trustme.CA()
        ca, certificate = Path(folder, "ca.pem"), Path(folder, "server.pem")
        authority.cert_pem.write_to_path(str(ca))
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
            str(certificate)
        )
        with stub_gateway("--certificate", str(certificate)) as url:
            for _ in range(rounds):
                for name, by_number in best.items():
                    for number, least in by_number.items():
                        figures = _run(name, url, ca, number, count)
                        for what, figure in figures.items():
                            least[what] = min(least.get(what, figure), figure)
    return best


def _run(name: str, url: str, ca: Path, in_flight: str, count: int) -> dict[str, float]:
    command = [
        *(sys.executable, "-m", "benchmarks.candidates.timed", name),
        *("--url", url, "--ca", str(ca), "--in-flight", in_flight, "--count", str(count)),
    ]
    done = subprocess.run(  # noqa: S603 - our own program
        command,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=False,
    )
    if done.returncode:
        msg = f"{name} failed:\n{done.stderr}"
        raise RuntimeError(msg)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def table_of(best: Figures) -> Table:
    """The figures for people; cold is a client's first call, idle its memory after one call."""
    table = Table(title="One send over TLS, least of rounds: p50 / p99 in ms", title_justify="left")
    table.add_column("", no_wrap=True)
    for number in next(iter(best.values())):
        table.add_column(f"{number} in flight", justify="right", no_wrap=True)
    table.add_column("cold ms", justify="right", no_wrap=True)
    table.add_column("idle KB", justify="right", no_wrap=True)
    for name, by_number in best.items():
        cells = [f"{took['p50_ms']:.1f} / {took['p99_ms']:.1f}" for took in by_number.values()]
        alone = next(iter(by_number.values()))
        table.add_row(name, *cells, f"{alone['cold_ms']:.1f}", f"{alone['idle_kb']:.0f}")
    return table


def p99_at_100(best: Figures) -> float:
    """p99 of `submit` with 100 in flight, divided by that of bare aiohttp."""
    return best["submit"]["100"]["p99_ms"] / best["aiohttp-best"]["100"]["p99_ms"]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="benchmarks.latency", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=3000, help="sends of one run")
    parser.add_argument(
        "--in-flight",
        type=int,
        nargs="+",
        default=IN_FLIGHT,
        help="sends at once; 1 comes first, 100 is needed",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    options = parser.parse_args()
    best = measure(rounds=options.rounds, count=options.count, in_flight=options.in_flight)
    console = Console()
    # Wide enough for the table when the output goes to a file.
    console = Console(width=max(console.width, 100)) if not console.is_terminal else console
    console.print(table_of(best))
    console.print(f"p99 at 100 in flight, submit / aiohttp-best: {p99_at_100(best):.2f}, mark 1.05")
    if options.json:
        options.json.write_text(json.dumps(best, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
