"""Every test of the command line has a home and a store of its own."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice import Store

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that knows nothing, to be copied."""
    path = tmp_path_factory.mktemp("store") / "voice.db"
    Store.open(path).close()
    return path


@pytest.fixture(autouse=True)
def own_store(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, empty_store: Path
) -> Path:
    """The store of this test's commands, in the place of the user's own: empty and not new."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.delenv("IHUYI_VOICE_STORE", raising=False)
    path = home / "state" / "ihuyi-voice" / "voice.db"
    path.parent.mkdir(parents=True)
    shutil.copy(empty_store, path)
    return path
