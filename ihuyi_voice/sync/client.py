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
import sys
import time
import weakref
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from .._advice import (
    BALANCE_UNKNOWN,
    CALL_UNKNOWN,
    CHECK_UNKNOWN,
    KEYED_UNKNOWN,
    READ_UNKNOWN,
)
from .._options import conceal, options_from_env
from ..bulk.run import BulkOptions, is_account_level
from ..client import AsyncVoiceClient
from ..errors import NotSentError, OutcomeUnknownError
from ..models import DEFAULT_BASE_URL, OutcomeStatus, SubmitRequest
from ..quota import QuotaDefault
from ..request_log import DeferredLog
from ..transport.base import Exchange
from .bulk import BlockingBulkRun
from .calls import CLOSED, Call
from .imports import import_ahead
from .life_cycle import State
from .threads import LoopThreads

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

    import aiohttp
    from typing_extensions import Self, Unpack

    from .._limits import Limits
    from .._options import ClientOptions
    from ..bulk.run import Rows, StopOn
    from ..events import OnSubmit
    from ..models import AnswerFormat, Balance, SubmitResult
    from ..quota import RecipientQuota
    from ..store.store import Store
    from ..transport.base import Transport
    from .loop_thread import LoopThread

T = TypeVar("T")

_INSTEAD = {
    "with": (
        "write `async with AsyncVoiceClient(...) as client:`, and in it `await client.submit(...)`"
        " or `async with client.submit_many(...) as run:` (a notebook can do that), or call the"
        " function that uses the VoiceClient by `await asyncio.to_thread(...)`"
    ),
    "submit_many": (
        "write `async with client.submit_many(...) as run:` with an AsyncVoiceClient (a notebook"
        " can do that), or call the function that uses it by `await asyncio.to_thread(...)`"
    ),
    "Verifier": (
        "await an AsyncVerifier, made with an AsyncVoiceClient, or call the blocking one by"
        " `await asyncio.to_thread(...)`"
    ),
}
_ADVICE = {
    "query_balance": BALANCE_UNKNOWN,
    "Verifier.start": CALL_UNKNOWN,
    "Verifier.resend": CALL_UNKNOWN,
    "Verifier.check": CHECK_UNKNOWN,
    "Verifier.cancel": READ_UNKNOWN,
    "Verifier.get": READ_UNKNOWN,
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
        base_url: scheme and host of the gateway. http without TLS is used only
            if this URL has it.
        dynamic_password: sign each request with a time-bound MD5 (True), or
            send the key itself as the vendor also allows (False).
        answer_format: "json" or "xml": the format that the client asks for. It
            reads both.
        timeout: seconds for one request, from the wait for a slot to the last
            byte of the answer, connecting included.
        connect_timeout: seconds for one attempt to connect, TLS included.
        connect_attempts: how often the client tries to connect, with random
            back-off, within `timeout`. A submit is tried again only while
            nothing was written.
        max_connections: how many requests may be in flight at once; others
            wait for a slot.
        ssl_context: for a private certificate authority; by default the
            system's authorities. Certificates are verified unless this context
            disables that.
        proxy: `http(s)://[user:password@]host[:port]`, or "env" for the proxy
            that the environment names. Otherwise the environment is ignored.
        trace_configs: aiohttp trace configs, for instrumentation. They receive
            the signed body, which must not be logged.
        quota: the limit of calls per number, 2 a minute and 10 a day by
            default; None for no limit.
        store: what several processes share, see `Store.open`: the limit of
            calls per number, and idempotency keys, each placed at most once
            across crashes and processes. It stays open when the client is
            closed.
        require_key: whether a submit without an idempotency key is refused.
        on_event: called with the `SubmitEvent` of each request that ends, rows
            of bulk runs included. What they raise is logged and ignored. In
            an event loop they must not block.
        transport: opens another transport than aiohttp's, in the client's event
            loop: a `Transport` class without arguments, or a function that
            returns one, see `ihuyi_voice.transport.base`. What
            `connect_timeout`, `ssl_context`, `proxy` and `trace_configs` say is
            then for it to decide, and `base_url` names the gateway in events
            only.
        clock: returns the seconds since 1970 that each request is signed with.
            It must be right within the gateway's tolerance, which is not
            published.
        allow_running_loop: let a call block even if an event loop runs in the
            same thread. The loop cannot continue during the call.

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
        on_event: Sequence[OnSubmit] = (),
        transport: Callable[[], Transport] | None = None,
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
            on_event=on_event,
            transport=transport,
            clock=clock,
        )
        # Opened by `from_env`, and closed with this client.
        self._owned_store: Store | None = None
        # How long a call waits for the loop thread.
        self._call_seconds = timeout + _grace(self._client)
        self._allow_running_loop = allow_running_loop
        self._closed = False
        self._log = DeferredLog()
        import_ahead()
        self._request_log = self._client._log.collected_by(self._log)
        make_client = partial(self._client._for_loop_thread, self._request_log)
        self._threads = LoopThreads(make_client, self._log, self._client._settings.limits.exit)
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
        a store, which this opens and which closes with the client, or `none`.

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
            mobile: one mainland number. Blanks, hyphens and a prefix +86, 0086
                or 86 are removed; then 1, a digit 3-9 and nine digits must remain.
            content: the code, a str of 4-6 ASCII digits.
            idempotency_key: names the request, 1-255 printable characters, so
                that the store lets it be placed once, however often it is submitted.
                An error without a store that keeps keys; needed only if
                `require_key` is True.

        Returns:
            What the gateway said when it accepted the call. The phone rings, usually
            within 5 s.
            `replayed` is True if it accepted the call earlier, under the same key.

        Raises:
            InvalidRequestError: the local check refused it, or its key belongs
                to another number or content; nothing was sent.
            QuotaExceededError: the limit for this number is reached; nothing was sent.
            NotSentError: nothing was written; repeating is safe. A StoreError
                where it was the store that failed.
            OutcomeUnknownError: something may have been written and no readable
                answer came, or the store holds an earlier request with this key
                whose outcome is unknown: the phone may have rung, do not repeat it blindly.
            GatewayError: the gateway refused; its subclass and code say why.
            RuntimeError: the client is closed, or used where it cannot run.
        """
        request = SubmitRequest(mobile, content, idempotency_key)
        # An exception raised below must not find the plain strings in this frame.
        del mobile, content, idempotency_key
        return self._call("submit", lambda client: client._opened().submit(request), request)

    def query_balance(self) -> Balance:
        """Ask how many calls the account has left.

        Reading changes nothing, so the query is tried again after any failure of
        the transport: up to `connect_attempts` times in all, within `timeout`.

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
        """Place many calls. Each row gets its own outcome.

        The result is a context manager. Iterate over the run that it gives, to
        get the outcomes as they finish, or call `finish()` to run to the end.
        If the block is left early, no more rows are started, and the requests
        in flight finish. A cancellation or Ctrl-C stops at once, and the
        requests in flight are reported as unknown. After the block the run
        still gives the outcomes that were not read.

        If the rows' iterable, `stop_on` or a clock raises, the run stops. The
        iteration gives the outcomes of the rows that were taken, and then
        raises that exception unchanged.

        Args:
            requests: an iterable or async iterable of `SubmitRequest` or
                (mobile, content) pairs, pulled lazily: at most
                `concurrency + 32` rows more than the outcomes that were read
                (rows that wait for their quota not counted). In a long run
                the 32 grow to an eighth of the rows taken so far, at most
                256. A list, tuple, set or deque is read in place; any other
                iterable is pulled by a thread, so that it may block. A generator is closed when
                the block is left, in the thread that iterated it. An iterable
                that never returns keeps the block open.
            concurrency: how many requests may be in flight at once;
                `max_connections` by default and at most.
            rate: starts per second, evenly spread; None for no limit.
            stop_on: called with each outcome; the run stops if it returns
                True. By default it stops at a refusal of the whole account.
                None: never stop.
            max_failures_in_row: also stop after this many outcomes in a row
                that are unknown, not sent, or refused with one and the same
                code that the table does not blame on the row (0, or a code
                outside the table). An accepted row resets the count. A refusal
                that is blamed on its row resets it only if it counts unknown
                and not-sent outcomes. Invalid, limited and replayed rows change
                nothing. None for no such limit. Not used when `stop_on` is None.
            wait_for_quota: a row over its number's limit waits until it may be
                sent, while later rows overtake it, instead of ending as
                limited. At most 1,000 rows wait at a time.

        Raises:
            ValueError: an argument is wrong; the text says which.
            TypeError: an argument is of the wrong type.
            BulkStoppedError: the run was stopped. The iteration or `finish()`
                raises it, after the requests in flight are reported.
        """
        # Now, because the block of an AsyncVoiceClient's run begins with `async with`.
        self._check_usable("submit_many")
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
                limits=self._client._settings.limits,
            ),
        )

    def close(self) -> None:
        """Close the connections, after the calls in flight in other threads have ended.

        Each call ends within its own deadline. A call that has not ended some
        seconds later is canceled. Closing twice does no harm; a closed client
        cannot be used again.
        """
        self._closed = True
        try:
            self._threads.close(self._call_seconds)
        finally:
            self._log.write()
        # Not in a `finally`: an interrupted close has not ended the thread.
        self._finalizer.detach()
        if self._owned_store is not None:
            self._owned_store.close()

    def __enter__(self) -> Self:
        self._check_usable("with")
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

    def _within(self, limits: Limits) -> Self:
        """Use other limits, from the first use on. For tests."""
        self._client._within(limits)
        self._call_seconds = self._client._settings.timeout + _grace(self._client)
        self._threads.cancel_seconds = limits.exit
        return self

    @property
    def _thread(self) -> LoopThread | None:
        """The loop thread of this process, if one was started."""
        thread = self._threads.current
        is_new = thread.life.state is State.NEW
        return thread if thread.is_usable() and not is_new else None

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
        deadline = began + self._call_seconds + extra_seconds
        call = Call(start)
        try:
            self._running_thread().calls.begin(call)
            # `cancel` fails if the call has ended just now. Then its end counts.
            if call.wait(deadline - time.monotonic()) or not call.cancel():
                return call.result()
            reason = "the client's thread did not answer in time"
            error = self._unanswered(name, call, reason, request)
        except concurrent.futures.CancelledError:
            reason = "the client was closed, or the program ended,"
            error = self._unanswered(name, call, reason, request)
        except NotSentError as not_sent:
            if call.begun:
                raise
            error = not_sent
        except BaseException:
            # Ctrl-C ends only the wait. The call itself must end too, begun or not.
            call.cancel()
            raise
        finally:
            self._log.write()
            self._threads.after_call()
        if isinstance(error, NotSentError):
            # The thread logs every call that reaches it. This one did not.
            exchange = Exchange(deadline, began)
            self._request_log.end(name, request, error, OutcomeStatus.NOT_SENT, exchange)
            self._log.write()
        raise error

    def _unanswered(
        self, name: str, call: Call[T], reason: str, request: SubmitRequest | None
    ) -> Exception:
        """The error for a call that the loop thread has not answered."""
        if call.begun:
            reason = f"{reason} while the request was on its way"
            is_keyed = request is not None and request.idempotency_key is not None
            advice = KEYED_UNKNOWN if is_keyed else _ADVICE.get(name, "")
            return OutcomeUnknownError(reason, name not in _RINGS_NO_PHONE, advice=advice)
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
        what = "`with VoiceClient(...)`" if name == "with" else f"{cls or 'VoiceClient'}.{method}"
        instead = _INSTEAD.get(cls or name) or _AWAIT.format(name=name)
        msg = (
            f"{what} would block the event loop that is running in this thread: {instead}, or pass"
            " allow_running_loop=True to block the loop meanwhile"
        )
        raise RuntimeError(msg)

    def _running_thread(self) -> LoopThread:
        """The loop thread of this process, with its client open.

        Raises:
            NotSentError: the thread cannot be started.
            RuntimeError: the client is closed.
        """
        thread = self._threads.running(self._call_seconds)
        # A `close` in another thread either finds the loop thread, or is seen here.
        if self._closed:
            self._threads.close(0.0)
            raise RuntimeError(CLOSED)
        return thread


def _grace(client: AsyncVoiceClient) -> float:
    limits = client._settings.limits
    return limits.grace if client._store is None else limits.grace_with_store
