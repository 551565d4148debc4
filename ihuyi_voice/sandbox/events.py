"""The server-sent events that the inbox page reads.

The first event of a connection, and the first after the history was cleared, is
a snapshot: the settings, the last attempts and their receipts. Each later event
holds what changed since the one before. A page that reconnects gets a new
snapshot, so no event is queued while it is away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from ihuyi_voice.errors import ACCEPTED, CODES

from .page_files import TEXTS, problem_name
from .settings import DEFAULT_KEEP, DEFAULTS

if TYPE_CHECKING:
    from .core import GatewayCore
    from .history import Attempt, History, OtherRequest, Reason, ReceiptPush

MOST_ATTEMPTS = DEFAULT_KEEP
"""Attempts in one event: as many as are kept by default. A page lacks what is older."""

_LONGEST_TEXT = 64
_LARGEST_EXACT = 2**53 - 1


class Events:
    """The events for one connection; it knows what the connection was sent."""

    def __init__(self, gateway: GatewayCore) -> None:
        self._gateway = gateway
        self._history: History | None = None
        self._number = 0
        self._other_number = 0
        self._receipts: dict[int, ReceiptPush] = {}
        self._settings: dict[str, object] = {}

    def next(self) -> bytes:
        """Everything that changed since the last event; b"" when nothing did."""
        now = self._gateway.snapshot(self._history, self._number, MOST_ATTEMPTS, self._other_number)
        settings = shown_settings(self._gateway)
        is_snapshot = now.history is not self._history
        sent = {} if is_snapshot else self._receipts
        event = {
            "snapshot": is_snapshot,
            "settings": _changed(self._settings, settings),
            "attempts": [summary(attempt) for attempt in now.attempts],
            "others": [other_summary(other) for other in now.others],
            "receipts": [
                receipt(push) for push in now.receipts if sent.get(push.number) is not push
            ],
        }
        self._history, self._number, self._settings = now.history, now.taken, settings
        self._other_number = now.others_taken
        self._receipts = {push.number: push for push in now.receipts}
        changes = {name: value for name, value in event.items() if value}
        return b"data: %b\n\n" % orjson.dumps(changes, default=_plain) if changes else b""


def _changed(before: dict[str, object], now: dict[str, object]) -> dict[str, object]:
    # Only the changed ones: the balance changes with each call, and a blacklist may be long.
    return {n: value for n, value in now.items() if n not in before or before[n] != value}


def shown_settings(gateway: GatewayCore) -> dict[str, object]:
    """What `/_sandbox/settings` answers and the page shows; without the API key."""
    # The default key is no secret, and a newcomer needs it; any other may be a real one.
    has_default_key = gateway.api_key == DEFAULTS.api_key
    settings: dict[str, object] = {"api_id": gateway.api_id, "has_default_key": has_default_key}
    settings |= gateway.settings()
    settings["frozen_with"] = gateway.frozen_with
    settings["chaos"] = gateway.chaos
    return {name: _bounded(value) for name, value in settings.items()}


def settings_json(gateway: GatewayCore) -> bytes:
    """The settings as a JSON object."""
    return orjson.dumps(shown_settings(gateway), default=_plain)


def _bounded(value: object) -> object:
    # Beyond it neither JSON nor a browser has exact integers.
    return min(value, _LARGEST_EXACT) if isinstance(value, int) else value


def summary(attempt: Attempt) -> dict[str, object]:
    """An attempt as a row of the list; secrets were masked when it was recorded."""
    shown: dict[str, object] = {
        "number": attempt.number,
        "time": attempt.time,
        "mobile": _short(attempt.mobile),
        "content": _short(attempt.content),
        "code": attempt.code,
        "msg": attempt.msg,
        "voice_id": attempt.voice_id,
        "fault": attempt.fault,
    }
    return shown | _reasons(attempt)


def other_summary(other: OtherRequest) -> dict[str, object]:
    """A request that is no submit, as a row of the list."""
    shown: dict[str, object] = {
        "number": other.number,
        "after": other.after,
        "time": other.time,
        "kind": other.kind,
        "line": other.line,
        "reason": other.reason,
        "problem": problem_name(other.reason),
        "code": other.code,
        "msg": other.msg,
        "status": other.status,
        "fault": other.fault,
    }
    return shown | _reasons(other)


def _reasons(recorded: Attempt | OtherRequest) -> dict[str, object]:
    """Why it was refused, as far as that is known: nothing for what was not."""
    shown: dict[str, object] = {}
    if recorded.code not in (None, ACCEPTED) and (meaning := _meaning(recorded)):
        shown["meaning"] = meaning
    if recorded.why is not None:
        shown["why"] = _why(recorded.why)
    return shown


def _meaning(recorded: Attempt | OtherRequest) -> str | None:
    """The vendor's text of the code in English; None for a code that nothing is known of."""
    known = None if recorded.code is None else CODES.get(recorded.code)
    return None if known is None else known.meaning


def _why(reason: Reason) -> dict[str, object]:
    """A reason as its kind, its facts, and both in English sentences."""
    facts, english = dict(reason.facts), TEXTS["en"]
    said, advised = (
        english[f"{part}_{reason.kind}"].format_map(facts) for part in ("reason", "fix")
    )
    return {"kind": reason.kind, "facts": facts, "text": f"{said} {advised}"}


def details(attempt: Attempt, push: ReceiptPush | None) -> bytes:
    """Everything that is known about an attempt, as a JSON object."""
    shown = summary(attempt) | _exchange(attempt)
    shown["receipt"] = None if push is None else receipt(push)
    return orjson.dumps(shown)


def other_details(other: OtherRequest) -> bytes:
    """Everything that is known about a request that is no submit, as a JSON object."""
    return orjson.dumps(other_summary(other) | _exchange(other))


def _exchange(recorded: Attempt | OtherRequest) -> dict[str, object]:
    """The request as it was received, and the answer as it was sent."""
    return {
        "meaning": _meaning(recorded),
        "ip": recorded.ip,
        "request": recorded.request,
        "form": list(zip(recorded.fields, recorded.values, strict=True)),
        "status": recorded.status,
        "answer": recorded.answer.decode("utf-8", "replace"),
    }


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
