"""What is printed must not change how a command ends: full, closed, broken, or another encoding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice.sandbox import SandboxGateway

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOBILE = "13912345678"
BLACKLISTED = "13800000000"
PYTHON = f"{sys.executable} -W error -m ihuyi_voice"

# How standard output, standard error or both are unusable, as a shell says it.
UNUSABLE = [
    ">/dev/full",
    ">&-",
    "| true",
    "2>/dev/full",
    "2>&-",
    ">/dev/full 2>&1",
    ">&- 2>&-",
    "<&- >&- 2>&-",
    "2>&1 | true",
]

# Each command with its own exit status, and the calls it places.
COMMANDS = [
    (f"submit {MOBILE} --content 1125", 0, 1),
    (f"submit {MOBILE} --content 1125 --json", 0, 1),
    (f"submit {BLACKLISTED} --content 1125", 3, 0),
    (f"submit {BLACKLISTED} --json", 3, 0),
    (f"submit {MOBILE} --content x", 2, 0),
    ("balance", 0, 0),
    ("balance --json --fail-below 5000", 7, 0),
    ("bulk rows.csv --yes --ledger calls.db --out out.csv", 3, 2),
    ("bulk rows.csv --yes --json", 3, 2),
    ("bulk rows.csv --dry-run", 0, 0),
    ("bulk missing.csv --yes", 2, 0),
    ("ledger known.db summary", 0, 0),
    ("ledger known.db list", 6, 0),
    ("ledger known.db list --json", 6, 0),
    ("ledger missing.db", 2, 0),
    ("--help", 0, 0),
    ("bulk --help", 0, 0),
    ("bulk --no-such-option", 2, 0),
]


@pytest.fixture
def gateway() -> Iterator[SandboxGateway]:
    yield from served()


@pytest.fixture(scope="module")
def shared_gateway() -> Iterator[SandboxGateway]:
    yield from served()


def served() -> Iterator[SandboxGateway]:
    gateway = SandboxGateway(blacklist=[BLACKLISTED])
    with gateway.serve_in_thread() as url:
        gateway.url = url  # type: ignore[attr-defined]
        yield gateway


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with an unknown call, whose key has a character that cp1252 lacks."""
    path = tmp_path_factory.mktemp("ledger") / "known.db"
    script = (
        "import sys, os\n"
        "from ihuyi_voice import Ledger, VoiceClient\n"
        "from ihuyi_voice.sandbox import Chaos, SandboxGateway\n"
        "gateway = SandboxGateway()\n"
        "gateway.chaos = Chaos(close_after_placing=1.0)\n"
        "with gateway.serve_in_thread() as url, Ledger.open(sys.argv[1]) as ledger:\n"
        "    with VoiceClient('sandbox', 'sandbox-key', base_url=url, ledger=ledger) as client:\n"
        "        try: client.submit('13912345678', '1125', idempotency_key='登录 1')\n"
        "        except Exception: pass\n"
    )
    subprocess.run([sys.executable, "-c", script, path], check=True, timeout=60)
    return path


def shell(
    command: str, gateway: SandboxGateway, folder: Path, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """The command in a shell, which returns its exit status and not that of what reads it."""
    (folder / "rows.csv").write_text(f"mobile,content\n{MOBILE},1125\n{BLACKLISTED},0042\n139,1\n"
        if "--dry-run" not in command else f"mobile,content\n{MOBILE},1125\n")
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {PYTHON} {command}"],
        cwd=folder,
        capture_output=True,
        env={
            **{k: v for k, v in os.environ.items() if k not in ("PYTHONUTF8", "LC_ALL")},
            "IHUYI_VOICE_API_ID": "sandbox",
            "IHUYI_VOICE_API_KEY": "sandbox-key",
            "IHUYI_VOICE_BASE_URL": gateway.url,  # type: ignore[attr-defined]
            **environment,
        },
        timeout=60,
        check=False,
    )
