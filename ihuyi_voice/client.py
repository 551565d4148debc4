"""The way of one request, for asyncio.

Check, reserve the quota, wait for a slot, take the time and sign, POST,
decode, settle the quota, return: each once and in this order. Only connecting
is ever tried again, because only then is it certain that nothing was written.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import anyio

from .errors import (
    ACCEPTED,
    GatewayError,
    IhuyiVoiceError,
    InvalidRequestError,
    NotSentError,
    OutcomeUnknownError,
    QuotaExceededError,
)
from .models import (
    DEFAULT_BASE_URL,
    AnswerFormat,
    Balance,
    OutcomeStatus,
    Secret,
    Settings,
    SubmitResult,
    mask_mobile,
)
from .quota import QuotaDefault, RecipientQuota
from .transport import AiohttpTransport, Exchange
from .wire import (
    BALANCE_TARGET,
    SUBMIT_TARGET,
    FormEncoder,
    check_content,
    check_mobile,
    decode_balance,
    decode_submit,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType
    from typing import TypedDict

    import aiohttp
    from typing_extensions import Self, Unpack

    from .models import Answer

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
        clock: Callable[[], float]


logger = logging.getLogger("ihuyi_voice")
logger.addHandler(logging.NullHandler())

# Back-off between attempts to connect: random between 0 and a bound that
# starts here and doubles, in seconds.
_BACKOFF_FIRST = 0.1
_BACKOFF_MOST = 2.0



_STATUS_BY_ERROR: dict[type[IhuyiVoiceError], OutcomeStatus] = {
    InvalidRequestError: OutcomeStatus.INVALID,
    QuotaExceededError: OutcomeStatus.LIMITED,
    NotSentError: OutcomeStatus.NOT_SENT,
    OutcomeUnknownError: OutcomeStatus.UNKNOWN,
    GatewayError: OutcomeStatus.REFUSED,
}


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
        clock: seconds since 1970; what is signed. Must be right to within the
            gateway's tolerance, which is not published.

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
        clock: Callable[[], float] = time.time,
    ) -> None:
        settings = Settings(
            api_id=api_id,
            api_key=Secret(api_key),
            base_url=base_url,
            dynamic_password=dynamic_password,
            answer_format=answer_format,
            timeout=timeout,
            connect_timeout=connect_timeout,
            connect_attempts=connect_attempts,
            max_connections=max_connections,
            proxy=None if proxy in (None, "env") else Secret(proxy),
        )
        if proxy == "env":
            settings = replace(settings, proxy=_environment_proxy(settings.base_url))
        self._settings = settings
        self._encoder = FormEncoder(
            api_id, api_key, dynamic_password=dynamic_password, answer_format=answer_format
        )
        self._ssl_context = ssl_context
        self._trace_configs = tuple(trace_configs)
        self._quota = RecipientQuota() if isinstance(quota, QuotaDefault) else quota
        self._clock = clock
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._transport: AiohttpTransport | None = None

    @property
    def base_url(self) -> str:
        """Scheme and host of the gateway."""
        return self._settings.base_url

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
        return cls(**options_from_env(overrides))

    async def submit(
        self, mobile: str, content: str, *, idempotency_key: str | None = None
    ) -> SubmitResult:
        """Place one call that reads out a verification code.

        Args:
            mobile: one mainland number; blanks, hyphens and a +86/0086/86
                prefix are stripped, then 1, 3-9 and nine digits must be left.
            content: the code, a str of 4-6 ASCII digits.
            idempotency_key: names the request across processes; needs a
                ledger, without which it is an error.

        Returns:
            The gateway accepted the call: the phone rings, usually within 5 s.

        Raises:
            InvalidRequestError: the local check refused it; nothing was sent.
            QuotaExceededError: the limit for this number is reached; nothing was sent.
            NotSentError: nothing was written; repeating is safe.
            OutcomeUnknownError: something may have been written and no readable
                answer came: the phone may have rung, do not repeat it blindly.
            GatewayError: the gateway refused; its subclass and code say why.
            RuntimeError: the client is closed, or used where it cannot run.
        """
        transport = self._opened()
        began = time.monotonic()
        exchange = Exchange(began + self._settings.timeout)
        number = ""
        try:
            if idempotency_key is not None:
                msg = "idempotency_key needs a ledger, and this client has none"
                raise InvalidRequestError(msg)  # noqa: TRY301 - logged like every refusal
            number, code = check_mobile(mobile), check_content(content)
            result = await self._submit_within_quota(transport, exchange, number, code)
        except BaseException as exception:
            error = _stated(exception, exchange)
            _log("submit", number, error, exchange, began)
            if error is exception:
                raise
            raise error from exception
        _log("submit", number, result, exchange, began)
        return result

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
        transport = self._opened()
        began = time.monotonic()
        exchange = Exchange(began + self._settings.timeout)
        try:
            answer = await self._post(
                transport,
                BALANCE_TARGET,
                self._encoder.balance,
                exchange,
                retry_on=(NotSentError, OutcomeUnknownError),
            )
            hide = (self._settings.api_key.reveal(),)
            balance = decode_balance(answer, int(self._clock()), hide)
        except OutcomeUnknownError as unknown:
            error = OutcomeUnknownError(unknown.reason, may_have_rung=False)
            _log("query_balance", "", error, exchange, began)
            raise error from None
        except BaseException as exception:
            _log("query_balance", "", exception, exchange, began)
            raise
        _log("query_balance", "", balance, exchange, began)
        return balance

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
        state = "closed" if self._closed else "open" if self._transport else "not yet used"
        return f"<{type(self).__name__} {self.base_url} {state}>"

    def _twin(self) -> Self:
        """A client of the same settings and quota that no loop has seen yet."""
        twin = copy.copy(self)
        twin._closed, twin._loop, twin._transport = False, None, None
        return twin

    def _opened(self) -> AiohttpTransport:
        """The transport, made at the first use, or an error that says what is wrong."""
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
        if self._transport is None:
            self._loop = loop
            self._slots = anyio.Semaphore(self._settings.max_connections, fast_acquire=True)
            self._transport = AiohttpTransport(
                self._settings,
                ssl_context=self._ssl_context,
                trace_configs=self._trace_configs,
            )
        elif loop is not self._loop:
            msg = (
                "this client belongs to another event loop, the one it was first used in:"
                " make one client per loop, or use VoiceClient, which brings its own"
            )
            raise RuntimeError(msg)
        return self._transport

    async def _submit_within_quota(
        self, transport: AiohttpTransport, exchange: Exchange, mobile: str, content: str
    ) -> SubmitResult:
        if self._quota is None:
            return await self._submit_once(transport, exchange, mobile, content)
        reserved_at = await self._quota.reserve(mobile)
        try:
            return await self._submit_once(transport, exchange, mobile, content)
        except BaseException:
            if not exchange.may_have_been_written:
                # Also on the way out of a cancellation.
                with anyio.CancelScope(shield=True):
                    await self._quota.release(mobile, reserved_at)
            raise

    async def _submit_once(
        self, transport: AiohttpTransport, exchange: Exchange, mobile: str, content: str
    ) -> SubmitResult:
        answer = await self._post(
            transport,
            SUBMIT_TARGET,
            lambda now: self._encoder.submit(mobile, content, now),
            exchange,
            retry_on=(NotSentError,),
        )
        hide = (self._settings.api_key.reveal(), content, mobile)
        return decode_submit(answer, mobile, int(self._clock()), hide)

    async def _post(
        self,
        transport: AiohttpTransport,
        target: str,
        encode: Callable[[int], bytes],
        exchange: Exchange,
        retry_on: tuple[type[IhuyiVoiceError], ...],
    ) -> Answer:
        """POST in a slot of our own; what is in `retry_on` is tried again."""
        await self._acquire_slot(exchange)
        try:
            try:
                return await transport.post(target, encode(int(self._clock())), exchange)
            except retry_on as failure:
                if self._settings.connect_attempts == 1:
                    raise
                failures = [failure]

            async def attempt() -> Answer:
                if failures:
                    # The first attempt was made above, without the machinery.
                    raise failures.pop()
                return await transport.post(target, encode(int(self._clock())), exchange)

            return await self._retry(attempt, exchange, retry_on)
        finally:
            self._slots.release()

    async def _acquire_slot(self, exchange: Exchange) -> None:
        if self._slots.value:
            self._slots.acquire_nowait()
            return
        try:
            with anyio.fail_after(exchange.remaining()):
                await self._slots.acquire()
        except TimeoutError:
            msg = (
                f"no slot came free within {self._settings.timeout:g} s"
                f" (max_connections={self._settings.max_connections})"
            )
            raise NotSentError(msg) from None

    async def _retry(
        self,
        attempt: Callable[[], Awaitable[Answer]],
        exchange: Exchange,
        retry_on: tuple[type[IhuyiVoiceError], ...],
    ) -> Answer:
        # Imported here because a connection that comes up at once never needs it.
        from tenacity import (  # noqa: PLC0415
            AsyncRetrying,
            retry_if_exception_type,
            stop_after_attempt,
            stop_before_delay,
            wait_random_exponential,
        )

        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._settings.connect_attempts)
            | stop_before_delay(exchange.remaining()),
            wait=wait_random_exponential(multiplier=_BACKOFF_FIRST, max=_BACKOFF_MOST),
            retry=retry_if_exception_type(retry_on),
            sleep=anyio.sleep,
            reraise=True,
        )
        return await retrying(attempt)


def _stated(exception: BaseException, exchange: Exchange) -> BaseException:
    """One of the stated outcomes for whatever ended a submit.

    A cancellation and its like pass as they are. Any other foreign exception
    comes from what the caller handed in: a clock, a quota store.
    """
    if isinstance(exception, IhuyiVoiceError) or not isinstance(exception, Exception):
        return exception
    reason = f"an unexpected exception ({type(exception).__name__})"
    if exchange.may_have_been_written:
        return OutcomeUnknownError(reason)
    return NotSentError(reason)


def status_of(error: IhuyiVoiceError) -> OutcomeStatus:
    """The outcome that an error of this library states."""
    return next(status for cls, status in _STATUS_BY_ERROR.items() if isinstance(error, cls))


def _status(end: SubmitResult | Balance | BaseException, exchange: Exchange) -> OutcomeStatus:
    if not isinstance(end, BaseException):
        return OutcomeStatus.ACCEPTED
    if isinstance(end, IhuyiVoiceError):
        return status_of(end)
    # A cancellation.
    return OutcomeStatus.UNKNOWN if exchange.may_have_been_written else OutcomeStatus.NOT_SENT


def _log(
    what: str,
    mobile: str,
    end: SubmitResult | Balance | BaseException,
    exchange: Exchange,
    began: float,
) -> None:
    """One line for one request, and nothing in it about a person or a secret."""
    if not logger.isEnabledFor(logging.INFO):
        return
    status = _status(end, exchange)
    logger.info(
        "%s %s %s code=%s voice_id=%s %.0f ms",
        what,
        mask_mobile(mobile),
        status.value,
        ACCEPTED if status is OutcomeStatus.ACCEPTED else getattr(end, "code", "-"),
        getattr(end, "voice_id", None) or "-",
        (time.monotonic() - began) * 1000,
    )


def _environment_proxy(base_url: str) -> Secret | None:
    parts = urlsplit(base_url)
    proxies = getproxies()
    url = proxies.get(parts.scheme) or proxies.get("all")
    if url is None or proxy_bypass(parts.netloc):
        return None
    return Secret(url)


def options_from_env(overrides: ClientOptions) -> ClientOptions:
    """The overrides, and what they leave open taken from the environment."""
    options: ClientOptions = {}
    if base_url := os.environ.get("IHUYI_VOICE_BASE_URL"):
        options["base_url"] = base_url
    if "api_id" not in overrides:
        options["api_id"] = _from_environment("IHUYI_VOICE_API_ID", "api_id")
    if "api_key" not in overrides:
        options["api_key"] = _from_environment("IHUYI_VOICE_API_KEY", "api_key")
    return {**options, **overrides}


def _from_environment(variable: str, option: str) -> str:
    value = os.environ.get(variable)
    if not value:
        msg = f"set the environment variable {variable}, or pass {option}=..."
        raise ValueError(msg)
    return value
