"""Runs the steps of `verifications.py` in a Redis server, with optimistic locking.

A step reads keys that it watches, and its writes are executed together, unless
another client has changed one of the keys meanwhile: then it runs again.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

import orjson
from redis.exceptions import WatchError

from ..models import VerificationStatus
from .limits import KEEP_SECONDS, Start
from .verifications import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import redis
    from redis.client import Pipeline

T = TypeVar("T")

STARTS = "ihuyi_voice:starts:"
"""The keys of starts, by the hash of a number: sorted sets of tokens by their times."""
_VERIFICATION = "ihuyi_voice:verification:"

# How often a step runs until it fails: another client wins each time.
_MOST_RUNS = 1000


class BusyError(Exception):
    """Other clients changed the same keys all the time; never leaves the store."""


def run(client: redis.Redis, step: Callable[[RedisTransaction], T], clock: str) -> T:
    """Run a step as one transaction.

    Args:
        client: has one connection, which the transaction uses.
        step: may run several times; its writes are executed once. Where a
            connection breaks they may be executed, and it runs again.
        clock: the caller's clock; "" where the server's decides.
    """
    for _ in range(_MOST_RUNS):
        now = float(clock) if clock else _server_time(client)
        with client.pipeline(transaction=True) as pipeline:
            try:
                return RedisTransaction(pipeline, now).run(step)
            except WatchError:
                continue
    msg = "other clients changed the same verification all the time"
    raise BusyError(msg)


def _server_time(client: redis.Redis) -> float:
    seconds, microseconds = client.time()
    return int(seconds) + int(microseconds) / 1e6


class RedisTransaction:
    """See `store.verifications.Transaction`."""

    def __init__(self, pipeline: Pipeline, now: float) -> None:
        self._pipeline = pipeline
        self._now = now
        self._writes: list[Callable[[], object]] = []

    def run(self, step: Callable[[RedisTransaction], T]) -> T:
        """Run the step and execute its writes.

        Raises:
            WatchError: nothing was written, because another client was faster,
                or the connection broke.
        """
        result = step(self)
        if self._writes:
            self._pipeline.multi()
            for write in self._writes:
                write()
            self._pipeline.execute()
        return result

    def now(self) -> float:
        """See `Transaction`."""
        return self._now

    def find(self, id: str) -> Record | None:  # noqa: A002 - its name
        """See `Transaction`."""
        key = f"{_VERIFICATION}{id}"
        self._pipeline.watch(key)
        # Executed at once, because a key is watched.
        stored: object = self._pipeline.get(key)
        if not isinstance(stored, bytes):
            return None
        fields = orjson.loads(stored)
        return Record(**{**fields, "status": VerificationStatus(fields["status"])})

    def save(self, record: Record, *, is_new: bool = False) -> None:  # noqa: ARG002 - one command for both
        """See `Transaction`."""
        text = orjson.dumps({**asdict(record), "status": record.status.value})
        key = f"{_VERIFICATION}{record.id}"
        milliseconds = _milliseconds(record.expires_at + KEEP_SECONDS - self._now)
        self._writes.append(lambda: self._pipeline.set(key, text, px=milliseconds))

    def starts(self, number: str) -> Sequence[Start]:
        """See `Transaction`."""
        key = f"{STARTS}{number}"
        self._pipeline.watch(key)
        found: object = self._pipeline.zrange(key, 0, -1, withscores=True)
        pairs = found if isinstance(found, list) else []
        return [Start(float(at), token.decode()) for token, at in pairs]

    def save_starts(self, number: str, starts: Sequence[Start]) -> None:
        """See `Transaction`."""
        key = f"{STARTS}{number}"
        scores = {start.token: start.at for start in starts}

        def write() -> None:
            self._pipeline.delete(key)
            if scores:
                self._pipeline.zadd(key, scores)
                seconds = max(scores.values()) + KEEP_SECONDS - self._now
                self._pipeline.pexpire(key, _milliseconds(seconds))

        self._writes.append(write)

    def purge(self, before: float) -> int:  # noqa: ARG002 - they expire by themselves
        """See `Transaction`: Redis deletes what has expired."""
        return 0


def _milliseconds(seconds: float) -> int:
    return max(1000, int(seconds * 1000) + 1000)
