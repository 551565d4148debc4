"""Rows per second of a job on one worker process and on two, and the CPU time of a row.

`python -m benchmarks.jobs STORE` measures with the store of that URL, such as
`postgresql+psycopg://user@host/database`, and a `redis-server` of its own as the
broker. The numbers of processes take turns, so that a slow minute of the machine
affects both; the best round of each counts. It prints one line of JSON. The tables
of the store stay in the database. The workers, the store, the broker and the stub
gateway share this machine's cores: the CPU times say what each of them takes.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from celery import Celery

from ihuyi_voice.celery import BulkJobs, JobState

from . import ACCOUNT, API_KEY
from .rounds import ROOT, counted, environment, stub_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ihuyi_voice.celery import JobStatus

_ROWS, _ROUNDS = 10_000, 5
_CHUNK, _CONCURRENCY = 500, 50
# Enough that each process has opened its store and its connections.
_WARM_UP_CHUNKS, _WARM_UP_ROWS = 8, 20
_PATIENCE = 600.0
# The figures are by the store's clock, and each question costs the store some milliseconds.
_POLL = 1.0
_TICKS = os.sysconf("SC_CLK_TCK")

_numbers = (f"139{serial:08d}" for serial in itertools.count())


@dataclass(frozen=True)
class Run:
    """One job.

    Attributes:
        per_second: rows per second, from the first start to the last outcome.
        worker_us: CPU microseconds of the worker's processes for one row.
        stub_us: CPU microseconds of the stub gateway for one row.
        load: of the machine, at the end.
    """

    per_second: float
    worker_us: float
    stub_us: float
    load: float


class Bench:
    """A broker, a store, a stub gateway, and the jobs that they serve.

    Args:
        store: the URL of the store.
        broker: the URL of the broker.
        stub: the URL of the stub gateway.
    """

    def __init__(self, store: str, broker: str, stub: str) -> None:
        self.jobs: BulkJobs = BulkJobs(Celery("benchmark", broker=broker), store=store)
        self._stub = stub
        self._environment = environment() | {
            "BENCHMARK_BROKER": broker,
            "BENCHMARK_STORE": store,
            "IHUYI_VOICE_API_ID": ACCOUNT,
            "IHUYI_VOICE_API_KEY": API_KEY,
            "IHUYI_VOICE_BASE_URL": stub,
        }

    def run(self, processes: int, rows: int) -> Run:
        """Measure one job in new processes, which a small job has warmed up."""
        with self._worker(processes) as worker:
            self._finish(_WARM_UP_CHUNKS * processes * _WARM_UP_ROWS, _WARM_UP_ROWS)
            stub, cpu = counted(self._stub)["cpu"], _cpu_seconds(worker)
            status = self._finish(rows, _CHUNK)
            stub, cpu = counted(self._stub)["cpu"] - stub, _cpu_seconds(worker) - cpu
        if status.started is None or status.finished is None:
            raise AssertionError
        return Run(
            per_second=rows / (status.finished - status.started),
            worker_us=cpu / rows * 1e6,
            stub_us=stub / rows * 1e6,
            load=os.getloadavg()[0],
        )

    def _finish(self, rows: int, chunk_size: int) -> JobStatus:
        job = secrets.token_hex(8)
        some = ((mobile, "112512") for mobile in itertools.islice(_numbers, rows))
        self.jobs.submit(some, job=job, chunk_size=chunk_size, concurrency=_CONCURRENCY)
        end = time.monotonic() + _PATIENCE
        while (status := self.jobs.status(job)).state is not JobState.COMPLETED:
            if time.monotonic() > end or status.state is JobState.STOPPED:
                msg = f"the job does not end: {status}"
                raise RuntimeError(msg)
            time.sleep(_POLL)
        return status

    @contextlib.contextmanager
    def _worker(self, processes: int) -> Iterator[int]:
        command = [sys.executable, "-m", "celery", "-A", "benchmarks.job_worker", "worker"]
        options = ["-c", str(processes), "-l", "WARNING", "--without-mingle", "--without-gossip"]
        with subprocess.Popen(  # noqa: S603 - our own program
            [*command, *options],
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as worker:
            try:
                yield worker.pid
            finally:
                worker.terminate()


def _cpu_seconds(parent: int) -> float:
    """CPU seconds of a process and of those that it has forked."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
            if parent in (int(path.parent.name), int(fields[1])):
                ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """A broker on a Unix socket; gives its URL."""
    with tempfile.TemporaryDirectory(prefix="redis-", dir="/tmp") as folder:
        socket = Path(folder, "socket")
        options = ["--port", "0", "--unixsocket", str(socket), "--dir", folder, "--save", ""]
        with subprocess.Popen(  # noqa: S603 - no input from outside
            ["redis-server", *options],  # noqa: S607 - as the machine has it
            stdout=subprocess.DEVNULL,
        ) as server:
            try:
                while not socket.exists():
                    time.sleep(0.01)
                yield f"redis+socket://{socket}"
            finally:
                server.terminate()


def measure(
    store: str, *, processes: tuple[int, ...], rounds: int, rows: int
) -> dict[str, dict[str, float]]:
    """The best rows per second and the least CPU time of each number of processes."""
    runs: dict[int, list[Run]] = {number: [] for number in processes}
    with redis_server() as broker, stub_gateway() as stub:
        bench = Bench(store, broker, stub)
        for _ in range(rounds):
            for number in processes:
                runs[number].append(bench.run(number, rows))
    return {
        str(number): {
            "per_second": round(max(run.per_second for run in some)),
            "worker_us": round(min(run.worker_us for run in some)),
            "stub_us": round(min(run.stub_us for run in some)),
            "load": min(run.load for run in some),
        }
        for number, some in runs.items()
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="benchmarks.jobs", description=__doc__)
    parser.add_argument("store", help="the URL of a store")
    parser.add_argument("--rows", type=int, default=_ROWS)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    figures = measure(
        options.store,
        processes=tuple(options.processes),
        rounds=options.rounds,
        rows=options.rows,
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
