"""Parallel guesses: never more than `attempts` are compared, and never two are approved.

Four processes guess at the same verification at the same moment, each with
several tasks. The pipe that starts a round is the only thing they share beside
the store.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from ihuyi_voice import CheckResult, Store, VerificationStatus

from .conftest import STORES
from .faces import ATTEMPTS, MEMORY, MOBILE, Face, codes_heard, opened, wrong
from .processes import ended, python

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from ihuyi_voice.testing import VoiceGateway

SOAK = bool(os.environ.get("IHUYI_VOICE_SOAK"))
# Of each kind.
ROUNDS = 50 if SOAK else 4
PROCESSES, TASKS = 4, 15
# Results that say that a code was compared.
COMPARED = {"", "wrong_code", "not_pending_any_more"}

GUESSER = """
import json

async def main():
    # A process signs nothing: the address is never used.
    with Store.open(sys.argv[1]) as store:
        async with AsyncVoiceClient("sandbox", "sandbox-key", store=store) as client:
            verifier = AsyncVerifier(client, key=KEY)
            # The connection is open before the first round.
            await verifier.check(verifier.new_id(), "", mobile=MOBILE, purpose="login")
            print("ready")
            while line := await asyncio.to_thread(sys.stdin.readline):
                id_, purpose, codes = json.loads(line)
                results = await asyncio.gather(*(
                    verifier.check(id_, code, mobile=MOBILE, purpose=purpose) for code in codes
                ))
                print(json.dumps([[code, result.approved, result.reason]
                                  for code, result in zip(codes, results)]))

asyncio.run(main())
"""


class Guessers:
    """Processes that guess at the same time."""

    def __init__(self, place: str, stack: ExitStack) -> None:
        self._processes: list[subprocess.Popen[str]] = []
        for _ in range(PROCESSES):
            process = python(GUESSER, place)
            stack.callback(process.kill)
            self._processes.append(process)
        for process in self._processes:
            assert "ready\n" == self._line(process)

    def guess(self, id_: str, purpose: str, codes: list[list[str]]) -> list[tuple[str, bool, str]]:
        """Let each process check its codes; code, approved and reason of all."""
        for process, its_codes in zip(self._processes, codes, strict=True):
            assert process.stdin is not None
            process.stdin.write(json.dumps([id_, purpose, its_codes]) + "\n")
            process.stdin.flush()
        return [
            tuple(result)
            for process in self._processes
            for result in json.loads(self._line(process))
        ]

    def end(self) -> None:
        for process in self._processes:
            assert "" == ended(process)

    @staticmethod
    def _line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:  # pragma: no cover - a process failed
            assert process.stderr is not None
            pytest.fail(process.stderr.read())
        return line


def round_of(
    guessers: Guessers, face: Face, gateway: VoiceGateway, right: str, n: int
) -> list[tuple[str, bool, str]]:
    """One verification at which all processes guess with all their tasks; what they got."""
    # Of its own purpose: ten guesses an hour are allowed for each.
    purpose = f"{right} {n}"
    started = face.start(purpose=purpose)
    code = codes_heard(gateway)[-1]
    guesses = [[wrong(code, 1 + TASKS * p + t) for t in range(TASKS)] for p in range(PROCESSES)]
    if right == "all":
        guesses = [[code] * TASKS] * PROCESSES
    elif right == "one":
        guesses[n % PROCESSES][n % TASKS] = code
    elif right == "first":
        # One guess of each process, or two: no more than `attempts`, so the code is compared.
        guesses = [[wrong(code, p + 1)] for p in range(PROCESSES)]
        guesses[n % PROCESSES] = [code, wrong(code, 9)]
    results = guessers.guess(started.id, purpose, guesses)
    assert sum(map(len, guesses)) == len(results)
    compared = [result for result in results if result[2] in COMPARED]
    approvals = [result for result in results if result[1]]
    was_compared = any(guess == code for guess, _, _ in compared)
    # A right code among the compared ones is approved, once, and no other is.
    assert len(approvals) == was_compared
    assert all(guess == code for guess, _, _ in approvals)
    status = face.get(started.id).status
    if was_compared:
        assert len(compared) <= ATTEMPTS
        assert VerificationStatus.APPROVED is status
    else:
        assert ATTEMPTS == len(compared)
        assert VerificationStatus.MAX_ATTEMPTS_REACHED is status
    return approvals


def test_parallel_guesses_of_four_processes(shared_place: str, gateway: VoiceGateway) -> None:
    approved = dict.fromkeys(["one", "all", "none", "first"], 0)
    with (
        ExitStack() as stack,
        Store.open(shared_place) as store,
        opened("blocking", gateway.url, store=store) as face,
    ):
        guessers = Guessers(shared_place, stack)
        for right in approved:
            for n in range(ROUNDS):
                approved[right] += len(round_of(guessers, face, gateway, right, n))
        guessers.end()
    assert (ROUNDS, 0, ROUNDS) == (approved["all"], approved["none"], approved["first"])


@pytest.mark.parametrize("store_name", STORES)
def test_parallel_guesses_of_tasks(
    store_name: str, request: pytest.FixtureRequest, gateway: VoiceGateway, tmp_path: Any
) -> None:
    """Of one process, memory included: the right code is typed twenty times at once."""
    from .conftest import place_of  # noqa: PLC0415 - a function, no fixture

    place = place_of(store_name, request, tmp_path)
    with ExitStack() as stack:
        store = None if place == MEMORY else stack.enter_context(Store.open(place))
        face = stack.enter_context(opened("asyncio", gateway.url, store=store))
        started = face.start()
        code = gateway.last_code(MOBILE)

        def guess() -> Any:
            return face.verifier.check(started.id, code, mobile=MOBILE, purpose="login")

        results: list[CheckResult] = face.together(*[guess] * 20)
    assert 1 == sum(result.approved for result in results)
    reasons = {result.reason for result in results}
    assert reasons <= {"", "not_pending_any_more", "already_approved", "no_attempts_left"}


def test_two_flows_do_not_multiply_guesses(verifier: Face, gateway: VoiceGateway) -> None:
    """Ten guesses an hour for a number and purpose, over all its verifications."""
    face = verifier
    clock = face.clock
    ids = []
    for _ in range(3):
        ids.append(face.start().id)
        clock.pass_(60)
    codes = codes_heard(gateway)
    spent = [face.check(ids[0], wrong(codes[0])) for _ in range(5)]
    spent += [face.check(ids[1], wrong(codes[1])) for _ in range(5)]
    assert {"wrong_code"} == {result.reason for result in spent}
    # The right code of the third is one guess too many, and spends none of its attempts.
    assert (False, "too_many_guesses") == (
        (result := face.check(ids[2], codes[2])).approved,
        result.reason,
    )
    assert VerificationStatus.PENDING is face.get(ids[2]).status
    # A further verification does not help, another purpose and another number have their own.
    more = face.start()
    assert "too_many_guesses" == face.check(more.id, codes_heard(gateway)[-1]).reason
    other = face.start(purpose="pay")
    assert face.check(other.id, codes_heard(gateway)[-1], purpose="pay")
    # Within an hour after the first guess there are ten; an hour after the last, none.
    clock.pass_(3599)
    late = face.start()
    assert "too_many_guesses" == face.check(late.id, codes_heard(gateway)[-1]).reason
    clock.pass_(1)
    assert face.check(late.id, codes_heard(gateway)[-1])


def test_guesses_that_are_not_compared_are_not_counted(
    verifier: Face, gateway: VoiceGateway
) -> None:
    started = verifier.start()
    code = gateway.last_code(MOBILE)
    for _ in range(12):
        verifier.check(started.id, code, purpose="pay")
        verifier.check(verifier.verifier.new_id(), code)
    assert verifier.check(started.id, code)


def test_the_limit_of_guesses_holds_for_both_classes_and_all_verifiers(
    make: Callable[..., Face], gateway: VoiceGateway
) -> None:
    one = make(attempts=10)
    two = make(kept_in=one.verifier._flow._store)
    started = one.start()
    code = gateway.last_code(MOBILE)
    results = [face.check(started.id, wrong(code)) for face in (one, two) * 5]
    assert {"wrong_code"} == {result.reason for result in results}
    assert VerificationStatus.MAX_ATTEMPTS_REACHED is two.get(started.id).status
    assert "no_attempts_left" == one.check(started.id, code).reason
