"""The texts of the library's errors in the language of the command.

The library speaks English alone, so the command recognises its texts by templates. A
template may contain texts of others: the advice at the end of an error, the reason
before it, what the system said. A text that fits no template stays English.
"""

from __future__ import annotations

import re
from functools import cache
from string import Formatter

from .. import _advice
from ..errors import CODES
from .language import gettext

# Of a template's values, `{known}` must fit a template itself. Every other value may, or
# is shown as it is.
_AROUND = (
    "{error}Error: {known}",
    "row {row}: {known}",
    "not sent: {reason}",
    "outcome unknown: {reason}",
    "the store could not be used: {reason}",
)
# What the user does next: the end of a text. The longer ones come first.
_ADVICE = (
    _advice.KEYED_UNKNOWN,
    _advice.ROW_UNKNOWN,
    _advice.ROW_NOT_SENT,
    _advice.BALANCE_UNKNOWN,
    _advice.BALANCE_NOT_SENT,
    "nothing was written, no phone rang, repeating is safe",
    "the phone may have rung, do not repeat this blindly",
    "no phone was involved, repeating is safe",
    "nothing was sent, no phone rang",
    "the local clock is {seconds} s ahead of the gateway's: set it right",
    "the local clock is {seconds} s behind the gateway's: set it right",
)
_TEXTS = (
    # A refusal, and the limit of a number.
    "the gateway refused with code {code}: {meaning} (its text: {text}); no phone rang",
    *(code.meaning for code in CODES.values() if code.error is not None),
    "the dynamic password has expired: the clock may be wrong",
    "the dynamic password is wrong: the API key or the clock may be wrong",
    "the voice product documents no such code",
    (
        "the limit of calls to {mobile} is reached; nothing was sent, no phone rang; allowed again"
        " in {seconds} s"
    ),
    # The number and the content.
    "mobile must be a str with one number, not {type}; submit once per number",
    (
        "content must be a str of 4-6 digits, not {type}: an int loses leading zeros, write '0042'"
        " in quotes"
    ),
    "content must be a str of 4-6 digits, not {type}",
    "mobile must be a mainland number: 1, then 3-9, then nine digits; {known}",
    "content must be a str of 4-6 digits; {known}",
    "content must be a str of 4-6 digits; it has {count}",
    "it is empty",
    "it looks like several numbers: submit once per number",
    "it has digits that are not ASCII: write them as 0-9",
    "it has characters other than digits",
    "its country code is not 86",
    "its first two digits are not those of a mobile number",
    "it has {count} digits",
    # The idempotency key.
    "idempotency_key must have 1-255 characters, not {count}",
    "idempotency_key begins or ends with a blank, which is easily lost: strip it",
    "idempotency_key has a character that cannot be printed",
    (
        "idempotency_key {key} was used for another mobile or content, or with another API key, so"
        " that they cannot be compared"
    ),
    "an earlier request with this idempotency key: {reason}",
    "it was claimed and never settled",
    # The connection and the answer. First what the system said, or the exception's class.
    "{known}: {reason}",
    "{known} ({error}Error)",
    "no slot came free within {seconds} s (max_connections={count})",
    "the deadline of {seconds} s passed before a connection to {peer} was tried",
    "no connection to {peer} within {seconds} s",
    "the look-up of the host name did not end",
    "the connection was not accepted",
    "the TLS handshake did not end",
    "the proxy did not open the connection",
    "the host name could not be resolved ({peer})",
    "the server's certificate is not valid ({peer})",
    "the TLS handshake failed ({peer})",
    "the proxy could not be reached ({peer})",
    "the proxy refused to connect to the gateway ({peer})",
    "the connection could not be made to {peer}",
    "connecting took too long ({peer})",
    "the connection fell silent ({peer})",
    "the connection was closed without an answer ({peer})",
    "the connection broke ({peer})",
    "the connection was reset ({peer})",
    "the answer broke off ({peer})",
    "the answer is not valid HTTP ({peer})",
    "no whole answer from {peer} within {seconds} s",
    "HTTP status {status}, no readable answer ({known})",
    "a redirect is not an answer",
    "it is longer than {count} bytes",
    "it is neither JSON nor XML",
    "it is not valid JSON",
    "it is not the XML of an answer",
    "it has no code",
    "its code is not a number",
    "an unexpected exception ({what})",
    "interrupted while the request was on its way",
    "the run was stopped while the request was in flight",
    # What the system says about a connection.
    "Connection refused",
    "Connection reset by peer",
    "Network is unreachable",
    "No route to host",
    "Name or service not known",
    "Temporary failure in name resolution",
    # The store and its jobs.
    "there is no {place}",
    "there is no store in {place}",
    "{path} is a folder",
    "{path} cannot be created, because there is no folder {folder}",
    "the store has no key {key}",
    "{key} is settled already, as accepted",
    "{key} is settled already, as refused",
    "{key} is settled already, as not_sent",
    (
        "the request of {key} may still be on its way; it may be resolved in {seconds} s. Until"
        " then the request may still be delivered by the network and ring the phone"
    ),
    "the store has no job {name}",
    (
        "there is a job {name} already: resume it, or choose another name. Nothing was enqueued, no"
        " phone rang"
    ),
    (
        "job {name} has {count} rows, and these were {given}: resume it with all of its rows in the"
        " same order. It waits for the others"
    ),
    (
        "row {row} has another number than when job {name} was enqueued ({mobile}): resume it with"
        " the same rows in the same order. The rows from {first} on are not enqueued"
    ),
    # The options.
    "base_url must be http(s)://host[:port], like {example}",
    "base_url must not hold a user name or password",
    (
        "base_url must be scheme and host alone, without a path or query: the path"
        " /webservice/voice.php is added by the client"
    ),
    "{name} is empty or has blanks around it; copy it from the account's page without them",
    "timeout must be a finite number of seconds above 0, not {value}",
    "{gateway} through the proxy {proxy}",
)
TEMPLATES: tuple[str, ...] = (
    # The first that fits counts: the advice ends a text whose parts fit other templates.
    *(f"{{reason}}; {advice}" for advice in _ADVICE),
    *_AROUND,
    *_TEXTS,
)
"""What the catalogue has of the library's texts."""


def translated(text: str) -> str:
    """The text of an error of the library, as far as it is known, in the command's language."""
    return _translation(text) or text


def _translation(text: str) -> str | None:
    """The text in the command's language; None if it fits no template."""
    for template, pattern in _patterns():
        match = pattern.fullmatch(text)
        if match is None:
            continue
        values = match.groupdict()
        if "known" in values and _translation(values["known"]) is None:
            continue
        shown = {name: translated(value) for name, value in values.items()}
        return gettext(template).format(**shown)
    return None


@cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    return [(template, _pattern(template)) for template in TEMPLATES]


def _pattern(template: str) -> re.Pattern[str]:
    parts = Formatter().parse(template)
    return re.compile(
        "".join(re.escape(text) + _group(name) for text, name, *_ in parts), re.DOTALL
    )


def _group(name: str | None) -> str:
    """What finds a value: lazily, so the first literal text after it ends it."""
    if name is None:
        return ""
    # A number, the name of an exception's class, or any text.
    value = {"count": r"\d+", "error": r"\w+"}.get(name, ".+?")
    return f"(?P<{name}>{value})"
