"""The way of one request.

Check, claim in the ledger, reserve the quota, wait for a slot, take the time
and sign, POST, decode, settle quota and ledger, return: each once and in this
order. What the ledger knows already takes no place in the quota. Only
connecting is ever tried again, because only then is it certain that nothing
was written.

What a caller may get wrong about loops and closing is `client.py`'s business,
many requests at once are `bulk.py`'s.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, NamedTuple

import anyio

from .errors import (
    GatewayError,
    IhuyiVoiceError,
    InvalidRequestError,
    NotSentError,
    OutcomeUnknownError,
    QuotaExceededError,
)
from .models import Balance, OutcomeStatus, SubmitResult
from .transport import Exchange
from .wire import (
    BALANCE_TARGET,
    SUBMIT_TARGET,
    check_content,
    check_mobile,
    decode_balance,
    decode_submit,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .claims import Claims, Keyed
    from .ledger import Ledger
    from .models import Answer, Settings, SubmitRequest
    from .quota import RecipientQuota
    from .request_log import RequestLog
    from .transport import Transport
    from .wire import FormEncoder

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


def status_of(error: IhuyiVoiceError) -> OutcomeStatus:
    """The outcome that an error of this library states."""
    return next(status for cls, status in _STATUS_BY_ERROR.items() if isinstance(error, cls))


class Admitted(NamedTuple):
    """A submit that passed the check, with its place in the quota."""

    mobile: str
    content: str
    reserved_at: float | None
    keyed: Keyed | None = None


class Requester:
    """Sends requests over one transport, so many at a time, each with its deadline.

    It belongs to the event loop it was made in.

    Attributes:
        slots: one for each request that may be on the way at once.
        log: where each request leaves its line.
        quota: the limit of calls per number, None for none.
        claims: what the ledger remembers of this account, None without one.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what one request meets on its way
        self,
        settings: Settings,
        encoder: FormEncoder,
        transport: Transport,
        quota: RecipientQuota | None,
        ledger: Ledger | None,
        clock: Callable[[], float],
        log: RequestLog,
    ) -> None:
        self.log: RequestLog = log
        self.slots: anyio.Semaphore = anyio.Semaphore(settings.max_connections, fast_acquire=True)
        self._settings = settings
        self._encoder = encoder
        self._transport = transport
        self.quota = quota
        self.claims: Claims | None = None
        if ledger is not None:
            from .claims import Claims  # noqa: PLC0415 - nobody else pays for it

            self.claims = Claims(ledger, settings.api_key.reveal(), log)
        self._clock = clock
        never_shown = tuple(secret.reveal() for secret in settings.never_shown())
        # In a closure, where no repr of this object's attributes shows it.
        self._never_shown: Callable[[], tuple[str, ...]] = lambda: never_shown

    def exchange(self) -> Exchange:
        """A request that starts now."""
        return Exchange(time.monotonic() + self._settings.timeout)

    async def submit(self, request: SubmitRequest) -> SubmitResult:
        """One call from the check to its outcome; see `AsyncVoiceClient.submit`."""
        began = time.monotonic()
        mobile = request.mobile
        try:
            admitted = self.check(request)
            if admitted.keyed is None:
                admitted = await self.reserve(admitted)
        except BaseException as error:
            self.log.submit(mobile, error, _status(error, written=False), began)
            raise
        try:
            return await self.place(admitted)
        except QuotaExceededError as limited:
            self.log.submit(mobile, limited, OutcomeStatus.LIMITED, began)
            raise

    def check(self, request: SubmitRequest) -> Admitted:
        """A submit that may be sent as far as the local check is concerned.

        Raises:
            InvalidRequestError: it may not.
        """
        number, code = check_mobile(request.mobile), check_content(request.content)
        key = request.idempotency_key
        if self.claims is not None:
            return Admitted(number, code, None, self.claims.check(key, number, code))
        if key is not None:
            msg = "idempotency_key needs a ledger, and this client has none"
            raise InvalidRequestError(msg)
        return Admitted(number, code, None)

    async def reserve(self, checked: Admitted) -> Admitted:
        """Reserve its place in the quota; nothing is sent.

        Raises:
            QuotaExceededError: the number's limit is reached.
            NotSentError: the quota's store failed.
        """
        if self.quota is None:
            return checked
        try:
            reserved_at = await self.quota.reserve(checked.mobile)
        except IhuyiVoiceError:
            raise
        except Exception as exception:
            msg = f"the quota's store failed ({type(exception).__name__})"
            raise NotSentError(msg) from exception
        return Admitted(checked.mobile, checked.content, reserved_at, checked.keyed)

    async def known(self, checked: Admitted) -> SubmitResult | None:
        """What the ledger knows of a submit with a key already; None where it may be sent.

        Raises:
            OutcomeUnknownError, InvalidRequestError, LedgerError: as `place`.
        """
        began = time.monotonic()
        if self.claims is None or checked.keyed is None:  # pragma: no cover - for type checkers
            return None
        deadline = began + self._settings.timeout
        result = await self.claims.find(checked.keyed, checked.mobile, deadline)
        if result is not None:
            self.log.submit(checked.mobile, result, OutcomeStatus.REPLAYED, began)
        return result

    async def place(self, admitted: Admitted, exchange: Exchange | None = None) -> SubmitResult:
        """Send what was admitted, at most once, and say what became of it.

        The reservation is given back when nothing was written, and only then.
        A submit with a key has none yet: it gets one once it is claimed.

        Raises:
            QuotaExceededError: the limit of one with a key is reached; it is
                not logged, because the caller may wait for it.
        """
        exchange = exchange or self.exchange()
        if admitted.keyed is None or self.claims is None:
            return await self._place(admitted, exchange)
        return await self._place_claimed(admitted, admitted.keyed, self.claims, exchange)

    async def _place_claimed(
        self, checked: Admitted, keyed: Keyed, claims: Claims, exchange: Exchange
    ) -> SubmitResult:
        """Send it if the ledger never saw its key, or saw it fail before a phone could ring."""
        began = time.monotonic()
        mobile = checked.mobile
        try:
            token = await claims.claim(keyed, mobile, exchange)
        except BaseException as error:
            self.log.submit(mobile, error, _status(error, written=False), began)
            raise
        if isinstance(token, SubmitResult):
            self.log.submit(mobile, token, OutcomeStatus.REPLAYED, began)
            return token
        try:
            admitted = await self.reserve(checked)
        except BaseException as error:
            await claims.settle(keyed, token, OutcomeStatus.NOT_SENT, error, exchange)
            if not isinstance(error, QuotaExceededError):
                self.log.submit(mobile, error, _status(error, written=False), began)
            raise
        try:
            result = await self._place(admitted, exchange)
        except BaseException as error:
            status = _status(error, written=exchange.may_have_been_written)
            await claims.settle(keyed, token, status, error, exchange)
            raise
        await claims.settle(keyed, token, OutcomeStatus.ACCEPTED, result, exchange)
        return result

    async def _place(self, admitted: Admitted, exchange: Exchange) -> SubmitResult:
        began = time.monotonic()
        mobile, content, _, _ = admitted
        try:
            answer = await self._post(
                SUBMIT_TARGET,
                lambda now: self._encoder.submit(mobile, content, now),
                exchange,
                retry_on=(NotSentError,),
            )
            # The number before the code, which may be a part of it.
            hide = self._hide(mobile, content)
            result = decode_submit(answer, mobile, int(self._clock()), hide)
        except BaseException as exception:
            error = _stated(exception, exchange)
            if not exchange.may_have_been_written:
                await self.give_back(admitted)
            self.log.submit(
                mobile, error, _status(error, written=exchange.may_have_been_written), began
            )
            if error is exception:
                raise
            raise error from exception
        self.log.submit(mobile, result, OutcomeStatus.ACCEPTED, began)
        return result

    async def give_back(self, admitted: Admitted) -> None:
        """Release the place in the quota of a submit that was not sent."""
        if self.quota is None or admitted.reserved_at is None:
            return
        # Also on the way out of a cancellation. A store that fails here keeps
        # the slot; what became of the request stays what it is.
        with anyio.CancelScope(shield=True), contextlib.suppress(Exception):
            await self.quota.release(admitted.mobile, admitted.reserved_at)

    async def query_balance(self) -> Balance:
        """See `AsyncVoiceClient.query_balance`."""
        began = time.monotonic()
        exchange = self.exchange()
        try:
            answer = await self._post(
                BALANCE_TARGET,
                self._encoder.balance,
                exchange,
                retry_on=(NotSentError, OutcomeUnknownError),
            )
            balance = decode_balance(answer, int(self._clock()), self._hide())
        except OutcomeUnknownError as unknown:
            error = OutcomeUnknownError(unknown.reason, may_have_rung=False)
            self.log.request("query_balance", "", error, OutcomeStatus.UNKNOWN, began)
            raise error from None
        except BaseException as exception:
            self.log.request(
                "query_balance",
                "",
                exception,
                _status(exception, written=exchange.may_have_been_written),
                began,
            )
            raise
        self.log.request("query_balance", "", balance, OutcomeStatus.ACCEPTED, began)
        return balance

    def _hide(self, *of_this_request: str) -> tuple[str, ...]:
        """What must not come back out of the gateway's words."""
        return (*self._never_shown(), *of_this_request)

    async def _post(
        self,
        target: str,
        encode: Callable[[int], bytes],
        exchange: Exchange,
        retry_on: tuple[type[IhuyiVoiceError], ...],
    ) -> Answer:
        """POST in a slot of our own; what is in `retry_on` is tried again."""
        if self.slots.value:
            self.slots.acquire_nowait()
        else:
            await self._wait_for_slot(exchange)
        try:
            return await self._transport.post(target, encode(int(self._clock())), exchange)
        except retry_on as failure:
            if self._settings.connect_attempts == 1:
                raise
            # Out here, so that a request that succeeds does not pay for it.
            return await self._retry(failure, target, encode, exchange, retry_on)
        finally:
            self.slots.release()

    async def _wait_for_slot(self, exchange: Exchange) -> None:
        try:
            with anyio.fail_after(exchange.remaining()):
                await self.slots.acquire()
        except TimeoutError:
            msg = (
                f"no slot came free within {self._settings.timeout:g} s"
                f" (max_connections={self._settings.max_connections})"
            )
            raise NotSentError(msg) from None

    async def _retry(
        self,
        failure: IhuyiVoiceError,
        target: str,
        encode: Callable[[int], bytes],
        exchange: Exchange,
        retry_on: tuple[type[IhuyiVoiceError], ...],
    ) -> Answer:
        # Imported here because a connection that comes up at once never needs it.
        from tenacity import (  # noqa: PLC0415 - see above
            AsyncRetrying,
            retry_if_exception_type,
            stop_after_attempt,
            stop_before_delay,
            wait_random_exponential,
        )

        failures = [failure]

        async def attempt() -> Answer:
            if failures:
                # The first attempt was made without the machinery.
                raise failures.pop()
            return await self._transport.post(target, encode(int(self._clock())), exchange)

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
    comes from what the caller handed in, such as the clock.
    """
    if isinstance(exception, IhuyiVoiceError) or not isinstance(exception, Exception):
        return exception
    reason = f"an unexpected exception ({type(exception).__name__})"
    if exchange.may_have_been_written:
        return OutcomeUnknownError(reason)
    return NotSentError(reason)


def _status(exception: BaseException, *, written: bool) -> OutcomeStatus:
    if isinstance(exception, IhuyiVoiceError):
        return status_of(exception)
    # A cancellation.
    return OutcomeStatus.UNKNOWN if written else OutcomeStatus.NOT_SENT
