"""Fixtures of bulk jobs: a site with a broker, a store and workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ihuyi_voice.sandbox import SandboxGateway

from .site import Site, running_site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def place(tmp_path: Path) -> str:
    """The URL of the store."""
    return str(tmp_path / "calls.db")


@pytest.fixture
def site(tmp_path: Path, place: str) -> Iterator[Site]:
    gateway = SandboxGateway()
    with gateway.serve_in_thread() as url, running_site(tmp_path, place, gateway, url) as site:
        yield site
