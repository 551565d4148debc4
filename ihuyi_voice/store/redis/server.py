"""A Redis server: reads its URL, opens connections, and refuses one that may forget starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar
from urllib.parse import parse_qsl, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from ...errors import StoreError
from .connection import RedisConnection

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...models import Secret

T = TypeVar("T")

# Seconds until a server counts as failed: to connect, and to read an answer.
CONNECT_TIMEOUT = 3.0
READ_TIMEOUT = 3.0

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


def server_of(url: Secret, clock: Callable[[], float] | None) -> Server | ValueError:
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
