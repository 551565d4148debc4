"""The rules beside a verification's life: keys, codes, decoys, cooldowns, events, the store."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import sqlite3
import threading
import time
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

import ihuyi_voice
from ihuyi_voice import (
    AsyncVerifier,
    AsyncVoiceClient,
    BlockedMobileError,
    EventName,
    OutcomeStatus,
    QuotaExceededError,
    Store,
    StoreError,
    Verification,
    VerificationEvent,
    VerificationStatus,
    Verifier,
    VoiceClient,
)
from ihuyi_voice.store.memory import MemoryVerifications
from ihuyi_voice.store.redis import RedisStore
from ihuyi_voice.store.sql.store import SqlStore
from ihuyi_voice.store.verifications import NewRecord, Verifications
from ihuyi_voice.verification.codes import Person, SigningKey
from tests.inside import runner_of, starts_of, store_of

from . import faces
from .faces import (
    ATTEMPTS,
    COOLDOWN,
    KEY,
    MOBILE,
    OTHER,
    TTL,
    Clock,
    Face,
    codes_heard,
    opened,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from pathlib import Path

    from ihuyi_voice.store.verifications import Transaction
    from ihuyi_voice.testing import VoiceGateway
    from tests.store.postgres import PostgresServer

    from .faces import Kind

OTHER_KEY = "another key of the application, with 32 bytes or more"
PENDING = VerificationStatus.PENDING


def code_of(id_: str, key: bytes = KEY, length: int = 6) -> str:
    """The code of a verification, which no phone may have read out."""
    return SigningKey(key).code(id_, Person(MOBILE, "login"), length).reveal()


# --- keys -------------------------------------------------------------------------


def test_the_code_is_derived_from_id_purpose_number_and_key() -> None:
    key, person = SigningKey(KEY), Person(MOBILE, "login")
    codes = {
        key.code("0" * 32, person, 6).reveal(),
        key.code("1" * 32, person, 6).reveal(),
        key.code("0" * 32, Person(OTHER, "login"), 6).reveal(),
        key.code("0" * 32, Person(MOBILE, "pay"), 6).reveal(),
        SigningKey(OTHER_KEY.encode()).code("0" * 32, person, 6).reveal(),
    }
    assert 5 == len(codes)
    assert all(len(code) == 6 and code.isdecimal() for code in codes)
    # The same in every release and process: a pending code survives an upgrade.
    assert "141600" == key.code("0" * 32, person, 6).reveal()


def test_codes_are_evenly_spread_and_keep_their_leading_zeros() -> None:
    key, person = SigningKey(KEY), Person(MOBILE, "login")
    codes = [key.code(f"{n:032x}", person, 6).reveal() for n in range(2_000)]
    assert {6} == {len(code) for code in codes}
    firsts = [sum(code[0] == digit for code in codes) for digit in "0123456789"]
    assert all(120 < count < 290 for count in firsts)
    assert len(set(codes)) > 1_980


@pytest.mark.parametrize("key", [b"", "", KEY[:31], "é" * 15, [KEY, KEY[:31]], (KEY[:31],), []])
def test_a_short_key_is_refused(in_memory: Face, key: Any) -> None:
    with pytest.raises(ValueError, match="32 bytes or more"):
        type(in_memory.verifier)(in_memory.client, key=key)


@pytest.mark.parametrize("key", ["é" * 16, KEY, KEY.decode(), [KEY], (KEY, OTHER_KEY)])
def test_a_key_of_32_bytes_is_enough(in_memory: Face, key: Any) -> None:
    assert type(in_memory.verifier)(in_memory.client, key=key)


@pytest.mark.parametrize("key", [None, 7, {}, bytearray(KEY), [None], {KEY}])
def test_a_key_of_another_type_is_refused(in_memory: Face, key: Any) -> None:
    with pytest.raises(TypeError, match="key must be bytes"):
        type(in_memory.verifier)(in_memory.client, key=key)


def test_rotation(make: Callable[..., Face], gateway: VoiceGateway, clock: Clock) -> None:
    before = make()
    kept_in = store_of(before.verifier)
    old = before.start()
    old_code = gateway.last_code(MOBILE)
    after = make(key=[OTHER_KEY, KEY], kept_in=kept_in)
    clock.pass_(COOLDOWN)
    # A resend repeats the code of the key that it was started with.
    after.resend(old.id)
    assert [old_code] * 2 == codes_heard(gateway)
    new = after.start()
    new_code = gateway.last_code(MOBILE)
    assert code_of(new.id, OTHER_KEY.encode()) == new_code
    assert after.check(old.id, old_code)
    # Without the new key the new one cannot be checked, and without the old one no old one.
    assert "mismatch" == before.check(new.id, new_code).reason
    only_new = make(key=OTHER_KEY, kept_in=kept_in)
    assert only_new.check(new.id, new_code)
    assert "mismatch" == only_new.check(old.id, old_code).reason


# --- settings ------------------------------------------------------------------------


@pytest.mark.parametrize("length", [4, 5])
def test_a_shorter_code_is_warned_of_and_works(
    kind: Kind, gateway: VoiceGateway, length: int
) -> None:
    words = f"{length} digits is {10 ** (6 - length)} times easier to guess"
    with contextlib.ExitStack() as stack:
        with pytest.warns(UserWarning, match=words) as warned:
            face = stack.enter_context(opened(kind, gateway.url, length=length))
        # At the line that made the verifier.
        assert [faces.__file__] == [warning.filename for warning in warned]
        started = face.start()
        code = gateway.last_code(MOBILE)
        assert length == len(code)
        assert not face.check(started.id, "0" + code)
        assert face.check(started.id, code)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"ttl": 600.1}, "at most 600 seconds"),
        ({"ttl": 0}, "above 0"),
        ({"ttl": float("nan")}, "above 0"),
        ({"ttl": float("inf")}, "at most 600"),
        ({"cooldown": -1}, "cooldown must be 0"),
        ({"cooldown": float("inf")}, "cooldown must be 0"),
        ({"cooldown": 86_401}, "cooldown must be 0"),
        ({"attempts": 0}, "attempts"),
        ({"attempts": 11}, "at most 10"),
        ({"length": 3}, "4, 5 or 6"),
        ({"length": 7}, "4, 5 or 6"),
        ({"length": 6.0}, "4, 5 or 6"),
        ({"length": True}, "4, 5 or 6"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_a_value_error(in_memory: Face, bad: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        type(in_memory.verifier)(in_memory.client, key=KEY, **bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"ttl": "300"},
        {"ttl": None},
        {"ttl": True},
        {"cooldown": "60"},
        {"attempts": 5.0},
        {"attempts": True},
        {"store": "voice.db"},
        {"on_event": print},
    ],
    ids=str,
)
def test_a_setting_of_a_wrong_type_is_a_type_error(in_memory: Face, bad: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        type(in_memory.verifier)(in_memory.client, key=KEY, **bad)


def test_the_other_class_of_client_is_refused(gateway: VoiceGateway) -> None:
    with VoiceClient("sandbox", "sandbox-key") as blocking:
        cases: list[tuple[Any, object, type]] = [
            (AsyncVerifier, blocking, AsyncVoiceClient),
            (Verifier, AsyncVoiceClient("sandbox", "sandbox-key"), VoiceClient),
            (Verifier, None, VoiceClient),
        ]
        for cls, client, wanted in cases:
            with pytest.raises(TypeError, match=f"of class {wanted.__name__}, not"):
                cls(client, key=KEY)


async def test_the_blocking_one_in_a_running_loop_says_what_to_use(gateway: VoiceGateway) -> None:
    with contextlib.closing(VoiceClient("sandbox", "sandbox-key", base_url=gateway.url)) as client:
        verifier = Verifier(client, key=KEY)
        with pytest.raises(RuntimeError, match=r"^Verifier\.start would block.* AsyncVerifier"):
            verifier.start(MOBILE, purpose="login")
        assert (await asyncio.to_thread(verifier.start, MOBILE, purpose="login")).status is PENDING
    with pytest.raises(RuntimeError, match="closed"):
        await asyncio.to_thread(verifier.start, MOBILE, purpose="login")


def test_a_closed_client_starts_nothing(kind: Kind, gateway: VoiceGateway, clock: Clock) -> None:
    store = Verifications(MemoryVerifications(clock))
    id_ = Verifier.new_id()
    with opened(kind, gateway.url, kept_in=store) as face:
        pass
    face.reopen_loop()
    with pytest.raises(RuntimeError, match="closed"):
        face.start(id=id_)
    with pytest.raises(RuntimeError, match="closed"):
        face.resend(id_)
    face.close_loop()
    # No cooldown is taken: another process calls at once.
    with opened(kind, gateway.url, kept_in=store) as another:
        assert PENDING is another.start(id=id_).status
        assert 1 == len(gateway.calls)


def test_both_classes_are_the_same() -> None:
    async_names, names = (
        {name for name in vars(cls) if not name.startswith("_")}
        for cls in (AsyncVerifier, Verifier)
    )
    assert {"start", "resend", "check", "cancel", "get", "new_id"} == async_names == names
    for name in (*names, "__init__"):
        ours, theirs = (inspect.signature(getattr(cls, name)) for cls in (AsyncVerifier, Verifier))
        differing = {"client"} if name == "__init__" else set()
        assert [p for p in ours.parameters.values() if p.name not in differing] == [
            p for p in theirs.parameters.values() if p.name not in differing
        ]
        assert ours.return_annotation == theirs.return_annotation
        assert inspect.getdoc(getattr(AsyncVerifier, name)) == inspect.getdoc(
            getattr(Verifier, name)
        )
    plain = (inspect.getdoc(AsyncVerifier) or "").replace("await ", "").replace("Async", "")
    assert plain == inspect.getdoc(Verifier)
    signature = str(inspect.signature(AsyncVerifier))
    assert (
        "key: 'KeyInput', store: 'Store | VerificationStore | None' = None, ttl: 'float' = 300,"
        " attempts: 'int' = 5, cooldown: 'float' = 60, length: 'int' = 6,"
        " on_event: 'Sequence[OnEvent]' = (),"
    ) in signature


def test_the_names_are_public() -> None:
    names: dict[str, Any] = {}
    exec("from ihuyi_voice import *", names)  # noqa: S102 - it is what is tested
    for value in (AsyncVerifier, Verifier, Verification, VerificationEvent, EventName):
        assert value is names[value.__name__]
        assert "ihuyi_voice" == value.__module__
    assert {"VerificationStatus", "CheckResult", "VerificationStore"} <= set(ihuyi_voice.__all__)


def test_time_may_be_frozen(
    kind: Kind, gateway: VoiceGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(kind, gateway.url) as face:
        started = face.start()
        later = time.time() + TTL + 1
        monkeypatch.setattr(time, "time", lambda: later)
        assert VerificationStatus.EXPIRED is face.get(started.id).status
        assert not face.check(started.id, gateway.last_code(MOBILE))


# --- codes --------------------------------------------------------------------------


def typed_in(code: str) -> dict[str, str]:
    full_width = code.translate({ord("0") + n: ord("0") + n for n in range(10)})
    return {
        "blanks around it": f"  {code}\n",
        "a blank within": f"{code[:3]} {code[3:]}",
        "single digits": " ".join(code),
        "hyphens": f"{code[:2]}-{code[2:4]}-{code[4:]}",
        "an en dash": f"{code[:3]}\u2013{code[3:]}",
        "full-width": full_width,
        "full-width with their blank": f"{full_width[:3]}\u3000{full_width[3:]}",
        "a no-break space": f"{code[:3]}\u00a0{code[3:]}",
        "a thin space": f"{code[:3]}\u2009{code[3:]}",
    }


@pytest.mark.parametrize("how", typed_in("042917"))
def test_a_code_is_accepted_as_people_type_it(
    in_memory: Face, gateway: VoiceGateway, how: str
) -> None:
    started = in_memory.start()
    assert in_memory.check(started.id, typed_in(gateway.last_code(MOBILE))[how])


MALFORMED: list[Callable[[str], object]] = [
    lambda code: code[:-1],
    lambda code: code + "0",
    lambda code: f"{code}x",
    lambda code: f"{code}\0",
    lambda code: f"{code}/{code}",
    lambda code: f"+{code}",
    lambda code: code + " " * 100,
    lambda code: code * 100_000,
    lambda code: code.encode(),
    int,
    list,
    lambda _: "",
    lambda _: " ",
    lambda _: "\ud800" * 6,
    lambda _: "x" * 6,
    lambda _: None,
]


def test_a_code_that_is_not_one_is_not_approved(in_memory: Face, gateway: VoiceGateway) -> None:
    for n, make_malformed in enumerate(MALFORMED):
        started = in_memory.start(purpose=f"purpose {n}")
        code = codes_heard(gateway)[-1]
        malformed = make_malformed(code)
        result = in_memory.check(started.id, malformed, purpose=f"purpose {n}")
        assert (False, "wrong_code") == (result.approved, result.reason), malformed
        # It was a guess all the same, and the right code still counts.
        assert in_memory.check(started.id, code, purpose=f"purpose {n}")


# --- decoys --------------------------------------------------------------------------


def test_a_decoy_looks_the_same_and_places_no_call(
    verifier: Face, gateway: VoiceGateway, clock: Clock
) -> None:
    real = verifier.start()
    events = [(event.name, event.call) for event in verifier.events]
    verifier.events.clear()
    decoy = verifier.start(OTHER, decoy=True)
    assert replace(real, id=decoy.id) == decoy == verifier.get(decoy.id)
    assert events == [(event.name, event.call) for event in verifier.events]
    with pytest.raises(QuotaExceededError) as cooling:
        verifier.start(OTHER)
    assert COOLDOWN == cooling.value.retry_after
    clock.pass_(COOLDOWN)
    assert replace(verifier.resend(real.id), id=decoy.id) == verifier.resend(decoy.id, OTHER)
    assert [MOBILE] * 2 == [call.mobile for call in gateway.calls]
    # No phone read its code out, so that only a guess can be right: it is not approved either.
    code = SigningKey(KEY).code(decoy.id, Person(OTHER, "login"), 6).reveal()
    for left in range(ATTEMPTS, 0, -1):
        assert PENDING is verifier.get(decoy.id).status, left
        assert "wrong_code" == verifier.check(decoy.id, code, OTHER).reason
    assert VerificationStatus.MAX_ATTEMPTS_REACHED is verifier.get(decoy.id).status


# --- the cooldown ------------------------------------------------------------------------


def test_the_cooldown_is_of_number_and_purpose(
    verifier: Face, gateway: VoiceGateway, clock: Clock
) -> None:
    verifier.start()
    verifier.start(purpose="pay")
    verifier.start(OTHER)
    clock.pass_(20)
    with pytest.raises(QuotaExceededError) as caught:
        # The same number, spelt as people do.
        verifier.start(f"+86 {MOBILE[:3]}-{MOBILE[3:]}")
    assert 40 == pytest.approx(caught.value.retry_after)
    assert 3 == len(gateway.calls)
    clock.pass_(40)
    assert PENDING is verifier.start().status


def test_no_cooldown(make: Callable[..., Face], gateway: VoiceGateway) -> None:
    face = make(cooldown=0)
    started = face.start()
    assert 0.0 == started.resend_after
    face.resend(started.id)
    assert 2 == len(set(map(id, gateway.calls)))


# --- events ---------------------------------------------------------------------------------


def test_a_function_that_raises_is_logged_and_ignored(
    kind: Kind, gateway: VoiceGateway, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(event: VerificationEvent) -> None:
        msg = MOBILE
        raise LookupError(msg)

    seen: list[tuple[EventName, int]] = []

    def see(event: VerificationEvent) -> None:
        seen.append((event.name, threading.get_ident()))

    caplog.set_level(logging.WARNING, "ihuyi_voice")
    with opened(kind, gateway.url, on_event=[fail, see]) as face:
        started = face.start()
        assert face.check(started.id, gateway.last_code(MOBILE))
    assert [
        (name, threading.get_ident()) for name in ("started", "called", "checked", "approved")
    ] == seen
    assert [
        f"on_event raised LookupError for {name}: ignored"
        for name in ("started", "called", "checked", "approved")
    ] == [record.getMessage() for record in caplog.records]
    assert MOBILE not in caplog.text


def test_events_say_what_happened_and_to_whom(verifier: Face, gateway: VoiceGateway) -> None:
    started = verifier.start()
    verifier.check(started.id, "")
    verifier.cancel(started.id)
    common: dict[str, Any] = {"id": started.id, "purpose": "login", "mobile": "139****5678"}
    assert [
        VerificationEvent(EventName.STARTED, **common),
        VerificationEvent(EventName.CALLED, **common, call=OutcomeStatus.ACCEPTED),
        VerificationEvent(EventName.CHECKED, **common, reason="wrong_code"),
        VerificationEvent(EventName.CANCELED, **common),
    ] == verifier.events


# --- the store ------------------------------------------------------------------------------


def all_refuse(face: Face, id_: str, code: str) -> None:
    """Nothing is approved, and no call is placed, without a store."""
    for act in (
        lambda: face.start(purpose="pay"),
        lambda: face.resend(id_),
        lambda: face.check(id_, code),
        lambda: face.cancel(id_),
        lambda: face.get(id_),
    ):
        with pytest.raises(StoreError):
            act()


def test_the_file_is_lost(kind: Kind, gateway: VoiceGateway, clock: Clock, tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "voice.db", tmp_path / "elsewhere"
    with (
        Store.open(path, clock=clock) as store,
        opened(kind, gateway.url, store=store) as face,
    ):
        started = face.start()
        code = gateway.last_code(MOBILE)
        clock.pass_(COOLDOWN)
        face.names()
        path.rename(elsewhere)
        all_refuse(face, started.id, code)
        assert ([], 1) == (face.names(), len(gateway.calls))
        elsewhere.rename(path)
        # The store backs off for some time from a database that failed.
        until(lambda: works(lambda: face.get(started.id)))
        assert face.check(started.id, code)


def test_the_server_is_down(
    kind: Kind, gateway: VoiceGateway, clock: Clock, postgres_place: str, postgresql: PostgresServer
) -> None:
    with (
        Store.open(postgres_place, clock=clock) as store,
        opened(kind, gateway.url, store=store) as face,
    ):
        started = face.start()
        code = gateway.last_code(MOBILE)
        clock.pass_(COOLDOWN)
        postgresql.stop()
        try:
            all_refuse(face, started.id, code)
        finally:
            postgresql.start()
        assert 1 == len(gateway.calls)
        # The store backs off for some time from a database that failed.
        until(lambda: works(lambda: face.get(started.id)))
        assert face.check(started.id, code)


def works(act: Callable[[], object]) -> bool:
    with contextlib.suppress(StoreError):
        act()
        return True
    return False  # pragma: no cover - depends on how fast it is


class Forgetful(Verifications):
    """A `VerificationStore` of one's own that cannot record what comes after a call."""

    error: Exception

    async def note_call(self, *args: object, **more: object) -> Any:
        raise self.error

    async def cancel(self, *args: object) -> Any:
        raise self.error


@pytest.mark.parametrize(
    "error", [StoreError("it is down"), RuntimeError("this store is closed")], ids=repr
)
def test_an_outcome_that_cannot_be_recorded(
    kind: Kind,
    gateway: VoiceGateway,
    clock: Clock,
    error: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The call was placed, so its code is accepted; the error of the call is what is raised."""
    store = Forgetful(MemoryVerifications(clock))
    store.error = error
    with opened(kind, gateway.url, kept_in=store) as face:
        started = face.start()
        assert (PENDING, OutcomeStatus.ACCEPTED) == (started.status, started.call)
        assert face.check(started.id, gateway.last_code(MOBILE))
        gateway.blacklist = frozenset({OTHER})
        with pytest.raises(BlockedMobileError):
            face.start(OTHER)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert 4 == len(warned)
    assert warned[0].startswith("verification 139****5678 accepted: the store has not recorded")
    assert warned.pop(1).startswith("submit 138****0000 refused code=4030 ")
    assert warned[1].startswith("verification 138****0000 refused: the store has not recorded")
    assert "no phone rang, and the store has not canceled it" in warned[2]


async def test_what_no_one_waits_for_is_tried_again(tmp_path: Path) -> None:
    tries: list[float] = []

    def step(transaction: Transaction) -> None:
        tries.append(transaction.now())
        if len(tries) < 3:
            raise ZeroDivisionError

    with Store.open(tmp_path / "voice.db") as store:
        assert isinstance(store, SqlStore)
        await store.run_later(step, time.monotonic())
    assert 3 == len(tries)


async def test_an_accepted_call_is_recorded_without_a_wait(
    tmp_path: Path,
) -> None:
    path = tmp_path / "voice.db"
    new = NewRecord(
        *("id", "login", "binding", "subject", "key", "139****5678"),
        *(6, TTL, ATTEMPTS, COOLDOWN, False, "token"),
    )
    with Store.open(path) as store:
        await store.verifications.create(new, time.monotonic() + 60)
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("BEGIN EXCLUSIVE")
            noted = await store.verifications.note_call(
                "id", 1, "accepted", time.monotonic() + 60, gives_back=False
            )
            assert noted is None
    with Store.open(path) as store:
        found = await store.verifications.find("id", time.monotonic() + 60)
    assert found is not None
    assert "accepted" == found.record.call


class Purged(Verifications):
    """A `VerificationStore` whose record is deleted between two steps."""

    async def cancel(self, *args: object) -> Any:
        return None

    async def note_call(self, *args: object, **more: object) -> Any:
        return None

    async def approve(self, *args: object) -> bool:
        return False


def test_a_record_that_is_deleted_meanwhile(
    kind: Kind, gateway: VoiceGateway, clock: Clock
) -> None:
    with opened(kind, gateway.url, kept_in=Purged(MemoryVerifications(clock))) as face:
        started = face.start()
        assert OutcomeStatus.ACCEPTED is started.call
        with pytest.raises(LookupError):
            face.cancel(started.id)
        result = face.check(started.id, gateway.last_code(MOBILE))
        assert (False, "not_pending_any_more") == (result.approved, result.reason)
        assert ["started", "called", "checked"] == face.names()


@pytest.mark.parametrize("end", ["canceled", "expired"])
def test_what_ends_between_a_guess_and_its_approval_is_not_approved(
    verifier: Face, clock: Clock, end: str
) -> None:
    store, soon = store_of(verifier.verifier), time.monotonic() + 60
    key, person = SigningKey(KEY), Person(MOBILE, "login")
    started = verifier.start()
    bindings = {key.name: key.binding(started.id, person)}
    verifier.run(store.spend, started.id, bindings, "token", soon)
    if end == "canceled":
        verifier.cancel(started.id)
    else:
        clock.pass_(TTL)
    assert not verifier.run(store.approve, started.id, "token", soon)
    assert end == verifier.get(started.id).status.value


def test_purge_and_guesses(verifier: Face, gateway: VoiceGateway, clock: Clock) -> None:
    store, soon = store_of(verifier.verifier), time.monotonic() + 60
    subject = SigningKey(KEY).subject(Person(MOBILE, "login"))
    started = verifier.start()
    verifier.check(started.id, "")
    assert 1 == verifier.run(store.guesses, subject, soon)
    clock.pass_(TTL)
    assert 0 == verifier.run(store.purge, timedelta(0), soon)
    clock.pass_(1)
    assert 0 == verifier.run(store.purge, timedelta(seconds=2), soon)
    if isinstance(runner_of(verifier.verifier), RedisStore):
        # Redis deletes it a day after it expired.
        assert 0 == verifier.run(store.purge, timedelta(0), soon)
        assert VerificationStatus.EXPIRED is verifier.get(started.id).status
        return
    assert 1 == verifier.run(store.purge, timedelta(0), soon)
    with pytest.raises(LookupError):
        verifier.get(started.id)
    assert "unknown_id" == verifier.check(started.id, gateway.last_code(MOBILE)).reason
    # The person's guesses are not forgotten with it.
    assert 1 == verifier.run(store.guesses, subject, soon)


def test_memory_forgets_what_has_expired(in_memory: Face, clock: Clock) -> None:
    memory = runner_of(in_memory.verifier)
    ids = [in_memory.start(purpose=f"p{n}").id for n in range(50)]
    for id_ in ids:
        in_memory.check(id_, "")
    clock.pass_(86_400 + TTL + 1)
    for n in range(50):
        in_memory.start(purpose=f"q{n}")
    assert len(starts_of(memory)) <= 75
    for id_ in ids:
        with pytest.raises(LookupError):
            in_memory.get(id_)


# --- cancellation -----------------------------------------------------------------------------


class CancelledAt:
    """An awaitable that cancels its task where it waits for the n-th time."""

    def __init__(self, what: Awaitable[object], n: int) -> None:
        self.what, self.n = what, n

    def __await__(self) -> Generator[Any, Any, object]:
        steps = self.what.__await__()
        advance: Callable[[], object] = steps.__next__
        for n in count():  # pragma: no branch - it ends
            try:
                waited_for = advance()
            except StopIteration as end:
                return end.value
            if n == self.n:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                yield waited_for
            except BaseException as error:  # noqa: BLE001 - handed on
                advance = partial(steps.throw, error)
            else:
                advance = steps.__next__
        return None  # pragma: no cover - for type checkers


def test_a_start_that_is_cancelled_anywhere_rings_once_at_most(
    place: str, gateway: VoiceGateway
) -> None:
    """And the code that was heard is accepted, also where the job is delivered again."""

    async def cancelled(id_: str, n: int) -> bool:
        async def start() -> object:
            what = face.verifier.start(MOBILE, purpose=id_, id=id_)
            return await CancelledAt(what, n)

        task = asyncio.ensure_future(start())
        (end,) = await asyncio.gather(task, return_exceptions=True)
        return isinstance(end, asyncio.CancelledError)

    with contextlib.ExitStack() as stack:
        store = stack.enter_context(Store.open(place, patience=0.1)) if place else None
        face = stack.enter_context(opened("asyncio", gateway.url, store=store))
        was_cancelled = True
        n = 0
        while was_cancelled:
            id_ = Verifier.new_id()
            was_cancelled = face.run(lambda: cancelled(id_, n))  # noqa: B023 - called at once
            again = face.start(purpose=id_, id=id_)
            assert (id_, PENDING) == (again.id, again.status)
            # A call of an earlier round may be placed as late as now.
            code = SigningKey(KEY).code(id_, Person(MOBILE, id_), 6).reveal()
            assert codes_heard(gateway).count(code) <= 1
            assert face.check(id_, code, purpose=id_)
            n += 1
    assert n > 2
