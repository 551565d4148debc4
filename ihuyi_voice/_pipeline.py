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

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from .errors import (
    GatewayError,
    IhuyiVoiceError,
    InvalidRequestError,
    NotSentError,
    OutcomeUnknownError,
    QuotaExceededError,
)
from .models import Balance, OutcomeStatus, SubmitResult, mask_mobile
from .quota import never_waits
from .transport.base import Exchange
from .wire import (
    BALANCE_TARGET,
    SUBMIT_TARGET,
    Redaction,
    decode_balance,
    decode_submit,
    read_content,
    read_mobile,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from .models import Answer, Settings, SignedBody, SubmitRequest
    from .quota import RecipientQuota
    from .request_log import RequestLog
    from .store.entry import Entry
    from .store.guard import Claims, Keyed
    from .store.ledger import Ledger
    from .transport.base import Transport
    from .wire import FormEncoder

# Back-off between attempts to connect: random between 0 and a bound that
# starts here and doubles, in seconds.
_BACKOFF_FIRST = 0.1
_BACKOFF_MOST = 2.0
# For how many seconds a request that has its outcome waits for the quota's store.
_RELEASE_SECONDS = 2.0
# What a RuntimeError says at the limit of threads, which has no class and no number.
_NO_MORE_THREADS = ("can't start new thread",)

_T = TypeVar("_T")

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


class Admitted:
    """A submit that passed the check, with its place in the quota.

    No attribute and no repr shows its number or code, because tools that report
    an exception show the variables of every frame it passes.

    Attributes:
        reserved_at: its place in the quota, None where it has none.
        keyed: what the ledger records of it, None where it goes unprotected.
    """

    __slots__ = ("_content", "_mobile", "_signed_at", "keyed", "reserved_at")

    def __init__(
        self,
        mobile: str,
        content: str,
        reserved_at: float | None = None,
        keyed: Keyed | None = None,
    ) -> None:
        self._mobile = mobile
        self._content = content
        self._signed_at = 0
        self.reserved_at: float | None = reserved_at
        self.keyed: Keyed | None = keyed

    def __repr__(self) -> str:
        return f"<Admitted {mask_mobile(self._mobile)} reserved_at={self.reserved_at}>"

    def masked_mobile(self) -> str:
        """The number as it may be shown."""
        return mask_mobile(self._mobile)

    def mobile(self) -> str:
        """The number itself, 11 digits."""
        return self._mobile

    def sign(self, encoder: FormEncoder, unix_time: int) -> SignedBody:
        """The body to send, signed at `unix_time`."""
        self._signed_at = unix_time
        return encoder.submit(self._mobile, self._content, unix_time)

    def decode(self, answer: Answer, redaction: Redaction) -> SubmitResult | IhuyiVoiceError:
        """What the gateway says of it."""
        return decode_submit(answer, self._mobile, self._content, self._signed_at, redaction)

    def replayed(self, entry: Entry) -> SubmitResult:
        """The result that the ledger stored for an earlier submit with the same key."""
        return SubmitResult(entry.voice_id, entry.msg, self._mobile, replayed=True)


class _BalanceQuery:
    """A balance query, for `Requester._post`."""

    __slots__ = ("_signed_at",)

    def sign(self, encoder: FormEncoder, unix_time: int) -> SignedBody:
        self._signed_at = unix_time
        return encoder.balance(unix_time)

    def decode(self, answer: Answer, redaction: Redaction) -> Balance | IhuyiVoiceError:
        return decode_balance(answer, self._signed_at, redaction)


class _Raised:
    """What a call in a task of its own raised."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


async def _caught(call: Callable[[], Coroutine[object, object, _T]]) -> _T | _Raised:
    """Run a call of the caller's code; SystemExit in a task would end the loop."""
    try:
        return await call()
    except asyncio.CancelledError:
        # The task says so.
        raise
    except BaseException as error:  # noqa: BLE001 - raised again where the call is waited for
        return _Raised(error)


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
        self._quota_waits = quota is not None and not never_waits(quota)
        # Calls to the quota's store that may outlive their request.
        self._asking: set[asyncio.Task[Any]] = set()
        self.claims: Claims | None = None
        if ledger is not None:
            from .store.guard import Claims  # noqa: PLC0415 - only a client with a ledger needs it

            self.claims = Claims(ledger, settings.api_key.reveal(), log)
        self._clock = clock
        self._redaction = Redaction(secret.reveal() for secret in settings.never_shown())

    def exchange(self) -> Exchange:
        """A request that starts now."""
        return Exchange(time.monotonic() + self._settings.timeout)

    async def submit(self, request: SubmitRequest) -> SubmitResult:
        """One call from the check to its outcome; see `AsyncVoiceClient.submit`."""
        began = time.monotonic()
        exchange = self.exchange()
        try:
            admitted = self.check(request)
            if admitted.keyed is None and self.quota is not None:
                await self.reserve(admitted, exchange.deadline)
        except BaseException as error:
            self.log.submit(request, error, _status(error, written=False), began)
            raise
        try:
            return await self.place(admitted, exchange)
        except QuotaExceededError as limited:
            self.log.submit(request, limited, OutcomeStatus.LIMITED, began)
            raise

    def check(self, request: SubmitRequest) -> Admitted:
        """A submit that may be sent as far as the local check is concerned.

        Raises:
            InvalidRequestError: it may not.
        """
        admitted = self._checked(request)
        if isinstance(admitted, InvalidRequestError):
            raise admitted
        return admitted

    def _checked(self, request: SubmitRequest) -> Admitted | InvalidRequestError:
        """As `check`; nothing is raised in this frame, which holds number and code."""
        number = read_mobile(request.mobile)
        if not isinstance(number, str):
            return number
        code = read_content(request.content)
        if not isinstance(code, str):
            return code
        key = request.idempotency_key
        if self.claims is not None:
            keyed = self.claims.check(key, number, code)
            if isinstance(keyed, InvalidRequestError):
                return keyed
            return Admitted(number, code, None, keyed)
        if key is not None:
            return InvalidRequestError("idempotency_key needs a ledger, and this client has none")
        return Admitted(number, code)

    async def reserve(self, checked: Admitted, deadline: float | None = None) -> Admitted:
        """Reserve its place in the quota; nothing is sent.

        Args:
            checked: the submit, which is also returned.
            deadline: until when to wait for the quota's store, in monotonic
                seconds; the client's timeout from now by default.

        Raises:
            QuotaExceededError: the number's limit is reached.
            NotSentError: the quota's store failed, or did not answer in time.
        """
        if self.quota is None:
            return checked
        try:
            if self._quota_waits:
                if deadline is None:
                    deadline = self.exchange().deadline
                checked.reserved_at = await self._reserve_by(deadline, checked, self.quota)
            else:
                checked.reserved_at = await self.quota.reserve(checked.mobile())
        except IhuyiVoiceError:
            raise
        except Exception as exception:
            msg = f"the quota's store failed ({_named(exception)})"
            raise NotSentError(msg) from exception
        return checked

    async def _reserve_by(self, deadline: float, checked: Admitted, quota: RecipientQuota) -> float:
        """Reserve, and stop waiting at the deadline, even for a store that ignores cancellation."""
        asked = self._ask(lambda: quota.reserve(checked.mobile()))
        try:
            await asyncio.wait((asked,), timeout=max(0.0, deadline - time.monotonic()))
        except BaseException:
            self._abandon(asked, checked, quota)
            raise
        if not asked.done():
            self._abandon(asked, checked, quota)
            msg = f"the quota's store did not answer within {self._settings.timeout:g} s"
            raise NotSentError(msg)
        if asked.cancelled():
            msg = "the quota's store failed (CancelledError)"
            raise NotSentError(msg)
        reserved_at = asked.result()
        if isinstance(reserved_at, _Raised):
            raise reserved_at.error
        return reserved_at

    def _abandon(
        self, asked: asyncio.Task[float | _Raised], checked: Admitted, quota: RecipientQuota
    ) -> None:
        """Cancel a reservation; where it is made all the same, it is given back."""

        def give_back(late: asyncio.Task[float | _Raised]) -> None:
            if late.cancelled():
                return
            reserved_at = late.result()
            if not isinstance(reserved_at, _Raised):  # pragma: no branch - a late failure
                self._release(checked, reserved_at, quota)

        asked.cancel()
        asked.add_done_callback(give_back)

    def _ask(self, call: Callable[[], Coroutine[object, object, _T]]) -> asyncio.Task[_T | _Raised]:
        """Start a call to the quota's store in a task of its own.

        An abandoned call goes on in the background, so its task is kept until it
        is done.
        """
        asked = asyncio.get_running_loop().create_task(_caught(call))
        self._asking.add(asked)
        asked.add_done_callback(self._asking.discard)
        return asked

    async def known(self, checked: Admitted) -> SubmitResult | None:
        """What the ledger knows of a submit with a key already; None where it may be sent.

        Raises:
            OutcomeUnknownError, InvalidRequestError, LedgerError: as `place`.
        """
        began = time.monotonic()
        if self.claims is None or checked.keyed is None:  # pragma: no cover - for type checkers
            return None
        deadline = began + self._settings.timeout
        entry = await self.claims.find(checked.keyed, deadline)
        if entry is None:
            return None
        result = checked.replayed(entry)
        self.log.submit(checked, result, OutcomeStatus.REPLAYED, began)
        return result

    async def place(self, admitted: Admitted, exchange: Exchange | None = None) -> SubmitResult:
        """Send what was admitted, at most once, and return or raise its outcome.

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
        try:
            token = await claims.claim(keyed, exchange)
        except BaseException as exception:
            # A RuntimeError says that the ledger is closed: a mistake of the caller's.
            error = exception if _is_misuse(exception) else _stated(exception, exchange)
            self.log.submit(checked, error, _status(error, written=False), began)
            if error is exception:
                raise
            raise error from exception
        if not isinstance(token, str):
            result = checked.replayed(token)
            self.log.submit(checked, result, OutcomeStatus.REPLAYED, began)
            return result
        try:
            admitted = await self.reserve(checked, exchange.deadline)
        except BaseException as error:
            await claims.settle(keyed, token, OutcomeStatus.NOT_SENT, error, exchange)
            if not isinstance(error, QuotaExceededError):
                self.log.submit(checked, error, _status(error, written=False), began)
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
        try:
            answer = await self._post(SUBMIT_TARGET, admitted, exchange, (NotSentError,))
            result = admitted.decode(answer, self._redaction)
            if isinstance(result, IhuyiVoiceError):
                raise result  # noqa: TRY301 - handled like what the transport raises
        except BaseException as exception:
            error = _stated(exception, exchange)
            self.log.submit(
                admitted, error, _status(error, written=exchange.may_have_been_written), began
            )
            if not exchange.may_have_been_written:
                await self.give_back(admitted)
            if error is exception:
                raise
            raise error from exception
        self.log.submit(admitted, result, OutcomeStatus.ACCEPTED, began)
        return result

    async def give_back(self, admitted: Admitted) -> None:
        """Release the place in the quota of a submit that was not sent.

        Also on the way out of a cancellation. A store that fails here, or does
        not answer soon, keeps the slot; the request's outcome stays what it is.
        """
        if self.quota is None or admitted.reserved_at is None:
            return
        if not self._quota_waits:
            await self.quota.release(admitted.mobile(), admitted.reserved_at)
            return
        released = self._release(admitted, admitted.reserved_at, self.quota)
        with anyio.CancelScope(shield=True):
            await asyncio.wait((released,), timeout=_RELEASE_SECONDS)
        if not released.done():
            released.cancel()
            self._warn_of_kept_slot(admitted, f"no answer within {_RELEASE_SECONDS:g} s")
            return
        failed = None if released.cancelled() else released.result()
        # SystemExit and its like are the caller's, and reach the caller.
        if failed is not None and not isinstance(failed.error, Exception):
            raise failed.error

    def _release(
        self, admitted: Admitted, reserved_at: float, quota: RecipientQuota
    ) -> asyncio.Task[_Raised | None]:
        """Start to give a reservation back; a failure is logged."""

        def warn(done: asyncio.Task[_Raised | None]) -> None:
            if not done.cancelled() and (failed := done.result()) is not None:
                self._warn_of_kept_slot(admitted, _named(failed.error))

        released = self._ask(lambda: quota.release(admitted.mobile(), reserved_at))
        released.add_done_callback(warn)
        return released

    def _warn_of_kept_slot(self, admitted: Admitted, why: str) -> None:
        self.log.warn(  # noqa: G010 - a RequestLog's
            "submit %s: nothing was sent, and the quota's store did not give its slot back (%s):"
            " the call counts until its window has passed",
            admitted.masked_mobile(),
            why,
        )

    async def query_balance(self) -> Balance:
        """See `AsyncVoiceClient.query_balance`."""
        began = time.monotonic()
        exchange = self.exchange()
        query = _BalanceQuery()
        try:
            answer = await self._post(
                BALANCE_TARGET, query, exchange, (NotSentError, OutcomeUnknownError)
            )
            balance = query.decode(answer, self._redaction)
            if isinstance(balance, IhuyiVoiceError):
                raise balance  # noqa: TRY301 - handled like what the transport raises
        except BaseException as exception:
            error = _stated(exception, exchange)
            if isinstance(error, OutcomeUnknownError):
                error = OutcomeUnknownError(error.reason, may_have_rung=False)
            self.log.request(
                "query_balance",
                None,
                error,
                _status(error, written=exchange.may_have_been_written),
                began,
            )
            if error is exception:
                raise
            raise error from (None if isinstance(exception, IhuyiVoiceError) else exception)
        self.log.request("query_balance", None, balance, OutcomeStatus.ACCEPTED, began)
        return balance

    async def _post(
        self,
        target: str,
        request: Admitted | _BalanceQuery,
        exchange: Exchange,
        retry_on: tuple[type[IhuyiVoiceError], ...],
    ) -> Answer:
        """POST in a slot of our own; what is in `retry_on` is tried again."""
        if self.slots.value:
            self.slots.acquire_nowait()
        else:
            await self._wait_for_slot(exchange)
        try:
            body = request.sign(self._encoder, int(self._clock()))
            return await self._transport.post(target, body, exchange)
        except retry_on as failure:
            if self._settings.connect_attempts == 1:
                raise
            # Out here, so that a request that succeeds does not pay for it.
            return await self._retry(failure, target, request, exchange, retry_on)
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
        request: Admitted | _BalanceQuery,
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
            body = request.sign(self._encoder, int(self._clock()))
            return await self._transport.post(target, body, exchange)

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
    reason = f"an unexpected exception ({_named(exception)})"
    if exchange.may_have_been_written:
        return OutcomeUnknownError(reason)
    return NotSentError(reason)


def _is_misuse(exception: BaseException) -> bool:
    return isinstance(exception, RuntimeError) and exception.args != _NO_MORE_THREADS


def _named(exception: BaseException) -> str:
    """A foreign exception by its class, and in the system's words where they say more.

    The rest of its text is not shown: it may hold anything.
    """
    name = type(exception).__name__
    if isinstance(exception, OSError) and isinstance(exception.errno, int):
        return f"{name}: {os.strerror(exception.errno)}"
    if exception.args == _NO_MORE_THREADS:
        return f"{name}: {_NO_MORE_THREADS[0]}"
    return name


def _status(exception: BaseException, *, written: bool) -> OutcomeStatus:
    if isinstance(exception, IhuyiVoiceError):
        return status_of(exception)
    # A cancellation.
    return OutcomeStatus.UNKNOWN if written else OutcomeStatus.NOT_SENT
