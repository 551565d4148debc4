"""Run scripts in new processes; they use a blocking client and a test's gateway."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ihuyi_voice.sandbox import SandboxGateway

PRELUDE = """
import gc, logging, os, signal, sys, threading, time
from ihuyi_voice import *
client = VoiceClient.from_env(quota=None)
def submit(n=0):
    return client.submit(f"139{n:08d}", "1125").msg
"""

gateway_url: dict[SandboxGateway, str] = {}


def environment(gateway: SandboxGateway) -> dict[str, str]:
    """Environment variables with the gateway's account."""
    return {
        **os.environ,
        "IHUYI_VOICE_API_ID": "sandbox",
        "IHUYI_VOICE_API_KEY": "sandbox-key",
        "IHUYI_VOICE_BASE_URL": gateway_url[gateway],
        "PYTHONWARNINGS": "default",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
    }


def start(gateway: SandboxGateway, script: str, *, before: str = "") -> subprocess.Popen[str]:
    """Start a process that runs `before`, creates a client and runs the script."""
    return subprocess.Popen(
        [sys.executable, "-c", before + PRELUDE + textwrap.dedent(script)],
        env=environment(gateway),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def run(gateway: SandboxGateway, script: str, *, before: str = "") -> tuple[int, str, str]:
    """Run the script. Returns exit status, stdout and stderr."""
    with start(gateway, script, before=before) as process:
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, out, err
