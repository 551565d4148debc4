"""`RedisStore`: limits and verifications in a Redis server. It keeps no idempotency keys.

One script decides, by the server's clock, whether a number may be called: the
rule of `limits.py`, next to the data. `writer/` runs it for all queued
reservations at once, one after another, from one thread. A token makes a
repetition harmless: a batch whose connection broke may have been executed.
`redis_steps.py` runs the steps of verifications.

What a failover may lose. Redis confirms a reservation before it is on the disk
and before a replica has it. A crash of the server, or a replica that takes over,
may lose the last moments: with `appendonly yes` and `appendfsync everysec` about
a second of them, without persistence everything. A number whose last starts are
lost may be called more often than its limit within one window. It is never
called twice for one request: no request is sent again, and Redis keeps no keys.
The last changes of a verification may be lost too: a new one is then unknown, a
guess is not counted, and the code of an approval that is lost is accepted again.
"""

from __future__ import annotations

import hashlib
import math
import time
import weakref
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn, TypeAlias, TypeVar
from urllib.parse import parse_qsl, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError
from redis.retry import Retry

from ..errors import InvalidRequestError, StoreError
from .entry import FailureScope
from .limits import KEEP_SECONDS, Release, Reservation
from .redis_steps import STARTS, ForeignKeyError, StepRun
from .store import Store, checked_clock
from .verifications import Verifications
from .writer.operations import Committed
from .writer.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from typing_extensions import Self

    from ..models import Secret
    from .entry import UnknownClaim
    from .limits import Windows
    from .verifications import Transaction
    from .writer.operations import Step, Work

T = TypeVar("T")
# What the script returns, or the server instead.
Answer: TypeAlias = "bytes | Exception"

# Seconds until a server counts as failed: to connect, and to read an answer.
CONNECT_TIMEOUT = 3.0
READ_TIMEOUT = 3.0
# Seconds for which a server, or the network, may hold back what a broken connection has
# sent: the kernel repeats unsent bytes for about a quarter of an hour.
DOUBT_SECONDS = 3600.0
# Seconds to wait for the last batch: in `close`, and at the end of the program.
_CLOSE_TIMEOUT, _EXIT_TIMEOUT = 30.0, 10.0

_NOTHING_SENT = "nothing was sent, no phone rang"
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

_UNREADABLE = (
    "the store's URL cannot be read; it is like redis://user:password@host:6379/0, with %40 for"
    " each @, %2F for each /, %3A for each :, %3F for each ? and %23 for each # in user or password"
)
_TLS_OPTIONS = frozenset(
    {
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_keyfile",
    }
)
_TLS_IN_WORDS = f" and, with rediss:, {', '.join(sorted(_TLS_OPTIONS))}"
# More than any client allows.
_LARGEST_COUNT = 1 << 40


class RedisStore(Store):
    """A `Store` in Redis 5 or newer: limits and verifications, and no idempotency keys.

    After a crash of the server or a failover, the last starts of a number and
    the last changes of a verification may be lost. `redis.py` says what follows,
    and what that depends on.
    """

    def __init__(self, server: Server) -> None:
        self.is_new: bool = False
        self._server = server
        self._writer = Writer(server.connect, time.time, place=server.place, on_server=True)
        self._finalizer = weakref.finalize(
            self, self._writer.stop, _EXIT_TIMEOUT, greenlets_run=False
        )

    @classmethod
    def at(
        cls,
        url: Secret,
        *,
        create: bool,  # noqa: ARG003 - there is nothing to create
        patience: float,  # noqa: ARG003 - it is for keys
        clock: Callable[[], float] | None,
    ) -> Self:
        """What `Store.open` calls, with arguments that it has checked."""
        server = _server(url, None if clock is None else checked_clock(clock))
        if isinstance(server, Exception):
            raise server
        # Fails now rather than at the first call.
        server.connect().close()
        return cls(server)

    @property
    def place(self) -> str:
        """See `Store`."""
        return self._server.place

    @property
    def limits(self) -> Self:
        """See `Store`."""
        return self

    @property
    def verifications(self) -> Verifications:
        """See `Store`."""
        return Verifications(self)

    async def run(self, step: Callable[[Transaction], T], deadline: float) -> T:
        """See `StepRunner`."""
        return await self._writer.run(step, deadline)

    def close(self) -> None:
        """See `Store`."""
        self._finalizer.detach()
        self._writer.stop(_CLOSE_TIMEOUT)

    def __repr__(self) -> str:
        state = "closed" if self._writer.closed else "open"
        return f"<{type(self).__name__} {self.place} {state}>"

    # --- for the operator ------------------------------------------------------

    def unknown(self) -> list[UnknownClaim]:
        """See `Store`: none, because Redis keeps no keys."""
        self._writer.check_usable()
        return []

    def resolve(self, key: str, *, placed: bool) -> NoReturn:  # noqa: ARG002 - as `Store`'s
        """See `Store`: always an InvalidRequestError."""
        self._writer.check_usable()
        msg = (
            f"{self.place} keeps no idempotency keys, so there is none to resolve: a key must"
            " survive a crash of the server, and Redis may lose its last writes. Name the store in"
            " SQLite, PostgreSQL or MySQL that has the key"
        )
        raise InvalidRequestError(msg)

    def summary(self) -> dict[str, int]:
        """See `Store`: all zero, because Redis keeps no keys."""
        self._writer.check_usable()
        return {"accepted": 0, "refused": 0, "not_sent": 0, "unknown": 0}

    def purge(self, older_than: timedelta) -> int:
        """See `Store`: always 0, because starts and verifications expire by themselves."""
        if older_than < timedelta(0):
            msg = f"older_than must not be negative, not {older_than}"
            raise ValueError(msg)
        self._writer.check_usable()
        return 0

    # --- for the clients -------------------------------------------------------

    async def reserve(
        self, number: str, token: str, windows: Windows, *, deadline: float = math.inf
    ) -> float:
        """See `LimitStore`; it fails at the deadline (monotonic seconds).

        Raises:
            StoreError: the server failed, or the deadline passed first.
            RuntimeError: the store is closed.
        """
        try:
            return await self._writer.reserve(Reservation(number, token, windows), deadline)
        except StoreError as error:
            msg = f"{error.reason}; {_NOTHING_SENT}"
            raise StoreError(msg) from error.__cause__

    async def release(self, number: str, token: str) -> None:
        """See `LimitStore`; where it fails, it is retried until the program ends.

        Raises:
            StoreError: it is not recorded yet.
            RuntimeError: the store is closed.
        """
        await self._writer.release(Release(number, token))


class Server:
    """A Redis server: opens connections to it. Its repr shows no password.

    Attributes:
        place: its URL without user and password.
        doubtful_until: until when the server may still execute what a broken
            connection has sent, in monotonic seconds.
    """

    __slots__ = ("_clock", "_options", "doubtful_until", "place")

    def __init__(
        self, place: str, options: dict[str, object], clock: Callable[[], float] | None
    ) -> None:
        self.place: str = place
        self.doubtful_until: float = 0.0
        self._clock = clock
        self._options = options

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.place}>"

    def connect(self) -> RedisConnection:
        """Open a connection.

        Raises:
            StoreError: it cannot be used.
        """
        return RedisConnection(self)

    def now(self) -> str:
        """The caller's clock; "" where the server's decides."""
        return "" if self._clock is None else repr(self._clock())

    def client(self, connect: Callable[[redis.Connection], None]) -> redis.Redis:
        """A client with one connection, which `connect` prepares each time it is opened."""
        pool = redis.BlockingConnectionPool(
            max_connections=1,
            timeout=CONNECT_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
            socket_timeout=READ_TIMEOUT,
            socket_keepalive=True,
            # The writer decides what is tried again.
            retry=Retry(NoBackoff(), 0),
            redis_connect_func=connect,
            protocol=2,
            **self._options,
        )
        return redis.Redis(connection_pool=pool)

    def attempt(self, act: Callable[[], T]) -> T | StoreError:
        """What `act` returns, or the error to raise: frames of redis-py hold the password."""
        try:
            return act()
        except StoreError as error:
            return StoreError(error.reason)
        except Exception as error:  # noqa: BLE001 - redis-py and TLS may raise anything
            return self.failure(error)

    def failure(self, error: Exception) -> StoreError:
        """A `StoreError` whose cause is `error`, without its frames and the password."""
        # Redis repeats the arguments of a command that it does not know.
        text = " ".join(str(error).split()).partition(", with args beginning with")[0]
        # redis-py repeats a command of a transaction that the server refused.
        text = text.rpartition(" of pipeline caused error: ")[2]
        if password := self._options.get("password"):
            text = text.replace(str(password), "****")
        failure = StoreError(f"{self.place}: {text} ({type(error).__name__})")
        error.args = (text,)
        error.__context__ = error.__cause__ = None
        failure.__cause__ = error.with_traceback(None)
        return failure


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


def _server(url: Secret, clock: Callable[[], float] | None) -> Server | ValueError:
    """The server of a URL, or the error to raise: this frame holds the password."""
    # Without the parsers' messages, because they may contain a password.
    try:
        parts = urlsplit(url.reveal())
        port = parts.port
        options: dict[str, object] = parse_url(url.reveal())
    except ValueError:
        return ValueError(_UNREADABLE)
    path = parts.path.strip("/")
    if not parts.hostname or "#" in url.reveal() or not (path.isdecimal() or not path):
        return ValueError(_UNREADABLE)
    secure = parts.scheme == "rediss"
    asked = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    if asked - {"client_name", "db"} - (_TLS_OPTIONS if secure else set()):
        # Without the names: a password with ? in it reads like options.
        return ValueError(f"{_UNREADABLE}. Its options are db, client_name{_TLS_IN_WORDS}")
    if secure:
        # redis-py before 6 does not compare the name.
        options.setdefault("ssl_check_hostname", options.get("ssl_cert_reqs") != "none")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    place = f"{parts.scheme}://{host}:{port or 6379}/{options.get('db', 0)}"
    return Server(place, options, clock)
