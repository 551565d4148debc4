"""What only PostgreSQL has: batches of statements, which a client may begin and not end."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import TYPE_CHECKING, Any, cast

from ihuyi_voice import Store
from tests.inside import database_of, raw
from tests.soak.namespaces import inside
from tests.store import postgres
from tests.transport.wire import ADDRESS, laid_wire

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

    from ihuyi_voice.store.sql.store import SqlStore

LOCKS_ROWS = b"UPDATE ihuyi_voice_meta SET value = value"


def begin_a_batch(connection: PGconn) -> None:
    """Send the first statements of a batch, and wait until the server has executed them."""
    connection.enter_pipeline_mode()
    for statement in (b"BEGIN", LOCKS_ROWS):
        connection.send_query_params(statement, None)
        connection.send_flush_request()
        assert not connection.flush()
        while connection.get_result() is not None:
            pass
    with socket.socket(fileno=os.dup(connection.socket)) as sock:
        # Acknowledges the answer at once. Otherwise the server repeats it, and learns then.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def vanish(connection: PGconn) -> None:
    """Close the socket with one packet that is not repeated, and that a cut wire loses."""
    number = connection.socket
    with socket.socket(fileno=os.dup(number)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - its descriptor
            os.dup2(nothing.fileno(), number)


def test_a_batch_whose_client_is_cut_off_gives_its_locks_back() -> None:
    """No time limit of statements or transactions ends a batch whose rest does not come."""
    with contextlib.ExitStack() as ended:
        wire = ended.enter_context(laid_wire())
        with inside(wire.far):
            server = ended.enter_context(postgres.running_server(ADDRESS))
        ended.enter_context(inside(wire.near))
        store = cast("SqlStore", Store.open(f"postgresql+psycopg://postgres@{ADDRESS}/postgres"))
        ended.callback(store.close)
        connection = ended.enter_context(database_of(store).connect())
        driver: Any = raw(connection).connection.driver_connection
        begin_a_batch(driver.pgconn)
        wire.cut()
        vanish(driver.pgconn)
        wire.heal()
        with contextlib.closing(server.connect()) as other:
            # The server asks after 10 s of silence.
            other.execute("SET lock_timeout = '45s'")
            other.execute(LOCKS_ROWS)
