"""Fixtures for pytest, available as soon as the package is installed.

    async def test_a_login_calls_with_its_code(voice_gateway):
        await login.start("13912345678")        # code under test, made with from_env()
        assert await login.finish("13912345678", voice_gateway.last_code("13912345678"))

`voice_gateway` is a new gateway for each test that rings no phone, and
`voice_client` is a blocking client bound to it. To annotate a test:
`from ihuyi_voice.pytest_plugin import VoiceGateway`.

Every run of pytest imports this module, so it imports nothing but pytest until
a fixture is used. `-p no:ihuyi_voice` disables it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .sync.client import VoiceClient
    from .testing import VoiceGateway
else:

    def __getattr__(name: str) -> object:
        if name != "VoiceGateway":
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        from .testing import VoiceGateway  # noqa: PLC0415 - only a run that uses it pays for it

        return VoiceGateway


__all__ = ["VoiceGateway", "voice_client", "voice_gateway"]


@pytest.fixture
def voice_gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[VoiceGateway]:
    """A new sandbox gateway for this test, to which `from_env()` connects.

    It answers like the real gateway, in its own thread, and rings no phone.
    During the test `monkeypatch` sets `IHUYI_VOICE_API_ID`, `IHUYI_VOICE_API_KEY`
    and `IHUYI_VOICE_BASE_URL` to it, and removes `IHUYI_VOICE_STORE`, so that no
    test uses the store of its user. A client that was made before the test, for
    example when a module was imported, does not use it.

    `last_code(mobile)` is the code of the last call to a number,
    `wait_for_call(mobile, timeout=5)` and `await wait_for_call_async(...)` wait for
    the next; `calls`, `attempts` and the settings are those of `SandboxGateway`.
    """
    from .testing import VoiceGateway  # noqa: PLC0415 - only a run that uses it pays for it

    gateway = VoiceGateway()
    with gateway.serve_in_thread() as gateway.url:
        # With the test's own `monkeypatch`: it undoes what the test sets in the right order.
        monkeypatch.setenv("IHUYI_VOICE_API_ID", gateway.api_id)
        monkeypatch.setenv("IHUYI_VOICE_API_KEY", gateway.api_key)
        monkeypatch.setenv("IHUYI_VOICE_BASE_URL", gateway.url)
        monkeypatch.delenv("IHUYI_VOICE_STORE", raising=False)
        yield gateway


@pytest.fixture
def voice_client(voice_gateway: VoiceGateway) -> Iterator[VoiceClient]:
    """A blocking client of `voice_gateway`, closed after the test.

    It has no limit of two calls a minute to a number, because a test may call the
    same number more often; `VoiceClient.from_env()` has the limit. In an
    asynchronous test each call blocks the test's loop; the gateway answers from
    its own thread. `AsyncVoiceClient.from_env()` does not block.
    """
    from .sync.client import VoiceClient  # noqa: PLC0415 - only a run that uses it pays for it

    gateway = voice_gateway
    with VoiceClient(
        gateway.api_id,
        gateway.api_key,
        base_url=gateway.url,
        quota=None,
        allow_running_loop=True,
    ) as client:
        yield client
