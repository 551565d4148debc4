"""A client over a transport of 20 lines, without aiohttp: each outcome is stated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ihuyi_voice import (
    AsyncVoiceClient,
    BlockedMobileError,
    IhuyiVoiceError,
    NotSentError,
    OutcomeStatus,
    OutcomeUnknownError,
    SubmitRequest,
    SubmitResult,
    VoiceClient,
)
from ihuyi_voice.models import Answer, SignedBody

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ihuyi_voice.transport.base import Exchange, Transport

MOBILE = "13912345678"


class FakeTransport:
    """Answers each content in its own way and keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    async def post(self, target: str, body: SignedBody, exchange: Exchange) -> Answer:
        assert "/webservice/voice.php?method=Submit" == target
        form = body.reveal()
        if b"content=0001" in form:
            reason = "no route"
            raise NotSentError(reason)
        exchange.may_have_been_written = True
        self.sent.append(form)
        if b"content=0002" in form:
            reason = "silence"
            raise OutcomeUnknownError(reason)
        code = 4030 if b"content=0003" in form else 2
        return Answer(200, f'{{"code":{code},"msg":"words","voiceid":"197362477"}}'.encode())

    async def aclose(self) -> None:
        self.closed = True


@pytest.fixture
def fake() -> FakeTransport:
    return FakeTransport()


@pytest.fixture
async def voice(fake: FakeTransport) -> AsyncIterator[AsyncVoiceClient]:
    transport: Transport = fake
    async with AsyncVoiceClient(
        "id", "key", connect_attempts=1, transport=lambda: transport
    ) as voice:
        yield voice
    assert fake.closed


async def test_accepted(voice: AsyncVoiceClient, fake: FakeTransport) -> None:
    assert SubmitResult("197362477", "words", MOBILE) == await voice.submit(MOBILE, "1125")
    assert 1 == len(fake.sent)


@pytest.mark.parametrize(
    ("content", "error", "sent"),
    [
        ("0001", NotSentError("no route"), 0),
        ("0002", OutcomeUnknownError("silence"), 1),
        ("0003", BlockedMobileError(4030, "words"), 1),
    ],
)
async def test_not_accepted(
    voice: AsyncVoiceClient, fake: FakeTransport, content: str, error: IhuyiVoiceError, sent: int
) -> None:
    with pytest.raises(type(error)) as caught:
        await voice.submit(MOBILE, content)
    assert error == caught.value
    assert sent == len(fake.sent)


async def test_a_bulk_run(voice: AsyncVoiceClient) -> None:
    contents = ("1125", "0001", "0002", "0003")
    rows = [SubmitRequest(f"1391234567{n}", content) for n, content in enumerate(contents)]
    async with voice.submit_many(rows) as run:
        statuses = {outcome.index: outcome.status async for outcome in run}
    assert {
        0: OutcomeStatus.ACCEPTED,
        1: OutcomeStatus.NOT_SENT,
        2: OutcomeStatus.UNKNOWN,
        3: OutcomeStatus.REFUSED,
    } == statuses


def test_of_the_blocking_client() -> None:
    with VoiceClient("id", "key", transport=FakeTransport) as voice:
        assert "197362477" == voice.submit(MOBILE, "1125").voice_id
        with pytest.raises(BlockedMobileError):
            voice.submit(MOBILE, "0003")


def test_one_that_is_open_already_is_refused() -> None:
    opened: Any = FakeTransport()
    with pytest.raises(TypeError, match=r"pass a class, or a function .* not a FakeTransport"):
        AsyncVoiceClient("id", "key", transport=opened)
