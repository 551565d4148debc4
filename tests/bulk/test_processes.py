"""Bulk runs in processes of their own: Ctrl-C, fork, exit.

Each case is a script run by a fresh interpreter, with a timeout, whose output
must be exact.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice.sandbox import Chaos, SandboxGateway

if TYPE_CHECKING:
    from collections.abc import Iterator

PRELUDE = """
import logging, os, signal, sys, threading, time, warnings
from ihuyi_voice import *
warnings.simplefilter("ignore", DeprecationWarning)
client = VoiceClient.from_env(quota=None)
rows = [(f"139{n:08d}", "1125") for n in range(500)]
def counts_of(report):
    return {status.value: count for status, count in report.counts.items() if count}
def heard_once(*_):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt
def press_ctrl_c():
    # Until it is heard: Python misses one that comes just before a wait begins.
    while signal.getsignal(signal.SIGINT) is heard_once:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
"""


@pytest.fixture
def gateway() -> SandboxGateway:
    return SandboxGateway(balance=10_000)


@pytest.fixture
def url(gateway: SandboxGateway) -> Iterator[str]:
    with gateway.serve_in_thread() as url:
        yield url


def start(url: str, script: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "IHUYI_VOICE_API_ID": "sandbox",
        "IHUYI_VOICE_API_KEY": "sandbox-key",
        "IHUYI_VOICE_BASE_URL": url,
        "PYTHONWARNINGS": "default",
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    with process:
        try:
            out, err = process.communicate(timeout=15)
        finally:
            process.kill()
    return process.returncode, out, err


def interrupted(url: str, gateway: SandboxGateway, script: str) -> tuple[int, str, str]:
    """As `finished`, with Ctrl-C after five submits of the block have arrived."""
    process = start(url, script)
    assert process.stdout is not None
    assert "in the block\n" == process.stdout.readline()
    while len(gateway.attempts) < 5:
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    return finished(process)


@pytest.mark.parametrize("where", ["for outcome in run: pass", "time.sleep(60)", "run.finish()"])
def test_ctrl_c_in_the_consuming_thread(gateway: SandboxGateway, url: str, where: str) -> None:
    gateway.chaos = Chaos(no_answer=1.0)
    script = f"""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    try:
        with client, client.submit_many(rows, concurrency=5) as run:
            print("in the block")
            {where}
    except KeyboardInterrupt as interrupt:
        print(counts_of(run.report), run.report.elapsed < 10, interrupt.__context__)
    print(threading.active_count())
    """
    status, out, err = interrupted(url, gateway, script)
    assert (0, "") == (status, err)
    *log, report, alive = out.splitlines()
    assert ["{'unknown': 5} True None", "1"] == [report, alive]
    assert [f"submit_many 139****{n:04d} unknown" for n in range(5)] == sorted(
        line.partition(" code=")[0] for line in log
    )
    assert 5 == len(gateway.attempts)


@pytest.mark.measures_processes
def test_ctrl_c_while_the_block_waits_for_requests_in_flight(
    gateway: SandboxGateway, url: str
) -> None:
    """The block is left early, and the wait for the rest is interrupted."""
    gateway.chaos = Chaos(no_answer=1.0)
    script = """
    from tests.inside import is_left
    def interrupt():
        while not is_left(run):
            time.sleep(0)
        press_ctrl_c()
    signal.signal(signal.SIGINT, heard_once)
    try:
        with client, client.submit_many(rows, concurrency=5) as run:
            from urllib.request import urlopen
            while urlopen(client.base_url + "/_sandbox/attempts").read().count(b"139") < 5:
                pass
            thread = threading.Thread(target=interrupt)
            thread.start()
    except KeyboardInterrupt as interrupt:
        print(counts_of(run.report), run.report.elapsed < 10, interrupt.__context__)
    thread.join()
    print(threading.active_count())
    """
    assert (0, "{'unknown': 5} True None\n1\n", "") == finished(start(url, script))
    assert 5 == len(gateway.attempts)


def test_ctrl_c_while_the_block_is_entered(gateway: SandboxGateway, url: str) -> None:
    """The moment is made longer here. Nothing may be sent after the interrupt."""
    script = """
    from ihuyi_voice.bulk.run import BulkRun
    entered = BulkRun.__aenter__
    signal.signal(signal.SIGINT, heard_once)
    async def interrupted(self):
        press_ctrl_c()
        while not self._stopping:
            await __import__("asyncio").sleep(0)
        return await entered(self)
    BulkRun.__aenter__ = interrupted
    try:
        with client, client.submit_many(rows) as run:
            print("not reached")
    except KeyboardInterrupt:
        print("interrupted", threading.active_count())
    """
    assert (0, "interrupted 1\n", "") == finished(start(url, script))
    assert [] == gateway.attempts


@pytest.mark.parametrize("before", ["", "client.query_balance()"])
def test_a_run_made_before_a_fork_works_in_parent_and_child(
    gateway: SandboxGateway, url: str, before: str
) -> None:
    script = f"""
    {before}
    run = client.submit_many(rows[:40])
    other = client.submit_many(rows[40:60])
    pid = os.fork()
    if pid:
        status = os.waitpid(pid, 0)[1]
    with run:
        print(counts_of(run.finish()))
    if not pid:
        # The client has its own thread by now.
        with other:
            print(counts_of(other.finish()))
        sys.exit(7)
    print(os.waitstatus_to_exitcode(status))
    client.close()
    """
    expected = "{'accepted': 40}\n{'accepted': 20}\n{'accepted': 40}\n7\n"
    assert (0, expected, "") == finished(start(url, script))
    assert 100 == len(gateway.calls)
    assert {1, 2} == set(Counter(call.mobile for call in gateway.calls).values())


@pytest.mark.measures_processes
def test_forked_inside_the_block(gateway: SandboxGateway, url: str) -> None:
    """The run stays with the parent. The child neither hangs nor sends."""
    gateway.chaos = Chaos(latency=0.2)
    script = """
    with client, client.submit_many(rows[:20], concurrency=10) as run:
        pid = os.fork()
        if not pid:
            run.stop()
            try:
                next(run)
            except RuntimeError as error:
                print(error)
            try:
                run.__enter__()
            except RuntimeError as error:
                print(error)
            sys.exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        print(counts_of(run.finish()))
    """
    expected = (
        "this bulk run belongs to the process that this one was forked from\n"
        "a bulk run is used once: call submit_many again\n"
        "7\n{'accepted': 20}\n"
    )
    assert (0, expected, "") == finished(start(url, script))
    assert 20 == len({call.mobile for call in gateway.calls}) == len(gateway.calls)


def test_the_program_ends_during_a_run_in_a_daemon_thread(
    gateway: SandboxGateway, url: str
) -> None:
    gateway.chaos = Chaos(no_answer=1.0)
    script = """
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    def send():
        with client.submit_many(rows, concurrency=5) as run:
            try:
                run.finish()
            except OutcomeUnknownError as error:
                # A daemon thread may get no further than this, if so far.
                assert error.may_have_rung
    threading.Thread(target=send, daemon=True).start()
    from urllib.request import urlopen
    while urlopen(client.base_url + "/_sandbox/attempts").read().count(b"139") < 5:
        pass
    """
    status, out, err = finished(start(url, script))
    assert (0, "") == (status, err)
    assert [f"submit_many 139****{n:04d} unknown" for n in range(5)] == sorted(
        line.partition(" code=")[0] for line in out.splitlines()
    )
    assert 5 == len(gateway.attempts)


def test_a_run_that_is_entered_and_forgotten_does_not_keep_the_program_from_exiting(
    gateway: SandboxGateway, url: str
) -> None:
    script = """
    run = client.submit_many(rows[:5])
    run.__enter__()
    print(counts_of(run.finish()))
    """
    assert (0, "{'accepted': 5}\n", "") == finished(start(url, script))


def test_ctrl_c_in_asyncio_run(gateway: SandboxGateway, url: str) -> None:
    gateway.chaos = Chaos(no_answer=1.0)
    script = """
    import asyncio
    async def main():
        global run
        async with AsyncVoiceClient.from_env(quota=None) as voice:
            async with voice.submit_many(iter(rows), concurrency=5) as run:
                print("in the block")
                await run.finish()
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        counts = counts_of(run.report)
        # The thread of the source has done its work, and may need a moment to end.
        for thread in set(threading.enumerate()) - {threading.main_thread()}:
            thread.join(10)
        print(counts.pop("unknown"), set(counts) <= {"not_sent"}, threading.active_count())
    """
    assert (0, "5 True 1\n", "") == interrupted(url, gateway, script)
    assert 5 == len(gateway.attempts)
