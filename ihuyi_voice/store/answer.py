"""`StoredAnswer`: what the store keeps of how a request ended, and its text in the database.

The one place in the store that knows the fields of an answer. To keep one more,
so that a replay gives it back, add it to the class, to `of` and to `replayed`.
The database has one column for all of them, so its schema stays as it is.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import orjson

from ..errors import ACCEPTED, GatewayError, NotSentError, OutcomeUnknownError
from ..models import SubmitResult


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """What the gateway answered, or why its answer is not known.

    Each field has a default, which it gets where an earlier release wrote the text.

    Attributes:
        code: the gateway's code; None where it gave none.
        msg: the gateway's message, or the reason why there is none.
        voice_id: the gateway's id of the call; None where it gave none.
    """

    code: int | None = None
    msg: str = ""
    voice_id: str | None = None

    @classmethod
    def of(cls, end: SubmitResult | BaseException) -> StoredAnswer:
        """What to keep of a result, or of what was raised instead."""
        if isinstance(end, SubmitResult):
            return cls(ACCEPTED, end.msg, end.voice_id)
        if isinstance(end, GatewayError):
            return cls(end.code, end.msg or type(end).__name__)
        if isinstance(end, NotSentError | OutcomeUnknownError):
            return cls(msg=end.reason or type(end).__name__)
        return cls(msg=type(end).__name__)

    def replayed(self, mobile: str) -> SubmitResult:
        """The result for a later request with the same key; `mobile` has all its 11 digits."""
        return SubmitResult(self.voice_id, self.msg, mobile, replayed=True)

    def to_json(self) -> str:
        """One JSON object, which `from_json` reads."""
        try:
            return orjson.dumps(self).decode()
        except TypeError:
            # It refuses half a surrogate pair, and numbers of more than 64 bits.
            return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> StoredAnswer:
        """The answer in a text of `to_json`, of this release or another one.

        Fields of a newer release are ignored, and missing ones have their default.
        """
        # Not orjson, which cannot read all that `to_json` writes.
        found = json.loads(text)
        return cls(**{name: found[name] for name in cls.__slots__ if name in found})


NO_ANSWER = StoredAnswer()
"""The answer of a request that has not ended."""
