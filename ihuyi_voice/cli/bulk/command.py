"""`ihuyi-voice bulk`: a call for each row of a file. Real phones ring."""

from __future__ import annotations

import math

from ...models import DEFAULT_BASE_URL
from ..account import Account, ApiId, ApiKeyFile, AsJson, BaseUrl, Timeout, fail
from ..chosen_store import NONE, Chosen
from ..language import gettext as _
from ..language import mark
from . import options  # noqa: TC001 - typer reads the annotations

HELP = mark(
    "Place [bold]a call for each row[/bold] of a file. Real phones ring.\n\n"
    "The command checks the whole file, prints what it found, and asks before it sends. Run it"
    " again after a crash: it sends only the rows that never reached the gateway or were refused."
    " It knows a row by its idempotency_key, or else by its number, its code and the job, which is"
    " the file's name unless --job says otherwise. With --store none, it knows no row and every"
    " phone rings again.\n\n"
    "The first Ctrl-C, SIGTERM or SIGHUP starts no more requests and finishes those in flight; a"
    " second one stops at once. The exit status is then that of the outcomes: 3 or 6."
)


def bulk(  # noqa: PLR0913 - one argument per option
    file: options.File,
    *,
    mobile_column: options.MobileColumn = None,
    content_column: options.ContentColumn = None,
    key_column: options.KeyColumn = None,
    encoding: options.Encoding = None,
    draw_codes: options.DrawCodes = False,
    allow_mixed_lengths: options.AllowMixedLengths = False,
    partial: options.Partial = False,
    concurrency: options.Concurrency = 50,
    rate: options.Rate = None,
    out: options.Out = None,
    show_codes: options.ShowCodes = False,
    dry_run: options.DryRun = False,
    limit: options.Limit = None,
    wait_for_quota: options.WaitForQuota = False,
    store: Chosen = None,
    job: options.Job = None,
    celery: options.CeleryApp = None,
    yes: options.Yes = False,
    api_id: ApiId = None,
    api_key_file: ApiKeyFile = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    timeout: Timeout = 15.0,
    as_json: AsJson = False,
) -> None:
    """Check the file, ask, send, and print the outcomes; see `HELP`."""
    if rate is not None and not math.isfinite(rate):
        fail(_("nothing was sent: --rate must be a finite number of starts per second"))
    if draw_codes and out is None and not dry_run:
        fail(_("nothing was sent: --draw-codes needs --out, the only place that gets the codes"))
    if job is not None and not (job.strip() and job.isprintable()):
        fail(_("nothing was sent: --job needs a name of printable characters"))
    if celery is not None and (out is not None or draw_codes or wait_for_quota or key_column):
        fail(
            _(
                "nothing was sent: --celery takes no --out, --draw-codes, --wait-for-quota and"
                " --key-column"
            )
        )
    # Imported here, because `--help` must not load the client.
    from .columns import ColumnOptions  # noqa: PLC0415 - see above
    from .consent import Consent  # noqa: PLC0415 - see above
    from .progress import SendOptions  # noqa: PLC0415 - see above
    from .sending import Reading, run  # noqa: PLC0415 - see above

    run(
        file,
        ColumnOptions(mobile_column, content_column, key_column),
        Reading(limit, encoding, draw_codes=draw_codes),
        celery=celery,
        job=job,
        store=store,
        out=out,
        show_codes=show_codes or draw_codes,
        dry_run=dry_run,
        consent=Consent(yes=yes, mixed_lengths=allow_mixed_lengths, partial=partial),
        account=Account(api_id, api_key_file, base_url, timeout),
        sending=SendOptions(concurrency, rate, wait_for_quota, with_keys=store != NONE),
        as_json=as_json,
    )
