"""Why the sandbox refused a request, in so few words that its line fits 80 columns.

The inbox page has the whole sentences, and what to change. A refused submit with a
number of 11 digits and a code of 6 leaves 17 columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .language import gettext as _
from .language import mark

if TYPE_CHECKING:
    from ..sandbox import Attempt, OtherRequest

CODES: dict[int, str] = {
    0: mark("submit failed"),
    400: mark("IP not allowed"),
    401: mark("no account"),
    402: mark("no password"),
    403: mark("no number"),
    404: mark("no content"),
    405: mark("wrong password"),
    406: mark("malformed number"),
    407: mark("banned content"),
    408: mark("frozen for abuse"),
    4030: mark("blacklisted"),
    4050: mark("frozen"),
    4051: mark("no balance"),
    4052: mark("IP unregistered"),
    4070: mark("not 4-6 digits"),
    4081: mark("limit per minute"),
    4082: mark("limit per day"),
}
"""By the gateway's code."""

KINDS: dict[str, str] = {
    "no_fields": mark("no form fields"),
    "no_account": mark("no account"),
    "no_password": mark("no password"),
    "unknown_account": mark("unknown account"),
    "account_spelling": mark("account misspelt"),
    "swapped": mark("swapped fields"),
    "key_as_account": mark("key as account"),
    "legacy_password": mark("it is md5(APIKEY)"),
    "password_with_blanks": mark("blanks around it"),
    "no_time": mark("no time"),
    "wrong_key": mark("wrong API key"),
    "time_in_milliseconds": mark("milliseconds"),
    "time_malformed": mark("malformed time"),
    "no_digest": mark("not an MD5"),
    "digest_upper_case": mark("MD5 in upper case"),
    "digest_half": mark("half of the MD5"),
    "digest_of_balance": mark("MD5 of a balance"),
    "digest_of_submit": mark("MD5 of a submit"),
    "digest_mobile": mark("MD5: number"),
    "digest_other_time": mark("MD5: other time"),
    "digest_parts_missing": mark("MD5: part missing"),
    "digest_order": mark("MD5: order"),
    "digest_separator": mark("MD5: separator"),
    "digest": mark("wrong MD5"),
    "time_too_early": mark("{seconds} s too old"),
    "time_too_late": mark("{seconds} s ahead"),
}
"""By the kind of a `Reason`, which says more than the code."""


def short_reason(refused: Attempt | OtherRequest) -> str:
    """Why a submit or a balance query was refused; "" for a code that nothing is known of."""
    if refused.fault == "code":
        return _("chaos")
    if refused.why is not None:
        return _(KINDS[refused.why.kind]).format_map(dict(refused.why.facts))
    known = CODES.get(refused.code or 0)
    return "" if known is None else _(known)
