"""typer's own words, for the catalogue. typer looks them up: no command imports this."""

from __future__ import annotations

from .language import mark

WORDS: tuple[str, ...] = (
    mark("(deprecated) "),
    mark("[default: {}]"),
    mark("[env var: {}]"),
    mark("[required]"),
    mark("Arguments"),
    mark("Options"),
    mark("Commands"),
    mark("Error"),
    mark("Aborted."),
    mark("Try [blue]'{command_path} {help_option}'[/] for help."),
    mark("Missing command."),
    mark("No such command {name!r}."),
    mark("[OPTIONS]"),
    mark("COMMAND [ARGS]..."),
    # Not looked up by every typer that we allow; `commands.py` translates these.
    mark("Show this message and exit."),
    mark("Install completion for the current shell."),
    mark("Show completion for the current shell, to copy it or customize the installation."),
)
