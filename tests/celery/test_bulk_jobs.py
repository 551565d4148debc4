"""Bulk jobs: real worker processes, a real broker, and a gateway of the test's.

A rate that several processes share, and a job that is resumed after its account ran dry,
are in tests/soak/test_jobs.py, as are more kills.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from ihuyi_voice import InvalidRequestError, OutcomeStatus, SubmitRequest
from ihuyi_voice.celery import BulkJobs, JobState
from ihuyi_voice.sandbox import Chaos
from tests.store.postgres import running_server

from .site import CODE, kill, row, rows, shows_code, taken_by, until, waiting_messages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.store.postgres import PostgresServer

    from .site import Site

ACCEPTED, REFUSED = OutcomeStatus.ACCEPTED, OutcomeStatus.REFUSED


def test_a_job_from_its_submission_to_its_end(site: Site) -> None:
    status = site.jobs.submit(rows(250), job="spring", chunk_size=100)
    assert (JobState.SCHEDULED, 250, True) == (status.state, status.total, status.is_enqueued)
    site.worker()
    status = site.status_at_end()
    assert (JobState.COMPLETED, 250) == (status.state, status.counts[ACCEPTED]), site.said()
    assert {1} == set(site.calls().values())
    outcomes = list(site.jobs.outcomes("spring"))
    assert list(range(250)) == [outcome.index for outcome in outcomes]
    assert "139****0007" == outcomes[7].mobile
    ids = {attempt.mobile: attempt.voice_id for attempt in site.gateway.attempts}
    assert ids["13900000007"] == outcomes[7].voice_id
    # A process reports the rows of a chunk when the chunk has ended, which the status precedes.
    until(lambda: len(site.events()) == 250, every=0.1)
    assert {("accepted", outcome.mobile) for outcome in outcomes} == {
        (status, mobile) for _, status, mobile in site.events()
    }
    said = site.said()
    assert "ihuyi_voice.chunk" in said
    assert not shows_code(said)
    assert "1390000" not in said


def test_a_worker_is_killed_and_no_phone_rings_twice(site: Site) -> None:
    site.environment["REQUEST_TIMEOUT"] = "5"
    site.gateway.balance = 10_000
    site.gateway.chaos = Chaos(latency=0.02)
    site.jobs.submit(rows(300), job="spring", chunk_size=60, concurrency=10)
    worker = site.worker()
    taken_by(site, 100)
    kill(worker)
    status = site.jobs.status("spring")
    assert status.total == status.done + status.pending
    assert status.counts[ACCEPTED] <= site.gateway.placed
    site.wait_until_lost()
    site.worker()
    status = site.status_at_end()
    assert JobState.COMPLETED is status.state, site.said()
    assert {1} == set(site.calls().values())
    unknown = status.counts[OutcomeStatus.UNKNOWN]
    assert unknown <= 10
    assert 300 == status.counts[ACCEPTED] + unknown
    # What no outcome states as unknown is at the gateway exactly as it is stated.
    accepted = {o.index for o in site.jobs.outcomes("spring") if o.status is ACCEPTED}
    assert {row(index)[0] for index in accepted} <= set(site.calls())


def test_an_account_that_is_refused_from_the_start_costs_one_request(site: Site) -> None:
    site.gateway.balance = 0
    site.jobs.submit(rows(400), job="spring", chunk_size=50)
    site.worker(2)
    status = site.status_at_end()
    assert JobState.STOPPED is status.state
    assert 1 == site.gateway.taken
    until(lambda: 1 == site.jobs.status("spring").counts[REFUSED])
    assert 399 == site.jobs.status("spring").pending


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    with running_server() as server:
        yield server


class TestServer:
    """The store is a server."""

    @pytest.fixture
    def place(self, postgres: PostgresServer) -> str:
        return postgres.url

    @pytest.mark.measures_processes
    def test_the_store_restarts_in_the_middle(self, site: Site, postgres: PostgresServer) -> None:
        site.gateway.balance = 10_000
        site.gateway.chaos = Chaos(latency=0.02)
        site.jobs.submit(rows(400), job="spring", chunk_size=100, concurrency=10)
        site.worker(2)
        taken_by(site, 100)
        postgres.stop()
        until(lambda: "tried again in 5 s" in site.said(), every=0.1)
        postgres.start()
        status = site.status_at_end()
        assert (JobState.COMPLETED, 400) == (status.state, status.done), site.said()
        assert {1} == set(site.calls().values())
        # In flight at the moment of the stop: their outcomes could not be recorded in time.
        assert status.counts[OutcomeStatus.UNKNOWN] <= 2 * 10
        assert 400 == status.counts[ACCEPTED] + status.counts[OutcomeStatus.UNKNOWN]
        assert not shows_code(site.said())


@pytest.mark.measures_processes
def test_cancel_ends_a_job_within_a_lease(site: Site) -> None:
    site.jobs.submit(rows(1000), job="spring", rate=50, chunk_size=100)
    site.worker()
    until(lambda: site.gateway.taken > 10)
    site.jobs.cancel("spring")
    taken = site.gateway.taken
    until(lambda: 0 == waiting_messages(site))
    status = site.jobs.status("spring")
    assert (JobState.CANCELED, 1000) == (status.state, status.total)
    assert site.gateway.taken <= taken + 2 * 10
    assert status.done == site.gateway.taken


def test_rows_that_are_no_requests_have_their_outcomes(site: Site) -> None:
    some: list[object] = [
        row(0),
        SubmitRequest(*row(1)),
        (13900000002, CODE),
        "no row",
        ("139", CODE),
        (row(5)[0], 1.5, "three"),
        (row(6)[0], object()),
    ]
    site.jobs.submit(some, job="spring")  # type: ignore[arg-type]
    site.worker()
    status = site.status_at_end()
    assert (2, 5) == (status.counts[ACCEPTED], status.counts[OutcomeStatus.INVALID])
    texts = [outcome.msg for outcome in site.jobs.outcomes("spring")]
    assert not any(text.startswith("row ") for text in texts)
    assert "int" in texts[2]


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (InvalidRequestError, {"job": ""}),
        (InvalidRequestError, {"job": " x"}),
        (InvalidRequestError, {"job": "x" * 65}),
        (ValueError, {"job": "x", "rate": 0}),
        (ValueError, {"job": "x", "concurrency": 0}),
        (ValueError, {"job": "x", "chunk_size": 0}),
    ],
)
def test_wrong_arguments(site: Site, error: type[Exception], arguments: dict[str, Any]) -> None:
    with pytest.raises(error):
        site.jobs.submit(rows(1), **arguments)
    with pytest.raises(LookupError):
        site.jobs.status("x")


def test_a_row_with_a_key_of_its_own_is_refused(site: Site) -> None:
    with pytest.raises(InvalidRequestError, match="row 1 has an idempotency_key"):
        site.jobs.submit([row(0), SubmitRequest(*row(1), "mine")], job="spring")
    assert not site.jobs.status("spring").is_enqueued
    with pytest.raises(InvalidRequestError, match="there is a job 'spring' already"):
        site.jobs.submit(rows(1), job="spring")


def test_the_broker_fails_while_a_job_is_enqueued(site: Site) -> None:
    app = Celery("bulk", broker="redis://127.0.0.1:1/0")
    app.conf.task_publish_retry = False
    jobs = BulkJobs(app, store=str(site.folder / "calls.db"))
    with pytest.raises(OperationalError) as raised:
        jobs.submit(rows(5), job="spring")
    frames = traceback.TracebackException.from_exception(raised.value, capture_locals=True)
    assert CODE not in "".join(frames.format()).split("tests/celery", maxsplit=1)[0]
    assert not site.jobs.status("spring").is_enqueued
    site.worker()
    site.jobs.resume("spring", rows(5))
    assert 5 == site.status_at_end().counts[ACCEPTED]


def test_a_worker_without_credentials_stops_the_job(site: Site) -> None:
    del site.environment["IHUYI_VOICE_API_KEY"]
    site.jobs.submit(rows(3), job="spring")
    site.worker()
    status = site.status_at_end()
    assert (JobState.STOPPED, 3) == (status.state, status.pending)
    assert "IHUYI_VOICE_API_KEY" in (status.stopped_by or "")
    assert 0 == site.gateway.taken
