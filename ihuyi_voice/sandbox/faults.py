"""The faults between the sandbox gateway and its caller, and the dice that draw them.

Pure but for the seed that is drawn when none is given: a `Roll` says what happens
to one answer, `server.py` does it to the socket.

A submit may have rung the phone or not, and the fault says which:

| fault | the submit | the caller sees |
|---|---|---|
| `close_before_reading` | not taken, not recorded | the connection closed |
| `code` | recorded as refused, not placed, not billed | a readable refusal |
| `no_answer` | taken | nothing, until it gives up or the gateway stops |
| `close_after_placing` | taken | the connection closed |
| `truncate` | taken | half a body under a full Content-Length, then the close |
| `html_502` | taken | HTTP 502 with a page of HTML |
| `garbage` | taken | HTTP 200 with random bytes or a page of HTML |

What is written to the socket instead of the answer, if anything, is `as_sent`.
"Taken" is judged and recorded as without a fault: placed when nothing is wrong
with it, refused otherwise.

A new fault: its name in `Fault`, a setting of `Chaos`, what is sent in `as_sent`,
what happens to the socket in `server.py`, its place in `page/faults.js`, its words
in `page/texts.json`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import orjson

from ihuyi_voice.errors import ACCEPTED

from .settings import PROBABILITY, SECONDS, Requirement, is_int

Fault = Literal[
    "close_before_reading",
    "code",
    "no_answer",
    "close_after_placing",
    "truncate",
    "html_502",
    "garbage",
]

# In the order in which they are drawn.
_FAULTS: tuple[Fault, ...] = get_args(Fault)

_LONGEST_CODE = 999_999_999
_CODE = Requirement(
    "an int of up to nine digits or None",
    lambda code: code is None or (is_int(code) and abs(code) <= _LONGEST_CODE),
)
_SEED = Requirement("an int or None", lambda seed: seed is None or is_int(seed))

BAD_GATEWAY = b"<html><head><title>502</title></head><body><h1>502 Bad Gateway</h1></body></html>"
_HTML_200 = b"<html><head><title>Welcome</title></head><body><h1>It works!</h1></body></html>"


# Not by attrs: programs may use `dataclasses.replace` and `dataclasses.asdict`.
@dataclass(frozen=True, slots=True, kw_only=True)
class Chaos:
    """What goes wrong, and how often; checked when it is made.

    Each answer of the gateway, to a Submit or a GetNum, has its own draw. The
    faults are drawn one by one in the order of the table in this module, each
    with its own probability. At most one applies: the first that is drawn.

    Attributes:
        latency: seconds by which every answer is late. A submit is taken and
            recorded when it arrives; only its answer waits.
        latency_jitter: up to so many seconds more, drawn evenly for each answer.
        close_before_reading: probability, 0 to 1, that the connection is
            closed before the form is read: the submit is not taken.
        code: this code is answered instead of placing the call. Any but 2,
            of up to nine digits; None for no such answers.
        code_probability: probability, 0 to 1, of answering `code`.
        no_answer: probability, 0 to 1, that the connection is held open after
            the submit was taken, and nothing is ever written to it.
        close_after_placing: probability, 0 to 1, that the connection is
            closed without an answer after the submit was taken.
        truncate: probability, 0 to 1, that only the first half of the body
            is sent, under the Content-Length of the whole.
        html_502: probability, 0 to 1, of HTTP 502 with HTML instead of the answer.
        garbage: probability, 0 to 1, of HTTP 200 with random bytes or HTML.
        receipt_undelivered: probability, 0 to 1, that the receipt of a placed
            call says that it was not delivered. It is no fault of an answer, and
            has its own dice.
        seed: the same seed draws the same faults for the same sequence of
            requests; None draws a new seed.

    Raises:
        ValueError: naming the setting that is wrong and what it takes.
    """

    latency: float = 0.0
    latency_jitter: float = 0.0
    close_before_reading: float = 0.0
    code: int | None = None
    code_probability: float = 1.0
    no_answer: float = 0.0
    close_after_placing: float = 0.0
    truncate: float = 0.0
    html_502: float = 0.0
    garbage: float = 0.0
    receipt_undelivered: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for setting in fields(self):
            requirement = _REQUIREMENTS.get(setting.name, PROBABILITY)
            requirement.check(setting.name, getattr(self, setting.name))
        if self.code == ACCEPTED:
            msg = f"code must not be {ACCEPTED}: no call is placed, so it must not be accepted"
            raise ValueError(msg)

    def to_json(self) -> bytes:
        """Every setting by its name, as `from_json` takes it."""
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, body: bytes) -> Chaos:
        """The chaos that a JSON object describes; what it leaves out is off.

        Raises:
            ValueError: it is not a JSON object, has a key that is no setting,
                or a value that its setting does not take.
        """
        settings = json_object(body, 'such as {"no_answer": 0.1}')
        known = [field.name for field in fields(cls)]
        if unknown := sorted(settings.keys() - set(known)):
            msg = f"unknown: {', '.join(unknown)}; there are {', '.join(known)}"
            raise ValueError(msg)
        return cls(**settings)

    def probability(self, fault: Fault) -> float:
        """How likely the fault is."""
        if fault == "code":
            return 0.0 if self.code is None else self.code_probability
        probability: float = getattr(self, fault)
        return probability


_REQUIREMENTS = {"latency": SECONDS, "latency_jitter": SECONDS, "code": _CODE, "seed": _SEED}

NO_CHAOS = Chaos()


def checked_chaos(chaos: object) -> Chaos:
    """The same chaos.

    Raises:
        ValueError: it is no `Chaos`.
    """
    if not isinstance(chaos, Chaos):
        msg = f"chaos must be a Chaos, not {chaos!r}; Chaos() has no faults"
        raise ValueError(msg)  # noqa: TRY004 - every wrong setting is a ValueError
    return chaos


def json_object(body: bytes, example: str) -> dict[str, Any]:
    """The JSON object in a body.

    Raises:
        ValueError: it holds none.
    """
    try:
        settings = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        msg = f"the body is not JSON: {error}"
        raise ValueError(msg) from None
    if not isinstance(settings, dict):
        msg = f"the body must be a JSON object, {example}"
        raise ValueError(msg)  # noqa: TRY004 - a wrong body is a wrong value
    return settings


@dataclass(frozen=True, slots=True)
class Roll:
    """What happens to one answer.

    Attributes:
        delay: seconds by which it is late.
        fault: what goes wrong with it, None when nothing does.
        code: what the fault `code` answers.
        garbage: what the fault `garbage` sends.
    """

    delay: float = 0.0
    fault: Fault | None = None
    code: int | None = None
    garbage: bytes = b""


NOTHING_HAPPENS = Roll()


def as_sent(body: bytes, roll: Roll) -> tuple[int, bytes]:
    """The HTTP status and the body that are sent for an answer; status 0 when nothing is."""
    if roll.fault is None or roll.fault == "code":
        return 200, body
    if roll.fault == "truncate":
        return 200, body[: len(body) // 2]
    if roll.fault == "html_502":
        return 502, BAD_GATEWAY
    if roll.fault == "garbage":
        return 200, roll.garbage
    return 0, b""


class Dice:
    """Draws a `Roll` for each answer, with the probabilities and the seed of a chaos."""

    __slots__ = ("_calm", "_of_receipts", "_probabilities", "_random", "chaos")

    def __init__(self, chaos: Chaos) -> None:
        self.chaos: Chaos = chaos
        self._random = random.Random(chaos.seed)  # noqa: S311 - faults guard no secret
        self._of_receipts = random.Random(chaos.seed)  # noqa: S311 - as above
        drawn = [(fault, chaos.probability(fault)) for fault in _FAULTS]
        self._probabilities = [(fault, chance) for fault, chance in drawn if chance > 0]
        self._calm = not (self._probabilities or chaos.latency or chaos.latency_jitter)

    def roll(self) -> Roll:
        """What happens to the next answer."""
        if self._calm:
            return NOTHING_HAPPENS
        delay = self.chaos.latency + self.chaos.latency_jitter * self._random.random()
        for fault, probability in self._probabilities:
            if self._random.random() < probability:
                code = self.chaos.code if fault == "code" else None
                return Roll(delay, fault, code, self._garbage() if fault == "garbage" else b"")
        return Roll(delay)

    def roll_receipt(self) -> bool:
        """Whether the next call is delivered."""
        return self._of_receipts.random() >= self.chaos.receipt_undelivered

    def _garbage(self) -> bytes:
        # After a byte that begins neither XML nor JSON, any bytes will do.
        return self._random.choice((_HTML_200, b"\xff" + self._random.randbytes(99)))
