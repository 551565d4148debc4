"""What every test that starts a process relies on."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest


def test_a_test_that_fails_does_not_wait_for_its_process() -> None:
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    with (
        pytest.raises(subprocess.TimeoutExpired),
        subprocess.Popen([sys.executable, "-c", program]) as process,
    ):
        process.wait(timeout=0.1)
    assert -signal.SIGKILL == process.returncode
