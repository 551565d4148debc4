"""What to do after a request that failed: the end of an error's text, by the call that made it.

The default is the advice for a submit without a key.
"""

from __future__ import annotations

from .errors import IhuyiVoiceError, NotSentError, OutcomeUnknownError, StoreError

KEYED_UNKNOWN = (
    "the phone may have rung; a submit with the same key sends nothing: look the call up on the"
    " account's page, then call store.resolve(key, placed=True), or placed=False so that the key"
    " may be sent again"
)
ROW_UNKNOWN = (
    "the phone may have rung: leave this row out of the next run, unless the account's page shows"
    " that it was not placed"
)
ROW_NOT_SENT = "nothing was written, no phone rang: the next run may send this row"
BALANCE_UNKNOWN = (
    "the balance is not known, which does not mean that it is 0; no phone was involved, repeating"
    " is safe"
)
BALANCE_NOT_SENT = (
    "the balance is not known, which does not mean that it is 0; nothing was written, repeating is"
    " safe"
)
START_NOT_SENT = (
    "nothing was written, no phone rang; this verification is canceled and takes nothing from the"
    " limit of the number: start another one"
)
RESEND_NOT_SENT = (
    "nothing was written, no phone rang; the code of an earlier call stays valid: repeating the"
    " resend is safe"
)
CALL_UNKNOWN = (
    "the phone may have rung: let the person enter the code, and do not start another verification"
    " before its cooldown has passed"
)
CHECK_UNKNOWN = (
    "no phone was involved; take it as not approved: a code that was approved is not approved a"
    " second time, and get(id) shows the status"
)
READ_UNKNOWN = "no phone was involved, repeating is safe"


def advised(error: IhuyiVoiceError, *, not_sent: str = "", unknown: str = "") -> IhuyiVoiceError:
    """A copy with the advice for its class; any other error, and one with advice, unchanged."""
    if isinstance(error, StoreError):
        return error
    changed: IhuyiVoiceError
    if isinstance(error, NotSentError) and not_sent and not error.advice:
        changed = NotSentError(error.reason, not_sent)
    elif isinstance(error, OutcomeUnknownError) and unknown and not error.advice:
        changed = OutcomeUnknownError(error.reason, error.may_have_rung, error.earlier, unknown)
    else:
        return error
    changed.__cause__ = error.__cause__
    return changed
