"""`ihuyi-voice` and `python -m ihuyi_voice`: the way into the command line.

Apart from `cli/app.py`, so that a missing extra is one clear line.
"""

import sys

from ._extras import INSTALL
from .cli.language import gettext as _
from .cli.language import use_locale
from .cli.output import guard_streams, report_loss


def main() -> None:
    """Run the command line, or say what it needs."""
    guard_streams()
    use_locale()
    try:
        from .cli.app import app  # noqa: PLC0415 - typer and rich are an extra
        from .cli.signals import Interruptions  # noqa: PLC0415 - only the command needs it
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "platformdirs"):
            raise
        text = _("the command line needs an extra: {install}")
        sys.exit(text.format(install=_(INSTALL).format(extra="cli")))
    Interruptions.process_ends = True
    try:
        app(prog_name="ihuyi-voice")
    finally:
        report_loss()


if __name__ == "__main__":
    main()
