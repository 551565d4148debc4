"""The start of the command: CPU seconds of `ihuyi-voice --help`, beside what it is built on.

`python -m benchmarks.start` prints one line for each program: the best of several
runs, and its ratio to a bare interpreter and to `import typer, rich`. A ratio says
more than seconds, because the machine is in both of its terms.
"""

from __future__ import annotations

import resource
import subprocess
import sys

PROGRAMS = {
    "python -c pass": ("-c", "pass"),
    "import typer, rich": ("-c", "import typer, rich"),
    "ihuyi-voice --version": ("-m", "ihuyi_voice", "--version"),
    "ihuyi-voice --help": ("-m", "ihuyi_voice", "--help"),
    "ihuyi-voice submit --help": ("-m", "ihuyi_voice", "submit", "--help"),
    "ihuyi-voice bulk --help": ("-m", "ihuyi_voice", "bulk", "--help"),
}


def cpu_seconds(arguments: tuple[str, ...]) -> float:
    """User and system time of one run."""
    # In microseconds; `os.times` counts in ticks of 10 ms, which `python -c pass` may end within.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(  # noqa: S603 - the interpreter that runs this
        [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def best(rounds: int = 7) -> dict[str, float]:
    """The lowest CPU seconds of each program; the rounds take them in turn."""
    runs = [
        {name: cpu_seconds(arguments) for name, arguments in PROGRAMS.items()}
        for _ in range(rounds)
    ]
    return {name: min(run[name] for run in runs) for name in PROGRAMS}


def main() -> None:
    """Print the table."""
    seconds = best(*map(int, sys.argv[1:2]))
    bare, built_on = seconds["python -c pass"], seconds["import typer, rich"]
    print(f"{'start of the command':28} {'CPU s':>6} {'of bare python':>15} {'of typer, rich':>15}")
    for name, value in seconds.items():
        print(f"{name:28} {value:6.3f} {value / bare:14.1f}x {value / built_on:14.2f}x")


if __name__ == "__main__":
    main()
