"""Real threads and an event to wait for them, also under gevent and eventlet.

Both frameworks replace `threading` with greenlets. The event loop of a
blocking client needs a thread of the operating system, so this module gets the
original functions from the framework. In an unpatched process it is plain
`threading`.

Python code holds no lock here: a signal handler may run between any two lines
of the main thread, and must be able to wait for another thread.
"""

from __future__ import annotations

import _socket
import _thread
import contextlib
import select
import socket
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_MODULES = {one.__name__: one for one in (_socket, _thread, select, socket, time)}


def unpatched(module: str, name: str) -> Any:  # noqa: ANN401 - an attribute of any of these
    """The attribute of a module as it was before gevent or eventlet replaced it."""
    if (monkey := sys.modules.get("gevent.monkey")) is not None:
        return monkey.get_original(module, name)
    if (patcher := sys.modules.get("eventlet.patcher")) is not None:
        return getattr(patcher.original(module), name)
    # No import: a signal handler that interrupts one would wait for its lock for ever.
    return getattr(_MODULES[module], name)


def threads_are_greenlets() -> bool:
    """Whether gevent or eventlet has replaced the threads of this process."""
    if (monkey := sys.modules.get("gevent.monkey")) is not None:
        return bool(monkey.is_module_patched("threading"))
    if (patcher := sys.modules.get("eventlet.patcher")) is not None:
        return bool(patcher.is_monkey_patched("thread"))
    return False


def start_thread(
    run: Callable[[], object], name: str, on_failure: Callable[[Exception], object]
) -> threading.Thread | None:
    """Start a daemon thread of the operating system without waiting for it.

    Args:
        run: what the thread does.
        name: its name, for debuggers.
        on_failure: called in another thread if the thread cannot be started
            after this function has returned.

    Returns:
        The thread, which may not have started yet. None under gevent and
        eventlet, whose `threading` does not know the thread.

    Raises:
        RuntimeError: no thread can be started.
    """
    if threads_are_greenlets():
        load_ahead()
        start_raw_thread(run)
        return None
    thread = threading.Thread(target=run, name=name, daemon=True)
    # `Thread.start` waits until the thread runs, and the thread needs a lock that the
    # main thread, interrupted by a signal handler, may hold. So another thread waits.
    unpatched("_thread", "start_new_thread")(_start, (thread, on_failure))
    return thread


def start_raw_thread(run: Callable[[], object]) -> None:
    """Start a thread that `threading` does not know. Works in a real thread too.

    Raises:
        RuntimeError: no thread can be started.
    """
    unpatched("_thread", "start_new_thread")(_traced, (run, threading.gettrace()))


def _start(  # pragma: no cover - in a thread that no tracer follows yet
    thread: threading.Thread, on_failure: Callable[[Exception], object]
) -> None:
    try:
        thread.start()
    except Exception as error:  # noqa: BLE001 - the caller has returned
        on_failure(error)


def _traced(  # pragma: no cover - in a thread that no tracer follows yet
    run: Callable[[], object],
    trace: Any,  # noqa: ANN401 - a trace function
) -> None:
    # As `threading` does for debuggers and for coverage.
    sys.settrace(trace)
    try:
        run()
    finally:
        destroy_hub()


def destroy_hub() -> None:
    """Close the hub that a framework made for this thread, or its descriptors stay open."""
    if (local := sys.modules.get("gevent._hub_local")) is not None:
        hub = local.get_hub_if_exists()
        if hub is not None:
            hub.destroy(destroy_loop=True)
    if (hubs := sys.modules.get("eventlet.hubs")) is not None:
        hub = getattr(hubs._threadlocal, "hub", None)  # noqa: SLF001 - get_hub() creates one
        # `abort` would start a hub that never ran, and would not return.
        if hub is not None and hub.running:
            hub.abort(wait=True)


def load_ahead() -> None:
    """Import what a real thread needs of gevent or eventlet.

    gevent creates a hub for each thread with a green socket, and eventlet
    imports each original module at its first use. Import locks that are made
    of greenlets are not safe between threads.
    """
    if (gevent := sys.modules.get("gevent")) is not None:
        gevent.get_hub()
    for module in ("_socket", "_thread", "select", "socket"):
        unpatched(module, "__name__")


def call_blocking(act: Callable[[], T]) -> T:
    """Call `act`, which blocks, while other greenlets run. Returns what it returns.

    Under gevent and eventlet a thread of the operating system calls it. The
    thread continues if the wait for it is interrupted. Elsewhere it is a plain
    call.

    Raises:
        BaseException: what `act` raises.
        RuntimeError: no thread can be started.
    """
    if not threads_are_greenlets():
        return act()
    load_ahead()
    ended = Event()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(act())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)
        finally:
            ended.set()

    start_raw_thread(run)
    ended.wait()
    for error in errors:
        raise error
    return results[0]


class Event:
    """Like `threading.Event`, between a real thread and threads or greenlets.

    An exception of a signal handler ends a wait at once. Other greenlets run
    during a wait. `set` never waits.
    """

    __slots__ = ("_is_set", "_waiters")

    def __init__(self) -> None:
        self._is_set = False
        self._waiters: deque[_Waiter] = deque()

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._is_set

    def set(self) -> None:
        """End all waits."""
        self._is_set = True
        with contextlib.suppress(IndexError):
            while True:
                self._waiters.popleft().wake()

    def clear(self) -> None:
        """Let later waits block again."""
        self._is_set = False

    def wait(self, timeout: float | None = None, *, greenlets_run: bool = True) -> bool:
        """Wait until it is set, at most `timeout` seconds. Returns whether it was set.

        Args:
            timeout: seconds; None for no limit.
            greenlets_run: whether other greenlets may run meanwhile. False in
                a finalizer, which may interrupt any code.
        """
        if self._is_set:
            return True
        waiter = _GreenWaiter() if greenlets_run and threads_are_greenlets() else _Waiter()
        self._waiters.append(waiter)
        try:
            # The thread that sets it finds the waiter, or has set it before this check.
            return self._is_set or waiter.wait(timeout) or self._is_set
        finally:
            # A waiter that is no longer in the queue was woken, or is about to be.
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)
                waiter.discard()
            waiter.close()


class _Waiter:
    """One wait for another thread; `wake` is called at most once."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = unpatched("_thread", "allocate_lock")()
        self._lock.acquire()

    def wait(self, timeout: float | None) -> bool:
        # A longer timeout raises OverflowError; no wait here is that long.
        seconds = -1.0 if timeout is None else min(max(timeout, 0.0), threading.TIMEOUT_MAX)
        return bool(self._lock.acquire(timeout=seconds))

    def wake(self) -> None:
        self._lock.release()

    def discard(self) -> None:
        """Called instead of `wake` when no thread can wake it."""

    def close(self) -> None:
        """Called when the wait is over."""


class _GreenWaiter(_Waiter):
    """A wait of a greenlet, woken by a byte on a socket pair.

    Both frameworks can wait for a file descriptor while a real thread, which
    does not know greenlets, writes to it.
    """

    __slots__ = ("_read", "_write")

    def __init__(self) -> None:
        super().__init__()
        # C sockets, which neither framework patches: the real thread uses one of them.
        read, self._write = unpatched("_socket", "socketpair")()
        self._read = socket.socket(fileno=read.detach())

    def wait(self, timeout: float | None) -> bool:
        try:
            self._read.settimeout(None if timeout is None else max(timeout, 0.001))
            return bool(self._read.recv(1))
        except TimeoutError:  # pragma: no cover - only under gevent and eventlet
            return False
        except (AssertionError, RuntimeError):
            # A signal handler runs in the greenlet of the framework, which must not switch.
            return super().wait(timeout)

    def wake(self) -> None:
        super().wake()
        # Only the waking thread closes it. If another thread closed it, the descriptor could
        # belong to another file by now.
        with contextlib.suppress(OSError):
            self._write.send(b"!")
        self._write.close()

    def discard(self) -> None:
        self._write.close()

    def close(self) -> None:
        self._read.close()
