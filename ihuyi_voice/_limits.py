"""Times and counts that users cannot change, and tests can."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """A client's, part of its `Settings`; a test gives others with `client._within(Limits(...))`.

    Attributes:
        first_backoff: seconds between attempts to connect: random, below a
            bound that starts here and doubles.
        longest_backoff: the largest such bound.
        keepalive: seconds for which an unused connection is kept. Common
            servers close one after 5 s, and a connection that is closed at the
            moment of its reuse costs an unknown outcome.
        closing_turns: loop iterations within which the socket of an aborted
            connection is closed: one, or two with TLS. The others are a margin.
        catch_up: how many seconds of a bulk run's starts may be caught up
            after a delay.
        most_waiting: rows of a bulk run that may wait for their number's quota.
        grace: seconds after a request's own deadline in which the loop thread
            of a blocking client hands its outcome over.
        grace_with_store: the same with a store, for whose record it may
            first wait.
        exit: seconds that the interpreter's exit waits for the calls that it
            has canceled.
        release: seconds that a request which has its outcome waits for the
            quota's store.
    """

    first_backoff: float = 0.1
    longest_backoff: float = 2.0
    keepalive: float = 4.0
    closing_turns: int = 4
    catch_up: float = 0.1
    most_waiting: int = 1000
    grace: float = 5.0
    grace_with_store: float = 15.0
    exit: float = 12.0
    release: float = 2.0


@dataclass(frozen=True, slots=True)
class JobLimits:
    """Those of a `BulkJobs`; a test gives others with `jobs._within(JobLimits(...))`.

    Attributes:
        retry: seconds until a chunk is tried again that a failure ended.
        batch: outcomes that wake the recording task.
        linger: seconds after which fewer are recorded.
        last: seconds for the last outcomes of a chunk.
    """

    retry: float = 5.0
    batch: int = 100
    linger: float = 0.5
    last: float = 10.0


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """Those of a sandbox gateway's server; a test passes others to `serving`.

    Attributes:
        turn: seconds between two looks for events of the page: it gets at most
            ten events a second.
        quiet_turns: after so many turns without an event the page gets a sign
            that the server still runs.
        receipts_waiting: receipts that may wait to be pushed; further ones are
            given up at once.
        shutdown: seconds for requests whose body is still being received when
            the server stops.
    """

    turn: float = 0.1
    quiet_turns: int = 150
    receipts_waiting: int = 10_000
    shutdown: float = 0.25
