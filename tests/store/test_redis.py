"""What only a store in Redis has: its server, its script, its failures, and no keys."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from ihuyi_voice import (
    AsyncVoiceClient,
    InvalidRequestError,
    NotSentError,
    Store,
    StoreError,
    VoiceClient,
)
from ihuyi_voice.models import Secret
from ihuyi_voice.sandbox import SandboxGateway
from ihuyi_voice.store.limits import KEEP_SECONDS, Release, Reservation
from ihuyi_voice.store.redis import RedisStore
from ihuyi_voice.store.redis import connection as redis_connection
from ihuyi_voice.store.redis import server as redis_server
from ihuyi_voice.store.writer.operations import Work
from tests.inside import server_of

from .redis_server import free_port, running_redis
from .support import Clock, run
from .test_secrets import PASSWORD, chain, leaks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .redis_server import RedisServer

MOBILE = "13912345678"
CODE = "112578"
ONE_A_MINUTE = ((1, 60.0),)
TWO_A_MINUTE = ((2, 60.0),)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis() as running:
        yield running


@pytest.fixture
def url(server: RedisServer) -> str:
    return server.empty()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """By the server's clock."""
    with Store.open(url) as opened:
        yield opened


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer within a moment counts as failed."""
    monkeypatch.setattr(redis_server, "CONNECT_TIMEOUT", 0.2)
    monkeypatch.setattr(redis_server, "READ_TIMEOUT", 0.2)


def tokens(server: RedisServer, number: str = "n") -> list[bytes]:
    """What the server keeps for a number."""
    with server.client() as client:
        members: list[bytes] = client.zrange(f"ihuyi_voice:starts:{number}", 0, -1)
        return members


def times(server: RedisServer, number: str = "n") -> list[float]:
    with server.client() as client:
        pairs: Any = client.zrange(f"ihuyi_voice:starts:{number}", 0, -1, withscores=True)
        return [at for _, at in pairs]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the store's thread does without a caller."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


# --- opening ---------------------------------------------------------------------


@pytest.mark.parametrize("create", [True, False])
def test_it_is_opened_by_its_url(server: RedisServer, create: bool) -> None:
    with Store.open(server.url(3), create=create) as store:
        place = f"redis://127.0.0.1:{server.port}/3"
        assert isinstance(store, RedisStore)
        assert (place, False) == (store.place, store.is_new)
        assert f"<RedisStore {place} open>" == repr(store)
    store.close()
    assert f"<RedisStore {place} closed>" == repr(store)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://Host", "redis://host:6379/0"),
        ("rediss://u:p@host:1/2", "rediss://host:1/2"),
        ("redis://:a%40b@[::1]:7/", "redis://[::1]:7/0"),
        ("redis://host?db=4&client_name=voice", "redis://host:6379/4"),
        ("rediss://host?ssl_cert_reqs=none", "rediss://host:6379/0"),
    ],
)
def test_its_place_has_no_password(url: str, place: str) -> None:
    named = redis_server.server_of(Secret(url), None)
    assert isinstance(named, redis_server.Server)
    assert (place, f"<Server {place}>") == (named.place, repr(named))


@pytest.mark.parametrize(
    "url",
    [
        "redis:///0",
        "redis://:hunter2@",
        "redis://host/voice",
        "redis://host:hunter2/0",
        "redis://:hunter2/x@host/0",
        "redis://:12?hunter2@host/0",
        "redis://:12#hunter2@host/0",
        "redis://h:12#hunter2@host/0",
        "redis://[hunter2",
        "redis://host/0?socket_timeout=hunter2",
        "redis://host/0?ssl_keyfile=hunter2",
        "redis://host/0?password=hunter2",
        "redis://host/0?db=hunter2",
        "redis+unix://hunter2",
    ],
)
def test_a_url_that_cannot_be_read_is_an_error_without_it(url: str) -> None:
    with pytest.raises(ValueError, match="cannot be read; it is like redis://user") as caught:
        Store.open(url)
    assert [] == leaks(caught.value)


def test_without_redis_py_the_command_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    for name in ("redis", "redis.store", "redis.server", "redis.connection"):
        monkeypatch.delitem(sys.modules, f"ihuyi_voice.store.{name}")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ihuyi-voice\[redis\]'"):
        Store.open("redis://host")


def test_tls_is_verified(tmp_path: Path) -> None:
    authority, certificate = tmp_path / "ca.pem", tmp_path / "server.pem"
    ca = trustme.CA()
    ca.cert_pem.write_to_path(authority)
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    port = free_port()
    options = ["--tls-port", str(port), "--tls-auth-clients", "no"]
    files = {"cert": certificate, "key": certificate, "ca-cert": authority}
    for name, file in files.items():
        options += [f"--tls-{name}-file", str(file)]
    url = f"rediss://127.0.0.1:{port}/0"
    with running_redis(*options):
        with pytest.raises(StoreError, match="CERTIFICATE_VERIFY_FAILED"):
            Store.open(url)
        with Store.open(f"{url}?ssl_ca_certs={authority}") as store:
            assert 0.0 == asyncio.run(store.limits.reserve("n", "t", ONE_A_MINUTE))


# --- servers that cannot keep limits ------------------------------------------------


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "allkeys-random"])
def test_a_server_that_may_drop_keys_is_refused(policy: str) -> None:
    with running_redis("--maxmemory-policy", policy) as server:
        with pytest.raises(StoreError) as caught:
            Store.open(server.url())
        text = str(caught.value)
        assert f"{server.url()}: its maxmemory-policy is {policy}" in text
        assert "CONFIG SET maxmemory-policy noeviction" in text


async def test_it_is_refused_at_each_connection(server: RedisServer, store: Store) -> None:
    assert 0.0 == await store.limits.reserve("n", "before", TWO_A_MINUTE)
    with server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(StoreError, match=r"maxmemory-policy is allkeys-lru.*no phone rang"):
            await store.limits.reserve("n", "refused", TWO_A_MINUTE)
        client.config_set("maxmemory-policy", "noeviction")
    assert 0.0 == await store.limits.reserve("n", "after", TWO_A_MINUTE)


def test_a_replica_is_refused(server: RedisServer) -> None:
    with (
        running_redis("--replicaof", "127.0.0.1", str(server.port)) as replica,
        pytest.raises(StoreError, match="its role is slave, and only a master can be"),
    ):
        Store.open(replica.url())


def test_a_node_of_a_cluster_is_refused() -> None:
    # By default another port, which may be in use.
    options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    with (
        running_redis(*options) as node,
        pytest.raises(StoreError, match="it is a node of a Redis Cluster"),
    ):
        Store.open(node.url())


def test_a_user_without_a_needed_command_is_refused(server: RedisServer) -> None:
    with server.client() as client:
        client.acl_setuser(
            "limited",
            enabled=True,
            passwords=[f"+{PASSWORD}"],
            categories=["+@all"],
            commands=["-info"],
            keys=["*"],
        )
    with pytest.raises(StoreError, match="no permissions to run the 'info' command") as caught:
        Store.open(server.url(login=f"limited:{PASSWORD}@"))
    assert [] == leaks(caught.value)


# --- no keys -----------------------------------------------------------------------


def test_it_keeps_no_keys(store: Store) -> None:
    assert store.claims is None
    with pytest.raises(InvalidRequestError, match=r"a job cannot be kept in redis://"):
        _ = store.jobs
    assert ([], 0) == (store.unknown(), store.purge(timedelta()))
    assert {"accepted": 0, "refused": 0, "not_sent": 0, "unknown": 0} == store.summary()
    with pytest.raises(InvalidRequestError, match="keeps no idempotency keys, so there is none"):
        store.resolve("k", placed=True)
    with pytest.raises(ValueError, match="older_than must not be negative"):
        store.purge(timedelta(-1))
    store.close()
    for act in (
        store.unknown,
        store.summary,
        lambda: store.resolve("k", placed=False),
        lambda: store.purge(timedelta()),
    ):
        with pytest.raises(RuntimeError, match="this store is closed"):
            act()


async def test_a_key_is_an_error_that_says_where_keys_are_kept(store: Store) -> None:
    gateway = SandboxGateway()
    async with (
        gateway.serve() as url,
        AsyncVoiceClient("sandbox", "sandbox-key", base_url=url, store=store) as client,
    ):
        with pytest.raises(InvalidRequestError, match="SQLite, PostgreSQL or MySQL for keys"):
            await client.submit(MOBILE, CODE, idempotency_key="k")
    assert [] == gateway.attempts


# --- what the server keeps --------------------------------------------------------


async def test_the_clock_of_the_server_decides(
    server: RedisServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server.client() as client:
        seconds, microseconds = client.time()
        monkeypatch.setattr("time.time", lambda: 1.0)
        assert 0.0 == await store.limits.reserve("n", "t", ONE_A_MINUTE)
        later, more = client.time()
    [at] = times(server)
    assert seconds + microseconds / 1e6 <= at <= later + more / 1e6
    assert 0.0 < await store.limits.reserve("n", "second", ONE_A_MINUTE) <= 60.0


async def test_a_number_has_one_key_which_expires(server: RedisServer, store: Store) -> None:
    for number in ("a", "b"):
        for token in ("1", "2"):
            assert 0.0 == await store.limits.reserve(number, token, TWO_A_MINUTE)
    keys = {b"ihuyi_voice:starts:a", b"ihuyi_voice:starts:b"}
    with server.client() as client:
        assert keys == set(client.keys())
        for key in keys:
            left = client.pttl(key)
            # Never before the longest window is over.
            assert KEEP_SECONDS * 1000 - 20_000 < left <= (KEEP_SECONDS + 2) * 1000
    for token in ("1", "2"):
        await store.limits.release("a", token)
    with server.client() as client:
        assert [b"ihuyi_voice:starts:b"] == client.keys()


async def test_after_a_clock_was_set_back_a_key_is_kept_until_its_window_is_over(
    server: RedisServer, url: str
) -> None:
    clock = Clock()
    with Store.open(url, clock=clock) as store:
        assert 0.0 == await store.limits.reserve("n", "first", TWO_A_MINUTE)
        clock.time -= 500.0
        assert 0.0 == await store.limits.reserve("n", "second", TWO_A_MINUTE)
    with server.client() as client:
        left = client.pttl("ihuyi_voice:starts:n")
    assert (KEEP_SECONDS + 480) * 1000 < left <= (KEEP_SECONDS + 502) * 1000


async def test_a_limit_may_be_any_number(store: Store) -> None:
    windows = ((10**30, 60.0), (1, 0.001))
    assert 0.0 == await store.limits.reserve("n", "t", windows)


def fail() -> float:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("clock", "reason"), [(fail, "ZeroDivisionError"), (lambda: float("nan"), "it says nan")]
)
async def test_a_failing_clock_is_an_error(
    url: str, clock: Callable[[], float], reason: str
) -> None:
    with (
        Store.open(url, clock=clock) as store,
        pytest.raises(StoreError, match=rf"its clock failed \({reason}\)"),
    ):
        await store.limits.reserve("n", "t", ONE_A_MINUTE)


async def test_a_script_that_the_server_has_lost_is_loaded_again(
    server: RedisServer, store: Store
) -> None:
    assert 0.0 == await store.limits.reserve("n", "before", TWO_A_MINUTE)
    with server.client() as client:
        client.script_flush()
    waits = await asyncio.gather(
        *(store.limits.reserve("n", str(i), TWO_A_MINUTE) for i in range(9))
    )
    assert 1 == waits.count(0.0)


async def test_a_restart_loses_no_start_and_fails_no_request(
    server: RedisServer, store: Store
) -> None:
    assert 0.0 == await store.limits.reserve("n", "before", TWO_A_MINUTE)
    server.restart()
    assert 0.0 == await store.limits.reserve("n", "after", TWO_A_MINUTE)
    assert 0.0 < await store.limits.reserve("n", "third", TWO_A_MINUTE)


async def test_a_key_that_another_program_wrote_fails_its_number_alone(
    server: RedisServer, store: Store
) -> None:
    with server.client() as client:
        client.set("ihuyi_voice:starts:foreign", "text")
    numbers = ["a", "foreign", "b", "c"]
    results = await asyncio.gather(
        *(store.limits.reserve(number, number, ONE_A_MINUTE) for number in numbers),
        return_exceptions=True,
    )
    [error] = [result for result in results if isinstance(result, BaseException)]
    assert error is results[1]
    assert "WRONGTYPE" in str(error)
    assert [0.0, 0.0, 0.0] == [results[0], *results[2:]]
    assert [[b"a"], [b"b"], [b"c"]] == [tokens(server, name) for name in ("a", "b", "c")]


def test_the_rest_of_a_failed_batch_is_given_back(server: RedisServer, url: str) -> None:
    with server.client() as client:
        client.set("ihuyi_voice:starts:foreign", "text")
    connection = connected(url)
    some = [Reservation(number, number, ONE_A_MINUTE) for number in ("a", "foreign")]
    with pytest.raises(StoreError, match="WRONGTYPE"):
        connection.apply(Work([], [], [], [], some))
    assert (False, "key") == (connection.committing, connection.failure_scope.value)
    assert [] == tokens(server, "a")
    connection.close()


async def test_a_server_without_memory_grants_nothing(server: RedisServer, store: Store) -> None:
    refusal = r"command not allowed when used memory > 'maxmemory'.*no phone rang"
    with server.client() as client:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(StoreError, match=refusal):
                await store.limits.reserve("n", "refused", ONE_A_MINUTE)
        finally:
            client.config_set("maxmemory", 0)
    assert 0.0 == await store.limits.reserve("n", "t", ONE_A_MINUTE)


def connected(url: str) -> redis_connection.RedisConnection:
    server = redis_server.server_of(Secret(url), None)
    assert isinstance(server, redis_server.Server)
    return server.connect()


def test_a_reservation_that_arrives_after_its_release_is_refused(
    server: RedisServer, url: str
) -> None:
    connection = connected(url)
    server_of(connection).doubtful_until = time.monotonic() + redis_connection.DOUBT_SECONDS
    connection.apply(Work([], [Release("n", "late")], [], [], []))
    late = Work([], [], [], [], [Reservation("n", "late", ONE_A_MINUTE)])
    with pytest.raises(StoreError, match="RELEASED this reservation was given back"):
        connection.apply(late)
    assert [] == tokens(server)
    with server.client() as client:
        assert 0 < client.pttl("ihuyi_voice:released:late") <= 3_600_000
    connection.close()


# --- the server is down -------------------------------------------------------------


def submits(kind: str, url: str, store: Store, timeout: float) -> Callable[[], Any]:
    """A coroutine function that submits once."""
    options: dict[str, Any] = {"base_url": url, "store": store, "timeout": timeout}

    async def submit() -> None:
        async with AsyncVoiceClient("sandbox", "sandbox-key", **options) as client:
            await client.submit(MOBILE, CODE)

    def block() -> None:
        with VoiceClient("sandbox", "sandbox-key", **options) as client:
            client.submit(MOBILE, CODE)

    return submit if kind == "asyncio" else lambda: asyncio.to_thread(block)


@pytest.mark.parametrize("kind", ["asyncio", "blocking"])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("stopped", "Connection refused"),
        ("frozen", "it did not answer in time"),
        ("with another password", "Authentication required"),
    ],
)
async def test_while_it_is_down_no_call_is_placed(
    server: RedisServer, store: Store, kind: str, fault: str, reason: str
) -> None:
    gateway = SandboxGateway()
    async with gateway.serve() as url:
        submit = submits(kind, url, store, 5.0)
        await submit()
        if fault == "stopped":
            server.stop()
        elif fault == "frozen":
            server.freeze()
            submit = submits(kind, url, store, 0.5)
        else:
            server.restart("--requirepass", PASSWORD)
        began = time.monotonic()
        with pytest.raises(StoreError, match="no phone rang") as caught:
            await submit()
        assert time.monotonic() - began < 10.0
        assert isinstance(caught.value, NotSentError)
        assert f"{store.place}: " in str(caught.value)
        assert reason in str(caught.value)
        assert 1 == len(gateway.attempts)
        # Once it works again, what was not sent has left no start.
        if fault == "frozen":
            server.thaw()
        elif fault == "stopped":
            server.start()
        else:
            server.restart()
        await submits(kind, url, store, 30.0)()
    assert 2 == len(gateway.calls)


async def test_what_a_frozen_server_executes_later_is_given_back(
    server: RedisServer, store: Store, hasty: None
) -> None:
    assert 0.0 == await store.limits.reserve("n", "before", TWO_A_MINUTE)
    server.freeze()
    with pytest.raises(StoreError, match=r"Timeout|did not answer in time"):
        await store.limits.reserve("n", "frozen", TWO_A_MINUTE, deadline=time.monotonic() + 5)
    server.thaw()
    await until(lambda: b"frozen" not in tokens(server))
    # Executed by a connection that is newer than the one that broke.
    with server.client() as client:
        await until(lambda: bool(client.exists("ihuyi_voice:released:frozen")))
    assert [b"before"] == tokens(server)
    assert 0.0 == await store.limits.reserve("n", "after", TWO_A_MINUTE)


async def test_a_batch_whose_server_crashed_may_have_been_executed(
    server: RedisServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_server, "READ_TIMEOUT", 60.0)
    connection = connected(url)
    work = Work([], [], [], [], [Reservation("n", "t", ONE_A_MINUTE)])
    server.freeze()
    try:
        applied = asyncio.create_task(asyncio.to_thread(connection.apply, work))
        await until(lambda: connection.committing)
        server.kill()
        with pytest.raises(StoreError, match=rf"{url}: .*\(ConnectionError\)"):
            await applied
    finally:
        server.start()
    assert (True, "connection") == (connection.committing, connection.failure_scope.value)
    assert server_of(connection).doubtful_until > time.monotonic()
    connection.close()


async def test_a_release_is_retried_until_the_server_works(
    server: RedisServer, store: Store
) -> None:
    assert 0.0 == await store.limits.reserve("n", "t", ONE_A_MINUTE)
    server.stop()
    with pytest.raises(StoreError, match="not recorded yet: retrying until the program ends"):
        await store.limits.release("n", "t")
    server.start()
    await until(lambda: [] == tokens(server))


def test_a_port_where_nothing_listens_is_an_error() -> None:
    port = free_port()
    with pytest.raises(StoreError, match=rf"redis://127\.0\.0\.1:{port}/0: .*refused"):
        Store.open(f"redis://127.0.0.1:{port}/0")


def test_a_frozen_server_cannot_be_opened(server: RedisServer, hasty: None) -> None:
    server.freeze()
    try:
        with pytest.raises(StoreError, match=r"redis://127\.0\.0\.1:\d+/0: Timeout reading"):
            Store.open(server.url())
    finally:
        server.thaw()


# --- passwords -----------------------------------------------------------------------


@pytest.mark.parametrize("login", [f":{PASSWORD}@", f"joe:{PASSWORD}@"])
def test_a_wrong_password_is_an_error_without_it(server: RedisServer, login: str) -> None:
    server.restart("--requirepass", "another")
    try:
        with pytest.raises(StoreError, match=r"127\.0\.0\.1.*invalid username-pass") as caught:
            Store.open(server.url(login=login))
    finally:
        server.restart()
    assert [] == leaks(caught.value)
    assert 2 <= len(list(chain(caught.value)))


def test_a_store_shows_no_password(server: RedisServer, url: str) -> None:
    server.restart("--requirepass", PASSWORD)
    try:
        with Store.open(server.url(login=f":{PASSWORD}@")) as store:
            assert isinstance(store, RedisStore)
            assert 0.0 == asyncio.run(store.limits.reserve("n", "t", ONE_A_MINUTE))
            assert PASSWORD not in repr(store) + repr(vars(store)) + repr(server_of(store))
            server.restart("--requirepass", "another")
            with pytest.raises(StoreError, match="invalid username-pass") as caught:
                asyncio.run(store.limits.reserve("n", "u", ONE_A_MINUTE))
            assert [] == leaks(caught.value)
    finally:
        server.restart()


@contextlib.contextmanager
def rogue(answer: bytes) -> Iterator[int]:
    """A server that answers everything with the same bytes; gives its port."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            b"-ERR unknown command 'AUTH', with args beginning with: 'hunter2'\r\n",
            "unknown command 'AUTH'",
        ),
        (b"-ERR what is hunter2?\r\n", r"what is \*\*\*\*\?"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP/1.1"),
        (b"", "Connection closed by server"),
    ],
)
def test_a_server_that_is_no_redis_is_an_error_without_the_password(
    answer: bytes, reason: str
) -> None:
    with rogue(answer) as port, pytest.raises(StoreError, match=reason) as caught:
        Store.open(f"redis://:{PASSWORD}@127.0.0.1:{port}/0")
    assert [] == leaks(caught.value)


# --- greenlets -----------------------------------------------------------------------


@pytest.mark.measures_processes
@pytest.mark.parametrize("framework", ["gevent", "eventlet"])
def test_in_patched_threads(url: str, framework: str) -> None:
    pytest.importorskip(framework, reason=f"{framework} is not installed")
    patch = "from gevent import monkey; monkey.patch_all()"
    if framework == "eventlet":
        patch = "import eventlet; eventlet.monkey_patch()"
    script = f"""
        import threading
        from ihuyi_voice import QuotaExceededError, RecipientQuota, VoiceClient
        limited = []
        def submit():
            with VoiceClient("sandbox", "sandbox-key", base_url="http://127.0.0.1:9", store=store,
                             connect_attempts=1, quota=RecipientQuota(per_minute=3)) as client:
                try:
                    client.submit("{MOBILE}", "{CODE}")
                except Exception as error:
                    limited.append(type(error).__name__)
        with Store.open(place) as store:
            threads = [threading.Thread(target=submit) for _ in range(3)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
        print(*limited)
    """
    before = f"import warnings; warnings.simplefilter('ignore'); {patch}"
    status, out, err = run(url, f"        {before}\n{script}")
    assert (0, "NotSentError NotSentError NotSentError\n", "") == (status, out, err)
