"""The blocking client where gevent or eventlet has replaced threads with greenlets."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest

from ihuyi_voice.sandbox import Chaos
from tests.sync.processes import environment, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ihuyi_voice.sandbox import SandboxGateway
    from tests.store.postgres import PostgresServer

# Only here is the library run where threads are greenlets.
pytestmark = pytest.mark.measures_processes

PATCH = {
    "gevent": "import gevent, gevent.monkey\ngevent.monkey.patch_all()\n",
    "eventlet": "import eventlet\neventlet.monkey_patch()\n",
}
# A spawn, a sleep and a join that both frameworks have.
GREEN = {
    "gevent": "from gevent import spawn, sleep\nwait = lambda g: g.get()\n",
    "eventlet": "from eventlet import spawn, sleep\nwait = lambda g: g.wait()\n",
}
# Both warn when they are imported: about each other, and about being deprecated.
QUIET = "import warnings\nwarnings.simplefilter('ignore')\n"
WITHOUT_UVLOOP = "import sys\nsys.modules['uvloop'] = None\n"


@pytest.fixture(params=["gevent", "eventlet"])
def framework(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if importlib.util.find_spec(name) is None:  # pragma: no cover - depends on the machine
        pytest.skip(f"{name} is not installed")
    return name


@pytest.mark.parametrize("patched", ["before", "after"])
def test_a_client_in_patched_threads(gateway: SandboxGateway, framework: str, patched: str) -> None:
    """Patched before or after the import: calls, bulk runs, many greenlets, deadlines, close."""
    # Half of the combinations with the loop: those with every combination of any two.
    uvloop = (framework == "gevent") ^ (patched == "before")
    before = QUIET + ("" if uvloop else WITHOUT_UVLOOP)
    script = GREEN[framework]
    if patched == "before":
        before += PATCH[framework]
    else:
        script = PATCH[framework] + script
    script += """
ticks = []
def tick():
    while True:
        ticks.append(1)
        sleep(0.001)
ticking = spawn(tick)
client = VoiceClient.from_env(quota=None)
print(submit(), submit(1), client.query_balance().remaining)
print([wait(call) for call in [spawn(submit, n) for n in range(2, 10)]])
rows = [(f"138{n:08d}", "1125") for n in range(40)]
for source in (rows, iter(rows)):
    with client.submit_many(source, concurrency=4) as run:
        print(sum(outcome.status is OutcomeStatus.ACCEPTED for outcome in run))
print("others ran", len(ticks) > 10)
listener = __import__("socket").socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
silent = VoiceClient(
    "id", "key", base_url="http://127.0.0.1:%d" % listener.getsockname()[1], timeout=0.3
)
try:
    silent.submit("13912345678", "1125")
except OutcomeUnknownError as error:
    print(error.reason.partition(" from ")[0])
silent.close()
client.close()
print("closed")
"""
    expected = (
        f"提交成功 提交成功 998\n{['提交成功'] * 8}\n40\n40\nothers ran True\n"
        "no whole answer\nclosed\n"
    )
    assert (0, expected, "") == run(gateway, script, before=before)
    assert 90 == len(gateway.calls)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The place of a new store, in SQLite or PostgreSQL."""
    if request.param == "sqlite":
        return str(tmp_path / "calls.db")
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.empty()


def test_a_store_in_patched_threads(gateway: SandboxGateway, framework: str, place: str) -> None:
    """Patched before or after the import: keys, bulk runs, queries, a fork, close."""
    # Half of the combinations with the database: those with every combination of any two.
    # The loop is another one for each order; the test above has the other combinations.
    patched = "before" if (framework == "gevent") ^ place.startswith("/") else "after"
    before = QUIET + ("" if patched == "before" else WITHOUT_UVLOOP)
    script = GREEN[framework]
    if patched == "before":
        before += PATCH[framework]
    else:
        script = PATCH[framework] + script
    script += f"place = {place!r}\n"
    script += """
store = Store.open(place)
client = VoiceClient.from_env(store=store)
def call(key, n=0):
    return client.submit(f"139{n:08d}", "1125", idempotency_key=key).replayed
print(call("a"), call("a"))
print(sorted(wait(one) for one in [spawn(call, "b", 1) for _ in range(8)]))
rows = [
    SubmitRequest(f"138{n:08d}", "1125", idempotency_key=f"row {n}") for n in range(40)
]
for source in (rows, iter(rows)):
    with client.submit_many(source, concurrency=4) as run:
        replayed = sum(outcome.status is OutcomeStatus.REPLAYED for outcome in run)
        print(replayed, run.report.unrecorded)
def look():
    return store.summary()["accepted"], len(store.unknown())
print([wait(one) for one in [spawn(look) for _ in range(8)]])
try:
    store.resolve("a", placed=True)
except ValueError as error:
    print(error)
child = os.fork()
if child == 0:
    os._exit(0 if call("a") else 1)
print(os.waitpid(child, 0)[1], call("a"))
client.close()
store.close()
print("closed", len(Store.open(place).known(["a", "b"])))
"""
    expected = (
        f"False True\n{[False] + [True] * 7}\n0 0\n40 0\n{[(42, 0)] * 8}\n"
        "'a' is settled already, as accepted\n0 True\nclosed 2\n"
    )
    assert (0, expected, "") == run(gateway, script, before=before)
    assert 42 == len(gateway.calls)


def test_a_call_of_a_store_leaves_no_descriptor_open(
    gateway: SandboxGateway, framework: str, tmp_path: Path
) -> None:
    """Both frameworks create a hub with open files for the thread of a call."""
    script = f"place = {str(tmp_path / 'calls.db')!r}\n"
    script += """
store = Store.open(place)
store.summary()
def count():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))
before = count()
for _ in range(20):
    store.summary()
print(count() - before < 10)
store.close()
"""
    assert (0, "True\n", "") == run(gateway, script, before=QUIET + PATCH[framework])


def test_greenlets_run_while_a_store_waits_for_its_database(
    gateway: SandboxGateway, framework: str, tmp_path: Path
) -> None:
    script = f"{GREEN[framework]}\nplace = {str(tmp_path / 'calls.db')!r}\n"
    script += """
import sqlite3
store = Store.open(place)
client = VoiceClient.from_env(store=store)
client.submit("13900000000", "1125", idempotency_key="a")
other = sqlite3.connect(place, isolation_level=None)
other.execute("BEGIN IMMEDIATE")
purge = spawn(store.purge, __import__("datetime").timedelta())
call = spawn(client.submit, "13900000001", "1125", idempotency_key="b")
sleep(0.05)
print("none has ended")
other.execute("COMMIT")
print(wait(purge) in (1, 2), wait(call).msg)
other.close()
unused = Store.open(place)
try:
    unused.summary()
    unused.close()
    unused.summary()
except RuntimeError as error:
    print(error)
"""
    expected = "none has ended\nTrue 提交成功\nthis store is closed\n"
    assert (0, expected, "") == run(gateway, script, before=QUIET + PATCH[framework])


def test_other_greenlets_run_while_one_waits(gateway: SandboxGateway, framework: str) -> None:
    gateway.chaos = Chaos(latency=0.2)
    script = (
        GREEN[framework]
        + """
submit()
ended = []
def call(n):
    submit(n)
    ended.append(n)
began = time.monotonic()
calls = [spawn(call, n) for n in range(20)]
sleep(0.05)
print("none has ended", ended)
for one in calls:
    wait(one)
print(len(ended), time.monotonic() - began < 2)
"""
    )
    expected = "none has ended []\n20 True\n"
    assert (0, expected, "") == run(gateway, script, before=QUIET + PATCH[framework])


def test_exit_without_close(gateway: SandboxGateway, framework: str) -> None:
    before = QUIET + PATCH[framework]
    assert (0, "提交成功\n", "") == run(gateway, "print(submit())", before=before)


def test_a_call_in_a_signal_handler_in_the_hub(gateway: SandboxGateway, framework: str) -> None:
    """The handler runs where no greenlet may switch, and its call must still return."""
    script = (
        GREEN[framework]
        + """
submit()
results = []
signal.signal(signal.SIGALRM, lambda *_: results.append(submit(1)))
signal.setitimer(signal.ITIMER_REAL, 0.05)
while not results:
    sleep(0.01)
print(*results)
client.close()
"""
    )
    assert (0, "提交成功\n", "") == run(gateway, script, before=QUIET + PATCH[framework])


def test_an_interrupted_greenlet_cancels_its_call(gateway: SandboxGateway) -> None:
    pytest.importorskip("gevent", reason="gevent is not installed")
    gateway.chaos = Chaos(no_answer=1.0)
    script = """
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    from tests.inside import free_slots
    try:
        with gevent.Timeout(0.3):
            submit()
    except gevent.Timeout:
        print("interrupted")
    while free_slots(client) < 100:
        gevent.sleep(0.01)
    client.close()
    """
    status, out, err = run(gateway, script, before=QUIET + PATCH["gevent"])
    assert (0, "") == (status, err)
    interrupted, log = out.splitlines()
    assert "interrupted" == interrupted
    assert log.startswith("submit 139****0000 unknown code=- ")


def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds in another process."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are ended after the test."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()


def test_a_gunicorn_worker_with_gevent(
    gateway: SandboxGateway, tmp_path: Path, processes: list[subprocess.Popen[bytes]]
) -> None:
    for needed in ("gevent", "gunicorn"):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    gateway.chaos = Chaos(latency=0.1)
    (tmp_path / "login.py").write_text(
        "from ihuyi_voice import VoiceClient\n"
        "client = VoiceClient.from_env(quota=None)\n"
        "def app(environ, start_response):\n"
        "    result = client.submit('139' + environ['PATH_INFO'][1:].zfill(8), '1125')\n"
        "    start_response('200 OK', [('Content-Type', 'text/plain')])\n"
        "    return [result.voice_id.encode()]\n"
    )
    port = free_port()
    command = ["-m", "gunicorn", "-k", "gevent", "-w", "1", "-b", f"127.0.0.1:{port}", "login:app"]
    processes.append(
        subprocess.Popen([sys.executable, *command], cwd=tmp_path, env=environment(gateway))
    )

    def is_up() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(is_up)
    ids = {urlopen(f"http://127.0.0.1:{port}/{n}", timeout=30).read() for n in range(3)}
    assert 3 == len(ids) == len(gateway.calls)


def test_a_celery_worker_with_gevent(
    gateway: SandboxGateway, tmp_path: Path, processes: list[subprocess.Popen[bytes]]
) -> None:
    for needed in ("gevent", "celery"):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    (tmp_path / "queue").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "login.py").write_text(
        "from celery import Celery\n"
        "from ihuyi_voice import VoiceClient\n"
        f"app = Celery('login', broker='filesystem://', backend='file://{tmp_path}/results')\n"
        f"folders = dict.fromkeys(('data_folder_in', 'data_folder_out'), '{tmp_path}/queue')\n"
        f"app.conf.broker_transport_options = dict(folders, control_folder='{tmp_path}/control')\n"
        "client = VoiceClient.from_env(quota=None)\n"
        "@app.task\n"
        "def call(number):\n"
        "    return client.submit(f'139{number:08d}', '1125').msg\n"
    )
    command = ["-m", "celery", "-A", "login", "worker", "-P", "gevent", "-c", "4", "-l", "WARNING"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    in_folder = {**environment(gateway), "PYTHONWARNINGS": "ignore"}
    in_folder["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])
    )
    processes.append(subprocess.Popen([sys.executable, *command], cwd=tmp_path, env=in_folder))
    script = (
        "import json, login\n"
        "calls = [login.call.delay(number) for number in range(6)]\n"
        "print(json.dumps([call.get(timeout=50) for call in calls]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=in_folder,
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert ["提交成功"] * 6 == json.loads(done.stdout)
    assert 6 == len(gateway.calls)
