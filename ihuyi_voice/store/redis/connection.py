"""One connection to a Redis server, which executes what the writer has queued.

One script decides, by the server's clock, whether a number may be called: the
rule of `limits.py`, next to the data. It runs for all queued reservations at
once, one after another. A token makes a repetition harmless: a batch whose
connection broke may have been executed.
"""

from __future__ import annotations

import hashlib
import math
import time
from typing import TYPE_CHECKING, TypeAlias

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError

from ...errors import StoreError
from ..entry import FailureScope
from ..limits import KEEP_SECONDS, Release, Reservation
from ..writer.operations import Committed
from .steps import STARTS, ForeignKeyError, StepRun

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import redis

    from ..writer.operations import Step, Work
    from .server import Server

# What the script returns, or the server instead.
Answer: TypeAlias = "bytes | Exception"

# Seconds for which a server, or the network, may hold back what a broken connection has
# sent: the kernel repeats unsent bytes for about a quarter of an hour.
DOUBT_SECONDS = 3600.0

# More than any client allows.
_LARGEST_COUNT = 1 << 40
_RELEASED = "ihuyi_voice:released:"

# KEYS: the starts of a number, a sorted set of tokens by their times; the mark of a
# released token. Times and waits are strings, because Redis cuts numbers to integers.
_SCRIPT = """
local starts, released = KEYS[1], KEYS[2]
local action, token = ARGV[1], ARGV[2]

if action == 'release' then
  redis.call('ZREM', starts, token)
  if ARGV[3] ~= '0' then
    redis.pcall('SET', released, '', 'PX', ARGV[3])
  end
  return '0'
end

if redis.call('ZSCORE', starts, token) then
  return '0'
end
if redis.call('EXISTS', released) == 1 then
  return redis.error_reply('RELEASED this reservation was given back')
end
local keep = tonumber(ARGV[4])
local now = tonumber(ARGV[3])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local wait = 0
for i = 5, #ARGV, 2 do
  local count, seconds = ARGV[i], tonumber(ARGV[i + 1])
  local start = redis.call('ZRANGE', starts, '-' .. count, '-' .. count, 'WITHSCORES')
  if start[2] then
    wait = math.max(wait, math.min(tonumber(start[2]) + seconds - now, seconds))
  end
end
if wait > 0 then
  return string.format('%.17g', wait)
end
local last = redis.call('ZRANGE', starts, '-1', '-1', 'WITHSCORES')
local at = now
if last[2] then
  at = math.max(now, tonumber(last[2]))
end
-- The first change, because a server without memory refuses no later one.
redis.call('ZADD', starts, string.format('%.17g', at), token)
redis.call('ZREMRANGEBYSCORE', starts, '-inf', string.format('%.17g', now - keep))
-- A second more, because Redis cuts the time to milliseconds.
local ahead = math.min(at - now, keep)
redis.call('PEXPIRE', starts, string.format('%.0f', (keep + ahead + 1) * 1000))
return '0'
"""
_DIGEST = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()


class RedisConnection:
    """One connection to a Redis server; a `Connection` for the writer.

    Attributes:
        failure_scope: see `Connection`.
        committing: see `Connection`; whether the last batch was sent.
    """

    def __init__(self, server: Server) -> None:
        self.failure_scope: FailureScope = FailureScope.DATABASE
        self.committing: bool = False
        # Seconds for which steps are repeated that other processes disturb.
        self._patience = 0.0
        self._server = server
        self._client = server.client(self._prepare)
        failure = server.attempt(self._client.ping)
        if isinstance(failure, StoreError):
            self.close()
            raise failure

    def close(self) -> None:
        """Close it; does no harm twice."""
        self._client.connection_pool.disconnect()

    def wait_for_rows(self, seconds: float) -> None:
        """Repeat steps for at most so long whose keys other processes change."""
        self._patience = seconds

    def forget_expired(self) -> bool:
        """Nothing: Redis deletes what has expired."""
        return False

    def apply(self, work: Work) -> Committed:
        """Run the steps, or give back and reserve, in this order; see `Connection`.

        The writer executes steps apart from all else: neither fails because of the other.
        """
        self.committing = False
        self.failure_scope = FailureScope.DATABASE
        if work.steps:
            return Committed(set(), {}, {}, {}, self._run_steps(work.steps))
        now = self._server.now() if work.reservations else ""
        releases = self._releases(work.releases)
        answers = self._run([*releases, *(_reserve(one, now) for one in work.reservations)])
        if errors := _errors(answers):
            raise self._failed(work, errors)
        seconds = [float(answer) for answer in answers if not isinstance(answer, Exception)]
        pairs = zip(work.reservations, seconds[len(releases) :], strict=True)
        return Committed(set(), {}, {}, {one.token: wait for one, wait in pairs if wait > 0.0})

    def _run_steps(self, steps: Sequence[tuple[str, Step]]) -> dict[str, object]:
        """Run steps of verifications as one transaction; returns their results by name."""
        batch = StepRun(self._client, steps)
        end = time.monotonic() + self._patience
        while True:
            now = self._server.now()
            results = self._server.attempt(lambda: batch.attempt(now))  # noqa: B023 - it runs at once
            if isinstance(results, StoreError):
                self.committing = batch.may_be_written
                self.failure_scope = _scope_of(results.__cause__)
                raise results
            if results is not None:
                return results
            if time.monotonic() >= end:
                self.failure_scope = FailureScope.ROW_LOCK
                msg = f"{self._server.place}: other processes keep changing the same verification"
                raise StoreError(msg)

    def _failed(self, work: Work, errors: Sequence[Exception]) -> StoreError:
        """The error for a batch of which some or all was not executed."""
        # Give back the rest of it: where it is tried again, it may no longer be wanted.
        undone = self._run(self._releases(work.reservations))
        if all(str(error).startswith("WRONGTYPE") for error in (*errors, *_errors(undone))):
            # Another program has written a key of a number: that number fails, and no other.
            self.failure_scope = FailureScope.KEY
            self.committing = False
        return self._server.failure(errors[0])

    def _releases(self, some: Iterable[Release | Reservation]) -> list[list[str]]:
        # A reservation that is still on its way must find its token released.
        doubt = max(0.0, self._server.doubtful_until - time.monotonic())
        milliseconds = str(math.ceil(doubt * 1000))
        return [_call(one.number, one.token, "release", milliseconds) for one in some]

    def _run(self, calls: list[list[str]]) -> list[Answer]:
        """Run the script for each of the calls; returns the answers, errors among them."""
        self.committing = True
        answers = self._server.attempt(lambda: self._execute(calls))
        if isinstance(answers, StoreError):
            self._server.doubtful_until = time.monotonic() + DOUBT_SECONDS
            if isinstance(answers.__cause__, RedisConnectionError):
                # The server may have restarted; one that is too slow is not asked again at once.
                self.failure_scope = FailureScope.CONNECTION
            raise answers
        return answers

    def _execute(self, calls: list[list[str]]) -> list[Answer]:
        answers = self._send(calls)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            # What has been executed is recognised by its tokens.
            self._client.script_load(_SCRIPT)
            answers = self._send(calls)
        return answers

    def _send(self, calls: list[list[str]]) -> list[Answer]:
        pipeline = self._client.pipeline(transaction=False)
        for arguments in calls:
            pipeline.execute_command("EVALSHA", _DIGEST, 2, *arguments)
        answers: list[Answer] = pipeline.execute(raise_on_error=False)
        return answers

    def _prepare(self, connection: redis.Connection) -> None:
        """Log in, refuse a server that may forget starts, and load the script."""
        connection.on_connect()
        connection.send_command("INFO")
        refusal = _refusal(_facts(connection.read_response()))
        if refusal is not None:
            msg = f"{self._server.place}: {refusal}"
            raise StoreError(msg)
        connection.send_command("SCRIPT", "LOAD", _SCRIPT)
        connection.read_response()


def _scope_of(error: BaseException | None) -> FailureScope:
    """What a failure of steps means for other steps."""
    if isinstance(error, RedisConnectionError):
        # The server may have restarted; one that is too slow is not asked again at once.
        return FailureScope.CONNECTION
    # Without memory, the server still answers steps that only read.
    alone = isinstance(error, ForeignKeyError | OutOfMemoryError)
    if alone or str(error).startswith("WRONGTYPE"):
        return FailureScope.KEY
    return FailureScope.DATABASE


def _reserve(one: Reservation, now: str) -> list[str]:
    windows = [
        # Redis refuses an index of more than 64 bits.
        part
        for count, seconds in one.windows
        for part in (str(min(count, _LARGEST_COUNT)), repr(seconds))
    ]
    return _call(one.number, one.token, "reserve", now, repr(KEEP_SECONDS), *windows)


def _call(number: str, token: str, action: str, *arguments: str) -> list[str]:
    """The keys and arguments of one run of the script."""
    return [f"{STARTS}{number}", f"{_RELEASED}{token}", action, token, *arguments]


def _errors(answers: Iterable[Answer]) -> list[Exception]:
    return [answer for answer in answers if isinstance(answer, Exception)]


def _facts(info: object) -> dict[str, str]:
    """What the answer to INFO says, by name."""
    text = info.decode(errors="replace") if isinstance(info, bytes) else ""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in pairs}


def _refusal(facts: dict[str, str]) -> str | None:
    """Why a server cannot keep limits, and what to do; None where it can."""
    if facts.get("cluster_enabled") == "1":
        return (
            "it is a node of a Redis Cluster, which this store does not support: use a single"
            " server, with replicas if you like"
        )
    if facts.get("role") != "master":
        return (
            f"its role is {facts.get('role')}, and only a master can be written: give the master's"
            " address"
        )
    policy = facts.get("maxmemory_policy")
    if policy != "noeviction":
        return (
            f"its maxmemory-policy is {policy}, with which it may delete starts of calls, so that a"
            " number could be called too often: set it to noeviction (CONFIG SET maxmemory-policy"
            " noeviction, and maxmemory-policy noeviction in redis.conf)"
        )
    return None
