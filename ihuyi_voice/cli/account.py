"""Shared by the commands: the account, the common options and the exit statuses.

The API key comes from the environment, a file or a prompt. There is no option
for it, because other users can read a process's arguments.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer

from ..models import DEFAULT_BASE_URL
from .language import gettext as _
from .language import local, mark
from .statuses import EXIT_BELOW, EXIT_CTRL_C, EXIT_STATUSES, EXIT_USAGE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..client import AsyncVoiceClient
    from ..models import Secret
    from ..store.entry import Fingerprints
    from ..store.store import Store
    from ..sync.client import VoiceClient

__all__ = [
    "EXIT_BELOW",
    "EXIT_STATUSES",
    "EXIT_USAGE",
    "Account",
    "AnyClient",
    "ApiId",
    "ApiKeyFile",
    "AsJson",
    "BaseUrl",
    "Timeout",
    "account_of_environment",
    "fail",
    "fail_interrupted",
    "run_async",
]

AnyClient = TypeVar("AnyClient", "AsyncVoiceClient", "VoiceClient")
Returned = TypeVar("Returned")

ApiId = Annotated[
    str | None,
    typer.Option(
        envvar="IHUYI_VOICE_API_ID",
        help=mark("The account's API ID. Without it a prompt asks for it."),
        show_default=False,
    ),
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        help=mark(
            "A file that holds the account's API key and nothing else. Without it the key is read"
            " from IHUYI_VOICE_API_KEY, or a prompt asks for it."
        ),
        show_default=False,
    ),
]
BaseUrl = Annotated[
    str,
    typer.Option(envvar="IHUYI_VOICE_BASE_URL", help=mark("Scheme and host of the gateway.")),
]
Timeout = Annotated[
    float, typer.Option(help=mark("Seconds for one request, including the connection."))
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help=mark("Print one JSON object, for programs. Its text does not change with the locale."),
    ),
]


@dataclass
class Account:
    """The account, the gateway, and the deadline of a request."""

    api_id: str | None
    api_key_file: Path | None
    base_url: str
    timeout: float
    _known_id: str | None = field(default=None, init=False)
    _known_key: Secret | None = field(default=None, init=False)

    def client(
        self, kind: type[AnyClient], max_connections: int = 100, store: Store | None = None
    ) -> AnyClient:
        """A client for the account; an invalid setting ends the program."""
        api_id = self._id()
        try:
            return kind(
                api_id,
                self._key(),
                base_url=self.base_url,
                timeout=self.timeout,
                max_connections=max_connections,
                store=store,
            )
        except (TypeError, ValueError) as error:
            fail(local(error))

    def check(self) -> None:
        """End the program where the account is incomplete; this may prompt for the rest."""
        self._id()
        self._key()

    def fingerprints(self) -> Fingerprints:
        """The keyed fingerprints of the account's requests in a store."""
        from ..store.entry import Fingerprints  # noqa: PLC0415 - no help needs it

        return Fingerprints(self._key())

    def _id(self) -> str:
        self._known_id = self._known_id or self.api_id or self._asked_id()
        return self._known_id

    def _asked_id(self) -> str:
        if not sys.stdin.isatty():
            fail(_("no API ID: set IHUYI_VOICE_API_ID, or give --api-id"))
        return str(typer.prompt(_("API ID (IHUYI_VOICE_API_ID is not set)"), err=True)).strip()

    def _key(self) -> str:
        from ..models import Secret  # noqa: PLC0415 - no help needs it

        self._known_key = self._known_key or Secret(self._read_key())
        return self._known_key.reveal()

    def _read_key(self) -> str:
        if self.api_key_file is not None:
            try:
                return self.api_key_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                fail(_("cannot read the API key file: {error}").format(error=error))
        if key := os.environ.get("IHUYI_VOICE_API_KEY"):
            return key
        if sys.stdin.isatty():
            text = _("API key of account {account} (IHUYI_VOICE_API_KEY is not set)")
            text = text.format(account=self._id())
            return str(typer.prompt(text, hide_input=True, err=True))
        return fail(_("no API key: set IHUYI_VOICE_API_KEY, or give --api-key-file"))


def account_of_environment() -> Account | None:
    """The account that the environment names whole; None where something is missing."""
    api_id = os.environ.get("IHUYI_VOICE_API_ID")
    if not (api_id and os.environ.get("IHUYI_VOICE_API_KEY")):
        return None
    base_url = os.environ.get("IHUYI_VOICE_BASE_URL") or DEFAULT_BASE_URL
    return Account(api_id, None, base_url, timeout=15.0)


def run_async(main: Callable[..., Awaitable[Returned]], *arguments: object) -> Returned:
    """Run a coroutine function in the fastest loop that is installed."""
    import anyio  # noqa: PLC0415 - no help needs it

    from .._loops import fast_loop_factory  # noqa: PLC0415 - no help needs it
    from .signals import woken_by_signals  # noqa: PLC0415 - no help needs it

    async def woken() -> Returned:
        with woken_by_signals():
            return await main(*arguments)

    return anyio.run(woken, backend_options={"loop_factory": fast_loop_factory()})


def fail(message: str, status: int = EXIT_USAGE) -> NoReturn:
    """Print one line on stderr and end the program."""
    typer.echo(f"ihuyi-voice: {message}", err=True)
    raise typer.Exit(status)


def fail_interrupted(interruption: BaseException) -> NoReturn:
    """End the program after a signal, or the end of input at a prompt, before a send."""
    status = getattr(interruption, "status", EXIT_CTRL_C)
    fail(_("interrupted: nothing was sent"), status)
