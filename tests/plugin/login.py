"""A program that calls its users with a code; test_login.py tests it."""

from __future__ import annotations

import secrets

from ihuyi_voice import AsyncVoiceClient, VoiceClient, generate_code

_codes: dict[str, str] = {}


def start(mobile: str) -> None:
    """Call the number and read out a code."""
    _codes[mobile] = generate_code()
    with VoiceClient.from_env() as client:
        client.submit(mobile, _codes[mobile])


async def start_async(mobile: str) -> None:
    """As `start`, without blocking the loop."""
    _codes[mobile] = generate_code()
    async with AsyncVoiceClient.from_env() as client:
        await client.submit(mobile, _codes[mobile])


def finish(mobile: str, code: str) -> bool:
    """Whether that is the code that was read out; a code can be tried once."""
    return secrets.compare_digest(_codes.pop(mobile), code)
