"""What an error advises to do next, which depends on the call that failed."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ihuyi_voice import (
    IhuyiVoiceError,
    NotSentError,
    OutcomeUnknownError,
    Store,
    StoreError,
    SubmitRequest,
    Verifier,
    VoiceClient,
)
from ihuyi_voice._advice import CHECK_UNKNOWN, advised
from ihuyi_voice._limits import Limits
from ihuyi_voice.sandbox import Chaos, SandboxGateway

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOBILE = "13912345678"


@pytest.fixture
def gateway() -> SandboxGateway:
    """A gateway that places every call and answers none."""
    gateway = SandboxGateway()
    gateway.chaos = Chaos(close_after_placing=1.0)
    return gateway


@pytest.fixture
def url(gateway: SandboxGateway) -> Iterator[str]:
    with gateway.serve_in_thread() as url:
        yield url


@pytest.fixture
def refused_url() -> Iterator[str]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextmanager
def client_of(url: str, **options: Any) -> Iterator[VoiceClient]:
    options = {"connect_attempts": 1} | options
    with VoiceClient("sandbox", "sandbox-key", base_url=url, **options) as client:
        yield client


def advice_of(error: IhuyiVoiceError | None) -> str:
    return str(error).partition("; ")[2]


def test_a_submit_without_a_key(url: str, refused_url: str) -> None:
    with client_of(url) as client, pytest.raises(OutcomeUnknownError) as unknown:
        client.submit(MOBILE, "1125")
    assert "the phone may have rung, do not repeat this blindly" == advice_of(unknown.value)
    with client_of(refused_url) as client, pytest.raises(NotSentError) as not_sent:
        client.submit(MOBILE, "1125")
    expected = "nothing was written, no phone rang, repeating is safe"
    assert expected == advice_of(not_sent.value)


def test_a_submit_with_a_key(gateway: SandboxGateway, url: str, tmp_path: Path) -> None:
    with (
        Store.open(tmp_path / "voice.db") as store,
        client_of(url, store=store) as client,
    ):
        errors = []
        for _ in range(2):
            with pytest.raises(OutcomeUnknownError) as caught:
                client.submit(MOBILE, "1125", idempotency_key="order-1")
            errors.append(caught.value)
        assert [False, True] == [error.earlier for error in errors]
        for error in errors:
            advice = advice_of(error)
            assert advice.startswith("the phone may have rung; a submit with the same key sends")
            assert "store.resolve(key, placed=True)" in advice
            assert error == type(error)(*error.args)
        # The advice is true.
        assert 1 == len(gateway.attempts)
        store.resolve("order-1", placed=False)
        gateway.chaos = Chaos()
        assert not client.submit(MOBILE, "1125", idempotency_key="order-1").replayed


def test_a_row_of_a_bulk_run(url: str, refused_url: str) -> None:
    rows = [(MOBILE, "1125")]
    with client_of(url) as client, client.submit_many(rows) as run:
        (outcome,) = run
    assert advice_of(outcome.error).startswith("the phone may have rung: leave this row out of")
    with client_of(refused_url) as client, client.submit_many(rows) as run:
        (outcome,) = run
    expected = "nothing was written, no phone rang: the next run may send this row"
    assert expected == advice_of(outcome.error)


def test_a_balance_query_that_fails_does_not_read_like_a_balance(
    gateway: SandboxGateway, url: str, refused_url: str
) -> None:
    gateway.chaos = Chaos(close_before_reading=1.0)
    with client_of(url) as client, pytest.raises(OutcomeUnknownError) as unknown:
        client.query_balance()
    with client_of(refused_url) as client, pytest.raises(NotSentError) as not_sent:
        client.query_balance()
    start = "the balance is not known, which does not mean that it is 0; "
    assert start + "no phone was involved, repeating is safe" == advice_of(unknown.value)
    assert start + "nothing was written, repeating is safe" == advice_of(not_sent.value)


def test_a_verification(refused_url: str, tmp_path: Path) -> None:
    gateway = SandboxGateway()
    with (
        Store.open(tmp_path / "voice.db") as store,
        gateway.serve_in_thread() as url,
        client_of(url, store=store) as client,
        client_of(refused_url, store=store) as cut_off,
    ):
        verifier, without_way = (
            Verifier(one, key=bytes(32), store=store, cooldown=0) for one in (client, cut_off)
        )
        verification = verifier.start(MOBILE, purpose="login")
        with pytest.raises(NotSentError) as resent:
            without_way.resend(verification.id, mobile=MOBILE, purpose="login")
        assert "the code of an earlier call stays valid" in advice_of(resent.value)
        # The advice is true.
        heard = gateway.calls[0].content
        checked = verifier.check(verification.id, heard, mobile=MOBILE, purpose="login")
        assert checked.approved
        with pytest.raises(NotSentError) as started:
            without_way.start("13812345678", purpose="login")
    assert "this verification is canceled" in advice_of(started.value)


@pytest.mark.parametrize(
    ("expected", "may_have_rung", "name"),
    [
        ("take it as not approved", False, "Verifier.check"),
        ("no phone was involved, repeating is safe", False, "Verifier.get"),
        ("let the person enter the code", True, "Verifier.start"),
        ("the balance is not known", False, "query_balance"),
        ("do not repeat this blindly", True, "submit"),
        ("a submit with the same key sends nothing", True, "submit with a key"),
    ],
)
def test_a_call_that_the_loop_thread_does_not_answer(
    expected: str, name: str, *, may_have_rung: bool
) -> None:
    request = SubmitRequest(MOBILE, "1125", "order-1") if "key" in name else None
    with client_of("http://127.0.0.1:9", timeout=1.0) as client:
        client._within(Limits(grace=0.05, exit=0.1))
        with pytest.raises(OutcomeUnknownError, match=expected) as caught:
            client._call(name.partition(" ")[0], lambda _: anyio.sleep_forever(), request)
    assert may_have_rung is caught.value.may_have_rung


def test_advice_is_given_once_and_only_where_it_fits() -> None:
    cause = ConnectionResetError()
    error = NotSentError("reset")
    error.__cause__ = cause
    first = advised(error, not_sent="wait")
    assert ("not sent: reset; wait", cause) == (str(first), first.__cause__)
    assert first is advised(first, not_sent="hurry")
    assert error is advised(error, unknown="wait")
    for other in (StoreError("gone"), OutcomeUnknownError("reset", advice="ask")):
        assert other is advised(other, not_sent="wait", unknown=CHECK_UNKNOWN)
