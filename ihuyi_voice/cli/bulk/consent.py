"""The question before a bulk run sends, and the doubts that `--yes` does not answer."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import typer

from ...errors import IhuyiVoiceError
from ...sync.client import VoiceClient
from ..account import fail
from ..language import gettext as _
from ..language import local, ngettext
from .progress import say

if TYPE_CHECKING:
    from rich.console import Console

    from ..account import Account
    from .file import Check


@dataclass(frozen=True)
class Consent:
    """What the options agree to; it asks the user at the terminal for the rest."""

    yes: bool
    mixed_lengths: bool
    partial: bool

    def doubts_of_codes(self, check: Check) -> list[str]:
        """A doubt if codes may have lost leading zeros, unless an option allows it."""
        if self.mixed_lengths or not check.mixed_lengths:
            return []
        doubt = _(
            "the codes differ in length, so leading zeros may be lost: correct the file, or give"
            " --allow-mixed-lengths if the codes are correct"
        )
        return [doubt]

    def doubts_of_balance(self, to_send: int, remaining: int) -> list[str]:
        """A doubt if the balance is too small, unless an option allows it."""
        if self.partial or remaining >= to_send:
            return []
        doubt = ngettext(
            "the balance of {balance} is too small for {count} call: top it up, or give --partial"
            " to send until it is used up",
            "the balance of {balance} is too small for {count} calls: top it up, send fewer rows"
            " with --limit, or give --partial to send until it is used up",
            to_send,
        )
        return [doubt.format(balance=remaining, count=to_send)]

    def ask(self, console: Console, question: str, doubts: list[str]) -> None:
        """Return if the answer is yes; otherwise end the program."""
        if self.yes and not doubts:
            return
        # With --yes a script runs, which must not wait for an answer to a doubt.
        if self.yes or not sys.stdin.isatty():
            if doubts:
                fail(_("nothing was sent: {doubts}").format(doubts=_("; and ").join(doubts)))
            fail(_("nothing was sent: there is no terminal to ask on; give --yes to send"))
        for doubt in doubts:
            say(console, _("Careful: {doubt}.").format(doubt=doubt))
        if not typer.confirm(question, err=True):
            fail(_("nothing was sent"), 0)


def print_balance(console: Console, account: Account, to_send: int) -> int:
    """Print how many calls are to be sent and are left; a failed query ends the program."""
    try:
        remaining = _balance(account)
    except IhuyiVoiceError as error:
        fail(_("nothing was sent: the balance is not known: {error}").format(error=local(error)))
    _say_balance(console, to_send, remaining)
    return remaining


def known_balance(console: Console, account: Account | None, to_send: int) -> int | None:
    """As `print_balance`, for calls of workers: None where the balance is not known here.

    Args:
        console: of standard error.
        account: None where this program has none.
        to_send: how many calls.
    """
    why = _("IHUYI_VOICE_API_ID and IHUYI_VOICE_API_KEY are not both set")
    if account is not None:
        try:
            remaining = _balance(account)
        except IhuyiVoiceError as error:
            why = local(error)
        else:
            _say_balance(console, to_send, remaining)
            return remaining
    text = _("to send {count}, balance not known: {reason}")
    say(console, text.format(count=to_send, reason=why))
    return None


def _balance(account: Account) -> int:
    with account.client(VoiceClient) as client:
        return client.query_balance().remaining


def _say_balance(console: Console, to_send: int, remaining: int) -> None:
    say(console, _("to send {count}, balance {balance}").format(count=to_send, balance=remaining))
    if remaining < to_send:
        text = _("the balance is {count} short: the run will stop when it is used up")
        say(console, text.format(count=to_send - remaining))


def question(to_send: int, base_url: str) -> str:
    """The question before sending; it names the gateway."""
    parts = urlsplit(base_url)
    # A server on this machine may be a sandbox, or a proxy that places real calls.
    if _is_loopback(parts.hostname or ""):
        text = ngettext(
            "Place {count} call via {host}?", "Place {count} calls via {host}?", to_send
        )
    else:
        text = ngettext(
            "Place {count} call via {host}: a real phone rings. Go on?",
            "Place {count} calls via {host}: real phones ring. Go on?",
            to_send,
        )
    return text.format(count=to_send, host=parts.netloc)


def question_for_workers(to_send: int, application: str) -> str:
    """The question before rows are enqueued: workers have their own account and gateway."""
    text = ngettext(
        "Enqueue {count} call for the workers of {application}? They use the account and gateway"
        " of their own environment: a real phone may ring.",
        "Enqueue {count} calls for the workers of {application}? They use the account and gateway"
        " of their own environment: real phones may ring.",
        to_send,
    )
    return text.format(count=to_send, application=application)


def about_duplicates(count: int) -> str:
    """A line before the question, about rows that call a number again; "" for none."""
    if not count:
        return ""
    text = ngettext(
        "{count} row calls a number that an earlier row of the file calls too.",
        "{count} rows call a number that an earlier row of the file calls too.",
        count,
    )
    return text.format(count=count) + "\n"


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"
