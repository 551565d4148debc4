"""The blocking client: plain wrappers around a thread that owns the event loop.

This module does not decide how a request is sent: each method hands a
coroutine of `AsyncVoiceClient` to the thread and waits. The coroutine keeps
the deadlines. The wait has a deadline too, because the thread may be blocked.
An interrupted wait cancels the coroutine, so that no call is placed after
Ctrl-C has returned.

A finalizer stops the thread, so that a client that is never closed keeps
neither the interpreter nor a forked child from exiting. A child does not touch
the thread of its parent: it starts its own.

The callers write the log records, not the thread: a caller may be a signal
handler that has interrupted a thread inside a log handler. For the same reason
no lock is held here. Where two callers may compete, one atomic step decides.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import sys
import time
import weakref
from typing import TYPE_CHECKING, TypeVar

from ..bulk.run import BulkOptions, is_account_level
from ..client import AsyncVoiceClient, conceal, options_from_env
from ..errors import NotSentError, OutcomeUnknownError
from ..models import DEFAULT_BASE_URL, OutcomeStatus, SubmitRequest
from ..quota import QuotaDefault
from ..request_log import DeferredLog
from .bulk import BlockingBulkRun
from .loop_thread import CLOSED, Handover, LoopThread, import_ahead

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

    import aiohttp
    from typing_extensions import Self, Unpack

    from ..bulk.run import Rows, StopOn
    from ..client import ClientOptions
    from ..models import AnswerFormat, Balance, SubmitResult
    from ..quota import RecipientQuota
    from ..store.store import Store

T = TypeVar("T")

# Seconds after a request's own deadline in which the loop thread hands its outcome
# over. With a store it may first wait for the record.
_GRACE = 5.0
_GRACE_WITH_STORE = 15.0
# Seconds that the interpreter's exit waits for the calls that it has canceled.
_EXIT_SECONDS = 12.0

_INSTEAD = {
    "submit_many": (
        "write `async with client.submit_many(...) as run:` with an AsyncVoiceClient (a notebook"
        " can do that), or call the function that uses it by `await asyncio.to_thread(...)`"
    ),
    "Verifier": (
        "await an AsyncVerifier, made with an AsyncVoiceClient, or call the blocking one by"
        " `await asyncio.to_thread(...)`"
    ),
}
_RINGS_NO_PHONE = ("query_balance", "Verifier.check", "Verifier.cancel", "Verifier.get")
_AWAIT = (
    "write `await client.{name}(...)` with an AsyncVoiceClient (a notebook can await), or"
    " `await asyncio.to_thread(client.{name}, ...)`"
)


class VoiceClient:
    """Places voice-verification calls through iHuyi, blocking.

    The same as `AsyncVoiceClient`, without the `await`. Many threads may use
    it, and so may parent and child after a fork. Use it with `with`, or create
    it anywhere and call `close()` later or never.

    Args:
        api_id: the account's APIID.
        api_key: the account's APIKEY; no repr, log or error shows it.
        base_url: scheme and host of the gateway. Plain http is used only when
            it says so.
        dynamic_password: sign each request with a time-bound MD5 (True), or
            send the key itself as the vendor also allows (False).
        answer_format: "json" or "xml": what the gateway is asked to answer in.
            Whatever it answers is read.
        timeout: seconds for one request: from the wait for a slot over
            connecting to the last byte of the answer.
        connect_timeout: seconds for one attempt to connect, TLS included.
        connect_attempts: how often connecting is tried, with random back-off,
            within `timeout`. Nothing but connecting is ever tried again.
        max_connections: how many requests may be on the way at once; further
            ones wait for a slot.
        ssl_context: for a private certificate authority; the system's by
            default. Certificates are always verified unless it says otherwise.
        proxy: `http(s)://[user:password@]host[:port]`, or "env" to take it
            from the environment, which is ignored otherwise.
        trace_configs: aiohttp trace configs, for instrumentation. Mind that
            they are shown the signed body.
        quota: the limit of calls per number, 2 a minute and 10 a day by
            default; None for no limit.
        store: what several processes share, see `Store.open`: the limit of
            calls per number, and idempotency keys, each placed at most once
            across crashes and processes. It stays open when the client is
            closed.
        require_key: whether a submit without an idempotency key is refused.
        clock: seconds since 1970; what is signed. Must be right to within the
            gateway's tolerance, which is not published.
        allow_running_loop: let a call block even if an event loop is running
            in the same thread; the loop is blocked meanwhile.

    Raises:
        ValueError: a setting is wrong; the text says which, and which values it allows.
        TypeError: a setting is of the wrong type.
    """

    def __init__(  # noqa: PLR0913 - the settings of one client, each with a default
        self,
        api_id: str,
        api_key: str,
        *,
        base_url: str = DEFAULT_BASE_URL,
        dynamic_password: bool = True,
        answer_format: AnswerFormat = "json",
        timeout: float = 15.0,
        connect_timeout: float = 5.0,
        connect_attempts: int = 3,
        max_connections: int = 100,
        ssl_context: ssl.SSLContext | None = None,
        proxy: str | None = None,
        trace_configs: Sequence[aiohttp.TraceConfig] = (),
        quota: RecipientQuota | QuotaDefault | None = QuotaDefault.DEFAULT,
        store: Store | None = None,
        require_key: bool = False,
        clock: Callable[[], float] = time.time,
        allow_running_loop: bool = False,
    ) -> None:
        # An exception raised below must not find the plain strings in this frame.
        api_key, base_url, proxy = conceal(api_key), conceal(base_url), conceal(proxy)
        # Holds the checked settings, from which each loop thread creates its client. Never opened.
        self._client = AsyncVoiceClient(
            api_id,
            api_key,
            base_url=base_url,
            dynamic_password=dynamic_password,
            answer_format=answer_format,
            timeout=timeout,
            connect_timeout=connect_timeout,
            connect_attempts=connect_attempts,
            max_connections=max_connections,
            ssl_context=ssl_context,
            proxy=proxy,
            trace_configs=trace_configs,
            quota=quota,
            store=store,
            require_key=require_key,
            clock=clock,
        )
        # Opened by `from_env`, and closed with this client.
        self._owned_store: Store | None = None
        self._timeout = timeout
        self._grace = _GRACE if store is None else _GRACE_WITH_STORE
        self._allow_running_loop = allow_running_loop
        self._closed = False
        self._log = DeferredLog()
        import_ahead()
        self._threads = _Threads(self._client, self._log)
        self._finalizer = weakref.finalize(self, self._threads.exit)

    @property
    def base_url(self) -> str:
        """Scheme and host of the gateway."""
        return self._client.base_url

    @classmethod
    def from_env(cls, **overrides: Unpack[ClientOptions]) -> Self:
        """A client for the account that the environment names.

        Reads `IHUYI_VOICE_API_ID`, `IHUYI_VOICE_API_KEY` and, where they are
        set, `IHUYI_VOICE_BASE_URL` and `IHUYI_VOICE_STORE`: the path or URL of
        a store, which this opens and which closes with the client.

        Args:
            **overrides: any argument of the class; they win over the environment.

        Raises:
            ValueError: a variable is not set, or as the class raises.
            StoreError, ModuleNotFoundError: the store cannot be opened.
        """
        options = options_from_env(overrides)
        # An exception raised below must not find the plain strings in this frame.
        del overrides
        if isinstance(options, Exception):
            raise options
        with options.closing_store_on_error():
            client = cls(**options.reveal())
        client._owned_store = options.opened_store
        return client

    def submit(
        self, mobile: str, content: str, *, idempotency_key: str | None = None
    ) -> SubmitResult:
        """Place one call that reads out a verification code.

        Args:
            mobile: one mainland number; blanks, hyphens and a +86/0086/86
                prefix are stripped, then 1, 3-9 and nine digits must be left.
            content: the code, a str of 4-6 ASCII digits.
            idempotency_key: names the request, 1-255 printable characters, so
                that the store lets it be placed once, however often it is submitted.
                Needed with a store, an error without one.

        Returns:
            The gateway accepted the call: the phone rings, usually within 5 s.
            `replayed` is True where it did so earlier, under the same key.

        Raises:
            InvalidRequestError: the local check refused it, or its key belongs
                to another number or content; nothing was sent.
            QuotaExceededError: the limit for this number is reached; nothing was sent.
            NotSentError: nothing was written; repeating is safe. A StoreError
                where it was the store that failed.
            OutcomeUnknownError: something may have been written and no readable
                answer came, or the store knows so of an earlier request with
                this key: the phone may have rung, do not repeat it blindly.
            GatewayError: the gateway refused; its subclass and code say why.
            RuntimeError: the client is closed, or used where it cannot run.
        """
        request = SubmitRequest(mobile, content, idempotency_key)
        # An exception raised below must not find the plain strings in this frame.
        del mobile, content, idempotency_key
        return self._call("submit", lambda client: client._opened().submit(request), request)

    def query_balance(self) -> Balance:
        """Ask how many calls the account has left.

        Reading changes nothing, so it is tried again, up to `connect_attempts`
        times within `timeout`, whatever way the transport failed.

        Raises:
            NotSentError: nothing was written.
            OutcomeUnknownError: no readable answer came; `may_have_rung` is False.
            GatewayError: the gateway refused; its subclass and code say why.
            RuntimeError: the client is closed, or used where it cannot run.
        """
        return self._call("query_balance", lambda client: client.query_balance())

    def submit_many(  # noqa: PLR0913 - each with a default
        self,
        requests: Rows,
        *,
        concurrency: int | None = None,
        rate: float | None = None,
        stop_on: StopOn | None = is_account_level,
        max_failures_in_row: int | None = 20,
        wait_for_quota: bool = False,
    ) -> BlockingBulkRun:
        """Place many calls; each row gets an outcome of its own.

        A context manager: iterate what it gives for the outcomes, as they
        finish, or let `finish()` run it to the end. Leaving the block early
        starts no more and waits for what is in flight; a cancellation or
        Ctrl-C stops at once, and what was in flight is reported as unknown.
        After the block the run still gives the outcomes that were not read.

        An exception of the rows' iterable, of `stop_on` or of a clock stops
        the run and comes out of the iteration as it is, whatever its class,
        after the outcomes of the rows that were taken.

        Args:
            requests: an iterable or async iterable of `SubmitRequest` or
                (mobile, content) pairs, pulled lazily: at most
                `concurrency + 32` rows more than the outcomes that were read
                (rows that wait for their quota not counted). A list, tuple,
                set or deque is read in place; any other iterable is pulled
                by a thread, so that it may block. A generator is closed when
                the block is left, where it was iterated. An iterable that
                never returns holds the block open.
            concurrency: how many requests may be in flight at once;
                `max_connections` by default and at most.
            rate: starts per second, evenly spread; None for no limit.
            stop_on: decides after each outcome whether to stop; by default at
                a refusal of the whole account. None: never stop.
            max_failures_in_row: also stop after so many outcomes in a row
                that are unknown, not sent, or refused with one and the same
                code that the table does not blame on the row (0, or a code
                outside the table). An accepted row begins the count again; a
                refusal that is blamed on its row ends a row of unknown and
                not-sent outcomes only; invalid, limited and replayed rows
                change nothing. None for no such limit. Not used when
                `stop_on` is None.
            wait_for_quota: let a row over its number's limit wait its turn,
                at most 1,000 at a time, while others overtake it, instead of
                ending as limited.

        Raises:
            ValueError: an argument is wrong; the text says which.
            TypeError: an argument is of the wrong type.
            BulkStoppedError: from the iteration or `finish()`, once what was
                in flight is reported, when the run was stopped.
        """
        return BlockingBulkRun(
            self,
            requests,
            BulkOptions(
                max_connections=self._client._settings.max_connections,
                concurrency=concurrency,
                rate=rate,
                stop_on=stop_on,
                max_failures_in_row=max_failures_in_row,
                wait_for_quota=wait_for_quota,
            ),
        )

    def close(self) -> None:
        """Close the connections, after the calls in progress in other threads have ended.

        Each call ends within its own deadline. A call that has not ended some
        seconds later is cancelled. Closing twice does no harm; a closed client
        cannot be used again.
        """
        self._closed = True
        try:
            self._threads.close(self._timeout + self._grace)
        finally:
            self._log.write()
        # Not in a `finally`: an interrupted close has not ended the thread.
        self._finalizer.detach()
        if self._owned_store is not None:
            self._owned_store.close()

    def __enter__(self) -> Self:
        self._check_usable("submit")
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if not hasattr(self, "_finalizer"):
            # The constructor raised, and a tool shows the object.
            return f"<{type(self).__name__} not made>"
        state = "closed" if self._closed else "open" if self._thread else "not yet used"
        return f"<{type(self).__name__} {self.base_url} {state}>"

    @property
    def _thread(self) -> LoopThread | None:
        """The loop thread of this process, if there is one."""
        thread = self._threads.current
        return thread if thread.was_started() and thread.is_usable() else None

    def _call(
        self,
        name: str,
        start: Callable[[AsyncVoiceClient], Awaitable[T]],
        request: SubmitRequest | None = None,
        extra_seconds: float = 0.0,
    ) -> T:
        """Run a coroutine in the loop thread, wait for its end, and write the log."""
        self._check_usable(name)
        began = time.monotonic()
        end: Handover[T] = Handover()
        begun = given_up = False

        def begin(client: AsyncVoiceClient) -> Awaitable[T]:
            nonlocal begun
            # In this order: a caller that gives up cancels first and reads `begun` after that.
            begun = True
            if end.cancelled():
                raise asyncio.CancelledError  # pragma: no cover - only a race gets here
            return start(client)

        deadline = began + self._timeout + self._grace + extra_seconds
        try:
            self._running_thread().begin(begin, end)
            in_time = end.wait(deadline - time.monotonic())
            # Cancels a call that has not ended. If it has ended just now, its end counts.
            given_up = not in_time and end.cancel()
            return end.result()
        except concurrent.futures.CancelledError:
            reason = (
                "the client's thread did not answer in time"
                if given_up
                else "the client was closed, or the program ended,"
            )
            error = self._no_end(name, reason, begun=begun)
        except NotSentError as not_sent:
            if begun:
                raise
            error = not_sent
        except BaseException:
            # Ctrl-C ends only the wait. The call itself must end too, begun or not.
            end.cancel()
            raise
        finally:
            self._log.write()
            self._threads.after_call()
        if isinstance(error, NotSentError):
            # The thread logs every call that reaches it. This one did not.
            log = self._log.request_log()
            log.request(name, request, error, OutcomeStatus.NOT_SENT, began)
            self._log.write()
        raise error

    def _no_end(self, name: str, reason: str, *, begun: bool) -> Exception:
        """The error for a call that the loop thread has not answered."""
        if begun:
            reason = f"{reason} while the request was on its way"
            return OutcomeUnknownError(reason, may_have_rung=name not in _RINGS_NO_PHONE)
        if self._closed:  # pragma: no cover - only a race gets here
            return RuntimeError(CLOSED)
        return NotSentError(f"{reason} before the request began")

    def _check_usable(self, name: str) -> None:
        if self._closed:
            raise RuntimeError(CLOSED)
        if sys.is_finalizing():  # pragma: no cover - coverage has ended by then
            msg = (
                "the interpreter is exiting and runs no more threads: call before the end of the"
                " main program, not from __del__"
            )
            raise NotSentError(msg)
        if self._allow_running_loop:
            return
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        cls, _, method = name.rpartition(".")
        instead = _INSTEAD.get(cls or name) or _AWAIT.format(name=name)
        msg = (
            f"{cls or 'VoiceClient'}.{method} would block the event loop that is running in this"
            f" thread: {instead}, or pass allow_running_loop=True to block the loop meanwhile"
        )
        raise RuntimeError(msg)

    def _running_thread(self) -> LoopThread:
        """The loop thread of this process, with its client open.

        Raises:
            NotSentError: the thread cannot be started.
            RuntimeError: the client is closed.
        """
        thread = self._threads.running(self._timeout + self._grace)
        # A `close` in another thread either finds the loop thread, or is seen here.
        if self._closed:
            self._threads.close(0.0)
            raise RuntimeError(CLOSED)
        return thread

    def _write_logs(self) -> None:
        """Write the log entries of the loop thread from the calling thread."""
        self._log.write()


class _Threads:
    """The loop thread of one client, in each process; holds no reference to the client.

    There is one at a time. A thread that has ended, or that a fork left in the
    parent, has exactly one successor.
    """

    def __init__(self, settings: AsyncVoiceClient, log: DeferredLog) -> None:
        self._log = log
        self._exiting = False
        request_log = log.request_log()
        self.current = LoopThread(lambda: settings._for_loop_thread(request_log))

    def running(self, seconds: float) -> LoopThread:
        """The thread, which is started within so many seconds if it does not run."""
        while True:
            thread = self.current
            while not thread.is_usable():
                if thread.pid != os.getpid():
                    # Kept, because a child that frees it closes its parent's loop and sockets.
                    _inherited.append(thread)
                thread = thread.successor()
            self.current = thread
            if thread.start(seconds):
                return thread

    def close(self, seconds: float) -> None:
        """Let the calls end within so many seconds, cancel the rest, and end the thread."""
        thread = self.current
        if not thread.stop(seconds, cancel_remaining=False):
            thread.stop(_EXIT_SECONDS, cancel_remaining=True)

    def exit(self) -> None:
        """Cancel the calls and end the thread: the client is unreachable, or the program exits."""
        self._exiting = True
        self.current.stop(_EXIT_SECONDS, cancel_remaining=True)
        self._log.write()

    def after_call(self) -> None:
        """End the thread of a call that was made at exit, after the finalizer ran."""
        if self._exiting:
            self.exit()


_inherited: list[LoopThread] = []
