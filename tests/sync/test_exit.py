"""The blocking client while the interpreter exits, and in forked children."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice.sandbox import Chaos
from tests.sync.processes import run

if TYPE_CHECKING:
    from ihuyi_voice.sandbox import SandboxGateway

NAMED = """
named = client.base_url.replace("127.0.0.1", "localhost")
client = VoiceClient.from_env(quota=None, base_url=named)
def report(n=0):
    began = time.monotonic()
    try:
        print(submit(n))
    except NotSentError as error:
        print(error.reason.split(":")[0])
    assert time.monotonic() - began < 10
"""
# Since Python 3.12 no thread can be started after the main thread has ended.
STARTS_LATE = sys.version_info < (3, 12)


@pytest.mark.parametrize("before", ["report(1)", "pass"])
def test_a_call_after_the_main_thread_has_ended(gateway: SandboxGateway, before: str) -> None:
    script = (
        NAMED
        + f"""
{before}
def later():
    threading.main_thread().join()
    report(2)
    report(3)
threading.Thread(target=later).start()
"""
    )
    expected = ["提交成功"] * (3 if before != "pass" else 2)
    # Releases of 3.12 and 3.13 differ in whether they still start a thread then.
    refused = ["the client's thread could not start (RuntimeError"] * 2
    possible = [expected] if before != "pass" or STARTS_LATE else [expected, refused]
    status, out, err = run(gateway, script)
    assert (0, "") == (status, err)
    assert out.splitlines() in possible


@pytest.mark.parametrize("before", ["report(1)", "pass"])
@pytest.mark.parametrize("registered", ["first", "last"])
def test_a_call_in_atexit(gateway: SandboxGateway, registered: str, before: str) -> None:
    """The call runs before or after the client's own finalizer."""
    script = (
        ("import atexit\natexit.register(lambda: report(2))\n" if registered == "first" else "")
        + NAMED
        + before
        + ("\nimport atexit\natexit.register(lambda: report(2))\n" if registered == "last" else "")
    )
    status, out, err = run(gateway, script)
    assert (0, "") == (status, err)
    accepted = ["提交成功"] * (1 + (before != "pass"))
    refused = [*accepted[1:], "the client's thread could not start (RuntimeError"]
    assert out.splitlines() in ([accepted] if STARTS_LATE else [accepted, refused])


@pytest.mark.parametrize("before", ["report(1)", "pass"])
def test_a_call_in_a_destructor_at_exit_raises(gateway: SandboxGateway, before: str) -> None:
    """The interpreter runs no more threads: the call raises at once."""
    script = (
        NAMED
        + f"""
{before}
class Last:
    def __del__(self, submit=client.submit, error=NotSentError, write=os.write):
        try:
            submit("13912345678", "1125")
        except error as not_sent:
            write(1, str(not_sent).encode())
sys.modules["last"] = Last()
"""
    )
    status, out, err = run(gateway, script)
    assert (0, "") == (status, err)
    assert out.splitlines()[-1].startswith("not sent: the interpreter is exiting and runs no more")
    assert (before != "pass") == len(gateway.attempts)


def test_a_fork_at_any_moment_of_the_first_use(gateway: SandboxGateway) -> None:
    """The child does not wait for an import, a lock or a thread of its parent."""
    script = """
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    statuses = []
    for n in range(40):
        client = VoiceClient.from_env(quota=None)
        thread = threading.Thread(target=submit, args=(n,))
        thread.start()
        time.sleep(0.0002 * (n % 20))
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            os._exit(submit(100 + n) != "提交成功")
        statuses.append(os.waitpid(pid, 0)[1])
        thread.join()
        client.close()
    print(set(statuses))
    """
    assert (0, "{0}\n", "") == run(gateway, script)
    assert 80 == len({call.mobile for call in gateway.calls}) == len(gateway.calls)


@pytest.mark.measures_processes
def test_a_fork_while_the_first_failure_is_retried(gateway: SandboxGateway) -> None:
    """The retry must not import anything in the thread at that moment."""
    script = """
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    dead = VoiceClient("id", "key", base_url="http://127.0.0.1:9", timeout=5, answer_format="xml")
    def fail():
        try:
            dead.submit("13912345678", "1125")
        except NotSentError:
            pass
    thread = threading.Thread(target=fail)
    thread.start()
    statuses = []
    for n in range(20):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            fail()
            os._exit(0)
        statuses.append(pid)
    print({os.waitpid(pid, 0)[1] for pid in statuses})
    thread.join()
    """
    assert (0, "{0}\n", "") == run(gateway, script)


def test_nothing_is_imported_in_the_loop_thread(gateway: SandboxGateway) -> None:
    gateway.chaos = Chaos()
    pytest.importorskip("sqlalchemy", reason="the extra `store` is not installed")
    script = """
    import tempfile
    from ihuyi_voice.sandbox import Chaos
    from urllib.request import Request, urlopen
    imported = set()
    def hook(event, arguments):
        if event == "import" and threading.current_thread().name.startswith("ihuyi-voice"):
            imported.add(arguments[0])
    sys.addaudithook(hook)
    def attempt(**options):
        voice = VoiceClient.from_env(**{"quota": None, "timeout": 2.0, **options})
        key = {"idempotency_key": "a"} if "store" in options else {}
        for act in (lambda: voice.submit("13912345678", "1125", **key), voice.query_balance):
            try:
                act()
            except IhuyiVoiceError:
                pass
        if "store" not in options:
            for rows in (pairs, iter(pairs)):
                try:
                    with voice.submit_many(rows, rate=1000, wait_for_quota=True) as run:
                        run.finish()
                except BulkStoppedError:
                    pass
        voice.close()
    pairs = [("13912345678", "1125"), ("1391234567", "1125"), ("13800000000", "1125")]
    url = client.base_url
    attempt()
    attempt(base_url=url.replace("127.0.0.1", "localhost"), answer_format="xml")
    attempt(proxy=url, dynamic_password=False)
    attempt(proxy="http://user:password@127.0.0.1:9")
    attempt(base_url="http://127.0.0.1:9", quota=RecipientQuota())
    attempt(base_url=url.replace("http:", "https:"))
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(os.path.join(folder, "calls.db"))
        attempt(store=store)
        store.close()
    print(imported)
    """
    assert (0, "set()\n", "") == run(gateway, script)


def test_a_call_in_a_forked_child_does_not_disturb_the_parent(gateway: SandboxGateway) -> None:
    gateway.chaos = Chaos(latency=0.3)
    script = """
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    submit()
    results = []
    other = threading.Thread(target=lambda: results.append(submit(1)))
    other.start()
    from urllib.request import urlopen
    while b"13900000001" not in urlopen(client.base_url + "/_sandbox/attempts").read():
        pass
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        first = submit(2)
        client.close()
        os._exit(first != "提交成功")
    print(os.waitpid(pid, 0)[1])
    other.join()
    print(*results, submit(3))
    """
    assert (0, "0\n提交成功 提交成功\n", "") == run(gateway, script)
    assert 4 == len(gateway.calls)


def test_the_default_quota_is_copied_to_a_child(gateway: SandboxGateway) -> None:
    """The child has its own copy of the parent's quota."""
    script = """
    client = VoiceClient.from_env()
    submit(), submit()
    pid = os.fork()
    try:
        submit()
    except QuotaExceededError:
        pid or os._exit(7)
        print("limited", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    script = "import warnings; warnings.simplefilter('ignore', DeprecationWarning)" + script
    status, out, err = run(gateway, script.replace("\n    ", "\n"))
    assert (0, "limited 7\n", "") == (status, out, err)
