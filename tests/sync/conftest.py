"""The gateway for the scripts of these tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ihuyi_voice.sandbox import SandboxGateway
from tests.sync.processes import gateway_url

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def gateway() -> Iterator[SandboxGateway]:
    gateway = SandboxGateway(balance=1_000)
    with gateway.serve_in_thread() as url:
        gateway_url[gateway] = url
        yield gateway
    del gateway_url[gateway]
