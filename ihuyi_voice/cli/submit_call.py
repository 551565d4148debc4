"""One call of `ihuyi-voice submit`: its request, its outcome, and what is printed of it."""

from __future__ import annotations

import json
import shlex
from contextlib import nullcontext
from typing import TYPE_CHECKING

import typer

from .._pipeline import status_of
from ..errors import (
    ACCEPTED,
    GatewayError,
    IhuyiVoiceError,
    InvalidRequestError,
    OutcomeUnknownError,
    QuotaExceededError,
    StoreError,
)
from ..models import OutcomeStatus, generate_code, mask_mobile
from ..store.entry import check_key
from ..sync.client import VoiceClient
from ..wire import check_content, normalize_mobile
from .bulk.keys import derived_code
from .chosen_store import open_chosen
from .language import Phrase, local
from .language import gettext as _

if TYPE_CHECKING:
    from ..models import SubmitResult
    from ..store.store import Store
    from .account import Account


class Call:
    """One call and its outcome.

    Attributes:
        sending: the request may have been sent. From then on the outcome of an
            interrupted call is unknown, unless its result is known already.
    """

    def __init__(self, mobile: str, content: str | None, key: str | None) -> None:
        self.sending: bool = False
        self._mobile = mobile
        self._key = key
        # Where the key is kept, once it may be.
        self._place = ""
        self._draws_code = content is None
        self._content = generate_code() if content is None else content
        # The masked number, "" while it is not checked.
        self._shown_mobile = ""
        self._result: SubmitResult | IhuyiVoiceError = OutcomeUnknownError(
            "interrupted while the request was on its way"
        )

    def place(self, account: Account, chosen: str | None) -> None:
        """Check the request, open the store, and send; the outcome is kept, not raised."""
        try:
            # Before the account is needed: a bad number must not prompt for a key.
            number = normalize_mobile(self._mobile)
            check_content(self._content)
            if self._key is not None:
                check_key(self._key)
        except InvalidRequestError as error:
            self._result = error
            return
        self._shown_mobile = mask_mobile(number)
        account.check()
        try:
            store = open_chosen(chosen)
        except StoreError as error:
            self._result = error
            return
        with nullcontext() if store is None else store:
            self._send(account, number, store)

    def _send(self, account: Account, number: str, store: Store | None) -> None:
        if store is not None and self._key is not None and store.known_keys is not None:
            self._place = store.place
            if self._draws_code:
                # The same at every invocation, or the key would belong to another request.
                self._content = derived_code(
                    account.fingerprints(), store.known_keys.id, number, self._key
                )
        with account.client(VoiceClient, store=store) as client:
            self.sending = True
            # Keep the result at once: a signal may interrupt the close of the client.
            try:
                self._result = client.submit(number, self._content, idempotency_key=self._key)
            except IhuyiVoiceError as error:
                self._result = error

    @property
    def status(self) -> OutcomeStatus:
        """How the call ended."""
        if isinstance(self._result, IhuyiVoiceError):
            return status_of(self._result)
        return OutcomeStatus.REPLAYED if self._result.replayed else OutcomeStatus.ACCEPTED

    def print(self, *, as_json: bool) -> None:
        """Print the outcome; an error is one line on stderr."""
        report = self._report()
        code = _("  code {code}").format(code=report["content"]) if "content" in report else ""
        if as_json:
            typer.echo(json.dumps(report, default=str))
        elif "error" in report:
            typer.echo(f"ihuyi-voice: {local(report['error'])}{code}", err=True)
        else:
            is_replayed = self.status is OutcomeStatus.REPLAYED
            status = _("accepted earlier") if is_replayed else _("accepted")
            voice_id = _("voice id {id}").format(id=report["voice_id"] or "-")
            typer.echo(f"{status}  {report['mobile']}{code}  {voice_id}")

    def _report(self) -> dict[str, object]:
        """The outcome as JSON, with the drawn code if the phone may read it out."""
        result = self._result
        may_have_rung = not isinstance(result, IhuyiVoiceError) or result.may_have_rung
        report: dict[str, object] = {
            "status": self.status.value,
            "may_have_rung": may_have_rung,
            "mobile": self._shown_mobile,
        }
        if self._key is not None:
            report["idempotency_key"] = self._key
        if self._draws_code and may_have_rung:
            report["content"] = self._content
        if not isinstance(result, IhuyiVoiceError):
            return report | {"code": ACCEPTED, "msg": result.msg, "voice_id": result.voice_id}
        report["error"] = str(result)
        if isinstance(result, OutcomeUnknownError) and self._place:
            command = shlex.join(("ihuyi-voice", "store", self._place, "resolve", str(self._key)))
            report["error"] = Phrase(
                "outcome unknown: {reason}; the phone may have rung. The same command with this key"
                " sends nothing. Look the call up on the account's page, then: {command} --placed"
                " (or --not-placed)",
                reason=result.reason,
                command=command,
            )
        if isinstance(result, GatewayError):
            report |= {"code": result.code, "msg": result.msg}
        if isinstance(result, QuotaExceededError):
            report["retry_after"] = result.retry_after
        return report
