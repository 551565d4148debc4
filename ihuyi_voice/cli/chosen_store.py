"""The store that `submit` and `bulk` use: the user's own, another one, or none.

The user's own is a file in the state directory. So the limit of a number and the
idempotency keys hold across invocations without any option.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import platformdirs
import typer

from ..errors import OutcomeStatus, StoreError
from .account import EXIT_STATUSES, fail
from .language import gettext as _
from .language import local, mark

if TYPE_CHECKING:
    from ..store.store import Store

NONE = "none"
VARIABLE = "IHUYI_VOICE_STORE"


def own_path() -> Path:
    """Where the user's own store is, or will be."""
    return Path(platformdirs.user_state_dir("ihuyi-voice")) / "voice.db"


Chosen = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        envvar=VARIABLE,
        help=mark(
            "Where calls are remembered, so that the limit of a number and the idempotency keys"
            " hold across invocations: the path of an SQLite file, or a URL that begins with"
            " postgresql+psycopg://, mysql+pymysql:// or redis:// (limits only). none: no memory."
        ),
        show_default=str(own_path()),
    ),
]


def open_chosen(chosen: str | None) -> Store | None:
    """Open the store, and say where it is if this created it; None for no store.

    An option that names no store ends the program.

    Args:
        chosen: what `--store` says; None or "" for the user's own.

    Raises:
        StoreError: it cannot be used; nothing was sent.
    """
    if chosen == NONE:
        return None
    if chosen:
        store = open_store(chosen, create=True)
        if store.is_new:
            # With a mistyped name every phone would ring again: say that it is new.
            text = _("{place}: this store is new: it knows of no earlier call")
            _say(text.format(place=store.place))
        return store
    path = own_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        msg = (
            f"the folder {path.parent} cannot be created ({error.strerror or error});"
            f" --store {NONE} sends without memory"
        )
        raise StoreError(msg) from None
    store = open_store(str(path), create=True)
    if store.is_new:
        text = _("remembers calls in {place}; --store none for no memory")
        _say(text.format(place=store.place))
    return store


def open_store(url: str, *, create: bool) -> Store:
    """Open a store; an option that names none ends the program.

    Args:
        url: a path or a URL, as `Store.open` takes it. It may contain a
            password only where it comes from the environment.
        create: whether to create a missing store.

    Raises:
        StoreError: it cannot be used; nothing was sent.
    """
    # Before the URL is parsed: a parser's error could show the password.
    if _has_password(url) and url != os.environ.get(VARIABLE):
        fail(
            _(
                "no password on the command line, where other users can read it: leave it out of"
                " the URL, and set PGPASSWORD or write it into ~/.pgpass, or set {variable} to the"
                " whole URL"
            ).format(variable=VARIABLE)
        )
    from ..store.store import Store  # noqa: PLC0415 - no help needs it

    try:
        return Store.open(url, create=create)
    except (ModuleNotFoundError, LookupError, ValueError) as error:
        fail(local(error))


def fail_of_store(error: StoreError) -> NoReturn:
    """End the program because the store failed before anything was sent."""
    fail(local(error), EXIT_STATUSES[OutcomeStatus.NOT_SENT])


def _has_password(url: str) -> bool:
    return bool("://" in url and re.search(r"://[^:/@]*:[^@]*@|[?&]password=", url))


def _say(text: str) -> None:
    typer.echo(f"ihuyi-voice: {text}", err=True)
