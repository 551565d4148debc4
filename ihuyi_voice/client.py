"""The asyncio client: its settings, its life cycle and its public methods.

It raises if it is closed, if no event loop runs, or if it was first used in
another loop. `_pipeline.py` sends one request, `bulk/` many.
"""

from __future__ import annotations

import asyncio
import copy
import os
import time
from dataclasses import replace
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

from ._options import checked_settings, conceal, options_from_env
from ._pipeline import Pipeline
from .bulk.run import BulkOptions, BulkRun, is_account_level
from .events import checked_on_event
from .models import DEFAULT_BASE_URL, SubmitRequest
from .quota import QuotaDefault, RecipientQuota
from .request_log import RequestLog
from .transport.aiohttp import AiohttpTransport
from .wire import FormEncoder

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence
    from types import TracebackType

    import aiohttp
    from typing_extensions import Self, Unpack

    from ._limits import Limits
    from ._options import ClientOptions
    from .bulk.run import Rows, StopOn
    from .events import OnSubmit
    from .models import AnswerFormat, Balance, Settings, SubmitResult
    from .store.store import Store
    from .transport.base import Transport


class _State(Enum):
    """Where a client is in its life."""

    NEW = "not yet used"
    OPEN = "open"
    CLOSED = "closed"


class AsyncVoiceClient:
    """Places voice-verification calls through iHuyi, for asyncio.

    Use it with `async with`, or create it anywhere and call `aclose()` later.
    It belongs to the event loop that it is first used in.

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
    ) -> None:
        # An exception raised below must not find the plain strings in this frame.
        api_key, base_url, proxy = conceal(api_key), conceal(base_url), conceal(proxy)
        settings = checked_settings(
            api_id=api_id,
            api_key=api_key,
            base_url=base_url,
            dynamic_password=dynamic_password,
            answer_format=answer_format,
            timeout=timeout,
            connect_timeout=connect_timeout,
            connect_attempts=connect_attempts,
            max_connections=max_connections,
            proxy=proxy,
        )
        if isinstance(settings, Exception):
            raise settings
        self._settings = settings
        self._encoder = FormEncoder(
            api_id,
            settings.api_key.reveal(),
            dynamic_password=dynamic_password,
            answer_format=answer_format,
        )
        _check_transport(transport)
        self._open_transport: Callable[[Settings], Transport] = (
            partial(AiohttpTransport, ssl_context=ssl_context, trace_configs=tuple(trace_configs))
            if transport is None
            else lambda _: transport()
        )
        self._quota = RecipientQuota() if isinstance(quota, QuotaDefault) else quota
        self._store = store
        # Opened by `from_env`, and closed with this client.
        self._owned_store: Store | None = None
        self._require_key = require_key
        _check_store(store, self._quota, require_key=require_key)
        self._clock = clock
        self._log = RequestLog(settings.base_url, checked_on_event(on_event))
        self._state = _State.NEW
        # What it has while it is open.
        self._loop: asyncio.AbstractEventLoop
        self._transport: Transport
        self._pipeline: Pipeline

    @property
    def base_url(self) -> str:
        """Scheme and host of the gateway."""
        return self._settings.base_url

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

    async def submit(
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
        return await self._submit(request)

    async def _submit(self, request: SubmitRequest) -> SubmitResult:
        """As `submit`, for callers that hold no plain number or code."""
        return await self._opened().submit(request)

    @property
    def _keeps_keys(self) -> bool:
        """Whether idempotency keys can be used."""
        return self._store is not None and self._store.claims is not None

    async def query_balance(self) -> Balance:
        """Ask how many calls the account has left.

        Reading changes nothing, so the query is tried again after any failure of
        the transport: up to `connect_attempts` times in all, within `timeout`.

        Raises:
            NotSentError: nothing was written.
            OutcomeUnknownError: no readable answer came; `may_have_rung` is False.
            GatewayError: the gateway refused; its subclass and code say why.
            RuntimeError: the client is closed, or used where it cannot run.
        """
        return await self._opened().query_balance()

    def submit_many(  # noqa: PLR0913 - each with a default
        self,
        requests: Rows,
        *,
        concurrency: int | None = None,
        rate: float | None = None,
        stop_on: StopOn | None = is_account_level,
        max_failures_in_row: int | None = 20,
        wait_for_quota: bool = False,
    ) -> BulkRun:
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
        return BulkRun(
            self._opened,
            requests,
            BulkOptions(
                max_connections=self._settings.max_connections,
                concurrency=concurrency,
                rate=rate,
                stop_on=stop_on,
                max_failures_in_row=max_failures_in_row,
                wait_for_quota=wait_for_quota,
                limits=self._settings.limits,
            ),
        )

    async def aclose(self) -> None:
        """Close the connections. Requests still in flight end as unknown.

        Closing twice does no harm; a closed client cannot be used again.
        """
        state = self._state
        if state is _State.CLOSED:
            return
        if state is _State.OPEN:
            # Refused in another loop.
            self._opened()
        self._state = _State.CLOSED
        try:
            if state is _State.OPEN:
                await self._transport.aclose()
        finally:
            if self._owned_store is not None:
                await asyncio.to_thread(self._owned_store.close)

    async def __aenter__(self) -> Self:
        self._opened()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        if not hasattr(self, "_state"):
            # The constructor raised, and a tool shows the object.
            return f"<{type(self).__name__} not made>"
        return f"<{type(self).__name__} {self.base_url} {self._state.value}>"

    def _within(self, limits: Limits) -> Self:
        """Use other limits, from the first use on. For tests."""
        self._settings = replace(self._settings, limits=limits)
        return self

    def _for_loop_thread(self, log: RequestLog) -> Self:
        """A client with the same settings and the same quota. This one was never opened."""
        client = copy.copy(self)
        client._log = log
        client._owned_store = None
        return client

    def _new_pipeline(self, transport: Transport) -> Pipeline:
        quota, guard, store = self._quota, None, self._store
        if store is not None:
            from .store.guard import Guard  # noqa: PLC0415 - only a client with a store needs it

            windows = None
            if quota is not None and quota.may_move:
                windows, quota = quota.windows, None
            guard = Guard(
                store,
                windows,
                self._settings.api_key.reveal(),
                require_key=self._require_key,
                log=self._log,
            )
        return Pipeline(
            self._settings, self._encoder, transport, quota, guard, self._clock, self._log
        )

    def _opened(self) -> Pipeline:
        """The pipeline, created at the first use.

        Raises:
            RuntimeError: the client is closed, or cannot run here.
        """
        if self._state is _State.CLOSED:
            msg = "this client is closed: make a new one"
            raise RuntimeError(msg)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            msg = (
                f"{type(self).__name__} runs on asyncio and no asyncio event loop is running"
                " here: use asyncio.run(...), or VoiceClient for blocking code; under trio use"
                " VoiceClient in a thread"
            )
            raise RuntimeError(msg) from None
        if self._state is _State.NEW:
            self._loop = loop
            self._transport = self._open_transport(self._settings)
            self._pipeline = self._new_pipeline(self._transport)
            self._state = _State.OPEN
        elif loop is not self._loop:
            msg = (
                "this client belongs to another event loop, the one it was first used in:"
                " make one client per loop, or use VoiceClient, which brings its own"
            )
            raise RuntimeError(msg)
        return self._pipeline


def _check_transport(transport: object) -> None:
    if transport is not None and not callable(transport):
        msg = (
            "transport is called in the client's event loop to open one: pass a class, or a"
            f" function without arguments, not a {type(transport).__name__}"
        )
        raise TypeError(msg)


def _check_store(store: object, quota: RecipientQuota | None, *, require_key: bool) -> None:
    """Refuse settings of store, quota and key that contradict each other."""
    if isinstance(store, str | os.PathLike):
        msg = "store is a Store, not the place of one: pass store=Store.open(...)"
        raise TypeError(msg)
    if require_key and getattr(store, "claims", None) is None:
        msg = (
            "require_key=True needs a store that keeps keys: pass store=Store.open(...) with an"
            " SQLite file, PostgreSQL or MySQL"
        )
        raise ValueError(msg)
    if store is not None and quota is not None and quota.has_own_clock:
        msg = (
            "this quota has a clock of its own, and with a store the store's clock decides: leave"
            " clock out of RecipientQuota"
        )
        raise ValueError(msg)
