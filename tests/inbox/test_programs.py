"""The programs that the page offers for a first call place it."""

from __future__ import annotations

import os
import subprocess
import sys
from shutil import which
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice.sandbox import SandboxGateway
from tests.inbox.inbox import Inbox
from tests.inbox.needs import expect

if TYPE_CHECKING:
    from pathlib import Path

    from tests.inbox.needs import Page

RUNS = {
    "curl": ("sh", "first.sh", ("sh",)),
    "PHP": ("php", "first.php", ("php",)),
    "Java": ("java", "FirstCall.java", ("java", "-XX:TieredStopAtLevel=1")),
    "Node": ("node", "first.js", ("node",)),
    "Python": (sys.executable, "first.py", (sys.executable,)),
}


def needed(program: str) -> None:
    for name in (program, *(["curl"] if program == "sh" else [])):
        if which(name) is None:  # pragma: no cover - installed where coverage is measured
            if os.environ.get("CI"):
                pytest.fail(f"not installed: {name}", pytrace=False)
            pytest.skip(f"not installed: {name}")


def program(inbox: Inbox, name: str) -> str:
    inbox.page.get_by_role("group", name="Or from a program").get_by_role(
        "button", name=name, exact=True
    ).click()
    expect(inbox.page.get_by_role("button", name=name, exact=True)).to_have_attribute(
        "aria-pressed", "true"
    )
    text = inbox.page.locator("#program").text_content()
    assert text is not None
    return text


@pytest.mark.parametrize("name", RUNS)
def test_a_program_of_the_page_places_the_first_call(
    inbox: Inbox, tmp_path: Path, name: str
) -> None:
    interpreter, file, command = RUNS[name]
    needed(interpreter)
    (tmp_path / file).write_text(program(inbox, name), "utf-8")
    done = subprocess.run(
        [*command, file], cwd=tmp_path, check=True, timeout=120, capture_output=True, text=True
    )
    (call,) = inbox.gateway.calls
    assert ("13912345678", "1125") == (call.mobile, call.content)
    assert call.voice_id in done.stdout


ODD = 'it\'s "a" $b\\n & `c` 中'


@pytest.mark.parametrize("name", RUNS)
def test_an_account_with_quotes_is_written_correctly(page: Page, tmp_path: Path, name: str) -> None:
    interpreter, file, command = RUNS[name]
    needed(interpreter)
    gateway = SandboxGateway(api_id=ODD)
    with gateway.serve_in_thread() as url:
        inbox = Inbox(gateway, page, url)
        inbox.open()
        (tmp_path / file).write_text(program(inbox, name), "utf-8")
        # Java's own encoding of sources and output would be the machine's.
        environment = os.environ | {"JAVA_TOOL_OPTIONS": "-Dfile.encoding=UTF-8"}
        subprocess.run(
            [*command, file],
            cwd=tmp_path,
            check=True,
            timeout=120,
            capture_output=True,
            env=environment,
        )
        assert [2] == [attempt.code for attempt in gateway.attempts]
        page.close()
