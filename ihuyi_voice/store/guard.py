"""The two steps of a submit that concern a store: before it is sent, and after.

Before: claim its key and reserve a start of its number. After: settle the
claim, and give the start back where nothing was sent. `_pipeline.py` sends, and
imports this module only where a client has a store.
"""

from __future__ import annotations

import secrets
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import anyio

from .._advice import KEYED_UNKNOWN
from ..errors import (
    InvalidRequestError,
    OutcomeUnknownError,
    QuotaExceededError,
    StoreError,
)
from ..models import OutcomeStatus, mask_mobile
from .answer import StoredAnswer
from .entry import REPEATABLE, EntryState, Fingerprints, check_key
from .limits import Limited
from .store import keyless

if TYPE_CHECKING:
    from ..models import SubmitResult
    from ..request_log import RequestLog
    from ..transport.base import Exchange
    from .base import ClaimStore
    from .entry import Entry, Fingerprint
    from .limits import Windows
    from .store import Store

# Seconds after its deadline in which a request may still be settled: until then
# no person may record by hand that it was not placed.
_SETTLING_SECONDS = 10.0


class Guarded(NamedTuple):
    """What the store records of a submit.

    Attributes:
        key: its idempotency key, None without one.
        fingerprint: of number and content, None without a key.
        masked_mobile: the number as it may be shown.
        limited: the hash of the number and its limits; None without limits.
    """

    key: str | None
    fingerprint: Fingerprint | None
    masked_mobile: str
    limited: Limited | None


class Guard:
    """Claims keys and reserves starts in a store, for one account.

    Args:
        store: where they are kept.
        windows: the limits of each number; None where the client has none, or
            keeps them elsewhere.
        api_key: the account's; it keys the hashes.
        require_key: whether a request without a key is refused.
        log: for what the store could not record.
    """

    def __init__(
        self,
        store: Store,
        windows: Windows | None,
        api_key: str,
        *,
        require_key: bool,
        log: RequestLog,
    ) -> None:
        self._store = store
        self._claims = store.claims
        self._windows = windows
        self._require_key = require_key
        self._log = log
        self._fingerprints = Fingerprints(api_key)
        # Tokens are never used twice: a random part for each guard, and a number.
        self._token_prefix = secrets.token_hex(10)
        self._numbers = count()

    def check(self, key: object, mobile: str, content: str) -> Guarded | InvalidRequestError | None:
        """What `claim` takes for a submit; None where the store records nothing of it.

        Returns an error where the key is malformed, missing or of no use. The
        caller raises it, because this frame holds the number and the code.
        """
        limited = None
        if self._windows is not None:
            limited = Limited(self._fingerprints.of_number(mobile), self._windows)
        if key is None:
            if self._require_key:
                return InvalidRequestError(
                    "the request has no idempotency_key, and this client was made with"
                    " require_key=True: give it one; nothing was sent, no phone rang"
                )
            return None if limited is None else Guarded(None, None, mask_mobile(mobile), limited)
        if self._claims is None:
            return keyless(self._store.place)
        try:
            checked = check_key(key)
        except InvalidRequestError as error:
            return error.with_traceback(None)
        fingerprint = self._fingerprints.of(mobile, content)
        return Guarded(checked, fingerprint, mask_mobile(mobile), limited)

    async def find(self, guarded: Guarded, deadline: float) -> Entry | None:
        """The accepted entry of an earlier request; None where `claim` has to decide.

        `claim` waits for an earlier request that is in flight now.

        Raises:
            InvalidRequestError, StoreError: as `claim`.
            OutcomeUnknownError: the outcome of an earlier request is unknown.
        """
        key, fingerprint, masked_mobile, _ = guarded
        if self._claims is None or key is None or fingerprint is None:
            return None
        entry = await self._claims.find(key, fingerprint, masked_mobile, deadline)
        if entry is None or entry.state in REPEATABLE or self._claims.is_under_way(entry):
            return None
        return _accepted(entry)

    async def claim(self, guarded: Guarded, exchange: Exchange) -> Claim | Reserved:
        """Claim a submit, or find the accepted entry of an earlier one.

        Args:
            guarded: the submit.
            exchange: the request it is claimed for. It must not be written
                once the claim may be resolved by hand. The wall clock decides
                that, because the deadline's clock stops while a machine sleeps.

        Raises:
            InvalidRequestError: the key belongs to another number or content.
            QuotaExceededError: the number's limit is reached.
            StoreError: the store failed, or did not answer by the deadline.
            OutcomeUnknownError: the outcome of an earlier request is unknown.
            RuntimeError: the store is closed.
        """
        key, fingerprint, masked_mobile, limited = guarded
        if self._claims is not None and key is not None and fingerprint is not None:
            return await self._claim(self._claims, key, fingerprint, guarded, exchange)
        token = f"{self._token_prefix}{next(self._numbers):x}"
        reserved = Reserved(self._store, self._log, guarded, token)
        if limited is not None:  # pragma: no branch - `check` returns None for neither
            wait = await self._store.limits.reserve(
                limited.number, token, limited.windows, deadline=exchange.deadline
            )
            _check_wait(wait, masked_mobile)
        return reserved

    async def _claim(
        self,
        claims: ClaimStore,
        key: str,
        fingerprint: Fingerprint,
        guarded: Guarded,
        exchange: Exchange,
    ) -> Claim:
        live_seconds = exchange.remaining() + _SETTLING_SECONDS
        live_until = claims.clock() + live_seconds
        claimed = await claims.claim(
            key,
            fingerprint,
            guarded.masked_mobile,
            exchange.deadline,
            live_seconds,
            guarded.limited,
        )
        if claimed.entry is not None:
            return Claim(claims, self._log, guarded, "", _accepted(claimed.entry))
        _check_wait(claimed.wait, guarded.masked_mobile)
        exchange.outlived = lambda: _has_passed(claims, live_until)
        return Claim(claims, self._log, guarded, claimed.token)


def _has_passed(claims: ClaimStore, moment: float) -> bool:
    """Whether the store's clock has reached a moment, or fails: then nothing may be sent."""
    try:
        return claims.clock() >= moment
    except Exception:  # noqa: BLE001 - the caller's clock may raise anything
        return True


def _check_wait(wait: float, masked_mobile: str) -> None:
    if wait > 0.0:
        raise QuotaExceededError(masked_mobile, wait)


class Reserved:
    """A reserved start of a submit without a key.

    Attributes:
        entry: None: nothing is known of an earlier request.
    """

    __slots__ = ("_guarded", "_log", "_store", "_token", "entry")

    def __init__(self, store: Store, log: RequestLog, guarded: Guarded, token: str) -> None:
        self._store = store
        self._log = log
        self._guarded = guarded
        self._token = token
        self.entry: Entry | None = None

    async def settle(
        self,
        status: OutcomeStatus,
        end: SubmitResult | BaseException,  # noqa: ARG002 - as `Claim.settle`
        exchange: Exchange,  # noqa: ARG002 - as `Claim.settle`
    ) -> None:
        """Give the start back where nothing was sent; where that fails, log a warning.

        The store tries again by itself.
        """
        limited = self._guarded.limited
        if status is not OutcomeStatus.NOT_SENT or limited is None:
            return
        try:
            with anyio.CancelScope(shield=True):
                await self._store.limits.release(limited.number, self._token)
        except Exception as error:  # noqa: BLE001 - whatever it is, the request has its outcome
            self._log.warn(
                "submit %s: nothing was sent, and the store has not given its place in the limit"
                " back: %s",
                self._guarded.masked_mobile,
                _words(error),
            )


class Claim:
    """One claim of a key, to be settled once its request has an outcome.

    Attributes:
        entry: the accepted entry of an earlier request with this key: then
            nothing may be sent and nothing is settled. None where the request
            may be sent.
    """

    __slots__ = ("_claims", "_guarded", "_log", "_token", "entry")

    def __init__(
        self,
        claims: ClaimStore,
        log: RequestLog,
        guarded: Guarded,
        token: str,
        entry: Entry | None = None,
    ) -> None:
        self._claims = claims
        self._log = log
        self._guarded = guarded
        self._token = token
        self.entry: Entry | None = entry

    async def settle(
        self, status: OutcomeStatus, end: SubmitResult | BaseException, exchange: Exchange
    ) -> None:
        """Record the outcome of a submit; where that fails, log a warning.

        The store tries again by itself, and `exchange.unrecorded` counts the
        outcome until then.
        """
        key, _, masked_mobile, limited = self._guarded
        state = EntryState(status.value)
        try:
            # A cancellation waits until its outcome is recorded.
            with anyio.CancelScope(shield=True):
                await self._claims.settle(
                    str(key),
                    self._token,
                    state,
                    StoredAnswer.of(end),
                    reset=exchange.reset,
                    unrecorded=exchange.unrecorded,
                    number=None if limited is None else limited.number,
                )
        except Exception as error:  # noqa: BLE001 - whatever it is, the request has its outcome
            self._log.warn(
                "submit %s %s: the store could not record it: %s",
                masked_mobile,
                state.value,
                _words(error, key),
            )


def _words(error: Exception, key: str | None = None) -> str:
    """The text to log: neither the key nor the text of a foreign exception."""
    if isinstance(error, StoreError):
        return str(error).replace(repr(key), "its key")
    return type(error).__name__


def _accepted(entry: Entry) -> Entry:
    """The entry of an earlier request with this key, which was accepted.

    Raises:
        OutcomeUnknownError: the outcome of the earlier request is not known.
    """
    if not entry.unsettled:
        return entry
    what = entry.answer.msg or "it was claimed and never settled"
    reason = f"an earlier request with this idempotency key: {what}"
    raise OutcomeUnknownError(reason, earlier=True, advice=KEYED_UNKNOWN)
