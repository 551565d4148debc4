"""The project's aims, as ratios within one run. Pure: figures in, marks out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .rounds import AT_LATENCY, LATENCY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .rounds import Figures

_ROWS = ("rows-1000", "rows-10000", "rows-100000")


@dataclass(frozen=True)
class Mark:
    """One aim and the figure of this run.

    Attributes:
        what: the two things compared.
        mark: the aim in words.
        measured: on asyncio's own loop; None where this run has no figure.
        on_uvloop: the same on uvloop, for comparison.
        unit: of both.
        met: whether `measured` reaches the mark; None where there is none.
    """

    what: str
    mark: str
    measured: float | None
    on_uvloop: float | None = None
    unit: str = ""
    met: bool | None = None


def _at_most(
    what: str, limit: float, measured: float | None, on_uvloop: float | None = None, unit: str = ""
) -> Mark:
    met = None if measured is None else measured <= limit
    return Mark(what, f"at most {limit:g}{unit}", measured, on_uvloop, unit, met)


def _at_least(
    what: str, limit: float, measured: float | None, on_uvloop: float | None = None, unit: str = ""
) -> Mark:
    met = None if measured is None else measured >= limit
    return Mark(what, f"at least {limit:g}{unit}", measured, on_uvloop, unit, met)


def marks(
    best: Mapping[str, Figures], imports: Mapping[str, float], p99: float | None = None
) -> list[Mark]:
    """All marks.

    Args:
        best: the figures of the cells, by their keys, as far as they were run.
        imports: CPU seconds of `import`, by module.
        p99: of `submit` with 100 in flight over TLS, divided by that of bare aiohttp.
    """

    def cpu(one: str, other: str) -> float | None:
        if one in best and other in best:
            return best[one].cpu_us / best[other].cpu_us
        return None

    def speed(one: str, other: str) -> float | None:
        if one in best and other in best:
            return best[one].per_second / best[other].per_second
        return None

    def cpu_on_uvloop(one: str, other: str) -> float | None:
        return cpu(f"{one}/uvloop", f"{other}/uvloop")

    def per_call(one: str, other: str) -> float | None:
        return speed(other, one)

    def at_latency(key: str) -> float | None:
        return best[key].per_second * LATENCY / AT_LATENCY if key in best else None

    ours = "submit-many"
    raw = cpu(ours, "raw")
    return [
        _at_most(
            "submit_many / aiohttp as people write it, CPU per send",
            0.65,
            cpu(ours, "aiohttp"),
            cpu_on_uvloop(ours, "aiohttp"),
        ),
        _at_most(
            "submit_many of a generator / aiohttp as people write it, CPU per send",
            0.70,
            cpu(f"{ours}-generator", "aiohttp"),
            cpu_on_uvloop(f"{ours}-generator", "aiohttp"),
        ),
        _at_most(
            "submit_many / bare aiohttp at its best, CPU per send",
            0.95,
            cpu(ours, "aiohttp-best"),
            cpu_on_uvloop(ours, "aiohttp-best"),
        ),
        Mark(
            "submit_many / raw socket loop, CPU per send",
            "as near as it goes",
            raw,
            cpu_on_uvloop(ours, "raw"),
        ),
        _at_least(
            "submit_many / requests in 64 threads, sends per second",
            5,
            speed(ours, "requests-threads"),
            speed(f"{ours}/uvloop", "requests-threads"),
            " x",
        ),
        _at_least(
            "submit_many / httpx.AsyncClient, sends per second",
            8,
            speed(ours, "httpx"),
            speed(f"{ours}/uvloop", "httpx/uvloop"),
            " x",
        ),
        _at_least(
            f"submit_many at {LATENCY * 1000:g} ms latency, {AT_LATENCY} connections,"
            f" of {AT_LATENCY / LATENCY:,.0f} a second",
            0.95,
            at_latency("latency"),
        ),
        # Timers of a millisecond and bursts of answers cost every candidate some.
        Mark("the same by the raw socket loop", "what the stub allows", at_latency("latency-raw")),
        _at_least(
            f"submit_many with a store in an SQLite file / without one, at {LATENCY * 1000:g} ms,"
            " sends per second",
            0.60,
            speed("latency-store", "latency"),
        ),
        _at_most(
            "VoiceClient.submit_many / the async one, CPU per send",
            1.2,
            cpu("voice-client-submit-many", ours),
            cpu_on_uvloop("voice-client-submit-many", ours),
        ),
        _at_most(
            "VoiceClient.submit / requests.Session, one after another, wall time per call",
            0.6,
            per_call("voice-client-submit", "requests"),
            per_call("voice-client-submit/uvloop", "requests"),
        ),
        _at_most(
            "submit_many, default quota on / off, CPU per send",
            1.08,
            cpu("submit-many-quota", ours),
            cpu_on_uvloop("submit-many-quota", ours),
        ),
        _at_most(
            "submit_many of 1,000, 10,000 and 100,000 rows, CPU per send: most / least",
            1.10,
            _spread(best),
        ),
        _at_most(
            "submit_many of 1,000,000 rows, resident memory beyond that after 10,000",
            8,
            best["memory-1000000"].rss_mb - best["memory-10000"].rss_mb
            if {"memory-10000", "memory-1000000"} <= best.keys()
            else None,
            unit=" MB",
        ),
        _at_most("submit / bare aiohttp at its best, over TLS with 100 in flight, p99", 1.05, p99),
        _at_most(
            "import of both clients / import aiohttp, CPU time",
            1.15,
            imports["ihuyi_voice"] / imports["aiohttp"] if imports else None,
        ),
    ]


def _spread(best: Mapping[str, Figures]) -> float | None:
    per_send = [best[key].cpu_us for key in _ROWS if key in best]
    return max(per_send) / min(per_send) if len(per_send) > 1 else None
