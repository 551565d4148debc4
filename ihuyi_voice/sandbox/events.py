"""What the inbox page is told as it happens: server-sent events, one reader's way through them.

Pure but for the gateway's lock. A reader that is slow, or away for a while,
is owed nothing: the gateway's record is its queue. If it has fallen behind by
more than is kept, or the record was cleared, it is told to begin anew. The
gateway, for its part, does not know who reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from ihuyi_voice.errors import CODES

from .history import Position
from .settings import Account

if TYPE_CHECKING:
    from .gateway import SandboxGateway
    from .history import Attempt, ReceiptPush

MOST_ATTEMPTS = 1000
"""Attempts in one event; what is more comes in the next."""

DEFAULT_KEY = Account().api_key

_LONGEST_TEXT = 64
_LARGEST_EXACT = 2**53 - 1


class Feed:
    """The events for one reader.

    Attributes:
        more: True when the next event is ready at once.
    """

    def __init__(self, gateway: SandboxGateway, last_event_id: str = "") -> None:
        self._gateway = gateway
        self._position = _position(last_event_id)
        self._settings: dict[str, object] = {}
        self._catching_up = False
        self.more: bool = False

    def event(self) -> bytes:
        """Everything that changed since the last one; b"" when nothing did.

        One event holds all of it, so that a reader whose connection ends
        between two has either all or nothing of each.
        """
        changes = self._gateway.changes(self._position, MOST_ATTEMPTS)
        settings = shown_settings(self._gateway)
        told: dict[str, object] = {}
        if changes.anew:
            told["anew"] = True
        elif self._catching_up and changes.attempts:
            # What did not fit into the event that began anew: no news either.
            told["catching_up"] = True
        self._catching_up = changes.more and (changes.anew or self._catching_up)
        # Only those that changed: the balance does with each call, and a blacklist may be long.
        known = self._settings
        changed = {
            name: value
            for name, value in settings.items()
            if name not in known or known[name] != value
        }
        if changed:
            told["settings"] = changed
        if changes.attempts:
            told["attempts"] = [summary(attempt) for attempt in changes.attempts]
        if changes.pushes:
            told["receipts"] = [receipt(push) for push in changes.pushes]
        self._position, self._settings, self.more = changes.position, settings, changes.more
        if not told:
            return b""
        at = changes.position
        event_id = f"{at.epoch}.{at.number}.{at.revision}"
        return b"id: %b\ndata: %b\n\n" % (event_id.encode(), orjson.dumps(told, default=_plain))


def _position(event_id: str) -> Position:
    """Where a reader was; the very beginning for an id that is none."""
    epoch, *numbers = event_id.split(".")
    if len(numbers) != 2 or not all(n.isascii() and n.isdigit() and len(n) < 16 for n in numbers):
        return Position()
    return Position(epoch, int(numbers[0]), int(numbers[1]))


def shown_settings(gateway: SandboxGateway) -> dict[str, object]:
    """What `/_sandbox/settings` answers and the page shows; without the API key."""
    # The default key is no secret, and a newcomer needs it; any other may be a real one.
    has_default_key = gateway.api_key == DEFAULT_KEY
    settings: dict[str, object] = {"api_id": gateway.api_id, "has_default_key": has_default_key}
    settings |= gateway.settings()
    settings["frozen_with"] = gateway.frozen_with
    settings["chaos"] = gateway.chaos
    return {name: _bounded(value) for name, value in settings.items()}


def settings_json(gateway: SandboxGateway) -> bytes:
    """The settings as a JSON object."""
    return orjson.dumps(shown_settings(gateway), default=_plain)


def _bounded(value: object) -> object:
    # Beyond it neither JSON nor a browser has exact integers.
    return min(value, _LARGEST_EXACT) if isinstance(value, int) else value


def summary(attempt: Attempt) -> dict[str, object]:
    """An attempt as a row of the list; secrets were masked when it was recorded."""
    return {
        "number": attempt.number,
        "time": attempt.time,
        "mobile": _short(attempt.mobile),
        "content": _short(attempt.content),
        "code": attempt.code,
        "msg": attempt.msg,
        "voice_id": attempt.voice_id,
        "fault": attempt.fault,
    }


def details(attempt: Attempt, push: ReceiptPush | None) -> bytes:
    """All there is to know of an attempt, as a JSON object."""
    known = CODES.get(attempt.code)
    shown = summary(attempt) | {
        "meaning": None if known is None else known.meaning,
        "ip": attempt.ip,
        "form": list(zip(attempt.fields, attempt.values, strict=True)),
        "status": attempt.status,
        "answer": attempt.answer.decode("utf-8", "replace"),
        "receipt": None if push is None else receipt(push),
    }
    return orjson.dumps(shown)


def receipt(push: ReceiptPush) -> dict[str, object]:
    """A receipt as the page shows it."""
    return {
        "number": push.number,
        "code": push.code,
        "msg": push.msg,
        "accepted": push.accepted,
        "ended": push.ended,
        "tries": push.tries,
    }


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"


def _plain(value: object) -> object:
    """What orjson does not know: sets as sorted lists, bytes as text."""
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    raise TypeError


def records_json(records: object) -> bytes:
    """Calls, attempts or receipts, all of them, as a JSON array."""
    return orjson.dumps(records, default=_plain)
