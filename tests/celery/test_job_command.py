"""The commands: `bulk --celery` enqueues a file, `job` looks at it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from ihuyi_voice.cli.app import app

from .site import row

if TYPE_CHECKING:
    from .site import Site

APP = "tests.celery.bulk:app"


def command(site: Site, *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "ihuyi_voice", *arguments],
        env=site.environment,
        cwd=site.folder,
        capture_output=True,
        check=False,
        text=True,
        timeout=100,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def file(site: Site) -> str:
    text = "".join(f"{mobile},{code}\n" for mobile, code in map(row, range(20)))
    path = site.folder / "rows.csv"
    path.write_text(f"mobile,content\n{text}139,12\n", encoding="utf-8")
    return str(path)


def bulk(site: Site, file: str, *more: str) -> tuple[int, str, str]:
    return command(site, "bulk", file, "--celery", APP, "--job", "spring", "--yes", *more)


@pytest.mark.measures_processes
def test_a_file_from_bulk_to_its_end(site: Site, file: str) -> None:
    status, _, err = bulk(site, file)
    assert 0 == status, err
    assert "job 'spring': 20 rows enqueued" in err
    status, out, err = command(site, "job", "spring", "--celery", APP)
    assert (0, "") == (status, err)
    assert "spring: scheduled" in out
    site.worker()
    status, out, err = command(
        site, "job", "spring", "status", "--follow", "--json", "--celery", APP
    )
    assert 0 == status, err
    report = json.loads(out)
    assert ("completed", 20, 0) == (
        report["state"],
        report["counts"]["accepted"],
        report["pending"],
    )
    assert "completed  accepted 20" in err
    status, _, err = bulk(site, file)
    assert 2 == status
    assert "there is a job 'spring' already" in err


def test_cancel_and_resume(site: Site, file: str) -> None:
    bulk(site, file)
    status, out, err = command(site, "job", "spring", "cancel", "--celery", f"{APP[:-3]}jobs")
    assert (0, True) == (status, "spring: canceled" in out)
    assert (
        "ihuyi-voice: no worker takes more rows; rows that workers already took may still ring a"
        " phone\n"
    ) == err
    assert 3 == command(site, "job", "spring", "--celery", APP)[0]
    asked = command(site, "job", "spring", "resume", file, "--celery", APP)
    assert (2, True) == (asked[0], "give --yes to send" in asked[2])
    status, out, err = command(site, "job", "spring", "resume", file, "--celery", APP, "--yes")
    assert 0 == status, err
    site.worker()
    status, out, _ = command(site, "job", "spring", "status", "--follow", "--celery", APP)
    assert (0, 20) == (status, site.gateway.placed)
    # What has ended is left as it is.
    status, out, err = command(site, "job", "spring", "cancel", "--celery", APP)
    assert (0, "", True) == (status, err, "spring: completed" in out)


@pytest.mark.measures_processes
def test_a_job_that_the_account_stops(site: Site, file: str) -> None:
    site.gateway.balance = 0
    bulk(site, file, "--partial")
    site.worker()
    status, out, _ = command(site, "job", "spring", "status", "--follow", "--celery", APP)
    assert 3 == status
    assert "stopped by InsufficientBalanceError" in out


APPLICATION = """
from celery import Celery
from ihuyi_voice.celery import BulkJobs
app = Celery("bulk", broker="memory://")
jobs = BulkJobs(app, store="calls.db")
several = Celery("several", broker="memory://")
BulkJobs(several, store="calls.db")
BulkJobs(several, store="calls.db", name="other")
"""
OF_SHOP = ["--celery", "shop_of_jobs:app"]


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("the store has no job 'spring'", ["job", "spring", *OF_SHOP]),
        ("resume needs the job's file", ["job", "spring", "resume", *OF_SHOP]),
        ("No module named 'nothing'", ["job", "spring", "--celery", "nothing:app"]),
        ("is no Celery application with a BulkJobs", ["job", "x", "--celery", "sys:path"]),
        ("has no attribute", ["job", "x", "--celery", "sys:nothing"]),
        ("several BulkJobs", ["job", "x", "--celery", "shop_of_jobs:several"]),
        ("cannot read", ["job", "x", "resume", "nothing.csv", *OF_SHOP]),
        ("--celery takes no --out", ["bulk", "rows.csv", *OF_SHOP, "--out", "x.csv"]),
        ("keys of its own", ["bulk", "keys.csv", *OF_SHOP, "--yes"]),
    ],
)
def test_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # The command adds the working directory.
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "shop_of_jobs", raising=False)
    for name in ("ID", "KEY"):
        monkeypatch.setenv(f"IHUYI_VOICE_API_{name}", "sandbox")
    Path("shop_of_jobs.py").write_text(APPLICATION)
    Path("keys.csv").write_text("mobile,content,idempotency_key\n13912345678,1125,a\n")
    result = CliRunner().invoke(app, arguments)
    assert 2 == result.exit_code, result.stderr
    assert words in result.stderr.replace("\n", " ")
