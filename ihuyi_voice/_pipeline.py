"""The steps of one submit, each once and in this order.

Check, claim the key and reserve the quota, wait for a slot, read the clock and
sign, POST, decode, settle, return. A request that the store already knows takes
no place in the quota. Only connecting is tried again, because only then is it
certain that nothing was written.

A request has two forms: the `SubmitRequest` of the caller until it is checked,
and an `Admitted` from then on.

`client.py` checks the use of loops and of closed clients, `bulk/` sends many
requests at once.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, NoReturn

import anyio

from ._advice import BALANCE_NOT_SENT, BALANCE_UNKNOWN, KEYED_UNKNOWN, advised
from ._reservations import NO_MORE_THREADS, Reservations, named
from .errors import (
    GatewayError,
    IhuyiVoiceError,
    InvalidRequestError,
    NotSentError,
    OutcomeUnknownError,
    QuotaExceededError,
)
from .models import Balance, OutcomeStatus, SubmitResult, mask_mobile
from .request_log import QUERY_BALANCE, SUBMIT
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
    from collections.abc import Callable

    from ._limits import Limits
    from .models import Answer, Settings, SignedBody, SubmitRequest
    from .quota import RecipientQuota
    from .request_log import RequestLog
    from .store.entry import Entry
    from .store.guard import Claim, Guard, Guarded, Reserved
    from .transport.base import Transport
    from .wire import FormEncoder

_STATUS_BY_ERROR: dict[type[IhuyiVoiceError], OutcomeStatus] = {
    InvalidRequestError: OutcomeStatus.INVALID,
    QuotaExceededError: OutcomeStatus.LIMITED,
    NotSentError: OutcomeStatus.NOT_SENT,
    OutcomeUnknownError: OutcomeStatus.UNKNOWN,
    GatewayError: OutcomeStatus.REFUSED,
}


def status_of(error: IhuyiVoiceError) -> OutcomeStatus:
    """The outcome that an error of this library reports."""
    return next(status for cls, status in _STATUS_BY_ERROR.items() if isinstance(error, cls))


class Admitted:
    """A submit that passed the check.

    No attribute and no repr shows the number or the code, because tools that
    report an exception show the variables of every frame it passes.

    Attributes:
        reserved: the token of its reservation in a quota that is not in the
            store; None without one.
        guarded: what the store records of it, None for nothing.
    """

    __slots__ = ("_content", "_mobile", "_signed_at", "guarded", "reserved")

    def __init__(
        self,
        mobile: str,
        content: str,
        reserved: str | None = None,
        guarded: Guarded | None = None,
    ) -> None:
        self._mobile = mobile
        self._content = content
        self._signed_at = 0
        self.reserved: str | None = reserved
        self.guarded: Guarded | None = guarded

    def __repr__(self) -> str:
        return f"<Admitted {mask_mobile(self._mobile)} reserved={self.reserved is not None}>"

    def masked_mobile(self) -> str:
        """The number with its middle masked."""
        return mask_mobile(self._mobile)

    def mobile(self) -> str:
        """The number itself, 11 digits."""
        return self._mobile

    def sign(self, encoder: FormEncoder, unix_time: int) -> SignedBody:
        """The body to send, signed at `unix_time`."""
        self._signed_at = unix_time
        return encoder.submit(self._mobile, self._content, unix_time)

    def decode(self, answer: Answer, redaction: Redaction) -> SubmitResult | IhuyiVoiceError:
        """The result or the error that the gateway's answer means."""
        return decode_submit(answer, self._mobile, self._content, self._signed_at, redaction)

    def replayed(self, entry: Entry) -> SubmitResult:
        """The result that the store stored for an earlier submit with the same key."""
        return entry.answer.replayed(self._mobile)


class _BalanceQuery:
    """A balance query, for `Pipeline._post`."""

    __slots__ = ("_signed_at",)

    def sign(self, encoder: FormEncoder, unix_time: int) -> SignedBody:
        self._signed_at = unix_time
        return encoder.balance(unix_time)

    def decode(self, answer: Answer, redaction: Redaction) -> Balance | IhuyiVoiceError:
        return decode_balance(answer, self._signed_at, redaction)


class Pipeline:
    """Sends requests over one transport, a limited number at once, each with its deadline.

    It belongs to the event loop it was made in.

    Attributes:
        slots: one for each request that may be in flight at once.
        log: logs and reports the end of each request. `submit` and
            `query_balance` use it; for `send` and `known` the caller does.
        reservations: in a quota that is not in the store; None without one.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - one for each step
        self,
        settings: Settings,
        encoder: FormEncoder,
        transport: Transport,
        quota: RecipientQuota | None,
        guard: Guard | None,
        clock: Callable[[], float],
        log: RequestLog,
    ) -> None:
        self.log: RequestLog = log
        self.slots: anyio.Semaphore = anyio.Semaphore(settings.max_connections, fast_acquire=True)
        self._settings = settings
        self._encoder = encoder
        self._transport = transport
        self.reservations: Reservations | None = None
        if quota is not None:
            self.reservations = Reservations(quota, settings.timeout, settings.limits, log)
        self._guard = guard
        self._clock = clock
        self._redaction = Redaction(secret.reveal() for secret in settings.never_shown())

    def exchange(self) -> Exchange:
        """A request that starts now."""
        began = time.monotonic()
        return Exchange(began + self._settings.timeout, began)

    async def submit(self, request: SubmitRequest) -> SubmitResult:
        """One call from the check to its outcome; see `AsyncVoiceClient.submit`."""
        exchange = self.exchange()
        try:
            end = await self.send(self.check(request), exchange)
        except BaseException as error:
            known = error if isinstance(error, IhuyiVoiceError) else exchange.end or error
            self.log.end(SUBMIT, request, known, _status(known, exchange), exchange)
            raise
        self.log.end(SUBMIT, request, end, _status(end, exchange), exchange)
        return end

    # --- check --------------------------------------------------------------------

    def check(self, request: SubmitRequest) -> Admitted:
        """Check a request; nothing is claimed or reserved yet.

        Raises:
            InvalidRequestError: its number, content or key is wrong.
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
        if self._guard is not None:
            guarded = self._guard.check(key, number, code)
            if isinstance(guarded, InvalidRequestError):
                return guarded
            return Admitted(number, code, None, guarded)
        if key is not None:
            return InvalidRequestError(
                "idempotency_key needs a store that remembers it, and this client has none: pass"
                " store=Store.open(...); nothing was sent, no phone rang"
            )
        return Admitted(number, code)

    # --- send ---------------------------------------------------------------------

    async def known(self, admitted: Admitted, exchange: Exchange) -> SubmitResult | None:
        """The stored result of a submit with a key; None where it may be sent. Not logged.

        Raises:
            OutcomeUnknownError, InvalidRequestError, StoreError: as `send`.
        """
        if self._guard is None or admitted.guarded is None:  # pragma: no cover - for type checkers
            return None
        entry = await self._guard.find(admitted.guarded, exchange.deadline)
        return None if entry is None else admitted.replayed(entry)

    async def send(self, admitted: Admitted, exchange: Exchange) -> SubmitResult:
        """Every step after the check: the request is sent at most once. Not logged.

        Where nothing was written, and only then, the reservation is given back.
        If a cancellation comes after the outcome is known, `exchange.end` has it.

        Raises:
            QuotaExceededError: the number's limit is reached.
            InvalidRequestError: the key belongs to another number or content.
            IhuyiVoiceError: any other outcome.
        """
        claim: Claim | Reserved | None = None
        end: SubmitResult | BaseException
        try:
            if admitted.guarded is not None and self._guard is not None:
                claim = await self._guard.claim(admitted.guarded, exchange)
            if claim is not None and claim.entry is not None:
                end, status = admitted.replayed(claim.entry), OutcomeStatus.REPLAYED
            else:
                if admitted.reserved is None and self.reservations is not None:
                    await self.reservations.reserve(admitted, exchange.deadline)
                answer = await self._post(SUBMIT_TARGET, admitted, exchange, (NotSentError,))
                end = admitted.decode(answer, self._redaction)
                status = _status(end, exchange)
        except BaseException as exception:  # noqa: BLE001 - raised again below
            is_claimed = claim is not None or admitted.guarded is None
            end = _stated(exception, exchange, is_claimed=is_claimed)
            status = _status(end, exchange)
        end = _advised_by_key(end, admitted.guarded)
        if isinstance(end, SubmitResult | IhuyiVoiceError):
            exchange.end = end
        try:
            if status is OutcomeStatus.NOT_SENT and self.reservations is not None:
                await self.reservations.give_back(admitted)
        finally:
            if claim is not None and claim.entry is None:
                await claim.settle(status, end, exchange)
        if isinstance(end, BaseException):
            _raise(end)
        return end

    async def query_balance(self) -> Balance:
        """See `AsyncVoiceClient.query_balance`."""
        exchange = self.exchange()
        query = _BalanceQuery()
        end: Balance | BaseException
        try:
            answer = await self._post(
                BALANCE_TARGET, query, exchange, (NotSentError, OutcomeUnknownError)
            )
            end = query.decode(answer, self._redaction)
        except BaseException as exception:  # noqa: BLE001 - raised again below
            end = _stated(exception, exchange)
        if isinstance(end, OutcomeUnknownError):
            unknown = OutcomeUnknownError(end.reason, may_have_rung=False)
            unknown.__cause__ = end.__cause__
            end = unknown
        if isinstance(end, IhuyiVoiceError):
            end = advised(end, not_sent=BALANCE_NOT_SENT, unknown=BALANCE_UNKNOWN)
        self.log.end(QUERY_BALANCE, None, end, _status(end, exchange), exchange)
        if isinstance(end, BaseException):
            _raise(end)
        return end

    async def _post(
        self,
        target: str,
        request: Admitted | _BalanceQuery,
        exchange: Exchange,
        retry_on: tuple[type[IhuyiVoiceError], ...],
    ) -> Answer:
        """Wait for a slot, sign and POST; a failure in `retry_on` is tried again, signed again."""
        if self.slots.value:
            self.slots.acquire_nowait()
        else:
            await self._wait_for_slot(exchange)
        try:
            while True:
                exchange.attempts += 1
                try:
                    body = request.sign(self._encoder, int(self._clock()))
                    answer = await self._transport.post(target, body, exchange)
                except retry_on:
                    pause = _backoff(exchange.attempts, self._settings.limits)
                    is_last = exchange.attempts == self._settings.connect_attempts
                    if is_last or pause >= exchange.remaining():
                        raise
                else:
                    exchange.may_have_been_written = True
                    exchange.http_status = answer.status
                    return answer
                await anyio.sleep(pause)
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


def _raise(end: BaseException) -> NoReturn:
    """Raise what ended a request, without a context.

    A task in pure Python resumes its coroutine while it handles the exception of
    the transport's library. That exception may hold the request.
    """
    try:
        raise end
    finally:
        end.__context__ = None


def _advised_by_key(
    end: SubmitResult | BaseException, guarded: Guarded | None
) -> SubmitResult | BaseException:
    """The end of a submit, with the advice for one that has a key."""
    if isinstance(end, OutcomeUnknownError) and guarded is not None and guarded.key is not None:
        return advised(end, unknown=KEYED_UNKNOWN)
    return end


def _backoff(attempt: int, limits: Limits) -> float:
    """Seconds to wait after the attempt with this number, counted from 1."""
    bound = min(limits.first_backoff * 2.0 ** (attempt - 1), limits.longest_backoff)
    return random.uniform(0.0, bound)  # noqa: S311 - spreads load, guards nothing


def _stated(
    exception: BaseException, exchange: Exchange, *, is_claimed: bool = True
) -> BaseException:
    """The error to raise for what ended a request.

    A cancellation passes as it is, and so does the RuntimeError of a claim: it
    says that the store is closed. Any other foreign exception comes from what
    the caller passed in, such as the clock.
    """
    if isinstance(exception, IhuyiVoiceError) or not isinstance(exception, Exception):
        return exception
    is_misuse = isinstance(exception, RuntimeError) and exception.args != NO_MORE_THREADS
    if is_misuse and not is_claimed:
        return exception
    reason = f"an unexpected exception ({named(exception)})"
    error: IhuyiVoiceError = NotSentError(reason)
    if exchange.may_have_been_written:
        error = OutcomeUnknownError(reason)
    error.__cause__ = exception
    return error


def _status(end: SubmitResult | Balance | BaseException, exchange: Exchange) -> OutcomeStatus:
    if not isinstance(end, BaseException):
        is_replayed = isinstance(end, SubmitResult) and end.replayed
        return OutcomeStatus.REPLAYED if is_replayed else OutcomeStatus.ACCEPTED
    if isinstance(end, IhuyiVoiceError):
        return status_of(end)
    # A cancellation, or a mistake in the use of the store.
    return OutcomeStatus.UNKNOWN if exchange.may_have_been_written else OutcomeStatus.NOT_SENT
