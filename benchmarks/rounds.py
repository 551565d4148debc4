"""Runs every cell in a fresh process against a stub gateway, round after round.

A cell is one candidate under one condition. Cells take turns, so that a slow
minute of the machine affects all of them; each cell's best round counts.
After each run the stub reports how many submits it received, so that every figure
is for work that was done.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import ProxyHandler, build_opener

from .candidates import CANDIDATES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .candidates import Candidate

ROOT = Path(__file__).parent.parent

WARM_UP = 256
LATENCY = 0.050
CONCURRENCY = 64
IMPORTS = {
    "aiohttp": "import aiohttp",
    # The package alone imports nothing until it is asked for a name.
    "ihuyi_voice": "from ihuyi_voice import AsyncVoiceClient, VoiceClient",
}
AT_LATENCY = 100
"""Connections of the one cell that meets a slow gateway."""

# Seconds that a run may take, and in addition for each send.
_PATIENCE = 60.0
_PATIENCE_PER_SEND = 0.01


@dataclass(frozen=True)
class Cell:
    """One candidate under one condition.

    Attributes:
        key: its name within a run.
        candidate: the sender.
        count: rows in one go.
        repeat: how often these rows are sent.
        uvloop: whether it runs on uvloop.
        slow: whether the gateway answers after `LATENCY`.
        most_rounds: how many rounds it runs in at most; None for all.
    """

    key: str
    candidate: Candidate
    count: int
    repeat: int = 1
    uvloop: bool = False
    slow: bool = False
    most_rounds: int | None = None


@dataclass(frozen=True)
class Measured:
    """The cost of one run of a cell: seconds, bytes, and the stub's own CPU seconds."""

    sent: int
    wall: float
    cpu: float
    rss: int
    stub_cpu: float


@dataclass(frozen=True)
class Figures:
    """The best of a cell's rounds.

    Attributes:
        cpu_us: CPU microseconds per send.
        per_second: sends per second.
        rss_mb: resident memory after the last send, in MB.
        stub_busy: share of the wall time in which the stub was busy; near
            1.0 the run measures the stub.
    """

    cpu_us: float
    per_second: float
    rss_mb: float
    stub_busy: float

    @classmethod
    def of(cls, rounds: list[Measured]) -> Figures:
        """The best of all, each figure by itself."""
        return cls(
            cpu_us=min(run.cpu / run.sent for run in rounds) * 1e6,
            per_second=max(run.sent / run.wall for run in rounds),
            rss_mb=min(run.rss for run in rounds) / 1e6,
            stub_busy=max(run.stub_cpu / run.wall for run in rounds),
        )


def is_installed(candidate: Candidate, *, uvloop: bool) -> bool:
    """Whether the packages that it needs are installed."""
    needed = [candidate.needs] if candidate.needs else []
    return all(find_spec(name) is not None for name in (*needed, *["uvloop"] * uvloop))


def cells(*, quick: bool, only: set[str] | None) -> list[Cell]:
    """The cells to run, without peers that are not installed.

    Args:
        quick: fewer sends, no uvloop unless asked for, no large runs.
        only: keys of cells; None for all.
    """
    wanted: list[Cell] = []
    for uvloop in (False, True):
        for candidate in CANDIDATES.values():
            if uvloop and not candidate.on_loop:
                continue
            count = candidate.quick_count if quick else candidate.count
            name = f"{candidate.name}/uvloop" if uvloop else candidate.name
            wanted.append(Cell(name, candidate, count, uvloop=uvloop))
    many = CANDIDATES["submit-many"]
    generator = CANDIDATES["submit-many-generator"]
    wanted += [
        Cell("latency", many, 4_000 if quick else 10_000, slow=True),
        Cell(
            "latency-store",
            CANDIDATES["submit-many-store"],
            2_000 if quick else 10_000,
            slow=True,
        ),
        Cell("latency-raw", CANDIDATES["raw"], 4_000 if quick else 10_000, slow=True),
        Cell("rows-1000", many, 1_000, repeat=3 if quick else 10),
        Cell("rows-10000", many, 10_000),
        Cell("rows-100000", many, 100_000),
        Cell("memory-10000", generator, 10_000, most_rounds=1),
        Cell("memory-1000000", generator, 1_000_000, most_rounds=1),
    ]
    if only is not None:
        if unknown := only - {cell.key for cell in wanted}:
            known = ", ".join(cell.key for cell in wanted)
            msg = f"no such candidate: {', '.join(sorted(unknown))}; there are {known}"
            raise ValueError(msg)
        wanted = [cell for cell in wanted if cell.key in only]
    elif quick:
        wanted = [cell for cell in wanted if not cell.uvloop and cell.count <= 10_000]
        wanted = [cell for cell in wanted if not cell.key.startswith("memory")]
    return [cell for cell in wanted if is_installed(cell.candidate, uvloop=cell.uvloop)]


def run_rounds(
    wanted: list[Cell], *, rounds: int, seconds: float, report: Callable[[str], None]
) -> dict[str, list[Measured]]:
    """Every cell in every round.

    Args:
        wanted: the cells.
        rounds: how many rounds at most.
        seconds: no round begins that would end later than this.
        report: called with a line about each run before it begins.

    Returns:
        What each run of each cell took, by the cell's key.
    """
    measured: dict[str, list[Measured]] = {cell.key: [] for cell in wanted}
    began = time.monotonic()
    with stub_gateway() as stub, stub_gateway("--latency", str(LATENCY)) as slow_stub:
        for number in range(rounds):
            so_far = time.monotonic() - began
            if number and so_far + so_far / number > seconds:
                break
            for cell in wanted:
                if cell.most_rounds is not None and number >= cell.most_rounds:
                    continue
                report(f"round {number + 1} of {rounds}: {cell.key}, {cell.count:,} rows")
                measured[cell.key].append(run(cell, slow_stub if cell.slow else stub))
    return measured


def run(cell: Cell, stub_url: str) -> Measured:
    """One run in a fresh process, against a stub without other clients."""
    before = counted(stub_url)
    sends = cell.count * cell.repeat
    command = [
        *(sys.executable, "-m", "benchmarks.candidates", cell.candidate.name),
        *("--url", stub_url),
        *("--count", str(cell.count)),
        *("--repeat", str(cell.repeat)),
        *("--warm-up", str(WARM_UP)),
        *("--concurrency", str(AT_LATENCY if cell.slow else CONCURRENCY)),
        *["--uvloop"] * cell.uvloop,
    ]
    done = subprocess.run(  # noqa: S603 - our own program
        command,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=_PATIENCE + _PATIENCE_PER_SEND * sends,
        check=False,
    )
    if done.returncode:
        msg = f"{cell.key} failed:\n{done.stderr}"
        raise RuntimeError(msg)
    took = json.loads(done.stdout)
    after = counted(stub_url)
    seen = after["requests"] - before["requests"] - WARM_UP
    if not sends == took["accepted"] == seen:
        msg = f"{cell.key} sent {sends}, the stub saw {seen}, accepted were {took['accepted']}"
        raise RuntimeError(msg)
    # What the stub spent on the warm-up counts in, and is little.
    stub_cpu = (after["cpu"] - before["cpu"]) * sends / (sends + WARM_UP)
    return Measured(sends, took["wall"], took["cpu"], took["rss"], stub_cpu)


def import_seconds(statement: str) -> float:
    """CPU seconds that one import takes in a fresh interpreter."""
    script = (
        f"import time; began = time.process_time(); {statement}; print(time.process_time() - began)"
    )
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=True,
    )
    return float(done.stdout)


def best_imports(times: int) -> dict[str, float]:
    """The least CPU seconds of several imports of this library and of aiohttp, in turns."""
    taken: dict[str, list[float]] = {module: [] for module in IMPORTS}
    # The first time may have to compile.
    for _ in range(1 + times):
        for module, statement in IMPORTS.items():
            taken[module].append(import_seconds(statement))
    return {module: min(seconds[1:]) for module, seconds in taken.items()}


@contextlib.contextmanager
def stub_gateway(*options: str) -> Iterator[str]:
    """A stub gateway in a process of its own; gives its URL.

    It goes when its standard input closes, however this process ends.
    """
    with subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-m", "benchmarks.stub", *options],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Ctrl-C is for the benchmark, which then closes its end.
        start_new_session=True,
    ) as stub:
        assert stub.stdout is not None  # noqa: S101 - for the type checker
        over_tls = "--certificate" in options
        host = "https://localhost" if over_tls else "http://127.0.0.1"
        yield f"{host}:{int(stub.stdout.readline())}"


def counted(stub_url: str) -> dict[str, float]:
    """What the stub has counted so far."""
    with build_opener(ProxyHandler({})).open(stub_url, timeout=_PATIENCE) as answer:
        counts: dict[str, float] = json.load(answer)
    return counts


def environment() -> dict[str, str]:
    """Our own, without the proxies that some of the peers would use.

    And with compiled modules kept, as wherever the library is installed:
    otherwise an import would compile ours, and not aiohttp's, every time.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if "proxy" not in name.lower() and name != "PYTHONDONTWRITEBYTECODE"
    }
