"""One candidate in this process; prints one line of JSON. See `python -m benchmarks`."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import pstats
import resource
import sys
from cProfile import Profile
from importlib import import_module
from pathlib import Path

from . import CANDIDATES
from .job import Job, Stopwatch


def resident_bytes() -> int:
    """Resident bytes of the process; the peak where the system reports only that."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * resource.getpagesize()


def new_loop(*, fast: bool) -> asyncio.AbstractEventLoop:
    """A uvloop if `fast`; else asyncio's loop, and uvloop cannot be imported any more."""
    if fast:
        import uvloop  # noqa: PLC0415 - may be missing

        return uvloop.new_event_loop()
    # VoiceClient makes its own loop and uses uvloop if it is installed.
    sys.modules["uvloop"] = None  # type: ignore[assignment] # None is what forbids the import
    return asyncio.new_event_loop()


def run(name: str, job: Job, *, fast_loop: bool) -> int:
    """Send the job's rows; returns how many were accepted."""
    loop = new_loop(fast=fast_loop)
    module, _, function = CANDIDATES[name].function.partition(":")
    candidate = getattr(import_module(f"{__package__}.{module}"), function)
    if inspect.iscoroutinefunction(candidate):
        accepted = loop.run_until_complete(candidate(job))
    else:
        accepted = candidate(job)
    loop.close()
    return int(accepted)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="benchmarks.candidates", description=__doc__)
    parser.add_argument("name", choices=CANDIDATES)
    parser.add_argument("--url", required=True, help="scheme, host and port of the stub")
    parser.add_argument("--count", type=int, required=True, help="rows in one go")
    parser.add_argument("--repeat", type=int, default=1, help="how often so many are sent")
    parser.add_argument("--warm-up", type=int, default=256, help="rows sent before, unmeasured")
    parser.add_argument("--concurrency", type=int, default=64, help="connections")
    parser.add_argument("--uvloop", action="store_true", help="run on uvloop, otherwise hidden")
    parser.add_argument(
        "--profile", type=int, metavar="LINES", help="functions by their own time, on stderr"
    )
    options = parser.parse_args()

    profile = None if options.profile is None else Profile()
    watch = Stopwatch(profile)
    job = Job(
        base_url=options.url,
        count=options.count,
        repeat=options.repeat,
        warm_up=options.warm_up,
        concurrency=options.concurrency,
        watch=watch,
    )
    accepted = run(options.name, job, fast_loop=options.uvloop)
    measured = {
        "name": options.name,
        "loop": "uvloop" if options.uvloop else "asyncio",
        "sent": options.count * options.repeat,
        "accepted": accepted,
        "wall": watch.wall,
        "cpu": watch.cpu,
        "rss": resident_bytes(),
    }
    print(json.dumps(measured))
    if profile is not None:
        pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(options.profile)


if __name__ == "__main__":
    main()
