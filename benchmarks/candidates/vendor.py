"""The vendor's Python demo, brought to Python 3: a new connection for each call."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from benchmarks import TARGET

from .job import signed_form

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .job import Job, Row


def demo(job: Job) -> int:
    """One after another, each over a connection of its own."""
    host = urlsplit(job.base_url).netloc
    headers = {"Content-type": "application/x-www-form-urlencoded", "Accept": "text/plain"}

    def send(mobile: str, content: str) -> int:
        connection = http.client.HTTPConnection(host, timeout=30)
        connection.request("POST", TARGET, urlencode(signed_form(mobile, content)), headers)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return int(answer["code"] == 2)

    def send_all(rows: Iterable[Row]) -> int:
        return sum(send(mobile, content) for mobile, content in rows)

    return job.measure(send_all)
