"""Each row of the event table in the design: what a verification is after it, and who hears what.

On every store and by both classes. Time is the injected clock's.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest

from ihuyi_voice import (
    BlockedMobileError,
    CheckResult,
    GatewayError,
    IhuyiVoiceError,
    InvalidRequestError,
    NotSentError,
    OutcomeStatus,
    QuotaExceededError,
    RecipientQuota,
    VerificationStatus,
)
from ihuyi_voice.sandbox import Chaos

from .faces import ATTEMPTS, COOLDOWN, MOBILE, OTHER, TTL, Clock, Face, codes_heard, wrong

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ihuyi_voice.testing import VoiceGateway

PENDING, CANCELED = VerificationStatus.PENDING, VerificationStatus.CANCELED
APPROVED, EXPIRED = VerificationStatus.APPROVED, VerificationStatus.EXPIRED
ENDED = VerificationStatus.MAX_ATTEMPTS_REACHED


@dataclass(frozen=True)
class Failure:
    """A call that fails.

    Attributes:
        error: what the caller gets.
        call: what the verification says of it.
        gives_back: whether the next call may follow at once.
    """

    error: type[IhuyiVoiceError]
    call: OutcomeStatus
    gives_back: bool


FAILURES = {
    "refused": Failure(BlockedMobileError, OutcomeStatus.REFUSED, gives_back=False),
    "refused by a code": Failure(GatewayError, OutcomeStatus.REFUSED, gives_back=False),
    "not sent": Failure(NotSentError, OutcomeStatus.NOT_SENT, gives_back=True),
    "limited": Failure(QuotaExceededError, OutcomeStatus.LIMITED, gives_back=True),
}
UNKNOWN = {
    "closed after placing": Chaos(close_after_placing=1.0),
    "half an answer": Chaos(truncate=1.0),
    "a page of HTML": Chaos(html_502=1.0),
    "garbage": Chaos(garbage=1.0),
}


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as opened:
        yield opened


class Setting:
    """A verifier whose calls fail when it is switched on, in one of the ways."""

    def __init__(self, make: Callable[..., Face], gateway: VoiceGateway, how: str) -> None:
        self.gateway, self.how = gateway, how
        self._server = contextlib.ExitStack()
        # A server of its own, which can be stopped.
        url = self._server.enter_context(gateway.serve_in_thread())
        self._port = int(url.rpartition(":")[2])
        client: dict[str, Any] = {"base_url": url}
        if how == "limited":
            # Of one call per day: the call that is placed first uses it up.
            client["quota"] = RecipientQuota(per_minute=None, per_day=1)
        self.face = make(client=client)

    def fail(self, *, is_first: bool) -> None:
        """Let the next call fail."""
        if self.how == "refused":
            self.gateway.blacklist = frozenset({MOBILE})
        elif self.how == "refused by a code":
            self.gateway.chaos = Chaos(code=4099)
        elif self.how == "not sent":
            self.close()
        elif is_first:
            self.face.start(purpose="uses the limit up")
            self.face.names()

    def work(self) -> None:
        """Let calls be placed."""
        self.gateway.blacklist = frozenset()
        self.gateway.chaos = Chaos()
        if self.how == "not sent":
            self._server.enter_context(self.gateway.serve_in_thread(port=self._port))

    def close(self) -> None:
        self._server.close()


def placed(gateway: VoiceGateway) -> int:
    return len(codes_heard(gateway))


# --- start -----------------------------------------------------------------------


def test_start_accepted(verifier: Face, gateway: VoiceGateway, clock: Clock) -> None:
    started = verifier.start()
    assert (PENDING, "login", OutcomeStatus.ACCEPTED) == (
        started.status,
        started.purpose,
        started.call,
    )
    assert datetime.fromtimestamp(clock.time + TTL, timezone.utc) == started.expires_at
    assert COOLDOWN == started.resend_after
    assert started == verifier.get(started.id)
    assert ["started", "called"] == verifier.names()
    (code,) = codes_heard(gateway)
    assert 6 == len(code)
    assert CheckResult(approved=True) == verifier.check(started.id, code)
    assert APPROVED is verifier.get(started.id).status


@pytest.mark.parametrize("how", UNKNOWN)
def test_start_unknown(verifier: Face, gateway: VoiceGateway, how: str) -> None:
    gateway.chaos = UNKNOWN[how]
    started = verifier.start()
    assert (PENDING, OutcomeStatus.UNKNOWN) == (started.status, started.call)
    assert COOLDOWN == started.resend_after
    assert [OutcomeStatus.UNKNOWN] == [e.call for e in verifier.events if e.name == "called"]
    assert ["started", "called"] == verifier.names()
    assert 1 == placed(gateway)
    assert verifier.check(started.id, gateway.last_code(MOBILE)).approved


@pytest.mark.parametrize("how", FAILURES)
def test_start_fails(
    make: Callable[..., Face],
    gateway: VoiceGateway,
    clock: Clock,
    stack: contextlib.ExitStack,
    how: str,
) -> None:
    failure = FAILURES[how]
    setting = stack.enter_context(contextlib.closing(Setting(make, gateway, how)))
    face = setting.face
    setting.fail(is_first=True)
    before = placed(gateway)
    id_ = face.verifier.new_id()
    with pytest.raises(failure.error):
        face.start(id=id_)
    assert ["started", "called", "canceled"] == face.names()
    ended = face.get(id_)
    assert (CANCELED, failure.call) == (ended.status, ended.call)
    assert (0.0 if failure.gives_back else COOLDOWN) == ended.resend_after
    assert before == placed(gateway)
    setting.work()
    if how == "limited":
        clock.pass_(COOLDOWN)
        with pytest.raises(QuotaExceededError) as limited:
            face.start()
        # The limit of the number, not the cooldown.
        assert limited.value.retry_after > 2 * COOLDOWN
    elif failure.gives_back:
        assert PENDING is face.start().status
    else:
        with pytest.raises(QuotaExceededError) as cooling:
            face.start()
        assert COOLDOWN == cooling.value.retry_after
        clock.pass_(COOLDOWN)
        assert PENDING is face.start().status
    # What has ended stays so, whatever is called or typed later.
    if placed(gateway) > before:
        assert not face.check(id_, gateway.last_code(MOBILE)).approved
    assert CANCELED is face.get(id_).status


def test_a_call_of_an_ended_verification_is_not_repeated(
    verifier: Face, gateway: VoiceGateway
) -> None:
    gateway.blacklist = frozenset({MOBILE})
    id_ = verifier.verifier.new_id()
    with pytest.raises(BlockedMobileError):
        verifier.start(id=id_)
    gateway.blacklist = frozenset()
    again = verifier.start(id=id_)
    assert (CANCELED, OutcomeStatus.REFUSED) == (again.status, again.call)
    assert 0 == placed(gateway)


# --- resend ------------------------------------------------------------------------


def test_resend_repeats_the_code_and_changes_neither_expiry_nor_attempts(
    verifier: Face, gateway: VoiceGateway, clock: Clock
) -> None:
    started = verifier.start()
    code = gateway.last_code(MOBILE)
    assert not verifier.check(started.id, wrong(code))
    verifier.names()
    clock.pass_(COOLDOWN)
    resent = verifier.resend(started.id)
    assert replace(started, resend_after=float(COOLDOWN)) == resent
    assert ["resent"] == verifier.names()
    assert [code, code] == codes_heard(gateway)
    for left in range(ATTEMPTS - 1, 0, -1):
        assert PENDING is verifier.get(started.id).status, left
        assert not verifier.check(started.id, wrong(code))
    assert ENDED is verifier.get(started.id).status
    assert not verifier.check(started.id, code)


@pytest.mark.parametrize("how", FAILURES)
def test_resend_fails(
    make: Callable[..., Face],
    gateway: VoiceGateway,
    clock: Clock,
    stack: contextlib.ExitStack,
    how: str,
) -> None:
    failure = FAILURES[how]
    setting = stack.enter_context(contextlib.closing(Setting(make, gateway, how)))
    face = setting.face
    started = face.start()
    code = gateway.last_code(MOBILE)
    clock.pass_(COOLDOWN)
    setting.fail(is_first=False)
    face.names()
    with pytest.raises(failure.error):
        face.resend(started.id)
    assert ["resent"] == face.names()
    after = face.get(started.id)
    cooldown = 0.0 if failure.gives_back else float(COOLDOWN)
    assert replace(started, resend_after=cooldown, call=failure.call) == after
    setting.work()
    if how != "limited" and failure.gives_back:
        assert PENDING is face.resend(started.id).status
        assert [code] * 2 == codes_heard(gateway)
    assert face.check(started.id, code).approved


# The ways differ before either kind of call: `test_start_unknown` has all of them.
@pytest.mark.parametrize("how", ["closed after placing"])
def test_resend_unknown(verifier: Face, gateway: VoiceGateway, clock: Clock, how: str) -> None:
    started = verifier.start()
    clock.pass_(COOLDOWN)
    gateway.chaos = UNKNOWN[how]
    resent = verifier.resend(started.id)
    assert replace(started, call=OutcomeStatus.UNKNOWN) == resent
    first, second = codes_heard(gateway)
    assert first == second
    assert verifier.check(started.id, second).approved


def test_resend_within_the_cooldown(verifier: Face, gateway: VoiceGateway, clock: Clock) -> None:
    started = verifier.start()
    clock.pass_(COOLDOWN - 0.25)
    assert 0.25 == verifier.get(started.id).resend_after
    with pytest.raises(QuotaExceededError) as caught:
        verifier.resend(started.id)
    assert 0.25 == pytest.approx(caught.value.retry_after)
    assert 1 == placed(gateway)
    assert verifier.check(started.id, gateway.last_code(MOBILE))


def test_resend_of_what_has_ended_or_is_not_there(
    verifier: Face, gateway: VoiceGateway, clock: Clock
) -> None:
    used, canceled, expired = (verifier.start(purpose=purpose) for purpose in "abc")
    (code, *_) = codes_heard(gateway)
    assert verifier.check(used.id, code, purpose="a")
    verifier.cancel(canceled.id)
    clock.pass_(TTL)
    words = set()
    for id_, mobile, purpose in [
        (used.id, MOBILE, "a"),
        (canceled.id, MOBILE, "b"),
        (expired.id, MOBILE, "c"),
        (used.id, OTHER, "a"),
        (used.id, MOBILE, "b"),
        (verifier.verifier.new_id(), MOBILE, "a"),
        ("", MOBILE, "a"),
        (None, MOBILE, "a"),
    ]:
        with pytest.raises(InvalidRequestError) as caught:
            verifier.resend(id_, mobile, purpose)
        words.add(str(caught.value))
    assert 1 == len(words)
    assert 3 == len(gateway.calls)


# --- check --------------------------------------------------------------------------


def test_right_code_once(verifier: Face, gateway: VoiceGateway) -> None:
    started = verifier.start()
    code = gateway.last_code(MOBILE)
    verifier.names()
    assert [True, False, False] == [verifier.check(started.id, code).approved for _ in range(3)]
    assert ["checked", "approved", "checked", "checked"] == verifier.names()
    assert APPROVED is verifier.get(started.id).status
    assert APPROVED is verifier.cancel(started.id).status


def test_wrong_code_spends_an_attempt_and_the_last_one_ends_it(
    verifier: Face, gateway: VoiceGateway
) -> None:
    started = verifier.start()
    code = gateway.last_code(MOBILE)
    verifier.names()
    for n in range(ATTEMPTS):
        assert PENDING is verifier.get(started.id).status
        assert not verifier.check(started.id, wrong(code, n + 1)).approved
    assert ["checked"] * ATTEMPTS + ["exhausted"] == verifier.names()
    assert ENDED is verifier.get(started.id).status
    assert not verifier.check(started.id, code).approved
    assert ["checked"] == verifier.names()
    assert ENDED is verifier.get(started.id).status


def test_the_last_attempt_may_be_right(verifier: Face, gateway: VoiceGateway) -> None:
    started = verifier.start()
    code = gateway.last_code(MOBILE)
    for _ in range(ATTEMPTS - 1):
        assert not verifier.check(started.id, wrong(code)).approved
    verifier.names()
    assert verifier.check(started.id, code).approved
    assert ["checked", "approved"] == verifier.names()
    assert APPROVED is verifier.get(started.id).status


def test_expiry(verifier: Face, gateway: VoiceGateway, clock: Clock) -> None:
    in_time, late = verifier.start(purpose="a"), verifier.start(purpose="b")
    first, second = codes_heard(gateway)
    verifier.names()
    clock.pass_(TTL - 0.01)
    assert verifier.check(in_time.id, first, purpose="a")
    assert PENDING is verifier.get(late.id).status
    clock.pass_(0.01)
    assert EXPIRED is verifier.get(late.id).status
    verifier.names()
    assert not verifier.check(late.id, second, purpose="b")
    assert ["checked", "expired"] == verifier.names()
    assert not verifier.check(late.id, second, purpose="b")
    # Once.
    assert ["checked"] == verifier.names()
    assert EXPIRED is verifier.get(late.id).status
    assert EXPIRED is verifier.cancel(late.id).status
    assert [] == verifier.names()


def test_every_reason_gets_the_same_answer(
    verifier: Face, gateway: VoiceGateway, clock: Clock
) -> None:
    ids = {}
    codes = {}
    for name in ("expired", "wrong", "used", "canceled", "exhausted", "number", "purpose"):
        ids[name] = verifier.start(purpose=name).id
        codes[name] = codes_heard(gateway)[-1]
        if name == "expired":
            clock.pass_(TTL)
    assert verifier.check(ids["used"], codes["used"], purpose="used")
    verifier.cancel(ids["canceled"])
    for _ in range(ATTEMPTS):
        verifier.check(ids["exhausted"], wrong(codes["exhausted"]), purpose="exhausted")
    answers = [
        verifier.check(verifier.verifier.new_id(), codes["used"]),
        verifier.check(ids["number"], codes["number"], OTHER, "number"),
        verifier.check(ids["purpose"], codes["purpose"], MOBILE, "number"),
    ]
    answers += [
        verifier.check(ids[name], codes[name], purpose=name)
        for name in ("expired", "used", "canceled", "exhausted")
    ]
    answers.append(verifier.check(ids["wrong"], wrong(codes["wrong"]), purpose="wrong"))
    assert [False] * 8 == [answer.approved for answer in answers]
    assert [
        *("unknown_id", "mismatch", "mismatch", "expired", "already_approved", "canceled"),
        *("no_attempts_left", "wrong_code"),
    ] == [answer.reason for answer in answers]
    # What is not approved for another number or purpose has changed nothing.
    for name in ("number", "purpose"):
        assert verifier.check(ids[name], codes[name], purpose=name)


# --- cancel, get ----------------------------------------------------------------------


def test_cancel(verifier: Face, gateway: VoiceGateway, clock: Clock) -> None:
    started = verifier.start()
    verifier.names()
    canceled = verifier.cancel(started.id)
    assert replace(started, status=CANCELED) == canceled == verifier.cancel(started.id)
    assert ["canceled"] == verifier.names()
    assert not verifier.check(started.id, gateway.last_code(MOBILE))
    clock.pass_(TTL)
    assert CANCELED is verifier.get(started.id).status


def test_unknown_ids(verifier: Face) -> None:
    for id_ in ("0" * 32, "", "0" * 31, "Z" * 32, None, 7, "'; --", "0" * 10_000):
        for act in (verifier.get, verifier.cancel):
            with pytest.raises(LookupError, match="no verification with this id"):
                act(id_)
        assert not verifier.check(id_, "123456")
        assert ["unknown_id"] == [event.reason for event in verifier.events], id_
        assert ["checked"] == verifier.names()
