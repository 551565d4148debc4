"""What the sandbox gateway remembers: the last so many attempts, calls and pushed receipts.

Pure: no I/O, no loop, no lock, no clock. Every attempt has a number, every
change to a pushed receipt a revision, and both only ever grow; so whoever
follows the record says how far it has read and is given the rest, and nothing
has to be queued for it meanwhile.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from itertools import islice, takewhile

DEFAULT_KEEP = 10_000


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

    Of what was sent, the first 100 fields are kept, and of each text 2,000
    characters and an ellipsis.

    Attributes:
        mobile: the number as it was sent, "" when there was none; masked when
            it is none and holds the API key or the password.
        content: the content as it was sent, "" when there was none; masked likewise.
        code: the gateway's verdict; 2 when the call was placed.
        msg: the gateway's words for it.
        voice_id: the id of the call, None when it was refused.
        time: when it was taken, in seconds since 1970 by the gateway's clock.
        ip: where it came from.
        fields: the names of the form's fields, in the order they were sent;
            what is or may be a secret in them is masked.
        fault: the chaos that struck the answer, None when it was sent as is.
        values: the values of `fields`, in their order; the password is masked,
            and so is any value that holds it or the API key.
        status: the HTTP status of the answer, 0 when nothing was sent.
        answer: the body as it was sent, b"" when nothing was.
        number: 1 for the first since the start or the last reset, and so on.
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

    @property
    def placed(self) -> bool:
        """True when the call was placed: the phone would have rung."""
        return self.voice_id is not None


@dataclass(frozen=True, slots=True)
class PushTry:
    """One push of a receipt, and what the receiver made of it.

    Attributes:
        time: when it ended, in seconds since 1970 by the gateway's clock.
        accepted: True when the receiver answered the bare text `success`.
        result: what it answered instead, or why there was no answer.
    """

    time: float
    accepted: bool
    result: str


@dataclass(frozen=True, slots=True)
class ReceiptPush:
    """What became of one call's receipt.

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
        """The same with one try more."""
        return replace(self, tries=(*self.tries, attempted), ended=ended)


@dataclass(frozen=True, slots=True)
class Position:
    """How far a follower has read.

    Attributes:
        epoch: names the record; another one, or the same after it was cleared,
            has another.
        number: of the last attempt read.
        revision: of the last change to a receipt read.
    """

    epoch: str = ""
    number: int = 0
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Changes:
    """What a follower has not read yet.

    Attributes:
        anew: True when it has to forget what it read: the record was cleared,
            or more came than is kept.
        attempts: oldest first, at most as many as it asked for.
        pushes: receipts as they stand now, the one that changed last comes last.
        position: how far it has read with these.
        more: True when there are more attempts to be read at once.
    """

    anew: bool
    attempts: list[Attempt]
    pushes: list[ReceiptPush]
    position: Position
    more: bool


class Record:
    """The attempts, the calls and the receipts, of each the last `keep`.

    Attributes:
        epoch: as in `Position`.
        attempts: oldest first.
        calls: oldest first.
        taken: how many attempts there were, kept or not.
        placed: how many calls there were, kept or not.
    """

    __slots__ = ("_pushes", "_revision", "attempts", "calls", "epoch", "placed", "taken")

    def __init__(self, epoch: str = "", keep: int = DEFAULT_KEEP) -> None:
        self.epoch: str = epoch
        self.attempts: deque[Attempt] = deque(maxlen=keep)
        self.calls: deque[Call] = deque(maxlen=keep)
        self.taken: int = 0
        self.placed: int = 0
        # By the attempt's number, with its revision; the last changed comes last.
        self._pushes: dict[int, tuple[int, ReceiptPush]] = {}
        self._revision = 0

    @property
    def keep(self) -> int:
        """How many attempts are kept, and how many calls."""
        return self.attempts.maxlen or 0

    @property
    def pushes(self) -> list[ReceiptPush]:
        """The receipts, the one that changed last comes last."""
        return [push for _, push in self._pushes.values()]

    def add(self, attempt: Attempt, call: Call | None) -> None:
        """Remember an attempt, numbered `taken + 1`, and the call it placed."""
        if self._pushes and len(self.attempts) == self.keep:
            self._pushes.pop(self.attempts[0].number, None)
        self.taken += 1
        self.attempts.append(attempt)
        if call is not None:
            self.placed += 1
            self.calls.append(call)

    def put(self, push: ReceiptPush) -> None:
        """Remember how a receipt stands, unless its attempt is no longer kept."""
        if not self.attempts or push.number < self.attempts[0].number:
            return
        self._pushes.pop(push.number, None)
        self._revision += 1
        self._pushes[push.number] = self._revision, push

    def find(self, number: int) -> tuple[Attempt, ReceiptPush | None] | None:
        """The attempt with that number and its receipt; None when it is not kept."""
        if not self.attempts or not 0 <= (index := number - self.attempts[0].number) < self.keep:
            return None
        if index >= len(self.attempts):
            return None
        _, push = self._pushes.get(number, (0, None))
        return self.attempts[index], push

    def clear(self, epoch: str) -> None:
        """Forget everything; the counting goes on under a new epoch."""
        self.epoch = epoch
        self.attempts.clear()
        self.calls.clear()
        self._pushes.clear()

    def resize(self, keep: int) -> None:
        """Keep so many from now on; the oldest beyond it are forgotten."""
        self.attempts = deque(self.attempts, keep)
        self.calls = deque(self.calls, keep)
        first = self.attempts[0].number if self.attempts else 0
        self._pushes = {number: push for number, push in self._pushes.items() if number >= first}

    def since(self, position: Position, limit: int) -> Changes:
        """What came after `position`, `limit` attempts of it at most."""
        missing = self.taken - position.number
        anew = position.epoch != self.epoch or not 0 <= missing <= len(self.attempts)
        if anew:
            missing = len(self.attempts)
            position = Position(self.epoch)
        more = missing > limit
        attempts = list(islice(reversed(self.attempts), missing))
        attempts.reverse()
        del attempts[limit:]
        # Receipts wait until their attempts have been read.
        pushes = [] if more else self._pushes_since(position.revision)
        read = attempts[-1].number if more else self.taken
        revision = position.revision if more else self._revision
        return Changes(anew, attempts, pushes, Position(self.epoch, read, revision), more)

    def _pushes_since(self, revision: int) -> list[ReceiptPush]:
        changed = takewhile(lambda known: known[0] > revision, reversed(self._pushes.values()))
        return [push for _, push in changed][::-1]
