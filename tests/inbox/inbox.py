"""The page as a test sees it, and calls to appear on it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from ihuyi_voice.wire import CONTENT_TYPE, SUBMIT_TARGET
from tests.sandbox.forms import CONTENT, MOBILE, submit_form

if TYPE_CHECKING:
    from ihuyi_voice.sandbox import SandboxGateway
    from tests.inbox.needs import Locator, Page

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Inbox:
    """A gateway and the browser's page of it."""

    gateway: SandboxGateway
    page: Page
    url: str
    said: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)

    def open(self) -> None:
        self.page.goto(self.url)
        self.page.locator("#connection.live").wait_for()

    @property
    def rows(self) -> Locator:
        return self.page.get_by_role("list", name="Calls").get_by_role("listitem")

    @property
    def details(self) -> Locator:
        return self.page.locator("dialog#details")

    def settle(self) -> None:
        """Wait until the page has drawn everything that was submitted so far."""
        self.page.wait_for_function(
            "number => document.querySelector('#attempts li')?.dataset.number === String(number)",
            arg=self.gateway.taken,
        )

    def call(self, mobile: str = MOBILE, content: str = CONTENT, **more: str) -> bytes:
        """Submit over HTTP; the body of the answer."""
        return submit(self.url, mobile, content, **more)

    def call_unseen(self, mobile: str = MOBILE, content: str = CONTENT) -> None:
        """Submit without HTTP."""
        form = submit_form(mobile, content, time=int(time.time()))
        self.gateway.answer("Submit", form, "127.0.0.1", self.gateway.roll())


def submit(url: str, mobile: str, content: str, **more: str) -> bytes:
    form = submit_form(mobile, content, time=int(time.time())) | more
    request = Request(url + SUBMIT_TARGET, urlencode(form).encode(), {"Content-Type": CONTENT_TYPE})
    with urlopen(request, timeout=20) as answer:
        body: bytes = answer.read()
    return body
