"""The sandbox gateway without HTTP: its state, its settings, its chaos and its clock.

A lock guards them, so that a test may read and change them from any thread
while the gateway answers. What it answers is decided in `rules.py`; `gateway.py`
adds the server.
"""

from __future__ import annotations

import logging
import secrets
import time
from copy import copy
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Generic, TypeVar, overload

from .faults import NO_CHAOS, Chaos, Dice, Roll, checked_chaos
from .history import OtherRequest, Snapshot
from .masking import masked_line
from .rules import GatewayState
from .settings import CHANGEABLE, DEFAULT_KEEP, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from .history import Attempt, Call, History, Kind, ReceiptPush, Received
    from .reasons import Method
    from .rules import Reply

logger: logging.Logger = logging.getLogger("ihuyi_voice.sandbox")

Recorded = TypeVar("Recorded", "Attempt", "OtherRequest")
Kept = TypeVar("Kept")
Given = TypeVar("Given")


def draw_first_id() -> int:
    """Where a gateway's voice ids begin: 16 digits, drawn at random.

    A receipt handler that outlives a restart of the sandbox ignores ids that it knows.
    The real gateway's ids have 9 to 20 digits; these are exact in JavaScript too.
    """
    return 10**15 + secrets.randbelow(8 * 10**15)


class Setting(Generic[Kept, Given]):
    """An attribute of the gateway that its `Settings` hold and check.

    attrs alone does not do: type checkers would not let a list be assigned to
    what is kept as a frozenset, because they ignore converters there.
    """

    def __set_name__(self, _: type[GatewayCore], name: str) -> None:
        self._name = name

    @overload
    def __get__(self, gateway: None, owner: type[GatewayCore]) -> Setting[Kept, Given]: ...
    @overload
    def __get__(self, gateway: GatewayCore, owner: type[GatewayCore]) -> Kept: ...
    def __get__(
        self, gateway: GatewayCore | None, owner: type[GatewayCore]
    ) -> Setting[Kept, Given] | Kept:
        if gateway is None:
            return self
        kept: Kept = getattr(gateway._state.settings, self._name)  # noqa: SLF001 - a part of the gateway
        return kept

    def __set__(self, gateway: GatewayCore, value: Given) -> None:
        gateway._set({self._name: value})  # noqa: SLF001 - a part of the gateway


class GatewayCore:
    """`SandboxGateway` without its server; that class documents the arguments."""

    api_id: Setting[str, str] = Setting()
    api_key: Setting[str, str] = Setting()
    accounts: Setting[Mapping[str, str], Mapping[str, str]] = Setting()
    balance: Setting[int, int] = Setting()
    time_window: Setting[float | None, float | None] = Setting()
    allowed_ips: Setting[frozenset[str] | None, Iterable[str] | None] = Setting()
    registered_ips: Setting[frozenset[str] | None, Iterable[str] | None] = Setting()
    blacklist: Setting[frozenset[str], Iterable[str]] = Setting()
    banned_contents: Setting[frozenset[str], Iterable[str]] = Setting()
    failing_mobiles: Setting[frozenset[str], Iterable[str]] = Setting()
    abuse_limit: Setting[int | None, int | None] = Setting()
    frequency_limit: Setting[bool, bool] = Setting()
    calls_per_minute: Setting[int, int] = Setting()
    calls_per_day: Setting[int, int] = Setting()
    receipt_url: Setting[str | None, str | None] = Setting()
    receipt_delay: Setting[float, float] = Setting()
    receipt_interval: Setting[float, float] = Setting()
    receipt_timeout: Setting[float, float] = Setting()
    receipt_id: Setting[str, str] = Setting()
    keep: Setting[int, int] = Setting()
    multiline_refusals: Setting[bool, bool] = Setting()

    def __init__(  # noqa: PLR0913 - one argument per setting, all of them named
        self,
        *,
        api_id: str = "sandbox",
        api_key: str = "sandbox-key",
        accounts: Mapping[str, str] = MappingProxyType({}),
        balance: int = 1000,
        time_window: float | None = 600.0,
        allowed_ips: Iterable[str] | None = None,
        registered_ips: Iterable[str] | None = None,
        blacklist: Iterable[str] = (),
        banned_contents: Iterable[str] = (),
        failing_mobiles: Iterable[str] = (),
        frozen: bool = False,
        abuse_limit: int | None = None,
        frequency_limit: bool = False,
        calls_per_minute: int = 2,
        calls_per_day: int = 10,
        chaos: Chaos = NO_CHAOS,
        receipt_url: str | None = None,
        receipt_delay: float = 1.0,
        receipt_interval: float = 60.0,
        receipt_timeout: float = 5.0,
        receipt_id: str = "voiceid",
        keep: int = DEFAULT_KEEP,
        multiline_refusals: bool = False,
        on_attempt: Callable[[Attempt], None] | None = None,
        on_other: Callable[[OtherRequest], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        settings = Settings(
            api_id=api_id,
            api_key=api_key,
            accounts=accounts,
            frozen=frozen,
            balance=balance,
            time_window=time_window,
            allowed_ips=allowed_ips,
            registered_ips=registered_ips,
            blacklist=blacklist,
            banned_contents=banned_contents,
            failing_mobiles=failing_mobiles,
            abuse_limit=abuse_limit,
            frequency_limit=frequency_limit,
            calls_per_minute=calls_per_minute,
            calls_per_day=calls_per_day,
            receipt_url=receipt_url,
            receipt_delay=receipt_delay,
            receipt_interval=receipt_interval,
            receipt_timeout=receipt_timeout,
            receipt_id=receipt_id,
            keep=keep,
            multiline_refusals=multiline_refusals,
        )
        self._initially = settings, checked_chaos(chaos)
        self._lock = Lock()
        self._state = GatewayState(copy(settings), draw_first_id())
        self._dice = Dice(chaos)
        self.on_attempt = on_attempt
        self.on_other = on_other
        self.clock = clock

    def __repr__(self) -> str:
        return (
            f"SandboxGateway(api_id={self.api_id!r}, balance={self.balance},"
            f" calls={self.placed}, attempts={self.taken})"
        )

    # --- the settings

    @property
    def frozen(self) -> bool:
        """Whether the account is frozen, by this setting or for abuse."""
        return self._state.frozen_with is not None

    @frozen.setter
    def frozen(self, frozen: bool) -> None:
        self._set({"frozen": frozen})

    @property
    def frozen_with(self) -> int | None:
        """What a frozen account's submits are refused with: 408 for abuse, or 4050; else None."""
        return self._state.frozen_with

    @property
    def chaos(self) -> Chaos:
        """What goes wrong; setting it restarts the sequence of its seed."""
        return self._dice.chaos

    @chaos.setter
    def chaos(self, chaos: Chaos) -> None:
        dice = Dice(checked_chaos(chaos))
        with self._lock:
            self._dice = dice

    def settings(self) -> dict[str, object]:
        """Every setting that `change` takes, by its name."""
        return {name: getattr(self, name) for name in CHANGEABLE}

    def change(self, settings: Mapping[str, object]) -> None:
        """Set several settings, or none when one of them is wrong.

        Raises:
            ValueError: naming the setting that is wrong and what it takes.
        """
        if unknown := sorted(settings.keys() - set(CHANGEABLE)):
            msg = f"unknown: {', '.join(unknown)}; there are {', '.join(CHANGEABLE)}"
            raise ValueError(msg)
        self._set(settings)

    def _set(self, settings: Mapping[str, object]) -> None:
        # Check without the lock: an iterable of the caller may read the gateway.
        checked = copy(self._state.settings)
        for name, value in settings.items():
            setattr(checked, name, value)
        with self._lock:
            state = self._state
            for name in settings:
                setattr(state.settings, name, getattr(checked, name))
            if "frozen" in settings:
                state.forgive_abuse()
            if "keep" in settings:
                state.history.resize(checked.keep)

    # --- the history

    @property
    def calls(self) -> list[Call]:
        """A new list of the last `keep` calls that were placed, oldest first."""
        with self._lock:
            return list(self._state.history.calls)

    @property
    def attempts(self) -> list[Attempt]:
        """A new list of the last `keep` submits, placed or refused, oldest first."""
        with self._lock:
            return list(self._state.history.attempts)

    @property
    def others(self) -> list[OtherRequest]:
        """A new list of the last `keep` requests that were no submits, oldest first."""
        with self._lock:
            return list(self._state.history.others)

    @property
    def receipts(self) -> list[ReceiptPush]:
        """The receipts of the attempts remembered; the one that changed last comes last."""
        with self._lock:
            return self._state.history.receipts

    @property
    def taken(self) -> int:
        """How many submits there were since the start or the last reset, remembered or not."""
        return self._state.history.taken

    @property
    def placed(self) -> int:
        """How many calls there were since the start or the last reset, remembered or not."""
        return self._state.history.placed

    @property
    def history(self) -> History:
        """The current history; another object after each `clear` or `reset`."""
        return self._state.history

    def snapshot(
        self, history: History | None, number: int, limit: int, other_number: int = 0
    ) -> Snapshot:
        """What is new to a reader of `history`.

        Args:
            history: what it reads; after a clear everything is new.
            number: of the last attempt that it has read.
            limit: at most so many attempts, the newest, and so many other requests.
            other_number: of the last other request that it has read.
        """
        with self._lock:
            current = self._state.history
            if history is not current:
                number = other_number = 0
            return Snapshot(
                current,
                current.taken,
                current.after(number, limit),
                current.receipts,
                current.others_after(other_number, limit),
                current.others_taken,
            )

    def find(self, number: int) -> tuple[Attempt, ReceiptPush | None] | None:
        """The attempt with that number and its receipt; None when it is not remembered."""
        with self._lock:
            return self._state.history.find(number)

    def find_other(self, number: int) -> OtherRequest | None:
        """The other request with that number; None when it is not remembered."""
        with self._lock:
            return self._state.history.find_other(number)

    def put_receipt(self, history: History, receipt: ReceiptPush) -> bool:
        """Remember the latest form of a receipt; False when `history` has been cleared."""
        with self._lock:
            if history is not self._state.history:
                return False
            history.put(receipt)
        return True

    def clear(self) -> None:
        """Forget all calls, attempts and pending receipts; keep the settings and the counts."""
        with self._lock:
            self._state.history = self._state.history.cleared()

    def reset(self) -> None:
        """Clear the history and the counts, and restore the first settings and chaos."""
        settings, chaos = self._initially
        with self._lock:
            # Voice ids go on: a receipt handler has seen the earlier ones.
            self._state = GatewayState(copy(settings), self._state.next_id)
            self._dice = Dice(chaos)

    @property
    def keys(self) -> tuple[str, ...]:
        """The APIKEYs of all accounts: none of them is shown or recorded."""
        return self._state.settings.keys

    # --- answering

    def roll(self) -> Roll:
        """Draw what happens to the next answer."""
        with self._lock:
            return self._dice.roll()

    def roll_receipt(self) -> bool:
        """Draw whether the next call is delivered."""
        with self._lock:
            return self._dice.roll_receipt()

    def answer(
        self,
        method: Method,
        form: Mapping[str, str],
        ip: str,
        roll: Roll,
        request: Received | None = None,
    ) -> Reply:
        """Judge a form and record it, without any HTTP.

        Args:
            method: "Submit" or "GetNum".
            form: the fields.
            ip: where the request came from.
            roll: what happens to the answer, from `roll()`.
            request: the request that brought the form, if one did.
        """
        now = self.clock()
        with self._lock:
            reply = self._state.answer(method, form, ip, now, roll=roll, request=request)
        _report("on_attempt", self.on_attempt, reply.attempt)
        _report("on_other", self.on_other, reply.other)
        return reply

    def record(  # noqa: PLR0913 - what is known of a request
        self,
        kind: Kind,
        line: str,
        reason: str,
        ip: str,
        status: int,
        *,
        fault: str | None = None,
        request: Received | None = None,
    ) -> None:
        """Remember a request that no rule judges, with its secrets masked.

        Args:
            kind: any but "balance".
            line: the request line, as far as it was read.
            reason: what is wrong with it and what to do.
            ip: where it came from.
            status: the HTTP status of the answer, 0 when nothing was sent.
            fault: the fault that struck it.
            request: the request as it was received.
        """
        now = self.clock()
        with self._lock:
            shown = masked_line(line, self._state.settings.keys)
            other = OtherRequest(kind, shown, reason, now, ip, status, fault=fault, request=request)
            other = self._state.history.add_other(other)
        _report("on_other", self.on_other, other)


def _report(
    name: str, callback: Callable[[Recorded], None] | None, recorded: Recorded | None
) -> None:
    if callback is None or recorded is None:
        return
    try:
        callback(recorded)
    except Exception:
        logger.exception("%s raised; the request is recorded and answered as usual", name)
