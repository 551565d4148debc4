"""Runs the steps of `verifications.py` in a Redis server, with optimistic locking.

Each key that a step reads is watched, and what it writes is kept until all steps
of a batch have run. EXEC then writes everything, or nothing where another client
has changed a watched key meanwhile: then the steps run again. A late EXEC of a
broken connection changes nothing that a repetition has changed.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import orjson
from redis.exceptions import RedisError, WatchError

from ...models import VerificationStatus
from ..limits import KEEP_SECONDS, Start
from ..verifications import Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis
    from redis.client import Pipeline

    from ..writer.operations import Step

STARTS = "ihuyi_voice:starts:"
"""The keys of starts, by the hash of a number: sorted sets of tokens by their times."""
_VERIFICATION = "ihuyi_voice:verification:"


class ForeignKeyError(RedisError):
    """Another program has written the key of a verification; never leaves the store."""


class StepRun:
    """Runs a batch of steps as one transaction.

    Args:
        client: has one connection, which the transaction uses.
        steps: functions, each with a name. They may run several times; their
            writes are executed once.

    Attributes:
        may_be_written: whether EXEC was sent, and its answer is not known.
    """

    def __init__(self, client: redis.Redis, steps: Sequence[tuple[str, Step]]) -> None:
        self.may_be_written: bool = False
        self._client = client
        self._steps = steps

    def attempt(self, clock: str) -> dict[str, object] | None:
        """Run them once; None where another client has changed what they read.

        Args:
            clock: the caller's clock; "" where the server's decides.
        """
        # It stays on one connection, so that no reconnection forgets what is watched.
        with self._client.pipeline() as pipeline:
            try:
                now = float(clock) if clock else _server_time(pipeline)
                transaction = RedisTransaction(pipeline, now)
                results = {name: step(transaction) for name, step in self._steps}
                self.may_be_written = transaction.has_writes
                transaction.commit()
            except WatchError as conflict:
                # redis-py raises it also where the connection breaks while a key is watched.
                broken = conflict.__context__
                if isinstance(broken, Exception):
                    raise broken from None
                results = None
        self.may_be_written = False
        return results


def _server_time(pipeline: Pipeline) -> float:
    seconds, microseconds = pipeline.immediate_execute_command("TIME")
    return int(seconds) + int(microseconds) / 1e6


class RedisTransaction:
    """See `store.verifications.Transaction`; the steps of a batch share it.

    Args:
        pipeline: of a connection that watches nothing yet.
        now: the store's clock.
    """

    def __init__(self, pipeline: Pipeline, now: float) -> None:
        self._pipeline = pipeline
        self._now = now
        # What the steps have read or written so far.
        self._records: dict[str, Record | None] = {}
        self._starts: dict[str, tuple[Start, ...]] = {}
        self._writes: list[tuple[str | bytes, ...]] = []

    @property
    def has_writes(self) -> bool:
        """Whether the steps change anything."""
        return bool(self._writes)

    def commit(self) -> None:
        """Execute the writes of all steps.

        Raises:
            WatchError: nothing was written, because another client was faster;
                or the connection broke, and everything may be written.
        """
        if not self._writes:
            return
        self._pipeline.multi()
        for command in self._writes:
            self._pipeline.execute_command(*command)
        self._pipeline.execute()

    def now(self) -> float:
        """See `Transaction`."""
        return self._now

    def find(self, id: str) -> Record | None:  # noqa: A002 - its name
        """See `Transaction`."""
        if id not in self._records:
            key = f"{_VERIFICATION}{id}"
            self._pipeline.watch(key)
            # Executed at once, because a key is watched.
            self._records[id] = _record(self._pipeline.get(key))
        return self._records[id]

    def save(self, record: Record, *, is_new: bool = False) -> None:  # noqa: ARG002 - one command for both
        """See `Transaction`."""
        self._records[record.id] = record
        text = orjson.dumps({**asdict(record), "status": record.status.value})
        expiry = _milliseconds(record.expires_at + KEEP_SECONDS - self._now)
        self._writes.append(("SET", f"{_VERIFICATION}{record.id}", text, "PX", expiry))

    def starts(self, number: str) -> Sequence[Start]:
        """See `Transaction`."""
        if number not in self._starts:
            key = f"{STARTS}{number}"
            self._pipeline.watch(key)
            found: Any = self._pipeline.zrange(key, 0, -1, withscores=True)
            self._starts[number] = tuple(Start(float(at), token.decode()) for token, at in found)
        return self._starts[number]

    def save_starts(self, number: str, starts: Sequence[Start]) -> None:
        """See `Transaction`."""
        key, before = f"{STARTS}{number}", self.starts(number)
        self._starts[number] = tuple(starts)
        if gone := [start.token for start in before if start not in starts]:
            self._writes.append(("ZREM", key, *gone))
        if made := [start for start in starts if start not in before]:
            pairs = [part for start in made for part in (repr(start.at), start.token)]
            self._writes.append(("ZADD", key, *pairs))
            # As in the script: a clock that was set back keeps it for one window more at most.
            ahead = min(made[-1].at - self._now, KEEP_SECONDS)
            self._writes.append(("PEXPIRE", key, _milliseconds(KEEP_SECONDS + ahead)))

    def purge(self, before: float) -> int:  # noqa: ARG002 - they expire by themselves
        """See `Transaction`: Redis deletes what has expired."""
        return 0


def _record(stored: object) -> Record | None:
    """A verification as it is stored, None where there is none."""
    if not isinstance(stored, bytes):
        return None
    try:
        fields = orjson.loads(stored)
        return Record(**{**fields, "status": VerificationStatus(fields["status"])})
    except (ValueError, TypeError, KeyError):
        msg = "another program has written the key of a verification"
        raise ForeignKeyError(msg) from None


def _milliseconds(seconds: float) -> str:
    # A second more, because Redis cuts the time to milliseconds.
    return str(max(1000, int(seconds * 1000) + 1000))
