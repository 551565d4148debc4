"""Other processes of the tests: interpreters that run a script; warnings are errors there."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PRELUDE = """
import asyncio, os, signal, sys
from ihuyi_voice import *
from tests.verification.faces import KEY, MOBILE, wrong
"""


def python(script: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a script; what it reads and writes are pipes."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _PRELUDE + textwrap.dedent(script), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(_ROOT)},
    )


def ended(process: subprocess.Popen[str]) -> str:
    """Wait for the end of a script that must succeed; what it wrote."""
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (0, "") == (process.returncode, err)
    return out
