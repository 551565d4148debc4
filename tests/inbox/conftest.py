"""One browser for all, and for each test a gateway and a page that is held to its promises."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from ihuyi_voice.sandbox import SandboxGateway
from tests.inbox.inbox import ARGUMENTS, Inbox

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.inbox.needs import BrowserContext, Page


# Of the package and not of the session: while it lives, a loop runs in this
# thread, which asynchronous tests elsewhere could not bear.
@pytest.fixture(scope="package")
def context() -> Iterator[BrowserContext]:
    from tests.inbox.needs import CHROMIUM, sync_playwright  # noqa: PLC0415 - may be missing

    with sync_playwright() as playwright, SandboxGateway().serve_in_thread() as url:
        # One renderer for every page, kept by one that stays: a fresh one takes
        # longer to start than most tests to run.
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
    """The page, opened; afterwards it must not have complained, nor asked any other host."""
    with gateway.serve_in_thread() as url:
        inbox = Inbox(gateway, page, url)
        page.on("console", lambda said: inbox.said.append(said.text))
        page.on("pageerror", lambda error: inbox.said.append(str(error)))
        page.on("request", lambda request: inbox.asked.add(urlsplit(request.url).netloc))
        inbox.open()
        yield inbox
        # Gone before the server, so that nobody complains of a lost connection.
        page.close()
    assert [] == inbox.said
    assert {urlsplit(url).netloc} == inbox.asked
