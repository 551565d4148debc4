"""One browser for all tests, and for each test a gateway and its page."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from ihuyi_voice.sandbox import SandboxGateway
from tests.inbox.inbox import ARGUMENTS, Inbox

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.inbox.needs import BrowserContext, Page


# For the package, not the session: while it lives, a loop runs in this thread,
# and asynchronous tests elsewhere would fail.
@pytest.fixture(scope="package")
def context() -> Iterator[BrowserContext]:
    from tests.inbox.needs import CHROMIUM, sync_playwright  # noqa: PLC0415 - may be missing

    with sync_playwright() as playwright, SandboxGateway().serve_in_thread() as url:
        # One page stays open, so that all pages share its renderer: starting one
        # takes longer than most tests.
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*ARGUMENTS, "--process-per-site"]
        )
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.set_default_timeout(5000)
        context.new_page().goto(f"{url}/_sandbox/page/icon.svg")
        yield context
        browser.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    page = context.new_page()
    yield page
    page.close()


@pytest.fixture
def gateway() -> SandboxGateway:
    return SandboxGateway()


@pytest.fixture
def inbox(gateway: SandboxGateway, page: Page) -> Iterator[Inbox]:
    """The open page. After the test it must have logged nothing and asked no other host."""
    with gateway.serve_in_thread() as url:
        inbox = Inbox(gateway, page, url)
        page.on("console", lambda said: inbox.said.append(said.text))
        page.on("pageerror", lambda error: inbox.said.append(str(error)))
        page.on("request", lambda request: inbox.asked.add(urlsplit(request.url).netloc))
        inbox.open()
        yield inbox
        # Closed before the server, so that the page logs no lost connection.
        page.close()
    assert [] == inbox.said
    assert {urlsplit(url).netloc} == inbox.asked
