"""One store and several processes, forks, threads and loops; and no secrets in its files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice.errors import StoreError
from ihuyi_voice.store.answer import NO_ANSWER
from ihuyi_voice.store.entry import EntryState, NewClaim, Settlement
from ihuyi_voice.store.sql.connection import Connection
from ihuyi_voice.store.writer import bounds
from ihuyi_voice.store.writer.operations import Committed, Work
from tests.inside import database_of, writer_of

from .support import (
    API_KEY,
    CONTENT,
    FINGERPRINTS,
    MASKED,
    MOBILE,
    SETTLED,
    claim,
    claimed,
    ended,
    open_store,
    run,
    start,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ihuyi_voice.store.sql.store import SqlStore

    from .postgres import PostgresServer

NONE = {"accepted": 0, "refused": 0, "not_sent": 0, "unknown": 0}

CLAIM_AND_SETTLE = """
    async def main():
        with open_store(place) as store:
            await find(store)
            print("ready")
            sys.stdin.readline()
            answer = await claim(store)
            if answer.entry is not None:
                print("other", answer.entry.state.value, answer.entry.answer.voice_id)
                return
            print("mine")
            sys.stdin.readline()
            placed = StoredAnswer(voice_id="900100200")
            await store.settle("k", answer.token, EntryState.ACCEPTED, placed)
    asyncio.run(main())
"""


def test_one_of_two_processes_sends_and_the_other_gets_the_settlement(place: str) -> None:
    with contextlib.ExitStack() as stack:
        both = [stack.enter_context(start(place, CLAIM_AND_SETTLE)) for _ in range(2)]
        for process in both:
            assert process.stdout is not None
            assert "ready\n" == process.stdout.readline()
        # The second line of input lets the sender settle.
        ends = [process.communicate("\n\n", timeout=60) for process in both]
    assert [("mine\n", ""), ("other accepted 900100200\n", "")] == sorted(ends)


def test_a_claim_outlives_its_killed_process(place: str) -> None:
    script = """
        async def main():
            store = open_store(place)
            await asyncio.gather(*(claimed(store, str(i)) for i in range(20)))
            os.kill(os.getpid(), signal.SIGKILL)
        asyncio.run(main())
    """
    assert (-signal.SIGKILL, "", "") == run(place, script)
    with open_store(place) as store:
        assert NONE | {"unknown": 20} == store.summary()


# --- forks -------------------------------------------------------------------


FORK = """
    store = open_store(place)
    token = asyncio.run(claimed(store, "parent"))
    asyncio.run(claimed(store, "parent's second"))
    child = os.fork()
    asyncio.run(claimed(store, "child" if child == 0 else "parent's third"))
    asyncio.run(store.settle("parent" if child else "child", token, EntryState.ACCEPTED)
                if child else claimed(store, "child's second"))
    if child == 0:
        {exit}
    assert (child, 0) == os.waitpid(child, 0)
    asyncio.run(claimed(store, "parent's last"))
    print(store.summary()["accepted"], store.summary()["unknown"])
"""


@pytest.mark.parametrize("exit_", ["os._exit(0)", "sys.exit(0)"])
def test_parent_and_child_both_work_after_a_fork(place: str, exit_: str) -> None:
    assert (0, "1 5\n", "") == run(place, FORK.format(exit=exit_))


def test_a_child_has_its_own_locks(place: str) -> None:
    # With an inherited connection SQLite assumes locks that the child does not
    # have, and the parent would delete the log while the child uses it.
    script = """
        store = open_store(place)
        asyncio.run(claimed(store, "parent"))
        (from_child, to_parent), (from_parent, to_child) = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            asyncio.run(claimed(store, "child"))
            os.write(to_parent, b"x")
            os.read(from_parent, 1)
            asyncio.run(claimed(store, "child's second"))
            os._exit(0)
        os.read(from_child, 1)
        store.close()
        os.write(to_child, b"x")
        print(os.waitpid(child, 0)[1])
    """
    assert (0, "0\n", "") == run(place, script)


def test_a_fork_under_load_loses_no_operation(place: str) -> None:
    script = """
        async def main(store, name):
            async def one(key):
                token = await claimed(store, key)
                await store.settle(key, token, EntryState.ACCEPTED)
            await asyncio.gather(*(one(f"{name} {i}") for i in range(500)))
        with open_store(place) as store:
            import threading
            thread = threading.Thread(target=asyncio.run, args=[main(store, "parent")])
            thread.start()
            children = []
            for number in range(5):
                child = os.fork()
                if child == 0:
                    asyncio.run(claimed(store, f"child {number}"))
                    os._exit(0)
                children.append(child)
            print({os.waitpid(child, 0)[1] for child in children})
            thread.join()
            print(store.summary()["accepted"], store.summary()["unknown"])
    """
    # Python warns about every fork of a process with threads.
    script = "\n        import warnings; warnings.simplefilter('ignore')" + script
    assert (0, "{0}\n500 5\n", "") == run(place, script)


def in_child(act: Callable[[], str]) -> str:
    """Run a function in a forked child; returns its text."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - measured, but by the parent's count alone
        try:
            os.write(writer, act().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text


@pytest.mark.measures_processes
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("aside", [False, True])
async def test_a_fork_that_cannot_wait_for_a_transaction(
    store: SqlStore, place: str, monkeypatch: pytest.MonkeyPatch, *, aside: bool
) -> None:
    """An SQLite connection must not be inherited; one to PostgreSQL is left to the parent."""
    monkeypatch.setattr(bounds, "FORK_TIMEOUT", 0.01)
    await claimed(store)

    def try_it() -> str:
        try:
            asyncio.new_event_loop().run_until_complete(claimed(store, "child"))
            store.summary()
        except StoreError as error:
            return error.reason
        return "claimed"

    lock = writer_of(store).at_work_aside if aside else writer_of(store).at_work
    with lock:
        message = await asyncio.to_thread(in_child, try_it)
    if "://" in place:
        assert "claimed" == message
    else:
        assert message.startswith(
            "this process was forked in the middle of a transaction; open the store again"
        )
    # The parent still works.
    await claimed(store, "parent")
    assert {"k", "parent"} <= {claim.key for claim in store.unknown()}


async def test_a_child_can_open_the_store_itself(in_file: SqlStore, tmp_path: Path) -> None:
    await claimed(in_file)

    def try_it() -> str:
        with open_store(tmp_path / "calls.db") as own:
            asyncio.new_event_loop().run_until_complete(claimed(own, "child"))
            return str(own.summary()["unknown"])

    assert "2" == await asyncio.to_thread(in_child, try_it)


# --- threads and loops -------------------------------------------------------


async def test_several_loops_share_one_store(store: SqlStore) -> None:
    won: list[int] = []

    async def main() -> None:
        answers = await asyncio.gather(*(claim(store, f"{i}") for i in range(50)))
        won.append(sum(answer.entry is None for answer in answers))

    threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(3)]
    for thread in threads:
        thread.start()
    await main()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert 50 == sum(won)
    assert NONE | {"unknown": 50} == store.summary()


async def test_operations_queued_during_a_transaction_form_the_next_batch(
    in_file: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    go_on = threading.Event()
    apply = Connection.apply

    def slow(connection: Connection, work: Work) -> Committed:
        sizes.append(len(work.claims))
        go_on.wait(10)
        return apply(connection, work)

    monkeypatch.setattr(Connection, "apply", slow)
    first = asyncio.create_task(claim(in_file, "first"))
    await until(lambda: bool(sizes))
    others = [asyncio.create_task(claim(in_file, f"{i}")) for i in range(700)]
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(first, *others)
    assert [1, 500, 200] == sizes


# --- secrets -----------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def test_no_secret_is_in_the_files(in_file: SqlStore, tmp_path: Path) -> None:
    for state in (*SETTLED, EntryState.UNKNOWN):
        await ended(in_file, state, state.value)
    row = FINGERPRINTS.of_row("job", MOBILE, CONTENT, 0)
    await claimed(in_file, row)
    files = contents(tmp_path)
    assert {"calls.db", "calls.db-wal", "calls.db-shm"} == set(files)
    everything = b"".join(files.values())
    assert row.encode() in everything
    for secret in (MOBILE, MOBILE[3:], CONTENT, API_KEY):
        assert secret.encode() not in everything


# --- locks -------------------------------------------------------------------


@pytest.mark.parametrize("settling", [False, True])
async def test_rows_are_locked_in_key_order_so_that_machines_do_not_deadlock(
    postgres: PostgresServer, *, settling: bool
) -> None:
    keys = ["b", "a"]
    with (
        open_store(postgres.empty()) as store,
        database_of(store).connect() as connection,
        contextlib.closing(postgres.connect()) as other,
    ):
        tokens = [await claimed(store, key) for key in keys]
        await asyncio.gather(
            *(
                store.settle(key, token, EntryState.REFUSED)
                for key, token in zip(keys, tokens, strict=True)
            )
        )
        fingerprint = FINGERPRINTS.of(MOBILE, CONTENT)
        claims = [NewClaim(key, *fingerprint, MASKED, "t", 0.0, 0.0) for key in keys]
        settlements = [
            Settlement(key, token, EntryState.ACCEPTED, NO_ANSWER, 0.0, 0.0)
            for key, token in zip(keys, tokens, strict=True)
        ]
        work = Work(settlements, [], [], [], []) if settling else Work([], [], [], claims, [])
        other.autocommit = False
        other.execute("SELECT * FROM ihuyi_voice_calls WHERE key = 'a' FOR UPDATE")
        working = asyncio.create_task(asyncio.to_thread(connection.apply, work))
        with contextlib.closing(postgres.connect()) as watching:
            await until(lambda: bool(watching.execute(WAITING).fetchall()))
        # The transaction that waits for the first row has locked no other row.
        other.execute("SELECT * FROM ihuyi_voice_calls WHERE key = 'b' FOR UPDATE NOWAIT")
        other.rollback()
        assert Committed(set(), {}, {}) == await working


WAITING = "SELECT pid FROM pg_locks WHERE NOT granted"
