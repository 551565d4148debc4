"""Delivery of receipts: how each placed call ended, pushed to a URL.

Known of the real gateway: it POSTs a form, and the receiver answers the bare text
`success`. Otherwise the gateway repeats the push, up to three in all, and waits 60 s
longer each time. Not known, and therefore the sandbox's own choice: the texts, the
code of a call that was not delivered, that the bare text means these seven bytes with
status 200, and that the receipt of a cleared call is dropped.

Answers never wait for pushes. A limited number of pushes runs at once, and others
wait for their turn. If too many wait, a new receipt is given up at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar

from ihuyi_voice.errors import ACCEPTED
from ihuyi_voice.models import BEIJING

from .history import PushTry, ReceiptPush
from .page_files import TEXTS

if TYPE_CHECKING:
    from ihuyi_voice._limits import SandboxLimits

    from .core import GatewayCore
    from .history import History
    from .rules import Reply

MOST_TRIES = 3
RECEIPT_REPLY = b"success"

DELIVERED = (ACCEPTED, "已接听")
UNDELIVERED = (0, "未接听")

# Running at once.
_CONCURRENT = 8

_ACCEPTED = "success"
_Facts = tuple[tuple[str, str], ...]

_MOST_SHOWN = 60


@dataclass(slots=True)
class _Pending:
    """A receipt that is still to be pushed.

    Attributes:
        history: which holds its attempt; once it is cleared, nothing is pushed.
        push: the receipt and its pushes so far.
        url: where it goes.
        id_field: the name under which it holds the voice id.
    """

    history: History
    push: ReceiptPush
    url: str
    id_field: str


class Pusher:
    """Pushes the receipts of one server's calls, in that server's loop."""

    def __init__(self, gateway: GatewayCore, limits: SandboxLimits) -> None:
        self._gateway = gateway
        self._most_waiting = limits.receipts_waiting
        self._session: ClientSession | None = None
        self._timers: set[asyncio.TimerHandle] = set()
        self._due: deque[_Pending] = deque()
        self._workers: set[asyncio.Task[None]] = set()

    def schedule(self, reply: Reply) -> None:
        """Push the receipt of a call that was just placed, after the delay."""
        gateway, call, attempt = self._gateway, reply.call, reply.attempt
        url = gateway.receipt_url
        if call is None or attempt is None or url is None:
            return
        code, msg = DELIVERED if gateway.roll_receipt() else UNDELIVERED
        delay = gateway.receipt_delay
        push = ReceiptPush(attempt.number, call.voice_id, call.mobile, code, msg, call.time + delay)
        pending = _Pending(gateway.history, push, url, gateway.receipt_id)
        if len(self._timers) + len(self._due) >= self._most_waiting:
            self._note(pending, "too_many", ended=True)
        elif gateway.put_receipt(pending.history, push):
            self._later(delay, pending)

    async def close(self) -> None:
        """Drop what has not been pushed and close every connection."""
        for timer in self._timers:
            timer.cancel()
        self._due.clear()
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def _later(self, delay: float, pending: _Pending) -> None:
        def is_due() -> None:
            self._timers.discard(timer)
            self._due.append(pending)
            if len(self._workers) < _CONCURRENT:
                worker = loop.create_task(self._work())
                self._workers.add(worker)
                worker.add_done_callback(self._workers.discard)

        loop = asyncio.get_running_loop()
        timer = loop.call_later(delay, is_due)
        self._timers.add(timer)

    async def _work(self) -> None:
        while self._due:
            pending = self._due.popleft()
            if pending.history is self._gateway.history:
                await self._push(pending)

    async def _push(self, pending: _Pending) -> None:
        kind, facts = await self._post(pending)
        tries = len(pending.push.tries) + 1
        ended = kind == _ACCEPTED or tries == MOST_TRIES
        kept = self._note(pending, kind, facts, ended=ended)
        if kept and not ended:
            self._later(tries * self._gateway.receipt_interval, pending)

    def _note(self, pending: _Pending, kind: str, facts: _Facts = (), *, ended: bool) -> bool:
        result = TEXTS["en"][f"result_{kind}"].format_map(dict(facts))
        attempted = PushTry(self._gateway.clock(), kind == _ACCEPTED, result, kind, facts)
        pending.push = pending.push.tried(attempted, ended=ended)
        return self._gateway.put_receipt(pending.history, pending.push)

    async def _post(self, pending: _Pending) -> tuple[str, _Facts]:
        """Push once; the kind of the result and its facts."""
        timeout = self._gateway.receipt_timeout
        if self._session is None:
            self._session = ClientSession(cookie_jar=DummyCookieJar())
        try:
            async with self._session.post(
                pending.url,
                data=receipt_form(pending.push, pending.id_field),
                allow_redirects=False,
                timeout=ClientTimeout(total=timeout),
            ) as response:
                body = bytearray()
                while len(body) <= _MOST_SHOWN and (chunk := await response.content.readany()):
                    body += chunk
        except asyncio.TimeoutError:
            return "no_answer", (("seconds", f"{timeout:g}"),)
        except (ClientError, OSError, ValueError) as error:
            return "not_delivered", (("error", str(error or type(error).__name__)[:200]),)
        if response.status == 200 and body == RECEIPT_REPLY:
            return _ACCEPTED, ()
        status = ("status", str(response.status))
        if 300 <= response.status < 400:
            return "redirect", (status,)
        text = body.decode("utf-8", "backslashreplace")
        cut = "…" if len(body) > _MOST_SHOWN else ""
        return "wrong", (status, ("text", f"{text[:_MOST_SHOWN]!r}{cut}"))


def receipt_form(push: ReceiptPush, id_field: str) -> dict[str, str]:
    """The fields that are pushed; `report_time` is Beijing's wall time."""
    reported = datetime.fromtimestamp(push.reported_at, BEIJING)
    return {
        "code": str(push.code),
        "msg": push.msg,
        "mobilephone": push.mobile,
        id_field: push.voice_id,
        "report_time": reported.strftime("%Y-%m-%d %H:%M:%S"),
    }
