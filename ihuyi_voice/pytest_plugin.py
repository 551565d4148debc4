"""Fixtures for pytest, there as soon as the package is installed.

    async def test_a_login_calls_with_its_code(voice_gateway):
        await login.start("13912345678")        # code under test, made with from_env()
        assert await login.finish("13912345678", voice_gateway.last_code("13912345678"))

`voice_gateway` is a gateway of the test's own that rings no phone, and
`voice_client` a blocking client bound to it. To annotate a test:
`from ihuyi_voice.pytest_plugin import VoiceGateway`.

Every run of pytest imports this module, so it imports nothing but pytest until
a fixture is used. `-p no:ihuyi_voice` leaves it out altogether.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .sync import VoiceClient
    from .testing import VoiceGateway
else:

    def __getattr__(name: str) -> object:
        if name != "VoiceGateway":
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        from .testing import VoiceGateway  # noqa: PLC0415 - what nobody uses costs nothing

        return VoiceGateway


__all__ = ["VoiceGateway", "voice_client", "voice_gateway"]


@pytest.fixture
def voice_gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[VoiceGateway]:
    """A fresh sandbox gateway for this test, which `from_env()` leads to.

    It answers like the real gateway, in a thread of its own, and rings no
    phone. During the test `IHUYI_VOICE_API_ID`, `IHUYI_VOICE_API_KEY` and
    `IHUYI_VOICE_BASE_URL` name it, set through `monkeypatch`; a client that was
    made before the test, as when a module is imported, does not know it.

    `last_code(mobile)` is the code of the last call to a number,
    `wait_for_call(mobile, timeout=5)` and `await wait_for_call_async(...)` wait for
    the next; `calls`, `attempts` and the settings are those of `SandboxGateway`.
    """
    from .testing import VoiceGateway  # noqa: PLC0415 - what nobody uses costs nothing

    gateway = VoiceGateway()
    with gateway.serve_in_thread() as gateway.url:
        # The test's own, which takes back in the right order what the test sets over it.
        monkeypatch.setenv("IHUYI_VOICE_API_ID", gateway.api_id)
        monkeypatch.setenv("IHUYI_VOICE_API_KEY", gateway.api_key)
        monkeypatch.setenv("IHUYI_VOICE_BASE_URL", gateway.url)
        yield gateway


@pytest.fixture
def voice_client(voice_gateway: VoiceGateway) -> Iterator[VoiceClient]:
    """A blocking client of `voice_gateway`, closed after the test.

    Without the limit of two calls a minute to a number, which a test that calls
    the same one a third time would run into; `VoiceClient.from_env()` has it.
    In an asynchronous test it blocks the test's loop for the time of a call, which
    `AsyncVoiceClient.from_env()` does not; the gateway runs on in its thread.
    """
    from .sync import VoiceClient  # noqa: PLC0415 - what nobody uses costs nothing

    gateway = voice_gateway
    with VoiceClient(
        gateway.api_id,
        gateway.api_key,
        base_url=gateway.url,
        quota=None,
        allow_running_loop=True,
    ) as client:
        yield client
