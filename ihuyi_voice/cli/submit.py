"""`ihuyi-voice submit`: one call. A real phone rings."""

from __future__ import annotations

import json
import shlex
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Annotated

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
from ..models import DEFAULT_BASE_URL, OutcomeStatus, generate_code, mask_mobile
from ..store.entry import check_key
from ..sync.client import VoiceClient
from ..wire import check_content, normalize_mobile
from .account import (
    EXIT_STATUSES,
    Account,
    ApiId,
    ApiKeyFile,
    AsJson,
    BaseUrl,
    Timeout,
    fail,
    fail_interrupted,
)
from .bulk.keys import derived_code
from .chosen_store import NONE, Chosen, open_chosen
from .signals import Interruptions

if TYPE_CHECKING:
    from ..models import SubmitResult
    from ..store.store import Store

EXIT_HELP = """

Exit status: 0 accepted, now or earlier under the same key ·
2 invalid number, content, key, option or credentials, nothing sent ·
3 refused by the gateway · 4 not sent, repeating is safe · 5 over the limit for this number ·
6 [bold]unknown: the phone may have rung[/bold], do not repeat blindly ·
128 plus the signal's number (130 for Ctrl-C) interrupted before anything was sent.
"""


def submit(  # noqa: PLR0913 - one argument per option
    mobile: Annotated[
        str,
        typer.Argument(
            help="The mainland number to call. Blanks, hyphens and +86, 0086, 86 are stripped."
        ),
    ],
    content: Annotated[
        str | None,
        typer.Option(
            help="The verification code, 4-6 digits. Without it the command draws a code of 6"
            " digits and prints it.",
            show_default=False,
        ),
    ] = None,
    *,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Names this call: the same command with the same key never rings the phone a"
            " second time, and prints the outcome of the first call. 1-255 characters.",
            show_default=False,
        ),
    ] = None,
    store: Chosen = None,
    api_id: ApiId = None,
    api_key_file: ApiKeyFile = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    timeout: Timeout = 15.0,
    as_json: AsJson = False,
) -> None:
    """Place [bold]one call[/bold] that reads out a verification code. A real phone rings.

    A number is called at most twice a minute and ten times a day, counted in the
    store that --store names.
    """
    if idempotency_key is not None and store == NONE:
        fail(f"--idempotency-key needs a store, and --store is {NONE}")
    call = _Call(mobile, content, idempotency_key)
    with Interruptions():
        try:
            call.place(Account(api_id, api_key_file, base_url, timeout), store)
        except (KeyboardInterrupt, typer.Abort) as interruption:
            if not call.sending:
                fail_interrupted(interruption)
        with suppress(KeyboardInterrupt):
            call.print(as_json=as_json)
    # What was accepted earlier, under the same key, is accepted.
    raise typer.Exit(EXIT_STATUSES.get(call.status, 0))


class _Call:
    """One call and its outcome.

    Attributes:
        sending: the request may have been sent. From then on the outcome of an
            interrupted call is unknown, unless its result is known already.
    """

    def __init__(self, mobile: str, content: str | None, key: str | None) -> None:
        self.sending = False
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
        code = f"  code {report['content']}" if "content" in report else ""
        if as_json:
            typer.echo(json.dumps(report))
        elif "error" in report:
            typer.echo(f"ihuyi-voice: {report['error']}{code}", err=True)
        else:
            status = "accepted earlier" if self.status is OutcomeStatus.REPLAYED else "accepted"
            typer.echo(f"{status}  {report['mobile']}{code}  voice id {report['voice_id'] or '-'}")

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
        if may_have_rung and self._place:
            report["error"] = (
                f"{result}. Look it up on the account's page, then:"
                f" ihuyi-voice store {shlex.quote(self._place)} resolve"
                f" {shlex.quote(str(self._key))} --placed (or --not-placed)"
            )
        if isinstance(result, GatewayError):
            report |= {"code": result.code, "msg": result.msg}
        if isinstance(result, QuotaExceededError):
            report["retry_after"] = result.retry_after
        return report
