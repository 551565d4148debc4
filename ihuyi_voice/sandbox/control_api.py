"""`/_sandbox/`: the record, the settings and the chaos over HTTP, and the files of the page.

No socket and no loop: a method, a name and a body in, an answer out. Who may
ask is decided in `guard.py`; the stream of events is the server's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson

from .events import details, records_json, settings_json
from .faults import NO_CHAOS, Chaos
from .page_files import CONTENT_SECURITY_POLICY, FILES, HEADERS
from .rules import JSON

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .gateway import SandboxGateway

CONTROL_PATH = "/_sandbox/"
EVENTS = "events"

_PAGE = "page/"
_ATTEMPT = "attempts/"


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered."""

    body: bytes
    status: int = 200
    content_type: str = JSON
    more_headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        """All headers but those of the transport."""
        return {"Content-Type": self.content_type, **HEADERS, **self.more_headers}


def page() -> Answer:
    """The inbox."""
    content_type, body = FILES["index.html"]
    policy = {"Content-Security-Policy": CONTENT_SECURITY_POLICY}
    return Answer(body, content_type=content_type, more_headers=policy)


def error(status: int, text: str, headers: Mapping[str, str] | None = None) -> Answer:
    """A refusal and its reason."""
    return Answer(orjson.dumps({"error": text}), status, more_headers=headers or {})


class Controls:
    """Answers what is asked of one gateway."""

    def __init__(self, gateway: SandboxGateway) -> None:
        self._gateway = gateway
        self._controls = {
            ("GET", "calls"): self._get_calls,
            ("GET", "attempts"): self._get_attempts,
            ("DELETE", "attempts"): self._delete_attempts,
            ("GET", "receipts"): self._get_receipts,
            ("GET", "settings"): self._get_settings,
            ("PATCH", "settings"): self._patch_settings,
            ("POST", "reset"): self._reset,
            ("GET", "chaos"): self._get_chaos,
            ("PUT", "chaos"): self._put_chaos,
            ("PATCH", "chaos"): self._patch_chaos,
            ("DELETE", "chaos"): self._delete_chaos,
        }

    def answer(self, method: str, name: str, body: bytes) -> Answer:
        """Do what is asked.

        Args:
            method: of the request.
            name: its path after `/_sandbox/`.
            body: its body.
        """
        if name.startswith(_PAGE) and name.removeprefix(_PAGE) in FILES:
            return self._file(name.removeprefix(_PAGE)) if method == "GET" else _not_allowed("GET")
        if name.startswith(_ATTEMPT):
            number = name.removeprefix(_ATTEMPT)
            return self._get_attempt(number) if method == "GET" else _not_allowed("GET")
        if name == EVENTS:
            return _not_allowed("GET")
        control = self._controls.get((method, name))
        if control is not None:
            return control(body)
        methods = [method for method, known in self._controls if known == name]
        if methods:
            return _not_allowed(*methods)
        # JSON takes no lone surrogates, which a path's raw bytes may have become.
        shown = name.encode("utf-8", "replace").decode()
        return error(404, f"there is no {CONTROL_PATH}{shown}")

    def _file(self, name: str) -> Answer:
        content_type, body = FILES[name]
        return Answer(body, content_type=content_type)

    def _get_calls(self, _: bytes) -> Answer:
        return Answer(records_json(self._gateway.calls))

    def _get_attempts(self, _: bytes) -> Answer:
        return Answer(records_json(self._gateway.attempts))

    def _get_attempt(self, number: str) -> Answer:
        is_number = number.isascii() and number.isdigit() and len(number) < 16
        found = self._gateway.find(int(number)) if is_number else None
        if found is None:
            return error(404, "there is no such attempt, or it is no longer remembered")
        return Answer(details(*found))

    def _delete_attempts(self, _: bytes) -> Answer:
        self._gateway.clear()
        return Answer(b'{"cleared":true}')

    def _get_receipts(self, _: bytes) -> Answer:
        return Answer(records_json(self._gateway.receipts))

    def _get_settings(self, _: bytes) -> Answer:
        return Answer(settings_json(self._gateway))

    def _patch_settings(self, body: bytes) -> Answer:
        try:
            self._gateway.change(_object(body))
        except ValueError as reason:
            return error(400, str(reason))
        return self._get_settings(body)

    def _reset(self, _: bytes) -> Answer:
        self._gateway.reset()
        return Answer(b'{"reset":true}')

    def _get_chaos(self, _: bytes) -> Answer:
        return Answer(self._gateway.chaos.to_json())

    def _put_chaos(self, body: bytes) -> Answer:
        try:
            self._gateway.chaos = Chaos.from_json(body)
        except ValueError as reason:
            return error(400, str(reason))
        return self._get_chaos(body)

    def _patch_chaos(self, body: bytes) -> Answer:
        """Change what is named and leave the rest, which somebody else may have just set."""
        try:
            settings = orjson.loads(self._gateway.chaos.to_json()) | _object(body)
        except ValueError as reason:
            return error(400, str(reason))
        return self._put_chaos(orjson.dumps(settings))

    def _delete_chaos(self, body: bytes) -> Answer:
        self._gateway.chaos = NO_CHAOS
        return self._get_chaos(body)


def _not_allowed(*methods: str) -> Answer:
    return error(405, f"use {' or '.join(methods)}", {"Allow": ", ".join(methods)})


def _object(body: bytes) -> dict[str, object]:
    """The JSON object in a body.

    Raises:
        ValueError: it holds none.
    """
    try:
        settings = orjson.loads(body)
    except orjson.JSONDecodeError as reason:
        msg = f"the body is not JSON: {reason}"
        raise ValueError(msg) from None
    if not isinstance(settings, dict):
        msg = 'the body must be a JSON object, such as {"balance": 5}'
        raise ValueError(msg)  # noqa: TRY004 - a wrong body is a wrong value
    return settings
