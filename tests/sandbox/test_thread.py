"""The gateway in its own thread, as blocking tests use it."""

from __future__ import annotations

import http.client
import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from urllib.parse import urlencode, urlsplit

import pytest

from ihuyi_voice.sandbox import Chaos, SandboxGateway
from ihuyi_voice.wire import SUBMIT_TARGET
from tests.sandbox.forms import NOW, submit_form
from tests.sandbox.http import DEADLINE, FORM, submit_bytes


def sandbox() -> SandboxGateway:
    return SandboxGateway(clock=lambda: NOW)


def post(url: str, times: int = 1) -> list[bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE)
    bodies = []
    for _ in range(times):
        connection.request("POST", SUBMIT_TARGET, urlencode(submit_form()), FORM)
        bodies.append(connection.getresponse().read())
    connection.close()
    return bodies


def test_a_blocking_caller_is_answered() -> None:
    gateway = sandbox()
    with gateway.serve_in_thread() as url:
        assert b"<code>2</code>" in post(url)[0]
    assert 1 == len(gateway.calls)


def test_many_threads_submit_read_and_change_at_once() -> None:
    gateway = sandbox()
    with gateway.serve_in_thread() as url, ThreadPoolExecutor(8) as pool:
        posts = [pool.submit(post, url, 25) for _ in range(8)]
        while wait(posts, timeout=0.01).not_done:
            attempts = gateway.attempts
            assert all(attempt.code == 2 and attempt.voice_id for attempt in attempts)
            gateway.blacklist |= {"13900000001"}
        assert all(b"<code>2</code>" in body for done in posts for body in done.result())
    assert 200 == len({call.voice_id for call in gateway.calls}) == len(gateway.attempts)
    assert 800 == gateway.balance


def test_leaving_the_block_leaves_no_thread_and_no_socket() -> None:
    threads = threading.enumerate()
    with sandbox().serve_in_thread() as url:
        (thread,) = set(threading.enumerate()) - set(threads)
        assert thread.daemon
        post(url)
    assert threads == threading.enumerate()
    with pytest.raises(ConnectionRefusedError):
        post(url)


def test_stopping_does_not_wait_for_an_answer_that_hangs() -> None:
    placed = threading.Event()
    gateway = sandbox()
    gateway.chaos = Chaos(no_answer=1)
    gateway.on_attempt = lambda _: placed.set()
    with gateway.serve_in_thread() as url:
        parts = urlsplit(url)
        assert parts.port is not None
        connection = socket.create_connection((parts.hostname, parts.port), DEADLINE)
        connection.sendall(submit_bytes(submit_form()))
        assert placed.wait(DEADLINE)
    with connection:
        connection.settimeout(DEADLINE)
        assert b"" == connection.recv(1)


def test_an_exception_leaves_the_block_unwrapped_and_ends_the_thread() -> None:
    threads = threading.enumerate()
    error = RuntimeError("of the test")
    with pytest.raises(RuntimeError) as caught, sandbox().serve_in_thread():
        raise error
    assert error is caught.value
    assert threads == threading.enumerate()


def test_an_address_that_is_taken_raises_where_the_block_is_entered() -> None:
    threads = threading.enumerate()
    with sandbox().serve_in_thread() as url:
        port = urlsplit(url).port
        assert port is not None
        with pytest.raises(OSError, match=str(port)), ExitStack() as stack:
            stack.enter_context(sandbox().serve_in_thread(port=port))
    assert threads == threading.enumerate()


def test_it_warns_when_other_machines_can_reach_it(caplog: pytest.LogCaptureFixture) -> None:
    with sandbox().serve_in_thread(host="0.0.0.0"):  # noqa: S104 - the case itself
        pass
    said = [r for r in caplog.records if r.name == "ihuyi_voice.sandbox"]
    assert [logging.WARNING] == [record.levelno for record in said]
