"""One event for each outcome, with what happened and no secret."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from typing import TYPE_CHECKING, Any

import pytest

from ihuyi_voice import (
    AsyncVoiceClient,
    OutcomeStatus,
    RecipientQuota,
    Store,
    SubmitEvent,
    SubmitRequest,
    VoiceClient,
)
from ihuyi_voice.sandbox import Chaos
from tests.events.kinds import CODE, KINDS, MASKED, MOBILE, opened

if TYPE_CHECKING:
    from pathlib import Path

    from ihuyi_voice.testing import VoiceGateway
    from tests.events.kinds import Kind

S = OutcomeStatus
# A port that nothing listens on.
NOWHERE = "http://127.0.0.1:9"

pytestmark = pytest.mark.parametrize("kind", KINDS)


def pairs(count: int) -> list[tuple[str, str]]:
    return [(f"139{n:08d}", "1125") for n in range(count)]


def test_an_accepted_submit(kind: Kind, voice_gateway: VoiceGateway) -> None:
    before = time.time()
    with opened(kind, voice_gateway.url) as face:
        result: Any = face.call("submit", MOBILE, CODE)
        (event,) = face.events
    host = voice_gateway.url.removeprefix("http://")
    expected = SubmitEvent(
        operation="submit",
        mobile=MASKED,
        status=S.ACCEPTED,
        code=2,
        voice_id=result.voice_id,
        seconds=event.seconds,
        attempts=1,
        key=None,
        error="",
        reason="",
        host=host,
        url=f"http://{host}/webservice/voice.php",
        http_status=200,
        ended_at=event.ended_at,
    )
    assert expected == event
    assert not event.failed
    assert before <= event.ended_at - event.seconds <= event.ended_at <= time.time()


def test_an_event_cannot_be_changed(kind: Kind, voice_gateway: VoiceGateway) -> None:
    with opened(kind, voice_gateway.url) as face:
        face.call("submit", MOBILE, CODE)
        with pytest.raises(dataclasses.FrozenInstanceError):
            face.events[0].seconds = 0.0  # type: ignore[misc]


def test_a_refused_submit(kind: Kind, voice_gateway: VoiceGateway) -> None:
    voice_gateway.blacklist = frozenset({MOBILE})
    with opened(kind, voice_gateway.url) as face:
        face.call("submit", MOBILE, CODE)
        (event,) = face.events
    assert (S.REFUSED, 4030, None, 1, 200) == (
        event.status,
        event.code,
        event.voice_id,
        event.attempts,
        event.http_status,
    )
    assert event.failed
    assert "BlockedMobileError" == event.error
    assert event.reason.startswith("the mobile number is blacklisted ('")


def test_an_unknown_submit(kind: Kind, voice_gateway: VoiceGateway) -> None:
    voice_gateway.chaos = Chaos(html_502=1.0)
    with opened(kind, voice_gateway.url) as face:
        face.call("submit", MOBILE, CODE)
        (event,) = face.events
    assert (S.UNKNOWN, None, 502) == (event.status, event.code, event.http_status)
    assert "OutcomeUnknownError" == event.error


def test_a_submit_that_was_not_sent(kind: Kind) -> None:
    with opened(kind, NOWHERE, connect_attempts=2) as face:
        face.call("submit", MOBILE, CODE)
        (event,) = face.events
    assert (S.NOT_SENT, None, 2, None) == (
        event.status,
        event.code,
        event.attempts,
        event.http_status,
    )
    assert "127.0.0.1:9" == event.host
    assert "connection could not be made" in event.reason


def test_an_invalid_and_a_limited_submit(kind: Kind, voice_gateway: VoiceGateway) -> None:
    quota = RecipientQuota(per_minute=1)
    with opened(kind, voice_gateway.url, quota=quota) as face:
        face.call("submit", MOBILE, "98x6")
        face.call("submit", MOBILE, CODE)
        face.call("submit", MOBILE, CODE)
        invalid, _, limited = face.events
    assert (S.INVALID, MASKED, 0, None) == (
        invalid.status,
        invalid.mobile,
        invalid.attempts,
        invalid.http_status,
    )
    assert "98x6" not in repr(invalid)
    assert (S.LIMITED, 0, "QuotaExceededError") == (limited.status, limited.attempts, limited.error)


def test_a_replayed_submit(kind: Kind, voice_gateway: VoiceGateway, tmp_path: Path) -> None:
    with (
        Store.open(tmp_path / "calls.db") as store,
        opened(kind, voice_gateway.url, store=store) as face,
    ):
        face.call("submit", MOBILE, CODE, idempotency_key="order 7")
        face.call("submit", MOBILE, CODE, idempotency_key="order 7")
    accepted, replayed = face.events
    assert (S.ACCEPTED, S.REPLAYED) == (accepted.status, replayed.status)
    assert accepted.voice_id == replayed.voice_id
    assert ("order 7", "order 7") == (accepted.key, replayed.key)
    assert (0, None, False) == (replayed.attempts, replayed.code, replayed.failed)


@pytest.mark.parametrize(
    ("shown", "key"),
    [
        ("login:****", f"login:{MOBILE}"),
        ("****:a", f"{CODE}:a"),
        ("****", "login:139-1234-5678"),
        ("order 7", "order 7"),
        (None, "k" * 256),
        (None, "a\nb"),
    ],
)
def test_a_key_shows_neither_number_nor_code(  # noqa: PLR0917 - fixtures
    kind: Kind,
    voice_gateway: VoiceGateway,
    tmp_path: Path,
    key: str,
    shown: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        Store.open(tmp_path / "calls.db") as store,
        opened(kind, voice_gateway.url, store=store) as face,
    ):
        face.call("submit", MOBILE, CODE, idempotency_key=key)
        first = repr(face.events) + repr([vars(record) for record in caplog.records])
        face.call("submit", MOBILE, "1125", idempotency_key=key)
    assert shown == face.events[0].key
    for secret in (MOBILE, CODE, "139-1234-5678"):
        assert secret not in first
    assert face.events[1].failed
    assert key not in face.events[1].reason


def test_a_balance_query(kind: Kind, voice_gateway: VoiceGateway) -> None:
    with opened(kind, voice_gateway.url) as face:
        face.call("query_balance")
        voice_gateway.chaos = Chaos(code=4050)
        face.call("query_balance")
        good, refused = face.events
    assert ("query_balance", S.ACCEPTED, "****", None) == (
        good.operation,
        good.status,
        good.mobile,
        good.key,
    )
    assert (S.REFUSED, 4050, "the account is frozen") == (
        refused.status,
        refused.code,
        refused.reason,
    )


def test_every_row_of_a_run_has_one_event(kind: Kind, voice_gateway: VoiceGateway) -> None:
    voice_gateway.blacklist = frozenset({"13900000003"})
    rows: list[Any] = [*pairs(10), (MOBILE, "98x6"), None, pairs(1)[0]]
    quota = RecipientQuota(per_minute=1)
    with opened(kind, voice_gateway.url, quota=quota) as face:
        outcomes = face.run(rows, concurrency=4)
        by_row = sorted((event.mobile, event.status.value) for event in face.events)
    assert {"submit_many"} == {event.operation for event in face.events}
    assert by_row == sorted(
        ("****" if o.request is None else o.request.mobile[:3] + "****" + o.request.mobile[7:],
         o.status.value)
        for o in outcomes
    )  # fmt: skip
    assert {S.ACCEPTED, S.REFUSED, S.INVALID, S.LIMITED} == {o.status for o in outcomes}
    for event in face.events:
        assert (event.attempts > 0) is (event.status in (S.ACCEPTED, S.REFUSED))
        assert "98x6" not in repr(event)


@pytest.mark.parametrize("rate", [None, 1000.0])
def test_replayed_rows(
    kind: Kind, voice_gateway: VoiceGateway, tmp_path: Path, rate: float | None
) -> None:
    rows = [SubmitRequest(*pair, f"key {n}") for n, pair in enumerate(pairs(5))]
    with (
        Store.open(tmp_path / "calls.db") as store,
        opened(kind, voice_gateway.url, store=store) as face,
    ):
        face.run(rows)
        face.run(rows, rate=rate)
    assert [S.ACCEPTED] * 5 + [S.REPLAYED] * 5 == [event.status for event in face.events]


def test_a_run_that_is_stopped_reports_the_rows_that_it_did_not_start(
    kind: Kind, voice_gateway: VoiceGateway
) -> None:
    voice_gateway.chaos = Chaos(code=4051)
    with opened(kind, voice_gateway.url) as face:
        outcomes = face.run(iter(pairs(300)), concurrency=4)
    assert {S.REFUSED, S.NOT_SENT} == {outcome.status for outcome in outcomes}
    assert sorted(o.status.value for o in outcomes) == sorted(e.status.value for e in face.events)


def test_a_function_that_raises_is_logged_and_ignored(
    kind: Kind, voice_gateway: VoiceGateway, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(event: object) -> None:
        raise ValueError(CODE)

    later: list[SubmitEvent] = []
    with opened(kind, voice_gateway.url, fail, later.append) as face:
        face.call("submit", MOBILE, CODE)
        assert 3 == len(face.run(pairs(3)))
    assert 4 == len(later) == len(face.events)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert ["on_event raised ValueError for submit: ignored"] == warned[:1]
    assert 4 == len(warned)
    assert CODE not in caplog.text


def test_the_program_may_be_ended_by_a_function(kind: Kind, voice_gateway: VoiceGateway) -> None:
    """The other functions get the event, and the run its outcomes."""

    def leave(event: object) -> None:
        raise SystemExit(3)

    later: list[SubmitEvent] = []
    with opened(kind, voice_gateway.url, leave, later.append) as face:
        with pytest.raises(SystemExit):
            face.call("submit", MOBILE, CODE)
        with pytest.raises(SystemExit):
            face.run(pairs(1))
    assert 2 == len(later) == len(face.events) == len(voice_gateway.calls)


@pytest.mark.parametrize("wrong", [print, ["print"], [None]])
def test_what_is_no_list_of_functions_is_refused(kind: Kind, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"^on_event takes a list of functions: on_event=\["):
        opened(kind, NOWHERE, on_event=wrong).__enter__()


def test_from_env_takes_the_functions(
    kind: Kind, voice_gateway: VoiceGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IHUYI_VOICE_API_ID", "sandbox")
    monkeypatch.setenv("IHUYI_VOICE_API_KEY", "sandbox-key")
    monkeypatch.setenv("IHUYI_VOICE_BASE_URL", voice_gateway.url)
    events: list[SubmitEvent] = []
    if kind == "blocking":
        with VoiceClient.from_env(on_event=[events.append]) as client:
            client.query_balance()
    else:

        async def ask() -> None:
            async with AsyncVoiceClient.from_env(on_event=[events.append]) as client:
                await client.query_balance()

        asyncio.run(ask())
    assert ["query_balance"] == [event.operation for event in events]


# --- log records --------------------------------------------------------------


def test_a_record_has_the_fields_of_its_event(
    kind: Kind, voice_gateway: VoiceGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="ihuyi_voice")
    with opened(kind, voice_gateway.url) as face:
        face.call("submit", MOBILE, CODE)
        voice_gateway.chaos = Chaos(code=4051)
        face.call("submit", MOBILE, CODE)
    good, bad = (record for record in caplog.records if record.name == "ihuyi_voice")
    for record, event in zip((good, bad), face.events, strict=True):
        for name in ("operation", "mobile", "code", "voice_id", "seconds", "attempts", "key"):
            assert getattr(event, name) == getattr(record, f"ihuyi_{name}")
        for name in ("error", "reason", "host", "http_status"):
            assert getattr(event, name) == getattr(record, f"ihuyi_{name}")
        assert event.status.value == record.ihuyi_status  # type: ignore[attr-defined]
    assert (logging.INFO, logging.WARNING) == (good.levelno, bad.levelno)
    host = face.events[0].host
    assert bad.getMessage().endswith(f" ms host={host}: {face.events[1].reason}")
    assert "host=" not in good.getMessage()


def test_where_warnings_are_off_nothing_is_logged(
    kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="ihuyi_voice")
    with opened(kind, NOWHERE, on_event=(), connect_attempts=1) as face:
        face.call("submit", MOBILE, CODE)
        face.call("submit", MOBILE, CODE)
    assert [] == caplog.records


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1:80", "http://127.0.0.1"),
        ("voice.example:443", "https://voice.example"),
        ("[::1]:8443", "https://[::1]:8443"),
    ],
)
def test_the_host_has_its_port(kind: Kind, host: str, url: str) -> None:
    with opened(kind, url) as face:
        face.call("submit", MOBILE, "98x6")
        assert host == face.events[0].host
