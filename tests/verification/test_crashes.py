"""A process is killed in the middle of `start`: no second ring, and the code heard is accepted.

Each test starts a process that begins a verification with an id it was given,
as a worker of a job queue does, and kills it at a defined point. Then `start`
is called once more with that id, as the queue delivers the job again.
"""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice import InvalidRequestError, OutcomeStatus, Store, VerificationStatus, Verifier

from .faces import MOBILE, Face, codes_heard, opened
from .processes import ended, python

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ihuyi_voice import Verification
    from ihuyi_voice.sandbox import Attempt
    from ihuyi_voice.testing import VoiceGateway

    from .faces import Kind

PENDING = VerificationStatus.PENDING

WORKER = """
import ihuyi_voice.store.verifications
from ihuyi_voice._pipeline import Pipeline

def die(*args, **more):
    os.kill(os.getpid(), signal.SIGKILL)

place, url, id_, point, kind = sys.argv[1:]
if point == "before the call":
    Pipeline.submit = die
elif point == "before its outcome is recorded":
    ihuyi_voice.store.verifications.Verifications.note_call = die
settings = {"base_url": url, "quota": None, "store": Store.open(place)}

async def start():
    async with AsyncVoiceClient("sandbox", "sandbox-key", **settings) as client:
        await AsyncVerifier(client, key=KEY).start(MOBILE, purpose="login", id=id_)

print("ready", flush=True)
sys.stdin.readline()
if kind == "asyncio":
    asyncio.run(start())
else:
    with VoiceClient("sandbox", "sandbox-key", **settings) as client:
        Verifier(client, key=KEY).start(MOBILE, purpose="login", id=id_)
print("not killed")
"""


@contextmanager
def opened_again(kind: Kind, place: str, gateway: VoiceGateway) -> Iterator[Face]:
    """The worker that gets the job the second time; without a cooldown, to resend at once."""
    with (
        Store.open(place, patience=0.1) as store,
        opened(kind, gateway.url, store=store, cooldown=0) as face,
    ):
        yield face


def start_and_die(place: str, gateway: VoiceGateway, id_: str, point: str, kind: Kind) -> None:
    """Run `start` in a process of its own that is killed at the point."""
    with python(WORKER, place, gateway.url, id_, point, kind) as process:

        def kill(attempt: Attempt) -> None:
            os.kill(process.pid, signal.SIGKILL)

        try:
            assert process.stdout is not None
            assert "ready\n" == process.stdout.readline()
            if point == "before the answer":
                gateway.on_attempt = kill
            out, err = process.communicate("go\n", timeout=60)
        finally:
            process.kill()
            gateway.on_attempt = None
    assert (-signal.SIGKILL, "", "") == (process.returncode, out, err)


def keeps_keys(place: str) -> bool:
    return not place.startswith("redis")


def test_killed_between_record_and_call(
    kind: Kind, shared_place: str, gateway: VoiceGateway
) -> None:
    id_ = Verifier.new_id()
    start_and_die(shared_place, gateway, id_, "before the call", kind)
    assert [] == gateway.calls
    with opened_again(kind, shared_place, gateway) as face:
        assert (PENDING, None) == ((found := face.get(id_)).status, found.call)
        again = face.start(id=id_)
        assert (id_, PENDING) == (again.id, again.status)
        if keeps_keys(shared_place):
            # The key shows that no call was begun.
            assert OutcomeStatus.ACCEPTED is again.call
        else:
            # Nothing shows it, so the person asks for the call.
            assert (None, []) == (again.call, gateway.calls)
            face.resend(id_)
        assert face.start(id=id_).status is PENDING
        (code,) = codes_heard(gateway)
        assert face.check(id_, code)


def test_killed_after_the_call(kind: Kind, shared_place: str, gateway: VoiceGateway) -> None:
    id_ = Verifier.new_id()
    start_and_die(shared_place, gateway, id_, "before the answer", kind)
    (code,) = codes_heard(gateway)
    with opened_again(kind, shared_place, gateway) as face:
        again = face.start(id=id_)
        assert (id_, PENDING) == (again.id, again.status)
        expected = OutcomeStatus.UNKNOWN if keeps_keys(shared_place) else None
        assert expected is again.call
        face.start(id=id_)
        assert [code] == codes_heard(gateway)
        # A person who did not hear it asks for another call, which reads the same code.
        face.resend(id_)
        assert [code] * 2 == codes_heard(gateway)
        assert face.check(id_, code)


def test_killed_before_the_outcome_is_recorded(
    kind: Kind, place_with_keys: str, gateway: VoiceGateway
) -> None:
    id_ = Verifier.new_id()
    start_and_die(place_with_keys, gateway, id_, "before its outcome is recorded", kind)
    (code,) = codes_heard(gateway)
    with opened_again(kind, place_with_keys, gateway) as face:
        assert face.get(id_).call is None
        assert OutcomeStatus.ACCEPTED is face.start(id=id_).call
        assert [code] == codes_heard(gateway)
        assert face.check(id_, code)


def test_the_job_is_delivered_to_two_workers_at_once(
    shared_place: str, gateway: VoiceGateway
) -> None:
    """Four threads with stores of their own, and a process, all with one id."""
    id_ = Verifier.new_id()
    gateway.chaos = type(gateway.chaos)(latency=0.05)
    barrier = threading.Barrier(4)

    def start(face: Face) -> Verification:
        barrier.wait(30)
        return face.start(id=id_)

    with ExitStack() as stack:
        faces = []
        for _ in range(4):
            store = stack.enter_context(Store.open(shared_place))
            faces.append(stack.enter_context(opened("blocking", gateway.url, store=store)))
        with ThreadPoolExecutor(4) as threads:
            started = list(threads.map(start, faces))
        assert {(id_, PENDING)} == {(one.id, one.status) for one in started}
        (code,) = codes_heard(gateway)
        assert faces[0].check(id_, code)


@pytest.mark.parametrize("redelivered", ["after approval", "for another number", "another purpose"])
def test_an_id_is_for_one_verification(
    verifier: Face, gateway: VoiceGateway, redelivered: str
) -> None:
    id_ = Verifier.new_id()
    verifier.start(id=id_)
    code = gateway.last_code(MOBILE)
    if redelivered == "after approval":
        assert verifier.check(id_, code)
        assert VerificationStatus.APPROVED is verifier.start(id=id_).status
    else:
        mobile = "13800000000" if redelivered == "for another number" else MOBILE
        purpose = "pay" if redelivered == "another purpose" else "login"
        with pytest.raises(InvalidRequestError, match="another number or purpose"):
            verifier.start(mobile, purpose=purpose, id=id_)
        assert verifier.check(id_, code)
    assert 1 == len(gateway.calls)


@pytest.mark.parametrize("id_", ["", "a" * 31, "A" * 32, " " + "a" * 31, 7, b"a" * 32, "a" * 33])
def test_an_id_must_be_drawn_by_new_id(in_memory: Face, gateway: VoiceGateway, id_: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"new_id\(\)"):
        in_memory.start(id=id_)
    assert ([], []) == (gateway.calls, in_memory.names())
    ids = {Verifier.new_id(), in_memory.verifier.new_id()}
    assert [32, 32] == [len(id_) for id_ in ids]


def test_a_worker_that_is_not_killed(kind: Kind, tmp_path: object, gateway: VoiceGateway) -> None:
    """The script of these tests works."""
    id_ = Verifier.new_id()
    with python(WORKER, f"{tmp_path}/voice.db", gateway.url, id_, "nowhere", kind) as process:
        assert process.stdin is not None
        process.stdin.write("go\n")
        assert "ready\nnot killed\n" == ended(process)
    assert 1 == len(gateway.calls)
