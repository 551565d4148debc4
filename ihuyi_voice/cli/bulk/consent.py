"""The question before a bulk run sends, and the doubts that `--yes` does not answer."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import typer

from ..account import fail
from .progress import say

if TYPE_CHECKING:
    from rich.console import Console

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
        doubt = (
            "the codes differ in length, so leading zeros may be lost: correct the file, or give"
            " --allow-mixed-lengths if the codes are correct"
        )
        return [doubt]

    def doubts_of_balance(self, to_send: int, remaining: int) -> list[str]:
        """A doubt if the balance is too small, unless an option allows it."""
        if self.partial or remaining >= to_send:
            return []
        doubt = (
            f"the balance of {remaining} is too small for {to_send} calls: top it up, send fewer"
            " rows with --limit, or give --partial to send until it is used up"
        )
        return [doubt]

    def ask(self, console: Console, to_send: int, base_url: str, doubts: list[str]) -> None:
        """Return if the calls may be placed; otherwise end the program."""
        if self.yes and not doubts:
            return
        if not sys.stdin.isatty():
            if doubts:
                fail(f"nothing was sent: {'; and '.join(doubts)}")
            fail("nothing was sent: there is no terminal to ask on; give --yes to send")
        for doubt in doubts:
            say(console, f"Careful: {doubt}.")
        if not typer.confirm(question(to_send, base_url), err=True):
            fail("nothing was sent", 0)


def question(to_send: int, base_url: str) -> str:
    """The question before sending; it names the gateway."""
    parts = urlsplit(base_url)
    text = f"Place {to_send} call{'' if to_send == 1 else 's'} via {parts.netloc}"
    # A server on this machine may be a sandbox, or a proxy that places real calls.
    return text + ("?" if _is_loopback(parts.hostname or "") else ": real phones ring. Go on?")


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"
