"""Why a request was refused, the request as it was received, and all the other requests."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest

from ihuyi_voice.sandbox import Chaos
from ihuyi_voice.wire import BALANCE_TARGET, CONTENT_TYPE, SUBMIT_TARGET
from tests.inbox.needs import expect
from tests.sandbox.forms import ACCOUNT, CONTENT, KEY, MOBILE, md5

if TYPE_CHECKING:
    from tests.inbox.inbox import Inbox


def send(inbox: Inbox, target: str, body: str, content_type: str = CONTENT_TYPE) -> None:
    headers = {"Content-Type": content_type, "X-Sum": "0123456789abcdef"}
    request = Request(inbox.url + target, body.encode(), headers)
    try:
        urlopen(request, timeout=20).close()
    except HTTPError as error:
        # It holds the connection.
        error.close()
    except ConnectionError:
        pass


def ask_balance(inbox: Inbox, password: str = KEY) -> None:
    send(inbox, BALANCE_TARGET, urlencode({"account": ACCOUNT, "password": password}))


def test_a_wrong_digest_is_shown_with_the_one_expected_and_what_to_change(inbox: Inbox) -> None:
    now = str(int(time.time()))
    wrong = md5(f"{ACCOUNT}{KEY}{CONTENT}{MOBILE}{now}")
    inbox.call(time=now, password=wrong)
    expect(inbox.rows.first).to_contain_text("405 用户名或密码不正确")
    expect(inbox.rows.first).to_contain_text("The digest has the right parts in the wrong order.")
    inbox.rows.first.click()
    why = inbox.details.locator(".why")
    expect(why).to_contain_text("What to change")
    expect(why).to_contain_text("md5(account + APIKEY + mobile + content + time)")
    expect(why).to_contain_text(wrong)
    expect(why).to_contain_text(md5(f"{ACCOUNT}{KEY}{MOBILE}{CONTENT}{now}"))
    expect(why).to_contain_text(f"{ACCOUNT} + APIKEY + {MOBILE} + {CONTENT} + {now}")
    assert KEY not in inbox.details.inner_html()


def test_a_digest_of_another_key_is_nowhere_on_the_page(inbox: Inbox) -> None:
    # It has the form of a digest, and may be the key of a real account.
    real = "0123456789abcdef0123456789abcdef"
    inbox.call(password=real)
    inbox.rows.first.click()
    expect(inbox.details.locator(".why")).to_contain_text("0123********")
    expect(inbox.details.get_by_role("button", name="Copy: Expected")).to_be_visible()
    expect(inbox.details.get_by_role("button", name="Copy: Received")).to_have_count(0)
    assert real[4:] not in inbox.page.content()
    with urlopen(f"{inbox.url}/_sandbox/attempts", timeout=20) as answer:
        assert real[4:] not in answer.read().decode()


@pytest.mark.parametrize(
    ("said", "fields"),
    [
        ("The account “C1” is unknown here. Known: sandbox.", {"account": "C1"}),
        ("is not the API key of this account", {"password": "another", "time": ""}),
        ("the field time is missing", {"time": ""}),
        ("s behind the sandbox’s clock", {"time": "1000000000"}),
    ],
)
def test_a_405_says_why(inbox: Inbox, said: str, fields: dict[str, str]) -> None:
    if fields.get("time"):
        fields["password"] = md5(f"{ACCOUNT}{KEY}{MOBILE}{CONTENT}{fields['time']}")
    inbox.call(**fields)
    inbox.rows.first.click()
    expect(inbox.details.locator(".why")).to_contain_text(said)


def test_the_request_is_shown_as_it_was_received_without_its_password(inbox: Inbox) -> None:
    body = (
        '--x\r\nContent-Disposition: form-data; name="password"\r\n\r\nsecret-1\r\n'
        '--x\r\nContent-Disposition: form-data; name="password"\r\n\r\nsecret-2\r\n'
        f'--x\r\nContent-Disposition: form-data; name="mobile"\r\n\r\n{MOBILE}\r\n--x--\r\n'
    )
    target = f"{SUBMIT_TARGET}&password=secret%2D3&rd=1"
    send(inbox, target, body, "multipart/form-data; boundary=x")
    inbox.rows.first.click()
    raw = inbox.details.get_by_role("group", name="Request as received")
    expect(raw).to_contain_text(f"POST {SUBMIT_TARGET}&password=********&rd=1")
    expect(raw).to_contain_text("X-Sum: 0123456789abcdef")
    expect(raw).to_contain_text('name="password"')
    expect(raw).to_contain_text(MOBILE)
    assert "secret-" not in inbox.details.inner_html()
    assert "secret%2D3" not in inbox.details.inner_html()


def test_the_other_requests_are_rows_in_the_order_in_which_they_came(inbox: Inbox) -> None:
    inbox.call(content="1111")
    ask_balance(inbox)
    ask_balance(inbox, "wrong")
    inbox.call(content="2222")
    send(inbox, "/voice.php", "account=sandbox&password=secret")
    inbox.gateway.chaos = Chaos(close_before_reading=1)
    send(inbox, SUBMIT_TARGET, "account=sandbox&password=secret")
    expect(inbox.rows.locator(".code, .kind")).to_have_text(
        ["Not read", "Unknown request", "2222", "Balance query", "Balance query", "1111"]
    )
    unread, unknown, _, refused, answered, _ = inbox.rows.all()
    expect(unread).to_contain_text("chaos: closed without reading")
    expect(unknown).to_contain_text("POST /voice.php")
    expect(unknown).to_contain_text("HTTP status 404")
    expect(refused).to_contain_text("is not the API key of this account")
    expect(answered).to_contain_text("Answered")
    refused.click()
    expect(inbox.details.locator("h2")).to_have_text("Balance query")
    expect(inbox.details.locator(".why")).to_contain_text("IHUYI_VOICE_API_KEY")
    inbox.page.keyboard.press("Escape")
    unknown.get_by_role("button", name="Details of the request: Unknown request").click()
    expect(inbox.details).to_contain_text("the gateway answers at /webservice/voice.php")
    expect(inbox.details).to_contain_text("account=sandbox&password=********")
    inbox.page.keyboard.press("Escape")
    unread.click()
    expect(inbox.details).to_contain_text("Nothing was placed.")
    expect(inbox.details).to_contain_text("Nothing was sent")


def test_the_filters_show_one_kind_and_count_each(inbox: Inbox) -> None:
    inbox.call(content="1111")
    inbox.call(content="x")
    ask_balance(inbox)
    inbox.gateway.chaos = Chaos(html_502=1)
    send(inbox, BALANCE_TARGET, "")
    expect(inbox.rows).to_have_count(4)
    expect(inbox.page.locator(".filter")).to_have_text(
        ["All 4", "Placed 1", "Refused 2", "Faults 1", "Other requests 2"]
    )
    for name, count in (("Placed", 1), ("Refused", 2), ("Faults", 1), ("Other", 2), ("All", 4)):
        inbox.page.get_by_role("radio", name=name).check()
        expect(inbox.rows).to_have_count(count)
    inbox.page.get_by_role("radio", name="Placed").check()
    inbox.page.get_by_role("searchbox").fill("999")
    expect(inbox.page.locator("#no-match-title")).to_contain_text("No call to such a number")
    inbox.gateway.clear()
    ask_balance(inbox)
    inbox.page.get_by_role("searchbox").fill("")
    expect(inbox.page.locator("#no-match-title")).to_have_text("Nothing of this kind")


def test_a_code_a_voice_id_an_answer_and_a_path_are_found(inbox: Inbox) -> None:
    inbox.call("13812340000", "7777")
    inbox.call("13912340000", "x")
    send(inbox, "/another", "")
    expect(inbox.rows).to_have_count(3)
    (call,) = inbox.gateway.calls
    search = inbox.page.get_by_role("searchbox")
    for typed, found in (
        ("777", "7777"),
        (call.voice_id, "7777"),
        ("4070", "x"),
        ("/another", "Unknown request"),
    ):
        search.fill(typed)
        expect(inbox.rows.locator(".code, .kind")).to_have_text([found])
    # The ids of a run begin alike: their first digits find no call.
    search.fill(call.voice_id[:5])
    expect(inbox.page.locator("#no-match")).to_be_visible()


COPIED = """() => { window.copied = [];
  Object.defineProperty(navigator, 'clipboard', {configurable: true,
    value: {writeText: async text => { copied.push(text); }}}); }"""


def test_what_a_developer_needs_is_copied(inbox: Inbox) -> None:
    answer = inbox.call(content="7777").decode()
    # A mistake that the sandbox knows: any other digest may be a real key.
    wrong = md5(f"{ACCOUNT}{MOBILE}8888{KEY}1700000000")
    inbox.call(password=wrong, content="8888", time="1700000000")
    inbox.settle()
    inbox.page.evaluate(COPIED)
    inbox.rows.last.click()
    for name in ("Code", "Number", "Voice id", "Answer as sent", "Request as received"):
        inbox.details.get_by_role("button", name=f"Copy: {name}").click()
        expect(inbox.page.locator("#toast")).to_have_text("Copied.")
    (call,) = inbox.gateway.calls
    copied = inbox.page.evaluate("copied")
    assert ["7777", MOBILE, call.voice_id, answer] == copied[:-1]
    assert copied[-1].startswith(f"POST {SUBMIT_TARGET}\n")
    inbox.page.keyboard.press("Escape")
    inbox.rows.first.click()
    inbox.details.get_by_role("button", name="Copy: Received").click()
    inbox.page.wait_for_function("wrong => copied.at(-1) === wrong", arg=wrong)


def test_without_a_clipboard_the_text_is_selected(inbox: Inbox) -> None:
    inbox.call(content="7777")
    inbox.rows.first.click()
    inbox.page.evaluate(
        "Object.defineProperty(navigator, 'clipboard', {configurable: true, value: undefined})"
    )
    inbox.details.get_by_role("button", name="Copy: Code").click()
    expect(inbox.page.locator("#toast")).to_contain_text("Selected")
    assert "7777" == inbox.page.evaluate("getSelection().toString()")


def test_new_rows_are_marked_and_counted_in_the_title(inbox: Inbox) -> None:
    page = inbox.page
    page.clock.install()
    inbox.call(content="1111")
    inbox.open()
    # Nothing is new to a page that was just opened.
    expect(inbox.rows).to_have_count(1)
    expect(page).to_have_title("Sandbox gateway")
    inbox.call(content="2222")
    ask_balance(inbox)
    expect(page).to_have_title("(2) Sandbox gateway")
    marked = page.locator("#attempts li.new")
    expect(marked).to_have_count(2)
    expect(marked.first).to_contain_text("new")
    inbox.rows.first.click()
    expect(page).to_have_title("(1) Sandbox gateway")
    page.keyboard.press("Escape")
    # Once they were looked at for ten seconds, they are no longer new.
    page.clock.run_for(11_000)
    expect(marked).to_have_count(0)
    expect(page).to_have_title("Sandbox gateway")


HIDE = """hidden => {
  Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});
  document.dispatchEvent(new Event('visibilitychange'));
}"""


def test_the_title_of_a_hidden_tab_counts_what_comes(inbox: Inbox) -> None:
    page = inbox.page
    page.clock.install()
    inbox.open()
    # With the clock of the test, nothing is drawn until it goes on.
    page.evaluate(HIDE, arg=True)
    with page.expect_response("**/counts"):
        page.clock.run_for(3600)
    inbox.call(content="1111")
    ask_balance(inbox)
    with page.expect_response("**/counts"):
        page.clock.run_for(3600)
    expect(page).to_have_title("(2) Sandbox gateway")
    page.clock.resume()
    page.evaluate(HIDE, arg=False)
    expect(page.locator("#attempts li.new")).to_have_count(2)
    expect(page).to_have_title("(2) Sandbox gateway")


def test_many_other_requests_push_no_call_off_the_page(inbox: Inbox) -> None:
    inbox.gateway.keep = 3
    inbox.call(content="1111")
    for _ in range(9):
        ask_balance(inbox)
    expect(inbox.page.locator("#count")).to_have_text("4")
    expect(inbox.rows.last.locator(".code")).to_have_text("1111")


def test_other_requests_are_announced(inbox: Inbox) -> None:
    ask_balance(inbox)
    expect(inbox.page.locator("#announcer")).to_have_text("New request: Balance query")
    for _ in range(2):
        ask_balance(inbox)
    send(inbox, "/another", "")
    expect(inbox.page.locator("#announcer")).to_contain_text("Unknown request")
