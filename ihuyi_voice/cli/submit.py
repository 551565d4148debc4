"""`ihuyi-voice submit`: one call. A real phone rings."""

from __future__ import annotations

import json
from contextlib import suppress
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
)
from ..models import DEFAULT_BASE_URL, OutcomeStatus, generate_code, mask_mobile
from ..sync.client import VoiceClient
from ..wire import check_content, check_mobile
from .account import (
    EXIT_STATUSES,
    Account,
    ApiId,
    ApiKeyFile,
    AsJson,
    BaseUrl,
    Timeout,
    fail_interrupted,
)
from .signals import Interruptions

if TYPE_CHECKING:
    from ..models import SubmitResult

EXIT_HELP = """

Exit status: 0 accepted · 2 invalid number, content, option or credentials, nothing sent ·
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
    api_id: ApiId = None,
    api_key_file: ApiKeyFile = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    timeout: Timeout = 15.0,
    as_json: AsJson = False,
) -> None:
    """Place [bold]one call[/bold] that reads out a verification code. A real phone rings."""
    call = _Call(mobile, content)
    with Interruptions():
        try:
            call.place(Account(api_id, api_key_file, base_url, timeout))
        except (KeyboardInterrupt, typer.Abort) as interruption:
            if not call.sending:
                fail_interrupted(interruption)
        with suppress(KeyboardInterrupt):
            call.print(as_json=as_json)
    raise typer.Exit(EXIT_STATUSES[call.status])


class _Call:
    """One call and its outcome.

    Attributes:
        sending: the request may have been sent. From then on the outcome of an
            interrupted call is unknown, unless its result is known already.
    """

    def __init__(self, mobile: str, content: str | None) -> None:
        self.sending = False
        self._mobile = mobile
        self._draws_code = content is None
        self._content = generate_code() if content is None else content
        # The masked number; "" until the number is checked.
        self._shown_mobile = ""
        self._result: SubmitResult | IhuyiVoiceError = OutcomeUnknownError(
            "interrupted while the request was on its way"
        )

    def place(self, account: Account) -> None:
        """Check number and code, then send; keep the outcome instead of raising it."""
        try:
            # Before the account is read: with a bad number there is no prompt for a key.
            number, code = check_mobile(self._mobile), check_content(self._content)
        except InvalidRequestError as error:
            self._result = error
            return
        self._shown_mobile = mask_mobile(number)
        with account.client(VoiceClient) as client:
            self.sending = True
            # Keep the result at once: a signal may interrupt the close of the client.
            try:
                self._result = client.submit(number, code)
            except IhuyiVoiceError as error:
                self._result = error

    @property
    def status(self) -> OutcomeStatus:
        """How the call ended."""
        if isinstance(self._result, IhuyiVoiceError):
            return status_of(self._result)
        return OutcomeStatus.ACCEPTED

    def print(self, *, as_json: bool) -> None:
        """Print the outcome; an error is one line on stderr."""
        report = self._report()
        code = f"  code {report['content']}" if "content" in report else ""
        if as_json:
            typer.echo(json.dumps(report))
        elif "error" in report:
            typer.echo(f"ihuyi-voice: {report['error']}{code}", err=True)
        else:
            typer.echo(f"accepted  {report['mobile']}{code}  voice id {report['voice_id'] or '-'}")

    def _report(self) -> dict[str, object]:
        """The outcome as JSON, with the drawn code if the phone may read it out."""
        result = self._result
        may_have_rung = not isinstance(result, IhuyiVoiceError) or result.may_have_rung
        report: dict[str, object] = {
            "status": self.status.value,
            "may_have_rung": may_have_rung,
            "mobile": self._shown_mobile,
        }
        if self._draws_code and may_have_rung:
            report["content"] = self._content
        if not isinstance(result, IhuyiVoiceError):
            return report | {"code": ACCEPTED, "msg": result.msg, "voice_id": result.voice_id}
        report["error"] = str(result)
        if isinstance(result, GatewayError):
            report |= {"code": result.code, "msg": result.msg}
        if isinstance(result, QuotaExceededError):
            report["retry_after"] = result.retry_after
        return report
