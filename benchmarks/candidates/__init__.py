"""The ways to send that are compared, one function each.

`python -m benchmarks.candidates NAME --url URL --count N` runs one of them in
that process and prints one line of JSON. They all do the same: sign with the
dynamic password, POST the form, read and decode the answer, and count those
that say 2.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """One way to send.

    Attributes:
        name: for the command line and the JSON.
        title: for people.
        function: `module:function` in this package; imported only where it runs.
        count: sends in one round of a full run; some seconds' worth at most.
        quick_count: the same for a quick run.
        needs: the peer that must be installed for it.
        on_loop: it runs on an event loop, so that it can also run on uvloop.
        ours: it is this library.
    """

    name: str
    title: str
    function: str
    count: int
    quick_count: int
    needs: str | None = None
    on_loop: bool = True
    ours: bool = False


CANDIDATES = {
    candidate.name: candidate
    for candidate in (
        Candidate(
            "vendor-demo",
            "vendor's demo: http.client, a connection per call",
            "vendor:demo",
            1_500,
            400,
            on_loop=False,
        ),
        Candidate(
            "requests",
            "requests.Session, one after another",
            "with_requests:alone",
            1_500,
            400,
            needs="requests",
            on_loop=False,
        ),
        Candidate(
            "requests-threads",
            "requests.Session in 64 threads",
            "with_requests:in_threads",
            3_000,
            600,
            needs="requests",
            on_loop=False,
        ),
        Candidate(
            "httpx",
            "httpx.AsyncClient",
            "with_httpx:async_client",
            3_000,
            500,
            needs="httpx",
        ),
        Candidate("aiohttp", "aiohttp as people write it", "with_aiohttp:plain", 8_000, 1_500),
        Candidate("aiohttp-best", "bare aiohttp at its best", "with_aiohttp:best", 10_000, 2_000),
        Candidate("raw", "raw socket loop, no checks", "raw:loop", 25_000, 5_000),
        Candidate("submit", "submit in 64 tasks", "ours:submit", 10_000, 2_000, ours=True),
        Candidate(
            "submit-many", "submit_many of a list", "ours:submit_many", 10_000, 2_000, ours=True
        ),
        Candidate(
            "submit-many-generator",
            "submit_many of a generator",
            "ours:submit_many_generator",
            10_000,
            2_000,
            ours=True,
        ),
        Candidate(
            "submit-many-quota",
            "submit_many with the default quota",
            "ours:submit_many_quota",
            10_000,
            2_000,
            ours=True,
        ),
        Candidate(
            "submit-many-store",
            "submit_many with a store in SQLite",
            "ours:submit_many_store",
            10_000,
            1_000,
            needs="sqlalchemy",
            ours=True,
        ),
        Candidate(
            "submit-many-limits",
            "submit_many with the limits in SQLite",
            "ours:submit_many_limits",
            10_000,
            1_000,
            needs="sqlalchemy",
            ours=True,
        ),
        Candidate(
            "voice-client-submit",
            "VoiceClient.submit, one after another",
            "ours:voice_client_submit",
            3_000,
            600,
            ours=True,
        ),
        Candidate(
            "voice-client-submit-many",
            "VoiceClient.submit_many",
            "ours:voice_client_submit_many",
            10_000,
            2_000,
            ours=True,
        ),
    )
}
