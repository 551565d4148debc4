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

import asyncio
import os
import random
import time
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

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
    from .store.guard import Claim, Guard, Guarded, Reserved
    from .transport.base import Transport
    from .wire import FormEncoder

# Seconds between attempts to connect: random, below a bound that starts here and doubles.
_BACKOFF_FIRST = 0.1
_BACKOFF_MOST = 2.0
# Seconds that a request which has its outcome waits for the quota's store.
_RELEASE_SECONDS = 2.0
# The text of the RuntimeError at the system's limit of threads; it has no class of its own.
_NO_MORE_THREADS = ("can't start new thread",)
# `send` does not log these: a bulk run names the row, or lets it wait for its quota.
_LOGGED_BY_THE_CALLER = (OutcomeStatus.INVALID, OutcomeStatus.LIMITED)

_T = TypeVar("_T")

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
        return SubmitResult(entry.voice_id, entry.msg, self._mobile, replayed=True)


class _BalanceQuery:
    """A balance query, for `Pipeline._post`."""

    __slots__ = ("_signed_at",)

    def sign(self, encoder: FormEncoder, unix_time: int) -> SignedBody:
        self._signed_at = unix_time
        return encoder.balance(unix_time)

    def decode(self, answer: Answer, redaction: Redaction) -> Balance | IhuyiVoiceError:
        return decode_balance(answer, self._signed_at, redaction)


class _Raised:
    """What a call raised in its own task."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


async def _caught(call: Callable[[], Coroutine[object, object, _T]]) -> _T | _Raised:
    """Run the caller's code and return what it raises; SystemExit in a task would end the loop."""
    try:
        return await call()
    except asyncio.CancelledError:
        # The task records the cancellation.
        raise
    except BaseException as error:  # noqa: BLE001 - raised again where the call is awaited
        return _Raised(error)


class Pipeline:
    """Sends requests over one transport, a limited number at once, each with its deadline.

    It belongs to the event loop it was made in.

    Attributes:
        slots: one for each request that may be in flight at once.
        log: writes a line for each request.
        quota: the limit of calls per number, None for none.
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
        self.quota = quota
        self._quota_waits = quota is not None and not never_waits(quota)
        # Calls to the quota's store that may outlive their request.
        self._store_calls: set[asyncio.Task[Any]] = set()
        self._guard = guard
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
            return await self.send(self.check(request), exchange)
        except (InvalidRequestError, QuotaExceededError) as refusal:
            self.log.submit(request, refusal, status_of(refusal), began)
            raise

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

    # --- reserve ------------------------------------------------------------------

    async def reserve(self, admitted: Admitted, deadline: float | None = None) -> Admitted:
        """Reserve one call in the number's quota; nothing is sent.

        Args:
            admitted: the submit, which is also returned.
            deadline: until when to wait for the quota's store, in monotonic
                seconds; the client's timeout from now by default.

        Raises:
            QuotaExceededError: the number's limit is reached.
            NotSentError: the quota's store failed, or did not answer in time.
        """
        if self.quota is None:  # pragma: no cover - for type checkers; the callers ask
            return admitted
        try:
            if self._quota_waits:
                if deadline is None:
                    deadline = self.exchange().deadline
                admitted.reserved = await self._reserve_by(deadline, admitted, self.quota)
            else:
                admitted.reserved = await self.quota.reserve(admitted.mobile())
        except IhuyiVoiceError:
            raise
        except Exception as exception:
            msg = f"the quota's store failed ({_named(exception)})"
            raise NotSentError(msg) from exception
        return admitted

    async def _reserve_by(self, deadline: float, admitted: Admitted, quota: RecipientQuota) -> str:
        """Reserve, but wait only until the deadline, even for a store that ignores cancellation."""
        asked = self._ask(lambda: quota.reserve(admitted.mobile()))
        try:
            await asyncio.wait((asked,), timeout=max(0.0, deadline - time.monotonic()))
        except BaseException:
            self._abandon(asked, admitted, quota)
            raise
        if not asked.done():
            self._abandon(asked, admitted, quota)
            msg = f"the quota's store did not answer within {self._settings.timeout:g} s"
            raise NotSentError(msg)
        if asked.cancelled():
            msg = "the quota's store failed (CancelledError)"
            raise NotSentError(msg)
        token = asked.result()
        if isinstance(token, _Raised):
            raise token.error
        return token

    def _abandon(
        self, asked: asyncio.Task[str | _Raised], admitted: Admitted, quota: RecipientQuota
    ) -> None:
        """Cancel a reservation; give it back where the store makes it late."""

        def give_back(late: asyncio.Task[str | _Raised]) -> None:
            if late.cancelled():
                return
            token = late.result()
            if not isinstance(token, _Raised):  # pragma: no branch - a late failure
                self._release(admitted, token, quota)

        asked.cancel()
        asked.add_done_callback(give_back)

    def _ask(self, call: Callable[[], Coroutine[object, object, _T]]) -> asyncio.Task[_T | _Raised]:
        """Start a call to the quota's store in its own task.

        An abandoned call goes on in the background, so the task is kept until it
        is done.
        """
        asked = asyncio.get_running_loop().create_task(_caught(call))
        self._store_calls.add(asked)
        asked.add_done_callback(self._store_calls.discard)
        return asked

    async def give_back(self, admitted: Admitted) -> None:
        """Release the reservation of a submit that was not sent.

        Also during a cancellation. A store that fails here, or does not answer
        within some seconds, keeps the reservation; the outcome does not change.
        """
        if self.quota is None or admitted.reserved is None:
            return
        if not self._quota_waits:
            await self.quota.release(admitted.mobile(), admitted.reserved)
            return
        released = self._release(admitted, admitted.reserved, self.quota)
        with anyio.CancelScope(shield=True):
            await asyncio.wait((released,), timeout=_RELEASE_SECONDS)
        if not released.done():
            released.cancel()
            self._warn_of_kept_slot(admitted, f"no answer within {_RELEASE_SECONDS:g} s")
            return
        failed = None if released.cancelled() else released.result()
        # SystemExit and KeyboardInterrupt reach the caller.
        if failed is not None and not isinstance(failed.error, Exception):
            raise failed.error

    def _release(
        self, admitted: Admitted, token: str, quota: RecipientQuota
    ) -> asyncio.Task[_Raised | None]:
        """Start to give a reservation back; a failure is logged."""

        def warn(done: asyncio.Task[_Raised | None]) -> None:
            if not done.cancelled() and (failed := done.result()) is not None:
                self._warn_of_kept_slot(admitted, _named(failed.error))

        released = self._ask(lambda: quota.release(admitted.mobile(), token))
        released.add_done_callback(warn)
        return released

    def _warn_of_kept_slot(self, admitted: Admitted, why: str) -> None:
        self.log.warn(  # noqa: G010 - a RequestLog's
            "submit %s: nothing was sent, and the quota's store did not give its slot back (%s):"
            " the call counts until its window has passed",
            admitted.masked_mobile(),
            why,
        )

    # --- send ---------------------------------------------------------------------

    async def known(self, admitted: Admitted) -> SubmitResult | None:
        """The stored result of a submit with a key; None where it may be sent.

        Raises:
            OutcomeUnknownError, InvalidRequestError, StoreError: as `send`.
        """
        began = time.monotonic()
        if self._guard is None or admitted.guarded is None:  # pragma: no cover - for type checkers
            return None
        entry = await self._guard.find(admitted.guarded, began + self._settings.timeout)
        if entry is None:
            return None
        result = admitted.replayed(entry)
        self.log.submit(admitted, result, OutcomeStatus.REPLAYED, began)
        return result

    async def send(self, admitted: Admitted, exchange: Exchange) -> SubmitResult:
        """Every step after the check: the request is sent at most once.

        Where nothing was written, and only then, the reservation is given back.

        Raises:
            QuotaExceededError: the number's limit is reached. Not logged.
            InvalidRequestError: the key belongs to another number or content.
                Not logged.
            IhuyiVoiceError: any other outcome.
        """
        began = time.monotonic()
        claim: Claim | Reserved | None = None
        end: SubmitResult | BaseException
        try:
            if admitted.guarded is not None and self._guard is not None:
                claim = await self._guard.claim(admitted.guarded, exchange)
            if claim is not None and claim.entry is not None:
                end, status = admitted.replayed(claim.entry), OutcomeStatus.REPLAYED
            else:
                if admitted.reserved is None and self.quota is not None:
                    await self.reserve(admitted, exchange.deadline)
                answer = await self._post(SUBMIT_TARGET, admitted, exchange, (NotSentError,))
                end = admitted.decode(answer, self._redaction)
                status = _status(end)
        except BaseException as exception:  # noqa: BLE001 - raised again below
            is_claimed = claim is not None or admitted.guarded is None
            end = _stated(exception, exchange, is_claimed=is_claimed)
            status = _status(end, written=exchange.may_have_been_written)
        if status not in _LOGGED_BY_THE_CALLER:
            self.log.submit(admitted, end, status, began)
        try:
            if status is OutcomeStatus.NOT_SENT:
                await self.give_back(admitted)
        finally:
            if claim is not None and claim.entry is None:
                await claim.settle(status, end, exchange)
        if isinstance(end, BaseException):
            _raise(end)
        return end

    async def query_balance(self) -> Balance:
        """See `AsyncVoiceClient.query_balance`."""
        began = time.monotonic()
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
        status = _status(end, written=exchange.may_have_been_written)
        self.log.request("query_balance", None, end, status, began)
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
            attempt = 0
            while True:
                attempt += 1
                try:
                    body = request.sign(self._encoder, int(self._clock()))
                    answer = await self._transport.post(target, body, exchange)
                except retry_on:
                    pause = _backoff(attempt)
                    if attempt == self._settings.connect_attempts or pause >= exchange.remaining():
                        raise
                else:
                    exchange.may_have_been_written = True
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


def _backoff(attempt: int) -> float:
    """Seconds to wait after the attempt with this number, counted from 1."""
    bound = min(_BACKOFF_FIRST * 2.0 ** (attempt - 1), _BACKOFF_MOST)
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
    is_misuse = isinstance(exception, RuntimeError) and exception.args != _NO_MORE_THREADS
    if is_misuse and not is_claimed:
        return exception
    reason = f"an unexpected exception ({_named(exception)})"
    error: IhuyiVoiceError = NotSentError(reason)
    if exchange.may_have_been_written:
        error = OutcomeUnknownError(reason)
    error.__cause__ = exception
    return error


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


def _status(end: SubmitResult | Balance | BaseException, *, written: bool = True) -> OutcomeStatus:
    if not isinstance(end, BaseException):
        return OutcomeStatus.ACCEPTED
    if isinstance(end, IhuyiVoiceError):
        return status_of(end)
    # A cancellation, or a mistake in the use of the store.
    return OutcomeStatus.UNKNOWN if written else OutcomeStatus.NOT_SENT
