"""The options of `ihuyi-voice bulk`, in the form that typer reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..language import mark

File = Annotated[
    str,
    typer.Argument(
        help=mark(
            "CSV (comma, semicolon, tab or |), JSON lines or a JSON array; - for standard"
            " input. Columns are found by their names: mobile, phone, tel, 手机号; content, code,"
            " otp, pin, 验证码; and optionally idempotency_key. Without a header: exactly two"
            " columns, number and code. Text in UTF-8, or UTF-16 with a byte order mark."
        )
    ),
]
MobileColumn = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help=mark(
            "The column of the numbers, by its name or its position from 1 (in JSON objects only"
            " by its name)."
        ),
        show_default=False,
    ),
]
ContentColumn = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help=mark("The column of the codes to read out, by its name or its position."),
        show_default=False,
    ),
]
KeyColumn = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help=mark(
            "The column of the idempotency keys, given in the same way. Keys are stored and"
            " written unchanged, and a key is known in every job, whatever --job says."
        ),
        show_default=False,
    ),
]
Encoding = Annotated[
    str | None,
    typer.Option(
        help=mark("The file's encoding, such as gbk for plain CSV of a Chinese Excel."),
        show_default="utf-8",
    ),
]
DrawCodes = Annotated[
    bool,
    typer.Option(
        "--draw-codes",
        help=mark(
            "Draw a code for each row without one; without this option such a row is bad. Needs"
            " --out, and writes the codes into it as --show-codes does."
        ),
    ),
]
AllowMixedLengths = Annotated[
    bool,
    typer.Option(
        "--allow-mixed-lengths",
        help=mark(
            "Send even if the file's codes differ in length. They do when a spreadsheet drops"
            " leading zeros."
        ),
    ),
]
Partial = Annotated[
    bool,
    typer.Option(
        "--partial",
        help=mark(
            "Send even if the balance is smaller than the number of rows: the run stops when"
            " the balance is used up."
        ),
    ),
]
Concurrency = Annotated[
    int, typer.Option(min=1, help=mark("How many requests may be in flight at once."))
]
Rate = Annotated[
    float | None,
    typer.Option(min=0.001, help=mark("Starts per second at most."), show_default=False),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help=mark(
            "A new file for the outcomes, one line for each row when it finishes: JSON lines if"
            " its name ends in .jsonl, else CSV."
        ),
        show_default=False,
    ),
]
ShowCodes = Annotated[
    bool, typer.Option("--show-codes", help=mark("Write the codes into the --out file too."))
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help=mark("Check every row and send none. No account needed."))
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help=mark("Read only the first rows, this many."), show_default=False),
]
WaitForQuota = Annotated[
    bool,
    typer.Option(
        "--wait-for-quota",
        help=mark(
            "Delay a row whose number was called twice within a minute, instead of skipping the"
            " row as limited."
        ),
    ),
]
Job = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=mark(
            "The job that the rows belong to. A row whose number and code were called in this"
            " job is not called again; equal rows are separate calls. A new name calls all rows."
        ),
        show_default=mark("the file's name"),
    ),
]
CeleryApp = Annotated[
    str | None,
    typer.Option(
        "--celery",
        metavar="MODULE:NAME",
        help=mark(
            "Let Celery workers send: enqueue the good rows as the job --job, and return. The name"
            " of a Celery application that has a BulkJobs, or of the BulkJobs. The broker then"
            " holds the numbers and codes until they are sent. See [bold]ihuyi-voice job[/bold]."
        ),
        show_default=False,
    ),
]
Yes = Annotated[
    bool,
    typer.Option(
        "--yes",
        "-y",
        help=mark(
            "Do not ask before sending. Codes of different lengths and a balance that is too"
            " small need their own options."
        ),
    ),
]
