"""What the sandbox gateway remembers: the last attempts, calls, receipts and other requests.

Pure: no I/O, no loop, no lock, no clock. Each attempt has a number that only
grows, so a reader asks for those after the last number that it has read.
Clearing replaces the whole object: a reader, or a receipt that waits for its
delivery, sees by identity that its history has gone.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal, TypeVar

from .settings import DEFAULT_KEEP

Kind = Literal["balance", "unknown", "unreadable", "closed"]
Numbered = TypeVar("Numbered", "Attempt", "OtherRequest")


@dataclass(frozen=True, slots=True)
class Received:
    """An HTTP request as it was received; passwords and API keys are masked in all of it.

    `received` in `masking.py` makes it from what a server read.

    Attributes:
        method: such as `POST`.
        path: still percent-encoded.
        query: still percent-encoded, without the question mark; "" for none.
        headers: names and values in the order they came.
        body: its text; a byte that is not UTF-8 is written as a backslash, x and two digits.
    """

    method: str
    path: str
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    body: str = ""

    @property
    def line(self) -> str:
        """The request line, such as `POST /webservice/voice.php?method=GetNum`."""
        return f"{self.method} {self.path}{'?' if self.query else ''}{self.query}"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an account or a password was refused; `caller_reason` in `reasons.py` finds it.

    Attributes:
        kind: names the sentence in `page/texts.json`, as `reason_{kind}`.
        code: the code that is answered for it.
        facts: what the sentence mentions, by name. No key and no password is among
            them, except dynamic passwords that were computed with the sandbox's own key:
            the one expected, and a received one that a known mistake makes of it.
    """

    kind: str
    code: int
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was placed: with the real gateway this phone would have rung.

    Attributes:
        mobile: the number, as it was sent.
        content: the verification code that would have been read out.
        voice_id: the id that was answered.
        time: when the submit was taken, in seconds since 1970 by the gateway's clock.
    """

    mobile: str
    content: str
    voice_id: str
    time: float


@dataclass(frozen=True, slots=True)
class Attempt:
    """A submit that was taken, placed or refused.

    It keeps the first 100 fields of the form, and 2,000 characters of each text,
    followed by an ellipsis where more was sent.

    Attributes:
        mobile: the number as it was sent, "" when there was none; masked when
            it holds the API key.
        content: the content as it was sent, "" when there was none; masked when
            it holds the API key.
        code: the gateway's verdict; 2 when the call was placed.
        msg: the gateway's words for it.
        voice_id: the id of the call, None when it was refused.
        time: when it was taken, in seconds since 1970 by the gateway's clock.
        ip: where it came from.
        fields: the names of the form's fields, in the order they were sent.
        fault: the fault that struck the answer, None when it was sent as is.
        values: the values of `fields`, in their order; the password is masked,
            and so is any value that holds the API key.
        status: the HTTP status of the answer, 0 when nothing was sent.
        answer: the body as it was sent, b"" when nothing was.
        number: 1 for the first since the start or the last reset, and so on.
        request: the request as it was received; None when it came without HTTP.
        why: why the account or the password was refused; None when they were not.
    """

    mobile: str
    content: str
    code: int
    msg: str
    voice_id: str | None
    time: float
    ip: str
    fields: tuple[str, ...]
    fault: str | None = None
    values: tuple[str, ...] = ()
    status: int = 200
    answer: bytes = b""
    number: int = 0
    request: Received | None = field(default=None, compare=False)
    why: Reason | None = field(default=None, compare=False)

    @property
    def placed(self) -> bool:
        """True when the call was placed: the phone would have rung."""
        return self.voice_id is not None


@dataclass(frozen=True, slots=True)
class OtherRequest:
    """A request that was no submit: a balance query, or one that reached no method.

    Texts are cut and secrets masked as in an `Attempt`.

    Attributes:
        kind: "balance": a balance query. "unknown": a path, an HTTP method or a
            `?method=` that the gateway does not have. "unreadable": it is not
            HTTP, or its body is broken or too long. "closed": chaos closed its
            connection before it was read.
        line: its request line, such as `POST /webservice/voice.php?method=GetNum`.
            The values of fields that the gateway does not know are masked. "" when
            nothing of it can be shown.
        reason: what is wrong with it and what to do, "" for a balance query.
        time: when it was taken, in seconds since 1970 by the gateway's clock.
        ip: where it came from.
        status: the HTTP status of the answer, 0 when nothing was sent.
        code: the gateway's verdict on a balance query, else None.
        msg: the gateway's words for the code, else "".
        fault: the fault that struck the answer, None when it was sent as is.
        fields: the names of a balance query's fields, in the order they were sent.
        values: the values of `fields`, in their order.
        answer: the body as it was sent to a balance query, b"" when nothing was.
        after: how many submits were taken before it: its place among the attempts.
        number: 1 for the first since the start or the last reset, and so on;
            attempts are numbered apart.
        request: the request as it was received; None when it came without HTTP, or
            when it was not HTTP.
        why: why the account or the password was refused; None when they were not.
    """

    kind: Kind
    line: str
    reason: str
    time: float
    ip: str
    status: int
    code: int | None = None
    msg: str = ""
    fault: str | None = None
    fields: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    answer: bytes = b""
    after: int = 0
    number: int = 0
    request: Received | None = field(default=None, compare=False)
    why: Reason | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class PushTry:
    """One push of a receipt, and what the receiver answered.

    Attributes:
        time: when it ended, in seconds since 1970 by the gateway's clock.
        accepted: True when the receiver answered the bare text `success`.
        result: what it answered instead, or why there was no answer.
        kind: names the sentence of the result in `page/texts.json`, as `result_{kind}`.
        facts: what the sentence mentions, by name.
    """

    time: float
    accepted: bool
    result: str
    kind: str = ""
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ReceiptPush:
    """One call's receipt and its pushes so far.

    Attributes:
        number: the number of the attempt that placed the call.
        voice_id: the id of the call.
        mobile: the number that was called.
        code: 2 when the call was delivered.
        msg: the words that go with the code.
        reported_at: when the call ended, in seconds since 1970 by the gateway's clock.
        tries: the pushes so far, oldest first.
        ended: True when it will not be pushed any more.
    """

    number: int
    voice_id: str
    mobile: str
    code: int
    msg: str
    reported_at: float
    tries: tuple[PushTry, ...] = ()
    ended: bool = False

    @property
    def accepted(self) -> bool:
        """True when the receiver took it."""
        return bool(self.tries) and self.tries[-1].accepted

    def tried(self, attempted: PushTry, *, ended: bool) -> ReceiptPush:
        """The same receipt with one more push."""
        return replace(self, tries=(*self.tries, attempted), ended=ended)


class History:
    """The attempts, the calls, the receipts and the other requests, of each the last `keep`.

    Attributes:
        attempts: oldest first.
        calls: oldest first.
        others: oldest first.
        taken: how many attempts there were, kept or not.
        placed: how many calls there were, kept or not.
        others_taken: how many other requests there were, kept or not.
    """

    __slots__ = ("_receipts", "attempts", "calls", "others", "others_taken", "placed", "taken")

    def __init__(
        self,
        keep: int = DEFAULT_KEEP,
        *,
        taken: int = 0,
        placed: int = 0,
        others_taken: int = 0,
    ) -> None:
        self.attempts: deque[Attempt] = deque(maxlen=keep)
        self.calls: deque[Call] = deque(maxlen=keep)
        self.others: deque[OtherRequest] = deque(maxlen=keep)
        self.taken: int = taken
        self.placed: int = placed
        self.others_taken: int = others_taken
        # By the attempt's number; the receipt that changed last comes last.
        self._receipts: dict[int, ReceiptPush] = {}

    @property
    def keep(self) -> int:
        """How many attempts are kept, and how many calls."""
        return self.attempts.maxlen or 0

    @property
    def receipts(self) -> list[ReceiptPush]:
        """The receipts; the one that changed last comes last."""
        return list(self._receipts.values())

    def cleared(self) -> History:
        """An empty history that goes on counting."""
        return History(
            self.keep, taken=self.taken, placed=self.placed, others_taken=self.others_taken
        )

    def add(self, attempt: Attempt, call: Call | None) -> None:
        """Remember an attempt, numbered `taken + 1`, and the call it placed."""
        if self._receipts and len(self.attempts) == self.keep:
            self._receipts.pop(self.attempts[0].number, None)
        self.taken += 1
        self.attempts.append(attempt)
        if call is not None:
            self.placed += 1
            self.calls.append(call)

    def add_other(self, other: OtherRequest) -> OtherRequest:
        """Remember a request that was no submit; return it with its number and its place."""
        self.others_taken += 1
        numbered = replace(other, number=self.others_taken, after=self.taken)
        self.others.append(numbered)
        return numbered

    def put(self, receipt: ReceiptPush) -> None:
        """Remember the latest form of a receipt, unless its attempt is no longer kept."""
        if not self.attempts or receipt.number < self.attempts[0].number:
            return
        self._receipts.pop(receipt.number, None)
        self._receipts[receipt.number] = receipt

    def find(self, number: int) -> tuple[Attempt, ReceiptPush | None] | None:
        """The attempt with that number and its receipt; None when it is not kept."""
        index = number - (self.attempts[0].number if self.attempts else 0)
        if not 0 <= index < len(self.attempts):
            return None
        return self.attempts[index], self._receipts.get(number)

    def find_other(self, number: int) -> OtherRequest | None:
        """The other request with that number; None when it is not kept."""
        index = number - (self.others[0].number if self.others else 0)
        return self.others[index] if 0 <= index < len(self.others) else None

    def resize(self, keep: int) -> None:
        """Keep so many from now on; the oldest beyond it are forgotten."""
        self.attempts = deque(self.attempts, keep)
        self.calls = deque(self.calls, keep)
        self.others = deque(self.others, keep)
        first = self.attempts[0].number if self.attempts else 0
        self._receipts = {n: receipt for n, receipt in self._receipts.items() if n >= first}

    def after(self, number: int, limit: int) -> list[Attempt]:
        """The attempts after that number, oldest first; the newest `limit` of them."""
        return _newest(self.attempts, min(self.taken - number, limit))

    def others_after(self, number: int, limit: int) -> list[OtherRequest]:
        """The other requests after that number, oldest first; the newest `limit` of them."""
        return _newest(self.others, min(self.others_taken - number, limit))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a reader of the history has not read yet.

    Attributes:
        history: where it comes from; another object after each `clear` or `reset`.
        taken: the number of the last attempt.
        attempts: oldest first.
        receipts: all of them; the one that changed last comes last.
        others: the requests that were no submits, oldest first.
        others_taken: the number of the last of them.
    """

    history: History
    taken: int
    attempts: list[Attempt]
    receipts: list[ReceiptPush]
    others: list[OtherRequest]
    others_taken: int


def _newest(kept: deque[Numbered], count: int) -> list[Numbered]:
    return list(islice(reversed(kept), count))[::-1]
