"""Jobs of many processes at their size: kills, an empty account, a rate, and cut connections.

The sandbox in the test's process keeps the record that the rows are accounted
against. With IHUYI_VOICE_SOAK=1 in the environment the jobs have their full size,
and take minutes; `pytest -s` shows what was measured.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from bisect import bisect_left
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from ihuyi_voice import OutcomeStatus
from ihuyi_voice.celery import JobState
from ihuyi_voice.sandbox import Chaos, SandboxGateway
from tests.celery.site import (
    ENDED,
    all_overdue,
    kill,
    row,
    rows,
    running_site,
    shows_code,
    taken_by,
    until,
    waiting_messages,
)
from tests.soak.namespaces import inside
from tests.soak.watch import watching
from tests.store import mariadb, postgres
from tests.transport.wire import ADDRESS, Wire, ip, laid_wire

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from tests.celery.site import Site

FULL = os.environ.get("IHUYI_VOICE_SOAK") == "1"
SEED = int(os.environ.get("IHUYI_VOICE_SOAK_SEED", "0")) or random.randrange(1, 1 << 32)
ACCEPTED, REFUSED, UNKNOWN = OutcomeStatus.ACCEPTED, OutcomeStatus.REFUSED, OutcomeStatus.UNKNOWN
# Seconds for a job of the full size.
PATIENCE = 1800.0


class Size(NamedTuple):
    """How large the jobs are."""

    rows: int
    kills: int
    chunk: int
    concurrency: int


SIZE = Size(100_000, 8, 1000, 50) if FULL else Size(400, 2, 50, 10)
DRY = Size(20_000, 0, 1000, 50) if FULL else Size(600, 0, 50, 10)
BALANCE = 1000 if FULL else 100
SECONDS = 60 if FULL else 3


@pytest.fixture
def gateway() -> SandboxGateway:
    # Every attempt is kept, because the rows are accounted against them.
    return SandboxGateway(balance=SIZE.rows, keep=200_000, chaos=Chaos(latency=0.01))


@pytest.fixture
def place() -> Iterator[str]:
    with postgres.running_server() as server:
        yield server.url


@pytest.fixture
def site(tmp_path: Path, place: str, gateway: SandboxGateway) -> Iterator[Site]:
    with (
        gateway.serve_in_thread() as url,
        running_site(tmp_path, place, gateway, url) as site,
    ):
        yield site


def report(measured: str) -> None:
    """Print it for a run with `pytest -s`, with the load of the machine."""
    load = os.getloadavg()[0]
    print(f"\n{measured}; load {load:.1f}, IHUYI_VOICE_SOAK_SEED={SEED}")  # noqa: T201 - see above


def check_rows(site: Site, count: int) -> Counter[OutcomeStatus]:
    """Assert that nothing was sent twice and each row has its true outcome; count the outcomes."""
    placed = {a.mobile: a.voice_id for a in site.gateway.attempts if a.placed}
    sent = Counter(a.mobile for a in site.gateway.attempts if a.placed)
    assert [] == [mobile for mobile, times in sent.items() if times > 1][:20]
    outcomes = list(site.jobs.outcomes("spring"))
    assert list(range(count)) == [outcome.index for outcome in outcomes]
    wrong = [
        outcome
        for outcome in outcomes
        if not (
            outcome.status is UNKNOWN
            or (outcome.status is ACCEPTED and outcome.voice_id == placed[row(outcome.index)[0]])
        )
    ]
    assert [] == wrong[:20]
    return Counter(outcome.status for outcome in outcomes)


def is_over(site: Site) -> bool:
    return site.jobs.status("spring").state in ENDED


def wait_for_end(site: Site) -> None:
    until(lambda: is_over(site), PATIENCE, every=0.1)


def sending_processes(worker: subprocess.Popen[bytes]) -> list[int]:
    """The processes that a worker has forked."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = path.read_text().rpartition(")")[2].split()[1]
            if parent == str(worker.pid):
                found.append(int(path.parent.name))
    return found


def kill_one(site: Site, dice: random.Random, whole_worker: bool) -> str:
    """Kill a process that sends, or a worker with all its processes, which another one replaces."""
    if whole_worker:
        kill(site.workers[-1])
        # A worker looks for chunks of lost ones when it starts, and then every 100 s.
        until(lambda: all_overdue(site), every=0.1)
        site.worker(2)
        return "worker"
    # A worker that was just started, or lost a process, has none for a moment.
    until(lambda: sending_processes(site.workers[-1]))
    os.kill(dice.choice(sending_processes(site.workers[-1])), signal.SIGKILL)
    return "process"


class TestKills:
    """Processes are killed at random moments."""

    @pytest.fixture(params=[postgres.running_server, mariadb.running_server], ids=["pg", "maria"])
    def place(self, request: pytest.FixtureRequest) -> Iterator[str]:
        with request.param() as server:
            yield server.url

    def test_each_row_is_placed_once_and_each_status_is_true(self, site: Site) -> None:
        dice = random.Random(SEED)
        began = time.monotonic()
        if not FULL:  # pragma: no branch - one or the other
            site.environment["REQUEST_TIMEOUT"] = "5"
        site.worker(2)
        site.jobs.submit(
            rows(SIZE.rows), job="spring", chunk_size=SIZE.chunk, concurrency=SIZE.concurrency
        )
        moments = []
        with watching(site) as watch:
            for number in range(SIZE.kills):
                share = (SIZE.rows - site.gateway.taken) // (SIZE.kills - number + 1)
                count = site.gateway.taken + dice.randint(1, share)
                until(lambda count=count: site.gateway.taken >= count, PATIENCE)  # type: ignore[misc]
                time.sleep(dice.uniform(0, 0.01))
                # One in four, and at least one: the broker notices it only after its timeout.
                which = kill_one(site, dice, whole_worker=number % 4 == 1)
                moments.append(f"{which} at {site.gateway.taken}")
            until(lambda: is_over(site) or not waiting_messages(site), PATIENCE, every=0.1)
            if not is_over(site):  # pragma: no cover - a kill in a moment of microseconds
                # Redis gives a message away before the worker notes that it has it.
                moments.append("a message lost by the broker")
                watch.may_fall = True
                site.jobs.resume("spring", rows(SIZE.rows), chunk_size=SIZE.chunk)
                wait_for_end(site)
        status = site.jobs.status("spring")
        context = f"IHUYI_VOICE_SOAK_SEED={SEED}, killed: {', '.join(moments)}"
        assert JobState.COMPLETED is status.state, f"{context}\n{site.said()}"
        counts = check_rows(site, SIZE.rows)
        killed_processes = sum(2 if "worker" in moment else 1 for moment in moments)
        assert counts[UNKNOWN] <= SIZE.concurrency * killed_processes, context
        # No row was even tried twice.
        assert site.gateway.taken <= SIZE.rows
        seconds = time.monotonic() - began
        report(
            f"{SIZE.rows} rows in {seconds:.0f} s, {counts[UNKNOWN]} unknown,"
            f" {watch.asked} statuses; {context}"
        )


def test_a_dry_account_stops_all_processes_and_resume_sends_the_rest(
    site: Site, gateway: SandboxGateway
) -> None:
    gateway.balance = BALANCE
    site.worker(4)
    options = {"chunk_size": DRY.chunk, "concurrency": DRY.concurrency}
    with watching(site) as watch:
        site.jobs.submit(rows(DRY.rows), job="spring", **options)
        status = site.status_at_end()
        assert JobState.STOPPED is status.state, site.said()
        assert "InsufficientBalanceError" in (status.stopped_by or "")
        # What was in flight is reported a moment later.
        until(lambda: site.jobs.status("spring").done == gateway.taken)
        status = site.jobs.status("spring")
        refused = status.counts[REFUSED]
        assert BALANCE == status.counts[ACCEPTED]
        assert 1 <= refused <= 4 * DRY.concurrency
        assert DRY.rows == status.done + status.pending
        gateway.balance = DRY.rows
        watch.may_fall = True
        # In chunks of another size.
        options["chunk_size"] -= 7
        site.jobs.resume("spring", rows(DRY.rows), **options)
        wait_for_end(site)
    assert JobState.COMPLETED is site.jobs.status("spring").state, site.said()
    assert {ACCEPTED: DRY.rows} == check_rows(site, DRY.rows)
    # Exactly the rest.
    assert DRY.rows + refused == gateway.taken
    report(f"{refused} of {DRY.rows} refused by 4 processes of {DRY.concurrency} at once")


def most_in_a_second(times: list[float]) -> int:
    ordered = sorted(times)
    return max(bisect_left(ordered, at + 1.0) - index for index, at in enumerate(ordered))


def test_three_processes_keep_one_rate(site: Site, gateway: SandboxGateway) -> None:
    rate, lease, processes = 300, 10, 3
    gateway.balance = count = rate * SECONDS
    site.worker(processes)
    until(lambda: len(sending_processes(site.workers[0])) >= processes)
    with watching(site):
        site.jobs.submit(rows(count), job="spring", rate=rate, chunk_size=100)
        wait_for_end(site)
    assert {ACCEPTED: count} == check_rows(site, count), site.said()
    until(lambda: len(site.events()) == count, every=0.1)
    starts = [began for began, _, _ in site.events()]
    taken = [attempt.time for attempt in gateway.attempts]
    seconds = max(starts) - min(starts)
    per_second = Counter(int(at - min(starts)) for at in starts)
    report(
        f"{count} rows at {rate} a second took {seconds:.1f} s: {count / seconds:.0f} a second,"
        f" at most {most_in_a_second(starts)} started in any second, and"
        f" {most_in_a_second(taken)} arrived; second by second"
        f" {[per_second[n] for n in range(int(seconds) + 1)]}"
    )
    # Starts, not arrivals: a loaded machine delays requests, so that later seconds have more.
    assert most_in_a_second(starts) <= rate + lease * processes
    # The rate is kept however slow the machine is.
    assert seconds >= (count - lease * processes) / rate - 1


def test_the_broker_restarts_in_the_middle(site: Site) -> None:
    count = SIZE.rows // 10 if FULL else SIZE.rows
    site.worker(2)
    with watching(site) as watch:
        site.jobs.submit(rows(count), job="spring", chunk_size=50, concurrency=10)
        taken_by(site, count // 4)
        site.broker.stop()
        until(lambda: "Connection to broker lost" in site.said(), every=0.1)
        site.broker.start()
        wait_for_end(site)
    assert JobState.COMPLETED is site.jobs.status("spring").state, site.said()
    # No process ended, so no outcome is unknown.
    assert {ACCEPTED: count} == check_rows(site, count)
    assert count == site.gateway.taken
    assert not shows_code(site.said())
    report(f"{count} rows, {watch.asked} statuses, broker restarted")


# --- a cut between the workers and their store -------------------------------------


@pytest.fixture
def wire() -> Iterator[Wire]:
    with laid_wire() as laid:
        yield laid


def test_the_network_between_workers_and_store_is_cut(
    tmp_path: Path, wire: Wire, gateway: SandboxGateway
) -> None:
    """Workers, gateway and broker are on one side, the store is on the other."""
    count = SIZE.rows // 10 if FULL else SIZE.rows
    with contextlib.ExitStack() as ended:
        # The test asks the store through its Unix socket, which no cut concerns.
        with inside(wire.far):
            server = ended.enter_context(postgres.running_server(ADDRESS))
        with inside(wire.near):
            ip("-n", wire.near, "link", "set", "lo", "up")
            url = ended.enter_context(gateway.serve_in_thread())
        site = ended.enter_context(
            running_site(tmp_path, server.url, gateway, url, visibility_timeout=60)
        )
        site.environment["CALLS_STORE"] = (
            # Lost packets count as a failure after 2 s instead of 10.
            f"postgresql+psycopg://postgres@{ADDRESS}/postgres?tcp_user_timeout=2000"
        )
        with inside(wire.near):
            site.worker(2)
        watch = ended.enter_context(watching(site))
        site.jobs.submit(rows(count), job="spring", chunk_size=50, concurrency=10)
        taken_by(site, count // 4)
        wire.cut()
        until(lambda: "tried again in 5 s" in site.said(), every=0.1)
        taken = gateway.taken
        wire.heal()
        wait_for_end(site)
        assert JobState.COMPLETED is site.jobs.status("spring").state, site.said()
        counts = check_rows(site, count)
        # Calls whose outcome could not be recorded while the network was cut.
        assert counts[UNKNOWN] <= 2 * 10
        assert count == gateway.taken
        assert not shows_code(site.said())
        report(f"{count} rows, cut at {taken}, {counts[UNKNOWN]} unknown, {watch.asked} statuses")
