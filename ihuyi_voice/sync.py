"""The blocking client: plain wrappers around a thread that owns the event loop.

Nothing of the way of a request is decided here: every method hands a
coroutine of `AsyncVoiceClient` to the thread and waits. Deadlines are kept in
there; an interrupted wait cancels the coroutine, so that no call is placed
after Ctrl-C has returned.

The thread is stopped by a finaliser, so that a client that is never closed
keeps neither the interpreter nor a forked child from exiting. A child does not
touch what it inherited: it starts a thread of its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, TypeVar

from ._loop_thread import CLOSED, LoopThread
from .blocking_bulk import BlockingBulkRun
from .bulk import is_account_level
from .client import AsyncVoiceClient, conceal, options_from_env
from .errors import OutcomeUnknownError
from .models import DEFAULT_BASE_URL, SubmitRequest
from .quota import QuotaDefault

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

    import aiohttp
    from typing_extensions import Self, Unpack

    from .bulk import Rows, StopOn
    from .client import ClientOptions
    from .ledger import Ledger
    from .models import AnswerFormat, Balance, SubmitResult
    from .quota import RecipientQuota

T = TypeVar("T")


class VoiceClient:
    """Places voice-verification calls through iHuyi, blocking.

    The same as `AsyncVoiceClient` in everything but the `await`. Safe to use
    from many threads; usable after a fork, in parent and child. Use it with
    `with`, or make it anywhere and call `close()` later or never.

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
        ledger: remembers idempotency keys, so that each is placed at most
            once across crashes and processes; see `Ledger.open`. It stays
            open when the client is closed.
        clock: seconds since 1970; what is signed. Must be right to within the
            gateway's tolerance, which is not published.
        allow_running_loop: let a call block even where an event loop is
            running in the same thread, which then stands still meanwhile.

    Raises:
        ValueError: a setting is wrong; the text says which and what it takes.
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
        ledger: Ledger | None = None,
        clock: Callable[[], float] = time.time,
        allow_running_loop: bool = False,
    ) -> None:
        # What is raised from here on must not find them in this frame.
        api_key, base_url, proxy = conceal(api_key), conceal(base_url), conceal(proxy)
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
            ledger=ledger,
            clock=clock,
        )
        self._allow_running_loop = allow_running_loop
        self._closed = False
        self._lock = threading.RLock()
        self._thread: LoopThread | None = None
        self._finalizer: weakref.finalize[..., VoiceClient] | None = None
        _clients.add(self)

    @property
    def base_url(self) -> str:
        """Scheme and host of the gateway."""
        return self._client.base_url

    @classmethod
    def from_env(cls, **overrides: Unpack[ClientOptions]) -> Self:
        """A client for the account that the environment names.

        Reads `IHUYI_VOICE_API_ID`, `IHUYI_VOICE_API_KEY` and, where it is set,
        `IHUYI_VOICE_BASE_URL`.

        Args:
            **overrides: any argument of the class; they win over the environment.

        Raises:
            ValueError: a variable is not set, or as the class raises.
        """
        options = options_from_env(overrides)
        # What is raised from here on must not find them in this frame.
        del overrides
        if isinstance(options, ValueError):
            raise options
        return cls(**options.reveal())

    def submit(
        self, mobile: str, content: str, *, idempotency_key: str | None = None
    ) -> SubmitResult:
        """Place one call that reads out a verification code.

        Args:
            mobile: one mainland number; blanks, hyphens and a +86/0086/86
                prefix are stripped, then 1, 3-9 and nine digits must be left.
            content: the code, a str of 4-6 ASCII digits.
            idempotency_key: names the request, 1-255 printable characters, so
                that the ledger lets it be placed once, whoever asks again.
                Needed with a ledger, an error without one.

        Returns:
            The gateway accepted the call: the phone rings, usually within 5 s.
            `replayed` tells that it did so earlier, under the same key.

        Raises:
            InvalidRequestError: the local check refused it, or its key stands
                for another number or content; nothing was sent.
            QuotaExceededError: the limit for this number is reached; nothing was sent.
            NotSentError: nothing was written; repeating is safe. A LedgerError
                where it was the ledger that failed.
            OutcomeUnknownError: something may have been written and no readable
                answer came, or the ledger knows so of an earlier request with
                this key: the phone may have rung, do not repeat it blindly.
            GatewayError: the gateway refused; its subclass and code say why.
            RuntimeError: the client is closed, or used where it cannot run.
        """
        request = SubmitRequest(mobile, content, idempotency_key)
        # What is raised from here on must not find them in this frame.
        del mobile, content, idempotency_key
        return self._call("submit", lambda c: c._opened().submit(request))

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
        return self._call("query_balance", lambda c: c.query_balance())

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

        Args:
            requests: an iterable or async iterable of `SubmitRequest` or
                (mobile, content) pairs, pulled lazily. A list, tuple, set or
                deque is read in place; any other iterable is pulled by a
                thread, so that it may block, and at most 32 rows ahead. An
                iterable that never returns holds the block open.
            concurrency: how many requests may be in flight at once;
                `max_connections` by default and at most.
            rate: starts per second, evenly spread; None for no limit.
            stop_on: decides after each outcome whether to stop; by default at
                a refusal of the whole account. None: never stop.
            max_failures_in_row: also stop after so many unknown or not-sent
                outcomes with none between them that reached the gateway; None
                for no such limit. Not used when `stop_on` is None.
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
            lambda client: client.submit_many(
                requests,
                concurrency=concurrency,
                rate=rate,
                stop_on=stop_on,
                max_failures_in_row=max_failures_in_row,
                wait_for_quota=wait_for_quota,
            ),
        )

    def close(self) -> None:
        """Close the connections, after the calls on the way in other threads.

        They end within their own deadlines. Closing twice does no harm; a
        closed client cannot be used again.
        """
        with self._lock:
            self._closed = True
            thread, finalizer = self._thread, self._finalizer
        if thread is not None and finalizer is not None:
            finalizer.detach()
            thread.stop(cancel_remaining=False)

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
            # A tool shows it because its constructor raised.
            return f"<{type(self).__name__} not made>"
        state = "closed" if self._closed else "open" if self._thread else "not yet used"
        return f"<{type(self).__name__} {self._client.base_url} {state}>"

    def _call(self, name: str, start: Callable[[AsyncVoiceClient], Awaitable[T]]) -> T:
        self._check_usable(name)
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        try:
            # Begun under the lock, so that whoever closes the client waits for it.
            with self._lock:
                self._running_thread().begin(start, future)
            return future.result()
        except concurrent.futures.CancelledError:
            # At the interpreter's exit, in a daemon thread.
            reason = "the program ended while the request was on its way"
            raise OutcomeUnknownError(reason, may_have_rung=name != "query_balance") from None
        except BaseException:
            # Ctrl-C ends the wait alone; the call itself must end too, begun or not.
            future.cancel()
            raise

    def _check_usable(self, name: str) -> None:
        if self._closed:
            raise RuntimeError(CLOSED)
        if self._allow_running_loop:
            return
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        msg = (
            f"VoiceClient.{name} would block the event loop that is running in this thread: write"
            f" `await client.{name}(...)` with an AsyncVoiceClient (a notebook can await), or pass"
            " allow_running_loop=True to block it all the same"
        )
        raise RuntimeError(msg)

    def _running_thread(self) -> LoopThread:
        """The thread of this process; called with the lock held."""
        if self._closed:
            raise RuntimeError(CLOSED)
        if self._thread is not None and self._thread.pid != os.getpid():
            # Forked: the parent's loop and sockets are not ours to close.
            _inherited.append(self._thread)
            self._thread = None
            self._client = self._client._twin()
        if self._thread is None:
            if self._client._transport is not None:
                # Ctrl-C, or a fork, came while a thread was being started with it.
                self._client = self._client._twin()
            self._thread = LoopThread(self._client)
            self._finalizer = weakref.finalize(self, self._thread.stop, cancel_remaining=True)
        return self._thread

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()


_clients: weakref.WeakSet[VoiceClient] = weakref.WeakSet()
_inherited: list[LoopThread] = []


def _renew_locks() -> None:
    # A fork may happen while another thread, which the child lacks, holds a lock.
    for client in _clients:
        client._renew_lock()


if hasattr(os, "register_at_fork"):  # pragma: no branch - absent on Windows alone
    os.register_at_fork(after_in_child=_renew_locks)
