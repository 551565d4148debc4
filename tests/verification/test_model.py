"""The rules of a verification against a plain model, in any order of events.

The steps of `store/verifications.py` run in memory; the same steps run on every
store. The model knows no tokens and no transactions: it keeps what a person
would write down.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from ihuyi_voice import VerificationStatus
from ihuyi_voice.store.limits import KEEP_SECONDS
from ihuyi_voice.store.memory import MemoryVerifications
from ihuyi_voice.store.verifications import Found, NewRecord, Refusal, Verifications

from .faces import Clock

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

NEVER = math.inf
KEY_NAME = "8hexdigt"
PENDING, APPROVED = VerificationStatus.PENDING, VerificationStatus.APPROVED
CANCELED, EXPIRED = VerificationStatus.CANCELED, VerificationStatus.EXPIRED
ENDED = VerificationStatus.MAX_ATTEMPTS_REACHED
REASONS = {
    APPROVED: Refusal.APPROVED,
    CANCELED: Refusal.CANCELED,
    EXPIRED: Refusal.EXPIRED,
    ENDED: Refusal.NO_ATTEMPTS_LEFT,
}
PERSONS = st.sampled_from(["alice", "bob"])


def now(step: Coroutine[Any, Any, T]) -> T:
    """Run a step in memory, which never waits."""
    try:
        step.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError  # pragma: no cover - it would have waited


@dataclass
class Written:
    """One verification, as the model has it."""

    person: str
    status: VerificationStatus
    expires_at: float
    attempts: int
    call: str = ""
    sends: int = 1


@dataclass
class Model:
    """What a person would write down."""

    verifications: dict[str, Written] = field(default_factory=dict)
    # The moments of each person's calls that count for the cooldown, by the call they are of.
    calls: dict[str, dict[tuple[str, int], float]] = field(
        default_factory=lambda: {"alice": {}, "bob": {}}
    )
    guesses: dict[str, list[float]] = field(default_factory=lambda: {"alice": [], "bob": []})

    def wait(self, person: str, cooldown: float, at: float) -> float:
        latest = max(self.calls[person].values(), default=-NEVER)
        return max(0.0, latest + cooldown - at) if cooldown else 0.0


class VerificationMachine(RuleBasedStateMachine):
    """Starts, guesses, calls, cancels and lets time pass."""

    ids: Bundle[str] = Bundle("ids")
    # Guesses that were right, and may still be approved: id and token.
    right: Bundle[tuple[str, str]] = Bundle("right")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.store = Verifications(MemoryVerifications(self.clock))
        self.model = Model()
        self.approvals: dict[str, int] = {}

    def _written(self, id_: str) -> Written:
        """As it is now: what is pending may have expired. What was purged is of no rule."""
        assume(id_ in self.model.verifications)
        written = self.model.verifications[id_]
        if written.status is PENDING and self.clock.time >= written.expires_at:
            written.status = EXPIRED
        return written

    @rule(
        target=ids,
        person=PERSONS,
        attempts=st.integers(1, 4),
        cooldown=st.sampled_from([0.0, 60.0]),
        ttl=st.sampled_from([90.0, 600.0]),
    )
    def start(self, person: str, attempts: int, cooldown: float, ttl: float) -> Any:
        id_ = secrets.token_hex(16)
        wait = self.model.wait(person, cooldown, self.clock.time)
        new = NewRecord(
            id=id_,
            purpose="login",
            binding=f"{person} {id_}",
            subject=person,
            hashed_with=KEY_NAME,
            mobile="139****5678",
            length=6,
            ttl=ttl,
            attempts=attempts,
            cooldown=cooldown,
            is_decoy=False,
            token=secrets.token_hex(8),
        )
        for _ in range(2):
            # A repeated step changes nothing more.
            created = now(self.store.create(new, NEVER))
            assert wait == created.wait
            assert (created.found is None) == (wait > 0) != created.is_new
        if wait:
            return multiple()
        self.model.verifications[id_] = Written(person, PENDING, self.clock.time + ttl, attempts)
        if cooldown:
            self.model.calls[person][id_, 1] = self.clock.time
        self._forget()
        return id_

    def _forget(self) -> None:
        """A record is forgotten by itself, but not within a day after its end."""
        before = self.clock.time - KEEP_SECONDS
        self.model.verifications = {
            id_: one
            for id_, one in self.model.verifications.items()
            if one.expires_at >= before or now(self.store.find(id_, NEVER)) is not None
        }

    @rule(target=right, id_=ids, is_right=st.booleans(), person=PERSONS)
    def guess(self, id_: str, is_right: bool, person: str) -> Any:
        written, at = self._written(id_), self.clock.time
        was_expired = self._found(id_).record.status is EXPIRED
        token = secrets.token_hex(8)
        bindings = {KEY_NAME: f"{person} {id_}"}
        spent = now(self.store.spend(id_, bindings, token, NEVER))
        recent = [moment for moment in self.model.guesses[written.person] if moment > at - 3600]
        expected = REASONS.get(written.status)
        if person != written.person:
            expected = Refusal.MISMATCH
        elif written.status is EXPIRED and not was_expired:
            expected = Refusal.JUST_EXPIRED
        elif expected is None and len(recent) == 10:
            expected = Refusal.TOO_MANY_GUESSES  # pragma: no cover - by chance
        if expected is not None:
            assert expected is spent
            return multiple()
        assert isinstance(spent, Found)
        written.attempts -= 1
        if not written.attempts:
            written.status = ENDED
        assert (written.attempts, written.status) == (
            spent.record.attempts_left,
            spent.record.status,
        )
        # A repeated step spends nothing more.
        assert spent == now(self.store.spend(id_, bindings, token, NEVER))
        self.model.guesses[written.person] = [*recent, at]
        return (id_, token) if is_right else multiple()

    @rule(guess=consumes(right), times=st.integers(1, 2))
    def approve(self, guess: tuple[str, str], times: int) -> None:
        id_, token = guess
        written = self._written(id_)
        # The last guess may be right, and others may have spent the last one meanwhile.
        expected = written.status is PENDING or (
            written.status is ENDED and self.clock.time < written.expires_at
        )
        for _ in range(times):
            assert expected is now(self.store.approve(id_, token, NEVER))
        written.status = APPROVED if expected else written.status
        self.approvals[id_] = self.approvals.get(id_, 0) + expected

    @rule(id_=ids, cooldown=st.sampled_from([0.0, 60.0]), person=PERSONS)
    def resend(self, id_: str, cooldown: float, person: str) -> None:
        written = self._written(id_)
        was_expired = self._found(id_).record.status is EXPIRED
        token = secrets.token_hex(8)
        bindings = {KEY_NAME: f"{person} {id_}"}
        noted = now(self.store.note_send(id_, bindings, cooldown, token, NEVER))
        wait = self.model.wait(written.person, cooldown, self.clock.time)
        if person != written.person:
            assert Refusal.MISMATCH is noted
        elif written.status is EXPIRED and not was_expired:
            assert Refusal.JUST_EXPIRED is noted
        elif written.status is not PENDING:
            assert REASONS[written.status] is noted
        elif wait:
            assert wait == noted
        else:
            assert isinstance(noted, Found)
            written.sends += 1
            assert written.sends == noted.record.sends
            # A repeated step counts no more.
            assert noted == now(self.store.note_send(id_, bindings, cooldown, token, NEVER))
            if cooldown:
                self.model.calls[written.person][id_, written.sends] = self.clock.time

    @rule(id_=ids, call=st.sampled_from(["accepted", "unknown", "refused", "not_sent"]))
    def call_ended(self, id_: str, call: str) -> None:
        written = self._written(id_)
        gives_back = call == "not_sent"
        now(self.store.note_call(id_, written.sends, call, NEVER, gives_back=gives_back))
        written.call = call
        if gives_back:
            self.model.calls[written.person].pop((id_, written.sends), None)

    @rule(id_=ids)
    def an_earlier_call_ended(self, id_: str) -> None:
        """A late outcome does not replace that of a later call."""
        written = self._written(id_)
        send = written.sends - 1
        now(self.store.note_call(id_, send, "not_sent", NEVER, gives_back=True))
        self.model.calls[written.person].pop((id_, send), None)

    @rule(id_=ids)
    def cancel(self, id_: str) -> None:
        written = self._written(id_)
        if written.status is PENDING:
            written.status = CANCELED
        found = now(self.store.cancel(id_, NEVER))
        assert found is not None
        assert written.status is found.record.status_at(found.now)

    @rule(seconds=st.sampled_from([1.0, 30.0, 60.0, 89.0, 600.0, 3600.0, 90_000.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.pass_(seconds)

    @rule(hours=st.sampled_from([0, 1]))
    def purge(self, hours: int) -> None:
        before = self.clock.time - 3600 * hours
        old = {id_ for id_, one in self.model.verifications.items() if one.expires_at < before}
        purged = now(self.store.purge(timedelta(hours=hours), NEVER))
        assert len(old) == purged
        for id_ in old:
            del self.model.verifications[id_]
            assert now(self.store.find(id_, NEVER)) is None
            assert now(self.store.cancel(id_, NEVER)) is None
            assert now(self.store.note_call(id_, 1, "accepted", NEVER, gives_back=True)) is None
            assert Refusal.UNKNOWN_ID is now(self.store.spend(id_, {}, "t", NEVER))
            assert Refusal.UNKNOWN_ID is now(self.store.note_send(id_, {}, 0.0, "t", NEVER))
            assert not now(self.store.approve(id_, "t", NEVER))

    def _found(self, id_: str) -> Found:
        found = now(self.store.find(id_, NEVER))
        assert found is not None
        return found

    @invariant()
    def the_store_says_what_the_model_says(self) -> None:
        for id_, one in self.model.verifications.items():
            written, found = self._written(id_), self._found(id_)
            assert one is written
            assert (
                written.status,
                written.expires_at,
                written.attempts,
                written.call,
                written.sends,
            ) == (
                found.record.status_at(found.now),
                found.record.expires_at,
                found.record.attempts_left,
                found.record.call,
                found.record.sends,
            )
        for person, moments in self.model.guesses.items():
            recent = sum(moment > self.clock.time - 3600 for moment in moments)
            assert recent == now(self.store.guesses(person, NEVER))
            assert recent <= 10

    @invariant()
    def nothing_is_approved_twice(self) -> None:
        assert set(self.approvals.values()) <= {0, 1}


TestVerification = VerificationMachine.TestCase
TestVerification.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
