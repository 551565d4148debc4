"""A page of another site, open in the same browser, can neither read nor change the sandbox."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar

import pytest

from ihuyi_voice.sandbox import Chaos
from tests.inbox.inbox import ARGUMENTS
from tests.inbox.needs import CHROMIUM, Error, expect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.inbox.inbox import Inbox


class OtherPage(BaseHTTPRequestHandler):
    body: ClassVar[bytes] = b"<!doctype html><title>another site</title>"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def another_site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), OtherPage) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


SEND = """async ([url, method, mode, body]) => {
  try { await fetch(url, {method, mode, body}); return "sent"; } catch { return "refused"; }
}"""


def test_another_site_changes_nothing(inbox: Inbox) -> None:
    inbox.call()
    before = inbox.gateway.history
    # A page outside the fixture: what it requests and logs is not checked.
    page = inbox.page.context.new_page()
    with another_site() as site:
        page.goto(f"http://{site}/")
        for method, name, body in (
            ("DELETE", "attempts", None),
            ("PUT", "chaos", '{"garbage": 1}'),
            ("PATCH", "settings", '{"balance": 0}'),
            ("POST", "reset", None),
        ):
            target = f"{inbox.url}/_sandbox/{name}"
            assert "refused" == page.evaluate(SEND, [target, method, "cors", body])
        # The browser sends this one without asking first, and the sandbox refuses it.
        assert "refused" == page.evaluate(SEND, [target, "POST", "no-cors", None])
        page.close()
    assert (before, 999) == (inbox.gateway.history, inbox.gateway.balance)
    assert Chaos() == inbox.gateway.chaos


def test_another_site_reads_nothing(inbox: Inbox) -> None:
    inbox.call()
    page = inbox.page.context.new_page()
    with another_site() as site:
        page.goto(f"http://{site}/")
        for name in ("attempts", "calls", "settings", "events", "attempts/1"):
            with pytest.raises(Error, match="Failed to fetch"):
                page.evaluate("url => fetch(url)", f"{inbox.url}/_sandbox/{name}")
        page.close()


def test_dns_rebinding_opens_nothing(inbox: Inbox) -> None:
    """The browser resolves the other site's name to loopback."""
    port = inbox.url.rpartition(":")[2]
    browser = inbox.page.context.browser
    assert browser is not None
    launched = browser.browser_type.launch(
        executable_path=CHROMIUM,
        args=[*ARGUMENTS, "--host-resolver-rules=MAP evil.example 127.0.0.1"],
    )
    page = launched.new_page()
    answer = page.goto(f"http://evil.example:{port}/")
    assert answer is not None
    assert 403 == answer.status
    assert 403 == page.evaluate("fetch('/_sandbox/attempts').then(answer => answer.status)")
    launched.close()


def test_another_site_cannot_frame_the_page(inbox: Inbox) -> None:
    page = inbox.page.context.new_page()
    with another_site() as site:
        page.goto(f"http://{site}/")
        page.evaluate(
            "url => { const frame = document.createElement('iframe'); frame.src = url;"
            " document.body.append(frame); return new Promise(done => frame.onload = done); }",
            inbox.url,
        )
        (frame,) = page.frames[1:]
        assert 0 == frame.locator("#attempts").count()
        page.close()


TRICKS = (
    (
        "const one = document.createElement('script'); one.text = 'window.ran = 1';"
        " document.body.append(one)"
    ),
    "document.body.innerHTML = '<img src=x onerror=\"window.ran=1\">'",
    "document.body.insertAdjacentHTML('beforeend', '<script>window.ran=1</script>')",
    "fetch('http://localhost:9/')",
    "new Function('window.ran = 1')()",
)


def test_the_policy_blocks_injected_html_and_scripts(inbox: Inbox) -> None:
    inbox.page.evaluate(
        "() => { window.broken = 0;"
        " addEventListener('securitypolicyviolation', () => { broken += 1; }); }"
    )
    for trick in TRICKS:
        inbox.page.evaluate("() => { broken = 0; }")
        # From a timer: the policy does not apply to what Playwright evaluates itself.
        inbox.page.evaluate(f"() => {{ setTimeout(() => {{ {trick} }}); }}")
        inbox.page.wait_for_function("() => broken > 0")
    assert inbox.page.evaluate("window.ran === undefined")
    expect(inbox.page.locator("#connection")).to_have_text("Live")
    assert inbox.said
    inbox.said.clear()
