"""`ihuyi-voice store`: inspect a store, and record by hand how unknown calls ended."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .account import AsJson, fail
from .language import gettext as _
from .language import mark

HELP = mark(
    "Inspect a [bold]store[/bold], and resolve its unknown calls. No phone rings.\n\n"
    "With --json, list prints one JSON object a line: key, mobile (masked), claimed_at, reason, and"
    " age and resolvable_in in seconds. If the account's page shows that all unknown calls were"
    " placed, this line resolves them:\n\n"
    "[bold]ihuyi-voice store FILE --json | ihuyi-voice store FILE resolve - --placed[/bold]"
)


class Action(str, Enum):
    """What to do with the store."""

    LIST = "list"
    SUMMARY = "summary"
    RESOLVE = "resolve"
    PURGE = "purge"
    UPGRADE = "upgrade"


def store(  # noqa: PLR0913 - one argument per option
    url: Annotated[
        str,
        typer.Argument(
            help=mark(
                "The SQLite file, or a URL like postgresql+psycopg://user@host/database without its"
                " password, which is read from PGPASSWORD or ~/.pgpass. Without it, or with -: the"
                " store that submit and bulk use, which is IHUYI_VOICE_STORE or else the file that"
                " their --help names."
            )
        ),
    ] = "-",
    action: Annotated[
        Action,
        typer.Argument(
            help=mark(
                "list: print the unknown calls, the oldest first. summary: count keys by state."
                " resolve: record what the account's page shows for calls. purge: delete settled"
                " keys, expired verifications and ended jobs with their outcomes, and"
                " print how many; a deleted key may be sent again. upgrade: run the schema steps"
                " that a newer release brings, and print the schema version."
            )
        ),
    ] = Action.LIST,
    keys: Annotated[
        list[str] | None,
        typer.Argument(
            help=mark(
                "With resolve: the idempotency keys of the calls. -: those on standard input, one a"
                " line, or what list prints with --json. The exit status is 0 only if all were"
                " resolved."
            ),
            show_default=False,
        ),
    ] = None,
    *,
    placed: Annotated[
        bool | None,
        typer.Option(
            "--placed/--not-placed",
            help=mark(
                "With resolve: the call was placed, so its key is never sent again; or it was not"
                " placed, so the key may be sent again."
            ),
            show_default=False,
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            help=mark(
                "With purge: only keys that last changed, verifications that expired, and jobs"
                " that ended, longer ago than this, like 30d, 12h, 15m or 30s."
            ),
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Do what the action says; see `HELP`."""
    from . import store_actions as actions  # noqa: PLC0415 - no help needs the store

    if action is Action.LIST and url in {one.value for one in Action} and not Path(url).exists():
        fail(_("name the store before the action: ihuyi-voice store - {action}").format(action=url))
    if (keys or placed is not None) and action is not Action.RESOLVE:
        fail(_("a key, --placed and --not-placed go with resolve"))
    if older_than is not None and action is not Action.PURGE:
        fail(_("--older-than goes with purge"))
    if action is Action.RESOLVE:
        if not keys or placed is None:
            fail(_("resolve needs a key, and --placed or --not-placed"))
        actions.resolve(url, keys, placed=placed, as_json=as_json)
    elif action is Action.PURGE:
        if older_than is None:
            fail(_("purge needs --older-than, like --older-than 30d"))
        actions.purge(url, actions.duration(older_than), as_json=as_json)
    elif action is Action.SUMMARY:
        actions.summary(url, as_json=as_json)
    elif action is Action.UPGRADE:
        actions.upgrade(url, as_json=as_json)
    else:
        actions.list_unknown(url, as_json=as_json)
