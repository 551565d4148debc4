"""What the ledger does on the way of one request: claim before it is sent, settle after.

How the ledger keeps its entries is `ledger.py`'s business, what is sent in
between `requester.py`'s, which imports this where a client has a ledger.
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

# For how many seconds after its deadline a request may still be being settled:
# until then nobody may record by hand that it was not placed.
_SETTLING_SECONDS = 10.0


class Keyed(NamedTuple):
    """What the ledger is told of a submit."""

    key: str
    fingerprint: Fingerprint
    masked_mobile: str


class Claims:
    """The claims of one account in a ledger."""

    def __init__(self, ledger: Ledger, api_key: str, log: RequestLog) -> None:
        self._ledger = ledger
        self._log = log
        self._fingerprints = Fingerprints(api_key)

    def check(self, key: object, mobile: str, content: str) -> Keyed | InvalidRequestError | None:
        """What is to be claimed for a submit; None where it goes unprotected.

        Returns an error where the key cannot be one, or is missing. It is for
        the caller to raise: this frame holds the number and the code.
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
        """The accepted entry of an earlier request; None where that is for `claim` to find out.

        One that is on its way just now has its end still before it, for which
        `claim` waits.

        Raises:
            InvalidRequestError, LedgerError: as `claim`.
            OutcomeUnknownError: an earlier request's end is unknown.
        """
        entry = await self._ledger.find(*keyed, deadline)
        if entry is None or entry.state in REPEATABLE or self._ledger.is_under_way(entry):
            return None
        return _accepted(entry)

    async def claim(self, keyed: Keyed, exchange: Exchange) -> str | Entry:
        """Claim a submit: its token, then it may be sent, or the accepted entry in its way.

        Args:
            keyed: the submit.
            exchange: the request it is claimed for; it must not be written
                once the claim may be resolved by hand, which the wall clock
                tells and, while a machine sleeps, the deadline does not.

        Raises:
            InvalidRequestError: its key stands for another number or content.
            LedgerError: the database failed.
            OutcomeUnknownError: an earlier request's end is unknown.
        """
        live_seconds = exchange.remaining() + _SETTLING_SECONDS
        live_until = self._ledger.clock() + live_seconds
        claim = await self._ledger.claim(*keyed, exchange.deadline, live_seconds)
        if claim.entry is not None:
            return _accepted(claim.entry)
        exchange.outlived = lambda: self._has_passed(live_until)
        return claim.token

    def _has_passed(self, moment: float) -> bool:
        """Whether the ledger's clock shows so late a moment, or fails: then nothing may be sent."""
        try:
            return self._ledger.clock() >= moment
        except Exception:  # noqa: BLE001 - the caller's clock may raise anything
            return True

    async def settle(
        self,
        keyed: Keyed,
        token: str,
        status: OutcomeStatus,
        end: SubmitResult | BaseException,
        exchange: Exchange,
    ) -> None:
        """Record the outcome of a submit; a warning says where that fails.

        The ledger tries again by itself. `exchange.unrecorded` counts the
        outcome meanwhile.
        """
        accepted = status is OutcomeStatus.ACCEPTED
        words = getattr(end, "msg", None) or getattr(end, "reason", None)
        try:
            # A cancellation waits for the record of what it cut off.
            with anyio.CancelScope(shield=True):
                await self._ledger.settle(
                    keyed.key,
                    token,
                    EntryState(status.value),
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
                status.value,
                _words(error, keyed.key),
            )


def _words(error: Exception, key: str) -> str:
    """What may be logged of it: a key is the caller's text, and so is a foreign exception's."""
    if isinstance(error, LedgerError):
        return str(error).replace(repr(key), "its key")
    return type(error).__name__


def _accepted(entry: Entry) -> Entry:
    """An earlier request's entry, which blocks this one, when it was accepted.

    Raises:
        OutcomeUnknownError: the outcome of the earlier request is not known.
    """
    if not entry.unsettled:
        return entry
    what = entry.msg or "it was claimed and never settled"
    reason = f"an earlier request with this idempotency key: {what}"
    raise OutcomeUnknownError(reason, earlier=True)
