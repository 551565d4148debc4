"""No code, whole number or key of the application leaves a verifier by any door.

The store's bytes, every log at DEBUG, events, reprs, pickles, what is raised
(printed, and with the variables of its frames as tools for exceptions show them).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import pickle
import re
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from ihuyi_voice import (
    AsyncVerifier,
    AsyncVoiceClient,
    BlockedMobileError,
    CheckResult,
    GatewayError,
    InvalidRequestError,
    NotSentError,
    QuotaExceededError,
    RecipientQuota,
    Store,
    StoreError,
    Verification,
    VerificationEvent,
    Verifier,
    VoiceClient,
)
from ihuyi_voice.sandbox import Chaos
from ihuyi_voice.verification.codes import Person, SigningKey, typed_code
from tests.client.captured import in_variables, leaks_of
from tests.inside import flow_of, runner_of

from .faces import KEY, MEMORY, MOBILE, Clock, Face, opened, wrong

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ihuyi_voice.testing import VoiceGateway

    from .faces import Kind

MASKED = "139****5678"
API_KEY = "sandbox-key"
# Found by chance in an address of memory, a secret is none.
_hide_addresses = re.compile(r"0x[0-9a-f]+").sub


class Secrets:
    """What must be found nowhere: number, key and the codes of a test."""

    def __init__(self, *codes: str) -> None:
        self.texts = {"mobile": MOBILE, "key": KEY.decode(), "api key": API_KEY}
        self.texts |= {f"code {n}": code for n, code in enumerate(codes)}

    def leaks(self, *texts: str) -> set[str]:
        text = _hide_addresses("", "\n".join(texts))
        # Digits within longer ones, such as a time or a hash, are no code.
        return {
            name
            for name, secret in self.texts.items()
            if re.search(rf"(?<![0-9a-f.]){re.escape(secret)}(?![0-9a-f])", text)
        }


def test_what_is_searched_for_is_found() -> None:
    secrets = Secrets("042917")
    assert {"code 0", "mobile"} == secrets.leaks("'042917'", f"+{MOBILE}")
    assert set() == secrets.leaks("0.042917", "a042917", "0x042917", MASKED)


class Witness(logging.Handler):
    """Keeps every record of every logger, as a text that hides nothing of it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts += [self.format(record), repr({**vars(record), "created": 0, "msecs": 0})]


@pytest.fixture
def witness() -> Iterator[Witness]:
    witness = Witness()
    root = logging.getLogger()
    level = root.level
    root.addHandler(witness)
    root.setLevel(logging.DEBUG)
    yield witness
    root.setLevel(level)
    root.removeHandler(witness)


def test_a_whole_life_shows_no_secret(
    make: Callable[..., Face], gateway: VoiceGateway, clock: Clock, witness: Witness
) -> None:
    face = make(attempts=10)
    ends: list[object] = [face.start()]
    (id_,) = [one.id for one in ends if isinstance(one, Verification)]
    code = gateway.last_code(MOBILE)
    clock.pass_(60)
    gateway.chaos = Chaos(close_after_placing=1.0)
    ends += [face.resend(id_), face.get(id_)]
    gateway.chaos = Chaos()
    ends += [face.check(id_, wrong(code)), face.check(id_, code), face.check(id_, code)]
    clock.pass_(60)
    other = face.start(purpose="pay", decoy=True)
    ends += [other, face.check(other.id, code, purpose="pay"), face.cancel(other.id)]
    ends += [face.verifier, face.client, flow_of(face.verifier), *face.events]
    secrets = Secrets(code, wrong(code))
    assert 11 == len(face.events)
    assert {MASKED} == {event.mobile for event in face.events}
    assert set() == secrets.leaks(*map(repr, ends), *witness.texts)
    pickled = [pickle.dumps(one) for one in ends if dataclasses.is_dataclass(one)]
    assert 15 <= len(pickled)
    assert set() == secrets.leaks(*(one.decode("latin-1") for one in pickled))
    assert witness.texts


def test_a_store_holds_no_readable_code(
    kind: Kind, shared_place: str, gateway: VoiceGateway, tmp_path: Path
) -> None:
    """While a verification is pending, and after its end."""
    with (
        Store.open(shared_place) as store,
        opened(kind, gateway.url, store=store, cooldown=0) as face,
    ):
        started, resent = face.start(), face.start(purpose="pay")
        face.resend(resent.id, purpose="pay")
        codes = [call.content for call in gateway.calls]
        typed = wrong(codes[1])
        face.check(resent.id, typed, purpose="pay")
        found = bytes_of(shared_place, tmp_path)
        assert face.check(started.id, codes[0])
        found += bytes_of(shared_place, tmp_path)
    # The ids and the masked number are there, so that it is searched where it should be.
    for seen in (started.id, MASKED):
        assert seen.encode() in found
    for code in (*codes, typed):
        # As digits of their own: digits also occur within hashes and times.
        assert not re.search(rb"(?<![0-9a-f.])%b(?![0-9a-f])" % code.encode(), found)
    for secret in (MOBILE.encode(), KEY, API_KEY.encode()):
        assert secret not in found


def bytes_of(place: str, tmp_path: Path) -> bytes:
    """What a store keeps: an SQLite file's bytes, and each row of a server's tables."""
    if place.startswith("redis"):
        import redis  # noqa: PLC0415 - the extra

        with redis.Redis.from_url(place) as client:
            # A dump is compressed.
            texts = {
                b"string": client.get,
                b"zset": lambda key: repr(client.zrange(key, 0, -1, withscores=True)).encode(),
            }
            return b"".join(key + texts[client.type(key)](key) for key in client.scan_iter())
    if "://" not in place:
        return b"".join(path.read_bytes() for path in tmp_path.glob("voice.db*"))
    from sqlalchemy import MetaData, create_engine, select  # noqa: PLC0415 - the extra

    engine = create_engine(place)
    try:
        with engine.connect() as connection:
            tables = MetaData()
            tables.reflect(connection)
            rows = [
                repr(tuple(row))
                for table in tables.sorted_tables
                for row in connection.execute(select(table))
            ]
    finally:
        engine.dispose()
    return "\n".join(rows).encode()


# --- what is raised ------------------------------------------------------------------


class Broken(Exception):  # noqa: N818 - not an error of ours
    """What a clock raises."""


def refused(face: Face, gateway: VoiceGateway, clock: Clock) -> None:
    gateway.blacklist = frozenset({MOBILE})


def echoed(face: Face, gateway: VoiceGateway, clock: Clock) -> None:
    gateway.chaos = Chaos(code=4099)


def cooling(face: Face, gateway: VoiceGateway, clock: Clock) -> None:
    clock.time -= 60


def closed(face: Face, gateway: VoiceGateway, clock: Clock) -> None:
    face.close_client()


def store_down(face: Face, gateway: VoiceGateway, clock: Clock) -> None:
    async def fail(*args: object, **more: object) -> object:
        msg = "it is down"
        raise StoreError(msg)

    runner_of(face.verifier).run = fail


def clock_broken(face: Face, gateway: VoiceGateway, clock: Clock) -> None:
    clock.fault = Broken()


FAILURES: dict[str, tuple[Callable[[Face, VoiceGateway, Clock], None], type[Exception]]] = {
    "refused": (refused, BlockedMobileError),
    "a code outside the table": (echoed, GatewayError),
    "cooling down": (cooling, QuotaExceededError),
    "the client is closed": (closed, RuntimeError),
    "the store is down": (store_down, StoreError),
    "the clock is broken": (clock_broken, Broken),
}


@pytest.mark.parametrize("how", FAILURES)
@pytest.mark.parametrize("method", ["start", "resend", "check"])
def test_no_failure_shows_a_secret_in_its_frames(
    in_memory: Face, gateway: VoiceGateway, clock: Clock, method: str, how: str
) -> None:
    prepare, error = FAILURES[how]
    started = in_memory.start()
    code = gateway.last_code(MOBILE)
    clock.pass_(60)
    prepare(in_memory, gateway, clock)
    with contextlib.ExitStack() as stack:
        caught: Any = None
        if method != "check" or how in ("the store is down", "the clock is broken"):
            caught = stack.enter_context(pytest.raises(error))
        elif how == "the client is closed" and in_memory.kind == "blocking":
            caught = stack.enter_context(pytest.raises(RuntimeError))
        if method == "start":
            in_memory.start()
        elif method == "resend":
            in_memory.resend(started.id)
        else:
            in_memory.check(started.id, code)
    if caught is not None:
        check_hides_everything(caught.value, code)


def check_hides_everything(error: BaseException, code: str) -> None:
    assert in_variables(error)
    assert {} == leaks_of(error, Secrets(code).leaks)


@pytest.mark.parametrize("method", ["start", "resend", "check"])
@pytest.mark.parametrize(
    "bad",
    [
        {"mobile": MOBILE + "9"},
        {"mobile": f"x{MOBILE}"},
        {"mobile": int(MOBILE)},
        {"mobile": MOBILE.encode()},
        {"purpose": ""},
        {"purpose": " login"},
        {"purpose": "a" * 65},
        {"purpose": "a\0b"},
        {"purpose": None},
        {"purpose": 7},
        {"purpose": b"login"},
        {"purpose": "\ud800"},
    ],
    ids=repr,
)
def test_malformed_numbers_and_purposes(
    in_memory: Face, gateway: VoiceGateway, method: str, bad: dict[str, Any]
) -> None:
    arguments = {"mobile": MOBILE, "purpose": "login", **bad}
    id_, code = in_memory.verifier.new_id(), "042917"
    act = getattr(in_memory.verifier, method)
    positional = {"start": (), "resend": (id_,), "check": (id_, code)}[method]
    with pytest.raises(InvalidRequestError) as caught:
        in_memory.run(act, *positional, **arguments)
    secrets = Secrets(code)
    secrets.texts["mobile as given"] = str(arguments["mobile"])
    assert set() == secrets.leaks(str(caught.value), repr(caught.value))
    assert {} == leaks_of(caught.value, secrets.leaks)
    assert ([], []) == (gateway.calls, in_memory.events)


def test_not_sent_and_limited_show_no_secret_in_their_frames(
    kind: Kind, gateway: VoiceGateway
) -> None:
    for client, error in (
        ({"base_url": "http://127.0.0.1:1"}, NotSentError),
        ({"quota": RecipientQuota(per_minute=None, per_day=1)}, QuotaExceededError),
    ):
        with opened(kind, gateway.url, client=client, cooldown=0) as face:
            if error is QuotaExceededError:
                face.start()
            with pytest.raises(error) as caught:
                face.start()
            codes = [call.content for call in gateway.calls]
            check_hides_everything(caught.value, codes[-1] if codes else "no code")


@pytest.mark.parametrize("make", [AsyncVerifier, Verifier])
@pytest.mark.parametrize(
    "bad",
    [
        {"key": KEY[:-1]},
        {"key": KEY.decode() + "\ud800", "ttl": 0},
        {"key": [KEY, KEY[:-1]]},
        {"key": [KEY, KEY.decode(), 7]},
        {"key": bytearray(KEY)},
        {"key": {KEY: KEY}},
        {"ttl": 601},
        {"ttl": 0},
        {"ttl": "300"},
        {"cooldown": -1},
        {"attempts": 11},
        {"length": 7},
        {"store": f"sqlite:///{KEY.decode()}"},
        {"on_event": 7},
    ],
    ids=repr,
)
def test_no_bad_setting_shows_the_key(make: Any, bad: dict[str, Any]) -> None:
    with client_of(make) as client, pytest.raises((TypeError, ValueError)) as caught:
        make(client, **{"key": KEY, **bad})
    secrets = Secrets()
    secrets.texts["short key"] = KEY[:-1].decode()
    if "store" not in bad:
        assert {} == leaks_of(caught.value, secrets.leaks)
    assert set() == secrets.leaks(str(caught.value))


@contextlib.contextmanager
def client_of(make: type) -> Iterator[Any]:
    if make is AsyncVerifier:
        # Never used, so there is nothing to close.
        yield AsyncVoiceClient("sandbox", API_KEY)
    else:
        with VoiceClient("sandbox", API_KEY) as client:
            yield client


def test_what_carries_a_secret_shows_none_of_it() -> None:
    person, key = Person(MOBILE, "login"), SigningKey(KEY)
    code = key.code("0" * 32, person, 6)
    carriers = [person, key, code, typed_code(code.reveal()), person.request(code, None)]
    assert set() == Secrets(code.reveal()).leaks(*map(repr, carriers))
    for carrier in carriers:
        assert not hasattr(carrier, "__dict__")
    assert f"<Person {MASKED} purpose='login'>" == repr(person)


def test_a_verifier_that_was_not_made_has_a_repr() -> None:
    for cls in (AsyncVerifier, Verifier):
        assert f"<{cls.__name__} over None>" == repr(cls.__new__(cls))


def test_the_values_are_compared_pickled_and_shown(in_memory: Face) -> None:
    started = in_memory.start()
    result = in_memory.check(started.id, "")
    values: list[Any] = [
        started,
        result,
        *in_memory.events,
        started.status,
        in_memory.events[0].name,
    ]
    for value in values:
        assert value == pickle.loads(pickle.dumps(value))
        assert "ihuyi_voice" == type(value).__module__
        assert hash(value) == hash(pickle.loads(pickle.dumps(value)))
    for value in values[:-2]:
        assert not hasattr(value, "__dict__")
        with pytest.raises((AttributeError, TypeError)):
            value.id = "1"
    assert "started" == in_memory.events[0].name == str(in_memory.events[0].name)
    assert isinstance(in_memory.events[0], VerificationEvent)
    assert [True, False] == [bool(CheckResult(approved)) for approved in (True, False)]


def test_nothing_warns_of_what_was_never_awaited(gateway: VoiceGateway) -> None:
    """A task that is cancelled before its first step leaves nothing behind."""

    async def main() -> None:
        async with AsyncVoiceClient("sandbox", API_KEY, base_url=gateway.url) as client:
            verifier = AsyncVerifier(client, key=KEY)
            task = asyncio.ensure_future(verifier.start(MOBILE, purpose="login"))
            task.cancel()
            assert [asyncio.CancelledError] == [
                type(end) for end in await asyncio.gather(task, return_exceptions=True)
            ]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main())
    assert ([], "") == (gateway.calls, MEMORY)
