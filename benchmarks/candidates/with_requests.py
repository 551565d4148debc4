"""requests, with one session: one call after another, and from many threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import requests
from requests.adapters import HTTPAdapter

from .job import signed_form

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .job import Job, Row


def alone(job: Job) -> int:
    """One after another."""
    with requests.Session() as session:

        def send_all(rows: Iterable[Row]) -> int:
            return sum(_send(session, job.url, row) for row in rows)

        return job.measure(send_all)


def in_threads(job: Job) -> int:
    """As many threads as connections, over one session with room for all of them."""
    with requests.Session() as session, ThreadPoolExecutor(job.concurrency) as pool:
        session.mount("http://", HTTPAdapter(pool_maxsize=job.concurrency))

        def send_all(rows: Iterable[Row]) -> int:
            return sum(pool.map(lambda row: _send(session, job.url, row), rows))

        return job.measure(send_all)


def _send(session: requests.Session, url: str, row: Row) -> int:
    response = session.post(url, data=signed_form(*row), timeout=15)
    return int(response.json()["code"] == 2)
