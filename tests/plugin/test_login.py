"""The tests that the README shows: they test a login and ring no phone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.plugin import login

if TYPE_CHECKING:
    from ihuyi_voice.pytest_plugin import VoiceGateway


def test_the_code_that_is_read_out_logs_in(voice_gateway: VoiceGateway) -> None:
    login.start("13912345678")
    assert login.finish("13912345678", voice_gateway.last_code("13912345678"))


def test_any_other_code_does_not(voice_gateway: VoiceGateway) -> None:
    login.start("13912345678")
    assert not login.finish("13912345678", "0000")


async def test_an_asynchronous_login(voice_gateway: VoiceGateway) -> None:
    await login.start_async("13912345678")
    call = await voice_gateway.wait_for_call_async("13912345678", timeout=5)
    assert login.finish("13912345678", call.content)
