"""Where tests look inside the package, in one place: what no public name shows or sets.

A test that needs another such look adds it here, so that a new name in the
package changes this module and no test.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from aiohttp import ClientSession

from ihuyi_voice import AsyncVoiceClient, VoiceClient
from ihuyi_voice._limits import Limits
from ihuyi_voice._pipeline import Pipeline
from ihuyi_voice.bulk.outcomes import OutcomeQueue
from ihuyi_voice.bulk.pacing import Intake
from ihuyi_voice.bulk.progress import Progress, RunState
from ihuyi_voice.models import Settings
from ihuyi_voice.store.writer.writer import Writer
from ihuyi_voice.sync.bulk import _ThreadOutcomes
from ihuyi_voice.sync.threads import LoopThreads
from ihuyi_voice.transport import connector
from ihuyi_voice.transport.aiohttp import AiohttpTransport
from ihuyi_voice.verification.flow import Flow
from ihuyi_voice.wire import FormEncoder

if TYPE_CHECKING:
    import socket
    import sqlite3
    import threading
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    import pytest
    import sqlalchemy
    from aiohttp import BaseConnector

    from ihuyi_voice import BulkRun, RecipientQuota, SubmitRequest, SubmitResult
    from ihuyi_voice._limits import JobLimits
    from ihuyi_voice._threads import Event
    from ihuyi_voice.balance import BalanceWatch
    from ihuyi_voice.celery import BulkJobs
    from ihuyi_voice.celery.chunks import NumberedRow
    from ihuyi_voice.celery.run import ChunkRun
    from ihuyi_voice.cli.commands import Entry
    from ihuyi_voice.store.limits import Start
    from ihuyi_voice.store.memory import MemoryLimits, MemoryVerifications
    from ihuyi_voice.store.redis.connection import RedisConnection
    from ihuyi_voice.store.redis.server import Server
    from ihuyi_voice.store.redis.store import RedisStore
    from ihuyi_voice.store.sql.connection import Connection
    from ihuyi_voice.store.sql.database import Database
    from ihuyi_voice.store.sql.store import SqlStore
    from ihuyi_voice.sync.bulk import BlockingBulkRun
    from ihuyi_voice.sync.calls import Call
    from ihuyi_voice.sync.loop_thread import LoopThread
    from ihuyi_voice.testing import VoiceGateway
    from ihuyi_voice.wire import Redaction

Limited = TypeVar("Limited")
Part = TypeVar("Part")

# The outcomes that another thread waits for: tests count how often it does.
ThreadOutcomes = _ThreadOutcomes

# For a client whose attempts to connect fail, so that its test need not wait for the next one.
QUICK = Limits(first_backoff=0.001)


def part(thing: object, kind: type[Part]) -> Part:
    """The one attribute of this type, whatever its name."""
    (found,) = (value for value in vars(thing).values() if isinstance(value, kind))
    return found


# --- a client ---------------------------------------------------------------------


def within(limited: Limited, limits: Limits | JobLimits) -> Limited:
    """Give a client, or a `BulkJobs`, times and counts that users cannot change."""
    thing: Any = limited
    thing._within(limits)
    return limited


def settings_of(voice: AsyncVoiceClient | VoiceClient) -> Settings:
    return part(_inner(voice), Settings)


def encoder_of(voice: AsyncVoiceClient | VoiceClient) -> FormEncoder:
    return part(_inner(voice), FormEncoder)


def _inner(voice: AsyncVoiceClient | VoiceClient) -> AsyncVoiceClient:
    return voice._client if isinstance(voice, VoiceClient) else voice


def pipeline_of(voice: AsyncVoiceClient) -> Pipeline:
    return voice._opened()


def slots_of(voice: AsyncVoiceClient) -> anyio.Semaphore:
    return pipeline_of(voice).slots


def transport_of(voice: AsyncVoiceClient) -> AiohttpTransport:
    return part(pipeline_of(voice), AiohttpTransport)


def connector_of(voice: AsyncVoiceClient) -> BaseConnector:
    connector = part(transport_of(voice), ClientSession).connector
    assert connector is not None
    return connector


async def submit_that_waits_for_a_slot(
    voice: AsyncVoiceClient, mobile: str, content: str
) -> asyncio.Task[SubmitResult]:
    """A submit that waits because the one slot of its client is taken."""
    slots = slots_of(voice)
    slots.acquire_nowait()
    submit = asyncio.create_task(voice.submit(mobile, content))
    while not slots.statistics().tasks_waiting:
        await asyncio.sleep(0)
    return submit


def shorten(quota: RecipientQuota, *windows: tuple[int, float]) -> None:
    """Replace the quota's windows: so many calls within so many seconds."""
    quota.windows = windows


# --- sockets ----------------------------------------------------------------------


def resetting_socket(address: Any) -> socket.socket:
    """A socket as a connection's, which a forked child has to close."""
    return connector._resetting_socket(address)


def refuse_sockets(patch: pytest.MonkeyPatch, refuse: Callable[..., None]) -> None:
    """Let the system have no socket left, for connections alone."""
    patch.setattr(connector, "_resetting_socket", refuse)


def without_meminfo(patch: pytest.MonkeyPatch) -> None:
    """As where a system does not say what a socket's memory is used for."""
    patch.setattr(connector, "_SO_MEMINFO", 0x7FFF)


def quiet_check(sock: socket.socket) -> Callable[[], bool]:
    """What checks a connection before its reuse, for states that no server can time."""
    return connector._quiet_check(sock)


# --- a bulk run -------------------------------------------------------------------


def intake_of(run: BulkRun) -> Intake:
    return part(run, Intake)


def taken(run: BulkRun) -> int:
    """How many rows the run has taken."""
    return intake_of(run).taken


def waiting_for_quota(run: BulkRun) -> int:
    """How many rows of the run wait for their number's quota."""
    return len(intake_of(run)._waiting)


def unread(run: BulkRun | BlockingBulkRun) -> int:
    """How many outcomes of the run can be read at once."""
    return len(part(run, OutcomeQueue))


def bells(run: BlockingBulkRun) -> int:
    """How many threads wait for an outcome of the run."""
    return len(part(run, ThreadOutcomes)._bells)


def has_ended(run: BulkRun) -> bool:
    """Whether nothing of the run goes on in the background."""
    return part(run, Progress).state is RunState.ENDED


def make_due(run: BulkRun) -> None:
    """Let the first row that waits for its number's quota be due now."""
    intake = intake_of(run)
    intake._waiting[0] = intake._waiting[0]._replace(due=0.0)
    intake._make_use_of_room()


def is_left(run: BlockingBulkRun) -> bool:
    """Whether the block of the run was left before its end."""
    return run._leave_block.is_set()


def pull_without_loop(source: Any) -> Callable[[], None]:
    """What the thread of a source of rows runs, as after the end of its loop."""
    source._loop, source._pull_ended, source._news = (
        asyncio.new_event_loop(),
        anyio.Event(),
        anyio.Event(),
    )
    source._loop.close()
    pull: Callable[[], None] = source._pull
    return pull


# --- the loop thread of a blocking client -----------------------------------------


def thread_of(voice: VoiceClient) -> LoopThread:
    """The loop thread of a client, whatever its state."""
    return part(voice, LoopThreads).current


def running_thread_of(voice: VoiceClient) -> LoopThread | None:
    """The loop thread of a client in this process, if it runs."""
    return voice._thread


def exit_interpreter(voice: VoiceClient) -> None:
    """Do what the interpreter's exit does to a client that is not closed."""
    part(voice, LoopThreads).exit()


def free_slots(voice: VoiceClient) -> int:
    """How many requests more the client could have in flight, seen from any thread."""
    return part(thread_of(voice).calls.client, Pipeline).slots.value


def start_at_once(thread: LoopThread, call: Call[Any]) -> None:
    """Create the task of a call, in the loop thread; its first step is still to come."""
    thread.calls._start(call)


@contextlib.contextmanager
def not_closed(thread: LoopThread) -> Iterator[None]:
    """As a call sees the thread that began just before the thread ended."""
    thread.life._closed = False
    yield
    thread.life._closed = True


def waiters(event: Event) -> int:
    """How many threads wait for an event."""
    return len(event._waiters)


def call(
    voice: VoiceClient, name: str, run: Callable[[Any], Any], request: SubmitRequest | None
) -> object:
    """Let the loop thread run what no method of a client does, such as to wait without an end."""
    return voice._call(name, run, request)


# --- a store ----------------------------------------------------------------------


def writer_of(store: SqlStore) -> Writer:
    """The thread that commits: tests hold its locks, and wait for its states."""
    return part(store, Writer)


def database_of(store: SqlStore) -> Database:
    """What opens a connection beside the writer's."""
    from ihuyi_voice.store.sql.database import Database  # noqa: PLC0415 - it needs SQLAlchemy

    return part(store, Database)


@contextlib.contextmanager
def transaction_in(store: SqlStore) -> Iterator[sqlalchemy.Connection]:
    """A transaction for statements of the test's own, in any of the databases."""
    with database_of(store).connect() as other, other._transaction() as connection:
        yield connection


def raw(connection: Connection) -> sqlalchemy.Connection:
    """The driver's connection, to ask a server for its settings."""
    return connection._connection


def server_of(kept: RedisStore | RedisConnection) -> Server:
    """The Redis server that a store or a connection uses: what it knows of the server's clock."""
    return kept._server


def at_each_connection(patch: pytest.MonkeyPatch, statement: str) -> None:
    """Let each new connection to an SQLite file run a statement, such as one that limits it."""
    from ihuyi_voice.store.sql import file  # noqa: PLC0415 - it needs SQLAlchemy

    set_up = file._set_up_sqlite

    def and_more(connection: sqlite3.Connection) -> None:
        set_up(connection)
        connection.execute(statement).fetchall()

    patch.setattr(file, "_set_up_sqlite", and_more)


def after_each_check(patch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Act whenever a connection has seen that its SQLite file is still there."""
    from ihuyi_voice.store.sql.connection import Connection  # noqa: PLC0415 - as above

    check = Connection._check_files

    def and_act(connection: Connection) -> None:
        check(connection)
        act()

    patch.setattr(Connection, "_check_files", and_act)


# --- limits and verifications in memory -------------------------------------------


def starts_of(memory: MemoryLimits | MemoryVerifications) -> Mapping[str, tuple[Start, ...]]:
    """The starts that are in memory, by number: what is forgotten takes no memory."""
    return memory._starts


def lock_of(limits: MemoryLimits) -> threading.Lock:
    """The lock that another thread may hold when the process forks."""
    return limits._lock


# --- a watch of the balance -------------------------------------------------------


@contextlib.contextmanager
def asking(watch: BalanceWatch) -> Iterator[None]:
    """As while another thread asks for the balance."""
    assert watch._watched.begin()
    yield
    watch._watched.end()


# --- a verifier -------------------------------------------------------------------


def flow_of(verifier: Any) -> Any:
    """The steps of a verifier, whose repr may show no secret."""
    return part(verifier, Flow)


def store_of(verifier: Any) -> Any:
    """Where a verifier keeps its verifications, to share it and to call it between two steps."""
    return flow_of(verifier)._store


def runner_of(verifier: Any) -> Any:
    """The database below that store, or this process's memory."""
    return store_of(verifier)._runner


# --- bulk jobs of Celery ----------------------------------------------------------


def close_jobs(jobs: BulkJobs) -> None:
    """Close what a worker opened, as the end of its process does; the next chunk opens it again."""
    for opened in (jobs._client, jobs._store):
        if opened is not None:
            opened.close()
    jobs._client = jobs._store = None


def after_sending(patch: pytest.MonkeyPatch, act: Callable[[ChunkRun], Awaitable[None]]) -> None:
    """Act between a chunk's last outcome and its next look at the rows of others."""
    from ihuyi_voice.celery.run import ChunkRun  # noqa: PLC0415 - it needs Celery

    send = ChunkRun._send

    async def and_act(run: ChunkRun, todo: list[NumberedRow]) -> None:
        await send(run, todo)
        await act(run)

    patch.setattr(ChunkRun, "_send", and_act)


# --- the rest ---------------------------------------------------------------------


def known_harmless(redaction: Redaction) -> set[str]:
    """The texts that are not looked at again."""
    return redaction._harmless


def when_looked(gateway: VoiceGateway, note: Callable[[object], None]) -> None:
    """Note what each look for a call finds, so that a test knows that a wait has begun."""
    look = gateway._next_call

    def and_note(number: str) -> Any:
        found = look(number)
        note(found)
        return found

    gateway._next_call = and_note  # type: ignore[method-assign]


# --- the command ------------------------------------------------------------------


def command_table() -> dict[str, Entry]:
    """The commands, with what their help says before they are imported."""
    from typer.main import get_command  # noqa: PLC0415 - only for tests of the command

    from ihuyi_voice.cli.app import app  # noqa: PLC0415 - as above

    table: dict[str, Entry] = vars(type(get_command(app)))["table"]
    return table


def keep_language(patch: pytest.MonkeyPatch) -> None:
    """Let the command speak the language again that it speaks now, at the end of the test."""
    from ihuyi_voice.cli.language import _Language  # noqa: PLC0415 - as above

    patch.setattr(_Language, "catalogue", _Language.catalogue)
