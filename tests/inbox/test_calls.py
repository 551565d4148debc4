"""The list of calls and their details."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from urllib.error import HTTPError

import pytest

from ihuyi_voice.errors import CODES
from ihuyi_voice.sandbox import Chaos, SandboxGateway
from tests.inbox.inbox import Inbox
from tests.inbox.needs import Page, expect
from tests.sandbox.forms import MOBILE

# The answers on single attempts wait in `held` until the test releases them.
HOLD = """
() => {
  window.held = [];
  const real = window.fetch;
  window.fetch = async (...asked) => {
    const answer = await real(...asked);
    if (asked[0].includes("/attempts/")) await new Promise(go => held.push(go));
    return answer;
  };
}
"""
LET_GO = "async n => { held[n](); await new Promise(done => setTimeout(done, 50)); }"
REFRESH = "async () => (await import('/_sandbox/page/details.js')).refreshDetails([{number: 1}])"

HOSTILE = '<img src=x onerror="window.ran=1"><script>window.ran=1</script>'


def environment(inbox: Inbox) -> dict[str, str]:
    """The environment that the page offers to copy."""
    shown = inbox.page.locator("#environment").text_content()
    assert shown is not None
    lines = shown.split("\n")
    return dict(line.removeprefix("export ").split("=", 1) for line in lines)


def test_a_call_of_another_process_appears_within_a_second(inbox: Inbox) -> None:
    variables = environment(inbox)
    assert {"IHUYI_VOICE_BASE_URL", "IHUYI_VOICE_API_ID", "IHUYI_VOICE_API_KEY"} == variables.keys()
    program = f"""
from ihuyi_voice import VoiceClient
with VoiceClient.from_env() as client:
    client.submit({MOBILE!r}, "1125")
"""
    # The variables that the page shows are enough.
    subprocess.run(
        [sys.executable, "-c", program], env=os.environ | variables, check=True, timeout=60
    )
    expect(inbox.rows).to_have_count(1, timeout=1000)
    row = inbox.rows.first
    expect(row.locator(".code")).to_have_text("1125")
    expect(row.locator(".number")).to_have_text(MOBILE)
    expect(row).to_contain_text("Placed")
    expect(row).to_contain_text("2 提交成功 (submit succeeded)")
    expect(row).to_contain_text("voice id 100000001")
    expect(row.locator("time")).to_have_text(re.compile(r"^\d\d:\d\d:\d\d$"))


def test_an_api_key_other_than_the_default_is_not_shown(page: Page) -> None:
    gateway = SandboxGateway(api_key="a-real-key-perhaps")
    with gateway.serve_in_thread() as url:
        inbox = Inbox(gateway, page, url)
        inbox.open()
        inbox.call_unseen("a-real-key-perhaps", "a-real-key-perhaps")
        inbox.settle()
        assert "a-real-key" not in inbox.page.content()
        inbox.page.close()


def test_the_newest_is_first_and_a_refusal_says_why(inbox: Inbox) -> None:
    inbox.call(content="1111")
    inbox.call(content="22")
    inbox.call(content="3333")
    expect(inbox.rows.locator(".code")).to_have_text(["3333", "22", "1111"])
    refused = inbox.rows.nth(1)
    expect(refused).to_contain_text("Refused")
    expect(refused).to_contain_text("4070 语音验证码内容必须为4-6位数字")
    expect(refused.locator(".reason")).to_have_text(CODES[4070].meaning)
    expect(refused.get_by_role("button")).to_have_text(["Details"])


def test_the_search_finds_a_number_however_it_is_typed(inbox: Inbox) -> None:
    inbox.call("13812345678", "1111")
    inbox.call("13911112222", "2222")
    inbox.settle()
    search = inbox.page.get_by_role("searchbox", name="Search by number, code or voice id")
    for typed in ("13812345678", "+86 138-1234-5678", "5678", "138"):
        search.fill(typed)
        expect(inbox.rows.locator(".code")).to_have_text(["1111"])
        expect(inbox.page.locator("#count")).to_have_text("1 match among 2 calls")
        search.fill("")
        expect(inbox.rows).to_have_count(2)
    search.fill("999")
    expect(
        inbox.page.get_by_text("No call to such a number, and no such code or voice id")
    ).to_be_visible()


def test_a_search_stays_while_calls_come_in(inbox: Inbox) -> None:
    inbox.page.get_by_role("searchbox").fill("138")
    for n in range(3):
        inbox.call("13812345678", f"{n}" * 4)
        inbox.call("13911112222", f"{n}" * 4)
    expect(inbox.rows.locator(".code")).to_have_text(["2222", "1111", "0000"])


def test_the_details_show_the_form_and_the_answer_but_no_password(inbox: Inbox) -> None:
    answer = inbox.call(format="json", password="sandbox-key", rd="1").decode()
    inbox.page.get_by_role("button", name=f"Details of the call to {MOBILE}").click()
    expect(inbox.details).to_be_visible()
    form = inbox.details.get_by_role("row")
    expect(form.filter(has_text="password")).to_have_text("password********")
    expect(form.filter(has_text="mobile")).to_have_text(f"mobile{MOBILE}")
    expect(form.filter(has_text="rd")).to_have_text(["password********", "rd1"])
    expect(inbox.details.get_by_label("The body of the answer")).to_have_text(answer)
    expect(inbox.details).to_contain_text("127.0.0.1")
    assert "sandbox-key" not in inbox.details.inner_html()


def test_the_details_show_what_chaos_made_of_the_answer(inbox: Inbox) -> None:
    for text, chaos in (
        ("<h1>502 Bad Gateway</h1>", Chaos(html_502=1)),
        ("Nothing was sent", Chaos(close_after_placing=1)),
        ("Chaosa code set by chaos", Chaos(code=4085)),
    ):
        inbox.gateway.chaos = chaos
        try:
            inbox.call()
        except HTTPError as error:
            # It holds the connection.
            error.close()
        except ConnectionError:
            pass
        inbox.settle()
        inbox.rows.first.click()
        expect(inbox.details).to_contain_text(text)
        inbox.page.keyboard.press("Escape")


def test_the_details_opened_last_are_shown_even_if_earlier_ones_load_later(inbox: Inbox) -> None:
    inbox.call(content="1111")
    inbox.call(content="2222")
    inbox.settle()
    inbox.page.evaluate(HOLD)
    for content in ("1111", "2222"):
        inbox.rows.filter(has_text=content).click()
    inbox.page.wait_for_function("() => held.length === 2")
    inbox.page.evaluate(LET_GO, 1)
    expect(inbox.details.locator(".code")).to_have_text("2222")
    inbox.page.evaluate(LET_GO, 0)
    expect(inbox.details.locator(".code")).to_have_text("2222")


def test_details_that_were_closed_are_not_opened_by_a_receipt(inbox: Inbox) -> None:
    inbox.call()
    inbox.settle()
    inbox.rows.first.click()
    expect(inbox.details).to_be_visible()
    inbox.page.evaluate(HOLD)
    inbox.page.evaluate(f"void ({REFRESH})()")
    inbox.page.wait_for_function("() => held.length === 1")
    inbox.page.keyboard.press("Escape")
    expect(inbox.details).to_be_hidden()
    inbox.page.evaluate(LET_GO, 0)
    expect(inbox.details).to_be_hidden()


def test_details_that_are_open_say_so_when_their_call_is_forgotten(inbox: Inbox) -> None:
    inbox.call(content="1111")
    inbox.settle()
    inbox.rows.first.click()
    gone = inbox.details.get_by_text("The sandbox no longer remembers this call.")
    expect(gone).to_be_hidden()
    inbox.gateway.reset()
    expect(gone).to_be_visible()
    # Another call gets the same number, and then a receipt: neither belongs to this one.
    inbox.gateway.receipt_delay = inbox.gateway.receipt_interval = 0
    inbox.gateway.receipt_url = f"{inbox.url}/nothing-here"
    inbox.call(content="2222")
    row = inbox.rows.filter(has_text="Placed")
    expect(row.locator(".receipt")).to_have_text("receipt not accepted by your handler")
    expect(inbox.details.locator(".code")).to_have_text("1111")
    expect(gone).to_be_visible()
    inbox.page.keyboard.press("Escape")
    row.click()
    expect(inbox.details.locator(".code")).to_have_text("2222")
    expect(gone).to_be_hidden()


def test_details_do_not_open_if_the_call_was_forgotten_before_they_loaded(inbox: Inbox) -> None:
    inbox.call()
    inbox.settle()
    inbox.page.evaluate(HOLD)
    inbox.rows.first.click()
    inbox.page.wait_for_function("() => held.length === 1")
    inbox.gateway.reset()
    expect(inbox.rows).to_have_count(0)
    inbox.page.evaluate(LET_GO, 0)
    expect(inbox.details).to_be_hidden()


def test_a_form_without_content_type_says_what_is_likely_missing(inbox: Inbox) -> None:
    inbox.gateway.answer("Submit", {}, "127.0.0.1", inbox.gateway.roll())
    inbox.rows.first.click()
    expect(inbox.details).to_contain_text("Was the Content-Type application/x-www-form-urlencoded?")
    expect(inbox.details).to_contain_text("401 帐号不能为空")


def test_hostile_strings_show_as_text(inbox: Inbox) -> None:
    inbox.call(HOSTILE[:40], HOSTILE, **{HOSTILE: HOSTILE})
    expect(inbox.rows.first.locator(".number")).to_have_text(HOSTILE[:40])
    expect(inbox.rows.first.locator(".code")).to_contain_text('<img src=x onerror="window.ran=1">')
    inbox.rows.first.click()
    expect(inbox.details.get_by_role("rowheader", name=HOSTILE)).to_be_visible()
    expect(inbox.details.get_by_role("cell", name=HOSTILE, exact=True).first).to_be_visible()
    assert 0 == inbox.page.locator("#attempts img, #details img, #attempts script").count()
    assert inbox.page.evaluate("window.ran === undefined")


def test_invisible_characters_are_spelt_out(inbox: Inbox) -> None:
    inbox.call("139\u202e4321", "11\u200b25", **{"n\u2066": "a\tb\0\x85\U000e0041 中文 👍"})
    row = inbox.rows.first
    expect(row.locator(".number")).to_have_text(r"139\u202e4321")
    expect(row.locator(".code")).to_have_text(r"11\u200b25")
    expect(inbox.page.locator("#announcer")).to_contain_text(r"139\u202e4321")
    row.get_by_role("button", name=r"Details of the call to 139\u202e4321").click()
    expect(inbox.details.locator("h2")).to_have_text(r"Call to 139\u202e4321")
    expect(inbox.details.get_by_role("row").filter(has_text="中文")).to_have_text(
        r"n\u2066a\u0009b\u0000\u0085\u{e0041} 中文 👍"
    )


REMOTE = {"lang": "zh-CN", "localService": False}
LOCAL = {"lang": "cmn-Hans-CN", "localService": True}


@pytest.mark.parametrize(
    ("voices", "spoken", "why"),
    [
        ([{"lang": "en-US", "localService": True}, REMOTE, LOCAL], True, ""),
        ([REMOTE], False, "not spoken: the Chinese voices here would send it to another company"),
        ([], False, "not spoken: this system has no Chinese voice"),
    ],
)
def test_listen_speaks_the_digits_in_chinese_and_sends_them_to_no_server(
    inbox: Inbox, voices: list[dict[str, object]], why: str, *, spoken: bool
) -> None:
    # A machine without a sound card has no voices: the test records what the page asks for.
    inbox.page.add_init_script(
        f"window.voices = {json.dumps(voices)}; window.asked = [];"
        "window.SpeechSynthesisUtterance = class { constructor(text) { this.text = text; } };"
        "speechSynthesis.getVoices = () => voices;"
        "speechSynthesis.speak = one => asked.push([one.lang, one.text, one.voice.lang]);"
    )
    inbox.open()
    inbox.call(content="1125")
    inbox.page.get_by_role("button", name="Listen to the code 1125").click()
    expect(inbox.page.locator("#toast")).to_contain_text("您的验证码是 1 1 2 5")
    expect(inbox.page.locator("#toast")).to_contain_text(why)
    asked = [["zh-CN", "您的验证码是 1 1 2 5", "cmn-Hans-CN"]] if spoken else []
    assert asked == inbox.page.evaluate("asked")
    expect(inbox.details).to_be_hidden()


def test_listen_waits_for_voices_that_load_late(inbox: Inbox) -> None:
    inbox.page.add_init_script(
        "window.voices = []; window.looked = 0; window.asked = [];"
        "window.SpeechSynthesisUtterance = class { constructor(text) { this.text = text; } };"
        "speechSynthesis.getVoices = () => { looked += 1; return [...voices]; };"
        "speechSynthesis.speak = one => asked.push(one.text);"
    )
    inbox.open()
    # Some browsers load their voices on the first request for them.
    assert 1 == inbox.page.evaluate("looked")
    inbox.call(content="1125")
    inbox.settle()
    # Spoken in the next turn of the loop, not only after the page has stopped waiting.
    asked = inbox.page.evaluate(
        "async voice => { document.querySelector('.listen').click(); voices.push(voice);"
        " speechSynthesis.dispatchEvent(new Event('voiceschanged'));"
        " await new Promise(done => setTimeout(done)); return asked; }",
        LOCAL,
    )
    assert ["您的验证码是 1 1 2 5"] == asked
    expect(inbox.page.locator("#toast")).to_have_text("您的验证码是 1 1 2 5")


@pytest.mark.parametrize("how", ["mouse", "keyboard"])
def test_the_details_button_works_while_text_is_selected(inbox: Inbox, how: str) -> None:
    inbox.call(content="1111")
    inbox.call(content="2222")
    inbox.settle()
    inbox.rows.last.locator(".code").select_text()
    button = inbox.rows.first.get_by_role("button", name="Details")
    if how == "mouse":
        button.click()
    else:
        button.press("Enter")
    expect(inbox.details).to_contain_text("2222")


def test_a_click_that_selects_text_in_a_row_does_not_open_it(inbox: Inbox) -> None:
    asked: list[str] = []
    inbox.call(content="1111")
    inbox.settle()
    inbox.page.on("request", lambda request: asked.append(request.url))
    number = inbox.rows.first.locator(".number")
    box = number.bounding_box()
    assert box is not None
    mouse, middle = inbox.page.mouse, box["y"] + box["height"] / 2
    mouse.move(box["x"] + 2, middle)
    mouse.down()
    mouse.move(box["x"] + box["width"] / 2, middle)
    mouse.up()
    assert "139" in inbox.page.evaluate("getSelection().toString()")
    assert [] == asked
    # Without a selection it opens.
    inbox.page.evaluate("getSelection().removeAllRanges()")
    number.click()
    expect(inbox.details).to_be_visible()


def test_a_number_is_found_however_it_was_sent_and_is_typed(inbox: Inbox) -> None:
    for mobile in ("13912345678", "139 1234 5678", "+86 139-1234-5678", "8613912345678"):
        inbox.call(mobile)
    inbox.call("13812345678")
    inbox.settle()
    search, count = inbox.page.get_by_role("searchbox"), inbox.page.locator("#count")
    for typed in ("13912345678", "139 1234 5678", "8613912345678", "+86139"):
        search.fill(typed)
        expect(count).to_have_text("4 matches among 5 calls")
        search.fill("")
        expect(count).to_have_text("5")


def test_a_prefix_that_may_be_the_middle_of_a_number_is_searched_as_typed(inbox: Inbox) -> None:
    inbox.call("13900861234", "1111")
    inbox.call("13912345678", "2222")
    inbox.settle()
    for typed in ("0086", "86"):
        inbox.page.get_by_role("searchbox").fill(typed)
        expect(inbox.rows.locator(".code")).to_have_text(["1111"])


def test_a_list_paused_while_empty_shows_how_many_calls_wait(inbox: Inbox) -> None:
    inbox.page.get_by_role("button", name="Pause").click()
    inbox.call()
    paused = inbox.page.locator("#paused")
    expect(paused.get_by_text("1 call waits until you resume.")).to_be_visible()
    # Also while a search is entered: there is nothing to search yet.
    inbox.page.get_by_role("searchbox").fill("138")
    inbox.call()
    expect(paused.get_by_text("2 calls wait until you resume.")).to_be_visible()
    expect(inbox.page.locator("#no-match")).to_be_hidden()
    expect(inbox.page.locator("#empty")).to_be_hidden()
    inbox.page.get_by_role("button", name="Resume · 2 new").click()
    expect(paused).to_be_hidden()
    expect(inbox.page.locator("#no-match-text")).to_have_text(
        "Searched 2 calls, the refused ones too."
    )


def test_a_search_while_paused_says_how_many_calls_it_skips(inbox: Inbox) -> None:
    inbox.call()
    inbox.settle()
    inbox.page.get_by_role("button", name="Pause").click()
    inbox.call()
    inbox.page.get_by_role("searchbox").fill("138")
    expect(inbox.page.locator("#no-match-text")).to_have_text(
        "Searched 1 call, the refused ones too. 1 call waits until you resume."
    )


def test_clear_asks_first_and_leaves_the_settings(inbox: Inbox) -> None:
    inbox.gateway.balance = 5
    inbox.call()
    inbox.page.get_by_role("button", name="Clear").click()
    confirm = inbox.page.get_by_role("dialog", name="Clear the inbox?")
    expect(confirm).to_contain_text("1 call will be forgotten")
    confirm.get_by_role("button", name="Keep").click()
    assert 1 == len(inbox.gateway.attempts)
    inbox.page.get_by_role("button", name="Clear").click()
    confirm.get_by_role("button", name="Clear").click()
    expect(inbox.page.get_by_text("No calls yet")).to_be_visible()
    assert ([], [], 4) == (inbox.gateway.attempts, inbox.gateway.calls, inbox.gateway.balance)
    inbox.call(content="7777")
    expect(inbox.rows.locator(".code")).to_have_text(["7777"])


def test_pause_holds_the_list_and_resume_shows_the_rest(inbox: Inbox) -> None:
    inbox.call(content="1111")
    inbox.settle()
    inbox.page.get_by_role("button", name="Pause").click()
    inbox.call(content="2222")
    inbox.call(content="3333")
    resume = inbox.page.get_by_role("button", name="Resume · 2 new")
    # The name shows the state; with aria-pressed it would be read as resumed.
    assert None is resume.get_attribute("aria-pressed")
    expect(inbox.rows.locator(".code")).to_have_text(["1111"])
    resume.click()
    expect(inbox.rows.locator(".code")).to_have_text(["3333", "2222", "1111"])
