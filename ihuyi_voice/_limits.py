"""Times and counts that users cannot change, and tests can."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Part of a client's `Settings`; a test gives others with `client._within(Limits(...))`.

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
