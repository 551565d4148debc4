"""The asyncio client: its settings, its life cycle and its public methods.

It refuses to work where it cannot: closed, in a second event loop, or without
one. `_pipeline.py` sends one request, `bulk/` many.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ._pipeline import Pipeline
from .bulk.run import BulkOptions, BulkRun, is_account_level
from .models import DEFAULT_BASE_URL, AnswerFormat, Secret, Settings, SubmitRequest
from .quota import QuotaDefault, RecipientQuota
from .request_log import RequestLog
from .transport.aiohttp import AiohttpTransport
from .wire import FormEncoder

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType
    from typing import TypedDict

    import aiohttp
    from typing_extensions import Self, Unpack

    from .bulk.run import Rows, StopOn
    from .models import Balance, SubmitResult
    from .store.store import Store
    from .transport.base import Transport

    class ClientOptions(TypedDict, total=False):
        """The keyword arguments of the clients, for `from_env`."""

        api_id: str
        api_key: str
        base_url: str
        dynamic_password: bool
        answer_format: AnswerFormat
        timeout: float
        connect_timeout: float
        connect_attempts: int
        max_connections: int
        ssl_context: ssl.SSLContext | None
        proxy: str | None
        trace_configs: Sequence[aiohttp.TraceConfig]
        quota: RecipientQuota | QuotaDefault | None
        store: Store | None
        require_key: bool
        clock: Callable[[], float]


_T = TypeVar("_T")


class AsyncVoiceClient:
    """Places voice-verification calls through iHuyi, for asyncio.

    Use it with `async with`, or make it anywhere and call `aclose()` later. It
    belongs to the event loop it is first used in.

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
    ) -> None:
        # What is raised from here on must not find them in this frame.
        api_key, base_url, proxy = conceal(api_key), conceal(base_url), conceal(proxy)
        settings = _settings(
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
        self._open_transport: Callable[[], Transport] = partial(
            AiohttpTransport,
            settings,
            ssl_context=ssl_context,
            trace_configs=tuple(trace_configs),
        )
        self._quota = RecipientQuota() if isinstance(quota, QuotaDefault) else quota
        self._store = store
        # Opened by `from_env`, and closed with this client.
        self._owned_store: Store | None = None
        self._require_key = require_key
        _check_store(store, self._quota, require_key=require_key)
        self._clock = clock
        self._log = RequestLog()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._transport: Transport | None = None
        self._pipeline: Pipeline | None = None

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
        # What is raised from here on must not find them in this frame.
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
        # What is raised from here on must not find them in this frame.
        del mobile, content, idempotency_key
        return await self._opened().submit(request)

    async def query_balance(self) -> Balance:
        """Ask how many calls the account has left.

        Reading changes nothing, so it is tried again, up to `connect_attempts`
        times within `timeout`, whatever way the transport failed.

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
            ),
        )

    async def aclose(self) -> None:
        """Close the connections. Requests still on the way end as unknown.

        Closing twice does no harm; a closed client cannot be used again.
        """
        if self._closed:
            return
        if self._transport is not None:
            self._opened()
        self._closed = True
        if self._transport is not None:
            await self._transport.aclose()
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
        if not hasattr(self, "_pipeline"):
            # A tool shows it because its constructor raised.
            return f"<{type(self).__name__} not made>"
        state = "closed" if self._closed else "open" if self._transport else "not yet used"
        return f"<{type(self).__name__} {self.base_url} {state}>"

    def _over(self, open_transport: Callable[[], Transport]) -> Self:
        """Send over another transport than aiohttp; for tests.

        Args:
            open_transport: called in the client's event loop at the first use.
        """
        self._open_transport = open_transport
        return self

    def _for_loop_thread(self, log: RequestLog) -> Self:
        """A client of the same settings and the same quota; this one was never opened."""
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
        """What sends requests, made at the first use, or an error that says what is wrong."""
        if self._closed:
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
        if self._pipeline is None:
            self._loop = loop
            self._transport = self._open_transport()
            self._pipeline = self._new_pipeline(self._transport)
        elif loop is not self._loop:
            msg = (
                "this client belongs to another event loop, the one it was first used in:"
                " make one client per loop, or use VoiceClient, which brings its own"
            )
            raise RuntimeError(msg)
        return self._pipeline


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


def conceal(value: _T) -> _T:
    """An argument as a Secret, which the clients take in its place.

    The clients' own arguments are plain, and what they raise must not find a
    secret in their frames. So the type is the argument's, for type checkers.
    """
    if value is None or isinstance(value, Secret):
        return value
    return cast("_T", Secret(cast("str", value)))


def _revealed(value: object) -> object:
    return value.reveal() if isinstance(value, Secret) else value


def _settings(**arguments: Any) -> Settings | Exception:  # noqa: ANN401 - checked by Settings
    """The settings, or what is wrong with them.

    It is for the caller to raise, without this frame and those of the checks,
    which hold plain secrets.
    """
    base_url, proxy = _revealed(arguments["base_url"]), _revealed(arguments["proxy"])
    try:
        settings = Settings(
            **{
                **arguments,
                # Where it is None, it is not concealed.
                "api_key": Secret(cast("str", _revealed(arguments["api_key"]))),
                "base_url": base_url,
                "proxy": None if proxy in (None, "env") else Secret(cast("str", proxy)),
            }
        )
        if proxy == "env":
            settings = replace(settings, proxy=_environment_proxy(settings.base_url))
    except (TypeError, ValueError) as error:
        return error.with_traceback(None)
    return settings


def _environment_proxy(base_url: str) -> Secret | None:
    parts = urlsplit(base_url)
    proxies = getproxies()
    url = proxies.get(parts.scheme) or proxies.get("all")
    if url is None or proxy_bypass(parts.netloc):
        return None
    return Secret(url)


class ConcealedOptions:
    """The keyword arguments of a client, which no repr shows; `reveal()` gives them.

    Attributes:
        opened_store: the store that the environment names, opened; None where
            it names none, or the caller has passed one.
    """

    __slots__ = ("_options", "opened_store")

    def __init__(self, options: ClientOptions, opened_store: Store | None) -> None:
        self._options = options
        self.opened_store: Store | None = opened_store

    @contextlib.contextmanager
    def closing_store_on_error(self) -> Iterator[None]:
        """Close the opened store where the client cannot be made."""
        try:
            yield
        except BaseException:
            if self.opened_store is not None:
                self.opened_store.close()
            raise

    def reveal(self) -> ClientOptions:
        """The arguments."""
        return self._options


def options_from_env(overrides: ClientOptions) -> ConcealedOptions | Exception:
    """The overrides, and what they leave open taken from the environment.

    An error where a variable is not set, or its store cannot be opened: it is
    for the caller to raise, without the overrides in its frame.
    """
    options: ClientOptions = {}
    opened_store: Store | None = None
    if base_url := os.environ.get("IHUYI_VOICE_BASE_URL"):
        options["base_url"] = base_url
    if "api_id" not in overrides:
        if not (api_id := os.environ.get("IHUYI_VOICE_API_ID")):
            return _not_set("IHUYI_VOICE_API_ID", "api_id")
        options["api_id"] = api_id
    if "api_key" not in overrides:
        if not (api_key := os.environ.get("IHUYI_VOICE_API_KEY")):
            return _not_set("IHUYI_VOICE_API_KEY", "api_key")
        options["api_key"] = api_key
    # "none" is how the variable asks the command line for no store.
    url = os.environ.get("IHUYI_VOICE_STORE") or "none"
    if "store" not in overrides and url != "none":
        from .store.store import Store  # noqa: PLC0415 - only where it is set

        try:
            opened_store = options["store"] = Store.open(url)
        except Exception as error:  # noqa: BLE001 - for the caller to raise
            return error.with_traceback(None)
    return ConcealedOptions({**options, **overrides}, opened_store)


def _not_set(variable: str, option: str) -> ValueError:
    return ValueError(f"set the environment variable {variable}, or pass {option}=...")
