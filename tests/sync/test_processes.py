"""The blocking client in processes of its own: exit, fork, Ctrl-C, threads.

Each test runs a script in a new interpreter with a timeout, shows its
warnings, and compares its exact output.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice import VoiceClient
from ihuyi_voice._loops import fast_loop_factory
from ihuyi_voice.sandbox import Chaos
from ihuyi_voice.sync.calls import Call
from ihuyi_voice.sync.life_cycle import Stop
from tests.inside import thread_of
from tests.sync.processes import gateway_url, run, start

if TYPE_CHECKING:
    from ihuyi_voice.sandbox import SandboxGateway


def test_exit_without_close(gateway: SandboxGateway) -> None:
    assert (0, "提交成功\n", "") == run(gateway, "print(submit())")
    assert len(gateway.calls) == 1


def test_exit_without_use(gateway: SandboxGateway) -> None:
    assert (0, "", "") == run(gateway, "")


def test_a_use_after_closing_twice_raises(gateway: SandboxGateway) -> None:
    script = """
    with client:
        print(submit())
    client.close()
    for use in (submit, client.query_balance, client.__enter__):
        try:
            use()
        except RuntimeError as error:
            print(error)
    """
    closed = "this client is closed: make a new one\n"
    assert (0, "提交成功\n" + 3 * closed, "") == run(gateway, script)


def test_close_before_use(gateway: SandboxGateway) -> None:
    script = """
    client.close()
    client.close()
    print(client)
    """
    expected = f"<VoiceClient {gateway_url[gateway]} closed>\n"
    assert (0, expected, "") == run(gateway, script)


def test_the_garbage_collector_ends_the_thread(gateway: SandboxGateway) -> None:
    script = """
    print(submit(), threading.active_count())
    del client
    gc.collect()
    print(threading.active_count())
    """
    assert (0, "提交成功 2\n1\n", "") == run(gateway, script)


def test_exit_cancels_a_call_in_a_daemon_thread(gateway: SandboxGateway) -> None:
    gateway.chaos = Chaos(no_answer=1.0)
    script = """
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    def call():
        try:
            submit()
        except OutcomeUnknownError:
            pass
    threading.Thread(target=call, daemon=True).start()
    from urllib.request import urlopen
    while b"139" not in urlopen(client.base_url + "/_sandbox/calls").read():
        pass
    print("leaving")
    """
    status, out, err = run(gateway, script)
    assert (0, "") == (status, err)
    leaving, log = out.splitlines()
    assert leaving == "leaving"
    # It is canceled at exit and logged as unknown.
    assert log.startswith("submit 139****0000 unknown code=- voice_id=- ")
    assert len(gateway.attempts) == 1


def test_exit_waits_for_a_thread_with_a_call_in_flight(gateway: SandboxGateway) -> None:
    gateway.chaos = Chaos(latency=0.3)
    script = """
    threading.Thread(target=lambda: print(submit())).start()
    from urllib.request import urlopen
    while b"139" not in urlopen(client.base_url + "/_sandbox/attempts").read():
        pass
    print("leaving")
    """
    assert (0, "leaving\n提交成功\n", "") == run(gateway, script)


def test_close_waits_for_calls_in_other_threads(gateway: SandboxGateway) -> None:
    gateway.chaos = Chaos(latency=0.3)
    script = """
    thread = threading.Thread(target=lambda: print(submit()))
    thread.start()
    from urllib.request import urlopen
    while b"139" not in urlopen(client.base_url + "/_sandbox/attempts").read():
        pass
    client.close()
    thread.join()
    print("closed")
    """
    assert (0, "提交成功\nclosed\n", "") == run(gateway, script)


def test_an_interrupted_close_can_be_repeated(gateway: SandboxGateway) -> None:
    gateway.chaos = Chaos(latency=0.3)
    script = """
    results = []
    thread = threading.Thread(target=lambda: results.append(submit()))
    thread.start()
    from urllib.request import urlopen
    while b"139" not in urlopen(client.base_url + "/_sandbox/attempts").read():
        pass
    from ihuyi_voice._threads import Event
    from tests.inside import thread_of
    wait, loop_thread = Event.wait, thread_of(client)
    def interrupted(*_, **__):
        Event.wait = wait
        raise KeyboardInterrupt
    Event.wait = interrupted
    try:
        client.close()
    except KeyboardInterrupt:
        print("interrupted")
    for _ in range(2):
        client.close()
        print("ended", loop_thread.life.ended.is_set())
    thread.join()
    print(*results)
    """
    expected = "interrupted\nended True\nended True\n提交成功\n"
    assert (0, expected, "") == run(gateway, script)


FORK = """
pid = os.fork()
if pid == 0:
    {child}
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print("parent", submit(2))
"""


@pytest.mark.parametrize("before", ["", "submit(0)"])
@pytest.mark.parametrize("child", ["pass", "print('child', submit(1))"])
def test_parent_and_child_call_after_a_fork(
    gateway: SandboxGateway, before: str, child: str
) -> None:
    script = f"import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n{before}\n"
    expected = "child 提交成功\n" if child != "pass" else ""
    assert (0, f"{expected}7\nparent 提交成功\n", "") == run(
        gateway, script + FORK.format(child=child)
    )
    assert len(gateway.calls) == 1 + bool(before) + (child != "pass")


def test_fork_while_another_thread_is_calling(gateway: SandboxGateway) -> None:
    """Locks of the other thread must not block the child."""
    gateway.balance = 1_000_000
    script = """
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    client = VoiceClient.from_env(quota=RecipientQuota(per_minute=100_000, per_day=100_000))
    done = threading.Event()
    def call():
        while not done.is_set():
            submit()
    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    submit()
    children = []
    for n in range(10):
        pid = os.fork()
        if pid == 0:
            os._exit(submit(1 + n) != "提交成功")
        children.append(os.waitpid(pid, 0)[1])
    done.set()
    for thread in threads:
        thread.join()
    print(children)
    """
    assert (0, f"{[0] * 10}\n", "") == run(gateway, script)


def test_fifty_threads_share_one_loop_thread(gateway: SandboxGateway) -> None:
    script = """
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(50) as pool:
        calls = pool.map(lambda n: client.submit(f"139{n:08d}", "1125"), range(500))
        print(len({call.voice_id for call in calls}))
    print(sum(thread.name == "ihuyi-voice" for thread in threading.enumerate()))
    """
    assert (0, "500\n1\n", "") == run(gateway, script)
    assert len({call.mobile for call in gateway.calls}) == len(gateway.calls) == 500


@pytest.mark.measures_processes
def test_ctrl_c_during_a_call_returns_at_once_and_cancels(gateway: SandboxGateway) -> None:
    gateway.chaos = Chaos(no_answer=1.0)
    script = """
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    from tests.inside import free_slots
    print("calling")
    try:
        submit()
    except KeyboardInterrupt:
        print("interrupted")
    while free_slots(client) < 100:
        time.sleep(0)
    client.close()
    """
    with start(gateway, script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "calling\n"
        while not gateway.attempts:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert (0, "") == (process.returncode, err)
    interrupted, log = out.splitlines()
    assert interrupted == "interrupted"
    assert log.startswith("submit 139****0000 unknown code=- ")
    assert len(gateway.attempts) == 1


def test_the_error_inside_a_running_loop_shows_how_to_await(gateway: SandboxGateway) -> None:
    script = """
    import asyncio
    async def main():
        many = lambda: client.submit_many([])
        for use in (submit, client.query_balance, client.__enter__, many):
            try:
                use()
            except RuntimeError as error:
                print(error)
    asyncio.run(main())
    """
    text = (
        "VoiceClient.{0} would block the event loop that is running in this thread: write"
        " `await client.{0}(...)` with an AsyncVoiceClient (a notebook can await), or"
        " `await asyncio.to_thread(client.{0}, ...)`, or pass allow_running_loop=True to block"
        " the loop meanwhile\n"
    )
    rest = " would block the event loop that is running in this thread: write {0} (a notebook can"
    rest += " do that), or call the function that uses {1} by `await asyncio.to_thread(...)`, or"
    rest += " pass allow_running_loop=True to block the loop meanwhile\n"
    many = "`async with client.submit_many(...) as run:`"
    both = "`async with AsyncVoiceClient(...) as client:`, and in it `await client.submit(...)` or"
    expected = text.format("submit") + text.format("query_balance")
    expected += "`with VoiceClient(...)`" + rest.format(f"{both} {many}", "the VoiceClient")
    expected += "VoiceClient.submit_many" + rest.format(f"{many} with an AsyncVoiceClient", "it")
    assert (0, expected, "") == run(gateway, script)
    assert gateway.attempts == []


def test_allow_running_loop_lets_calls_block_a_loop(gateway: SandboxGateway) -> None:
    script = """
    import asyncio
    client = VoiceClient.from_env(allow_running_loop=True)
    async def main():
        with client:
            print(submit(), client.query_balance().remaining)
    asyncio.run(main())
    """
    assert (0, "提交成功 999\n", "") == run(gateway, script)


def test_a_call_in_the_context_of_another_async_library(gateway: SandboxGateway) -> None:
    """The caller's context names the other library; the call must still use asyncio."""
    pytest.importorskip("trio", reason="trio is not installed")
    script = """
    import anyio
    async def main():
        print(submit())
        with client.submit_many([("13912345678", "1125")]) as run:
            print(run.finish().counts[OutcomeStatus.ACCEPTED])
    anyio.run(main, backend="trio")
    """
    assert (0, "提交成功\n1\n", "") == run(gateway, script)


def test_a_call_runs_in_the_callers_context(gateway: SandboxGateway) -> None:
    """Tracing needs this, because it keeps its spans in the context."""
    script = """
    import aiohttp
    from contextvars import ContextVar
    span = ContextVar("span")
    async def started(*_):
        print(span.get())
    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(started)
    client = VoiceClient.from_env(trace_configs=[trace])
    for name in ("first", "second"):
        span.set(name)
        submit()
    """
    assert (0, "first\nsecond\n", "") == run(gateway, script)


def test_calls_after_the_finalizer_ran(gateway: SandboxGateway) -> None:
    """Each call then has its own thread, because only the call can end it."""
    script = """
    from tests.inside import exit_interpreter
    print(submit())
    exit_interpreter(client)
    print(submit(1), threading.active_count())
    print(submit(2), threading.active_count())
    """
    assert (0, "提交成功\n提交成功 1\n提交成功 1\n", "") == run(gateway, script)
    assert 3 == len(gateway.attempts)


def test_ctrl_c_before_a_call_has_begun_places_no_call(gateway: SandboxGateway) -> None:
    """For example because the loop is busy. The task of the call must not begin."""
    script = """
    submit()
    hold = threading.Event()
    from tests.inside import thread_of
    calls = thread_of(client).calls
    calls.loop.call_soon_threadsafe(hold.wait)
    begin = calls.begin
    def interrupted(*arguments):
        begin(*arguments)
        os.kill(os.getpid(), signal.SIGINT)
    calls.begin = interrupted
    try:
        submit(1)
    except KeyboardInterrupt:
        print("interrupted")
    calls.begin = begin
    hold.set()
    print(client.query_balance().remaining)
    """
    assert (0, "interrupted\n999\n", "") == run(gateway, script)
    assert 1 == len(gateway.attempts)


@pytest.mark.measures_processes
def test_a_call_canceled_before_its_first_step_ends(gateway: SandboxGateway) -> None:
    script = """
    from concurrent.futures import CancelledError
    from ihuyi_voice.sync.calls import Call
    from tests.inside import start_at_once, thread_of
    submit()
    call, thread = Call(lambda client: client.query_balance()), thread_of(client)
    def begin_and_cancel():
        start_at_once(thread, call)
        thread.calls.cancel()
    thread.calls.loop.call_soon_threadsafe(begin_and_cancel)
    print(call.wait(10))
    try:
        call.result()
    except CancelledError:
        print("cancelled")
    """
    assert (0, "True\ncancelled\n", "") == run(gateway, script)


def test_the_result_of_a_canceled_call_is_dropped(
    gateway: SandboxGateway,
) -> None:
    script = """
    from ihuyi_voice.sync.calls import Call
    from tests.inside import thread_of
    submit()
    ended = threading.Event()
    async def start(_):
        call.cancel()
        thread_of(client).calls.loop.call_soon(ended.set)
    call = Call(start)
    thread_of(client).calls.begin(call)
    print(ended.wait(10), call.cancelled())
    """
    assert (0, "True True\n", "") == run(gateway, script)


def test_a_finalizer_may_run_in_the_loop_thread(gateway: SandboxGateway) -> None:
    client = VoiceClient("sandbox", "sandbox-key", base_url=gateway_url[gateway])
    client.query_balance()
    thread = thread_of(client)

    async def finalize(_: object) -> None:
        thread.stop(Stop.CANCEL, 10)

    thread.calls.begin(Call(finalize))
    assert thread.life.ended.wait(10)
    client.close()


def test_the_faster_loop_looks_up_names_without_the_threads_of_libuv() -> None:
    pytest.importorskip("uvloop", reason="the extra `speed` is not installed")
    loop = fast_loop_factory()()
    try:
        found = loop.run_until_complete(loop.getaddrinfo("localhost", 80))
        assert 80 in {address[4][1] for address in found}
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
