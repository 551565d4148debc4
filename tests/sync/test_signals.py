"""The blocking client used in signal handlers, and interrupted by them."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice.sandbox import Chaos
from tests.sync.processes import gateway_url, run

if TYPE_CHECKING:
    from ihuyi_voice.sandbox import SandboxGateway

# A log handler that raises one signal while it holds its lock.
INSIDE_A_LOG_HANDLER = """
class Interrupted(logging.StreamHandler):
    def emit(self, record):
        super().emit(record)
        if record.name == "application":
            os.kill(os.getpid(), signal.SIGUSR1)

logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[Interrupted(sys.stdout)])
def write():
    logging.getLogger("application").info("application")
"""


@pytest.mark.parametrize("used", ["used", "first_use"])
@pytest.mark.parametrize("act", ["submit(1)", "client.close()"])
def test_a_call_in_a_signal_handler_that_interrupts_a_log_handler(
    gateway: SandboxGateway, act: str, used: str
) -> None:
    """Another call is in flight, and its log record must not wait for a lock."""
    gateway.chaos = Chaos(latency=0.2)
    script = f"""
    {INSIDE_A_LOG_HANDLER.replace(chr(10), chr(10) + "    ")}
    other = threading.Thread(target=submit)
    if {used == "used"}:
        submit(9)
        other.start()
        from urllib.request import urlopen
        while b"13900000000" not in urlopen(client.base_url + "/_sandbox/attempts").read():
            pass
    def handler(*_):
        {act}
        sys.stdout.write("handled\\n")
    signal.signal(signal.SIGUSR1, handler)
    write()
    if other.ident:
        other.join()
    client.close()
    """
    status, out, err = run(gateway, script)
    assert (0, "") == (status, err)
    lines = out.splitlines()
    assert "handled" in lines
    in_all = 2 * (used == "used") + (act == "submit(1)")
    assert in_all == len(gateway.calls) == sum(line.startswith("submit 139") for line in lines)


def test_a_call_in_a_signal_handler_while_logging_is_locked(gateway: SandboxGateway) -> None:
    """`Logger.isEnabledFor` takes the lock at its first use."""
    script = """
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    with logging._lock:
        print(submit())
    """
    status, out, err = run(gateway, script)
    assert (0, "") == (status, err)
    log, msg = out.splitlines()
    assert ("提交成功", True) == (msg, log.startswith("submit 139****0000 accepted code=2 "))


def test_calls_in_signal_handlers_at_any_moment(gateway: SandboxGateway) -> None:
    """Calls of the same client interrupt first uses, calls, waits and closes."""
    gateway.balance = 1_000_000
    script = """
    import random
    results = []
    left = 30
    def again():
        # Only when the handler has ended, and 30 times for each client: on a loaded machine
        # the interrupted code makes no progress between two signals.
        global left
        left -= 1
        if left > 0:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.003))
    def handler(*_):
        try:
            results.append(client.query_balance().msg)
        except RuntimeError as error:
            results.append(str(error))
        again()
    signal.signal(signal.SIGALRM, handler)
    submitted = 0
    for n in range(60):
        signal.setitimer(signal.ITIMER_REAL, 0)
        client = VoiceClient.from_env(quota=None)
        left = 30
        again()
        submitted += submit(n) == "提交成功"
        client.close()
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    print(submitted, {text: results.count(text) > 0 for text in sorted(set(results))})
    # A thread that was stopped in a handler may end a moment later.
    deadline = time.monotonic() + 20
    while threading.active_count() > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    print([t.name for t in threading.enumerate()])
    """
    status, out, err = run(gateway, script)
    assert (0, "") == (status, err)
    first, second = out.splitlines()
    submitted, _, results = first.partition(" ")
    assert "60" == submitted
    texts = set(ast.literal_eval(results))
    assert {"查询成功"} <= texts <= {"查询成功", "this client is closed: make a new one"}
    assert "['MainThread']" == second


def test_an_interrupted_start_of_the_thread(gateway: SandboxGateway) -> None:
    """The next call works, and the half-started thread ends."""
    script = """
    class Alarm(Exception):
        pass
    def handler(*_):
        raise Alarm
    signal.signal(signal.SIGALRM, handler)
    interrupted = 0
    for n in range(40):
        client = VoiceClient.from_env(quota=None)
        signal.setitimer(signal.ITIMER_REAL, 0.00005 * (n + 1))
        try:
            try:
                submit()
            finally:
                # The alarm may ring in this very line too.
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Alarm:
            interrupted += 1
        assert submit(1) == "提交成功"
        client.close()
    deadline = time.monotonic() + 20
    while threading.active_count() > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    print(interrupted > 0, threading.active_count())
    """
    assert (0, "True 1\n", "") == run(gateway, script)


@pytest.mark.parametrize("moment", ["fast_loop_factory", "start_thread", "Event.wait"])
def test_the_start_of_the_thread_interrupted_at_each_step(
    gateway: SandboxGateway, moment: str
) -> None:
    script = f"""
    from ihuyi_voice import _threads
    from ihuyi_voice.sync import loop_thread
    owner, _, name = {moment!r}.rpartition(".")
    owner = getattr(_threads, owner) if owner else loop_thread
    whole = getattr(owner, name)
    def interrupted(*arguments, **options):
        setattr(owner, name, whole)
        if name == "start_thread":
            whole(*arguments, **options)
        raise KeyboardInterrupt
    setattr(owner, name, interrupted)
    try:
        submit()
    except KeyboardInterrupt:
        print("interrupted", client)
    print(submit())
    client.close()
    while threading.active_count() > 1:
        time.sleep(0.01)
    """
    not_used = f"<VoiceClient {gateway_url[gateway]} not yet used>"
    assert (0, f"interrupted {not_used}\n提交成功\n", "") == run(gateway, script)


def test_the_outcome_of_an_interrupted_call_is_logged_with_the_next(
    gateway: SandboxGateway,
) -> None:
    gateway.chaos = Chaos(no_answer=1.0)
    script = """
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    class Alarm(Exception):
        pass
    def handler(*_):
        raise Alarm
    signal.signal(signal.SIGALRM, handler)
    from urllib.request import urlopen
    from tests.inside import free_slots
    def alarm():
        while b"13900000000" not in urlopen(client.base_url + "/_sandbox/attempts").read():
            pass
        os.kill(os.getpid(), signal.SIGALRM)
    threading.Thread(target=alarm).start()
    try:
        submit()
    except Alarm:
        print("interrupted")
    while free_slots(client) < 100:
        time.sleep(0.01)
    try:
        client.submit("1", "1")
    except InvalidRequestError:
        print("next")
    """
    status, out, err = run(gateway, script)
    assert (0, "") == (status, err)
    interrupted, log, invalid, following = out.splitlines()
    assert ("interrupted", "next") == (interrupted, following)
    assert log.startswith("submit 139****0000 unknown ")
    assert invalid.startswith("submit **** invalid ")
