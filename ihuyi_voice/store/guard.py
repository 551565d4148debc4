"""The two steps of a submit that concern the ledger: claim before it is sent, settle after.

`ledger.py` keeps the entries. `_pipeline.py` sends, and imports this module
only where a client has a ledger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import anyio

from ..errors import ACCEPTED, InvalidRequestError, LedgerError, OutcomeUnknownError
from ..models import OutcomeStatus, mask_mobile
from .entry import REPEATABLE, EntryState, Fingerprints, check_key

if TYPE_CHECKING:
    from ..models import SubmitResult
    from ..request_log import RequestLog
    from ..transport.base import Exchange
    from .entry import Entry, Fingerprint
    from .ledger import Ledger

# Seconds after its deadline in which a request may still be settled: until then
# no person may record by hand that it was not placed.
_SETTLING_SECONDS = 10.0


# A request over its number's limit was claimed and not sent.
_NOT_SENT = (OutcomeStatus.NOT_SENT, OutcomeStatus.LIMITED)


class Keyed(NamedTuple):
    """What the ledger records of a submit before it is sent."""

    key: str
    fingerprint: Fingerprint
    masked_mobile: str


class Guard:
    """Claims the keys of one account in a ledger."""

    def __init__(self, ledger: Ledger, api_key: str, log: RequestLog) -> None:
        self._ledger = ledger
        self._log = log
        self._fingerprints = Fingerprints(api_key)

    def check(self, key: object, mobile: str, content: str) -> Keyed | InvalidRequestError | None:
        """What `claim` takes for a submit; None where it is sent without a key.

        Returns an error where the key is malformed or missing. The caller
        raises it, because this frame holds the number and the code.
        """
        if key is not None:
            try:
                checked = check_key(key)
            except InvalidRequestError as error:
                return error.with_traceback(None)
            return Keyed(checked, self._fingerprints.of(mobile, content), mask_mobile(mobile))
        if self._ledger.require_key:
            return InvalidRequestError(
                "this client has a ledger, and the request has no idempotency_key: give it one,"
                " or open the ledger with require_key=False to send such requests unprotected"
            )
        return None

    async def find(self, keyed: Keyed, deadline: float) -> Entry | None:
        """The accepted entry of an earlier request; None where `claim` has to decide.

        `claim` waits for an earlier request that is in flight now.

        Raises:
            InvalidRequestError, LedgerError: as `claim`.
            OutcomeUnknownError: the outcome of an earlier request is unknown.
        """
        entry = await self._ledger.find(*keyed, deadline)
        if entry is None or entry.state in REPEATABLE or self._ledger.is_under_way(entry):
            return None
        return _accepted(entry)

    async def claim(self, keyed: Keyed, exchange: Exchange) -> Claim:
        """Claim a submit, or find the accepted entry of an earlier one.

        Args:
            keyed: the submit.
            exchange: the request it is claimed for. It must not be written
                once the claim may be resolved by hand. The wall clock decides
                that, because the deadline's clock stops while a machine sleeps.

        Raises:
            InvalidRequestError: the key belongs to another number or content.
            LedgerError: the database failed.
            OutcomeUnknownError: the outcome of an earlier request is unknown.
            RuntimeError: the ledger is closed.
        """
        live_seconds = exchange.remaining() + _SETTLING_SECONDS
        live_until = self._ledger.clock() + live_seconds
        claimed = await self._ledger.claim(*keyed, exchange.deadline, live_seconds)
        if claimed.entry is not None:
            return Claim(self._ledger, self._log, keyed, "", _accepted(claimed.entry))
        exchange.outlived = lambda: self._has_passed(live_until)
        return Claim(self._ledger, self._log, keyed, claimed.token)

    def _has_passed(self, moment: float) -> bool:
        """Whether the ledger's clock has reached a moment, or fails: then nothing may be sent."""
        try:
            return self._ledger.clock() >= moment
        except Exception:  # noqa: BLE001 - the caller's clock may raise anything
            return True


class Claim:
    """One claim of a key, to be settled once its request has an outcome.

    Attributes:
        entry: the accepted entry of an earlier request with this key: then
            nothing may be sent and nothing is settled. None where the request
            may be sent.
    """

    __slots__ = ("_keyed", "_ledger", "_log", "_token", "entry")

    def __init__(
        self, ledger: Ledger, log: RequestLog, keyed: Keyed, token: str, entry: Entry | None = None
    ) -> None:
        self._ledger = ledger
        self._log = log
        self._keyed = keyed
        self._token = token
        self.entry: Entry | None = entry

    async def settle(
        self, status: OutcomeStatus, end: SubmitResult | BaseException, exchange: Exchange
    ) -> None:
        """Record the outcome of a submit; where that fails, log a warning.

        The ledger tries again by itself, and `exchange.unrecorded` counts the
        outcome until then.
        """
        keyed = self._keyed
        accepted = status is OutcomeStatus.ACCEPTED
        state = EntryState.NOT_SENT if status in _NOT_SENT else EntryState(status.value)
        words = getattr(end, "msg", None) or getattr(end, "reason", None)
        try:
            # A cancellation waits until its outcome is recorded.
            with anyio.CancelScope(shield=True):
                await self._ledger.settle(
                    keyed.key,
                    self._token,
                    state,
                    code=ACCEPTED if accepted else getattr(end, "code", None),
                    msg=words or ("" if accepted else type(end).__name__),
                    voice_id=getattr(end, "voice_id", None),
                    reset=exchange.reset,
                    unrecorded=exchange.unrecorded,
                )
        except Exception as error:  # noqa: BLE001 - whatever it is, the request has its outcome
            self._log.warn(
                "submit %s %s: the ledger could not record it: %s",
                keyed.masked_mobile,
                state.value,
                _words(error, keyed.key),
            )


def _words(error: Exception, key: str) -> str:
    """The text to log: neither the key nor the text of a foreign exception."""
    if isinstance(error, LedgerError):
        return str(error).replace(repr(key), "its key")
    return type(error).__name__


def _accepted(entry: Entry) -> Entry:
    """The entry of an earlier request with this key, which was accepted.

    Raises:
        OutcomeUnknownError: the outcome of the earlier request is not known.
    """
    if not entry.unsettled:
        return entry
    what = entry.msg or "it was claimed and never settled"
    reason = f"an earlier request with this idempotency key: {what}"
    raise OutcomeUnknownError(reason, earlier=True)
