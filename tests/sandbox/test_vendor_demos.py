"""What the vendor's own demos send works unchanged but for the host.

Each test speaks as one demo does, header for header, and reads the answer the
way that demo reads it: a regular expression or an XML parser.
"""

from __future__ import annotations

import http.client
import re
import subprocess
import time
from shutil import which
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit
from xml.dom import minidom

import pytest

from ihuyi_voice.sandbox import SandboxGateway
from ihuyi_voice.wire import BALANCE_TARGET, SUBMIT_TARGET
from tests.sandbox.forms import KEY, MOBILE, balance_form, md5, submit_form, without
from tests.sandbox.http import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator

CURL = which("curl")
needs_curl = pytest.mark.skipif(CURL is None, reason="not installed: apt-get install curl")

URL_ENCODED = "application/x-www-form-urlencoded"


@pytest.fixture
def gateway() -> SandboxGateway:
    return SandboxGateway(balance=20023)


@pytest.fixture
def url(gateway: SandboxGateway) -> Iterator[str]:
    with gateway.serve_in_thread() as url:
        yield url


def now() -> int:
    return int(time.time())


def posted(url: str, form: dict[str, str], headers: dict[str, str]) -> str:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE)
    connection.request("POST", SUBMIT_TARGET, urlencode(form).encode(), headers)
    answer = connection.getresponse().read().decode()
    connection.close()
    return answer


def test_php_posts_through_curl_and_turns_the_xml_into_an_array(url: str) -> None:
    headers = {"Accept": "*/*", "Content-Type": URL_ENCODED}
    answer = posted(url, submit_form(time=now()), headers)
    # Its xml_to_array is this pattern, applied to itself.
    pattern = r"<(\w+)[^>]*>([\x00-\xFF一-\U0010ffff]*)</\1>"
    ((root, inner),) = re.findall(pattern, answer)
    fields = dict(re.findall(r"<(\w+)[^>]*>([^<]*)</\1>", inner))
    assert ("SubmitResult", "2", "提交成功") == (root, fields["code"], fields["msg"])
    assert re.fullmatch(r"[0-9]{9,20}", fields["voiceid"])


def test_java_posts_with_a_charset_and_reads_elements_of_the_root(url: str) -> None:
    headers = {
        "Content-Type": f"{URL_ENCODED};charset=UTF-8",
        "User-Agent": "Jakarta Commons-HttpClient/3.1",
    }
    answer = posted(url, submit_form(time=now()), headers)
    root = minidom.parseString(answer).documentElement  # noqa: S318 - our own
    assert root is not None
    texts = {
        name: root.getElementsByTagName(name)[0].firstChild.data  # type: ignore[union-attr]
        for name in ("code", "msg", "voiceid")
    }
    assert ("2", "提交成功") == (texts["code"], texts["msg"])
    assert 9 <= len(texts["voiceid"])


def test_python_posts_the_key_itself_and_accepts_text_plain(url: str) -> None:
    form = without(submit_form(password=KEY, format="json"), "time")
    answer = posted(url, form, {"Content-type": URL_ENCODED, "Accept": "text/plain"})
    assert re.fullmatch(r'\{"code":2,"msg":"提交成功","voiceid":"[0-9]{9,20}"\}', answer)


def curl(*arguments: str) -> str:
    done = subprocess.run(
        [str(CURL), "--silent", "--show-error", "--noproxy", "*", "--max-time", "20", *arguments],
        capture_output=True,
        check=True,
        timeout=DEADLINE + 5,
    )
    return done.stdout.decode()


@needs_curl
def test_shell_submits_by_get(url: str, gateway: SandboxGateway) -> None:
    query = urlencode(submit_form(time=now(), rd="1"))
    answer = curl(f"{url}{SUBMIT_TARGET}&{query}")
    assert re.search(r"<code>2</code>.*<voiceid>[0-9]{9,20}</voiceid>", answer)
    assert [MOBILE] == [call.mobile for call in gateway.calls]


@needs_curl
def test_shell_submits_by_post(url: str, gateway: SandboxGateway) -> None:
    answer = curl("-d", urlencode(submit_form(time=now(), rd="1")), f"{url}{SUBMIT_TARGET}")
    assert re.search(r"<code>2</code>.*<voiceid>[0-9]{9,20}</voiceid>", answer)
    assert [MOBILE] == [call.mobile for call in gateway.calls]


@needs_curl
def test_shell_posts_a_balance_query(url: str) -> None:
    answer = curl("-d", urlencode(balance_form(time=now())), f"{url}{BALANCE_TARGET}")
    assert "20023" == re.findall(r"<num>(.*)</num>", answer)[0]


@needs_curl
def test_shell_reads_a_refusal(url: str, gateway: SandboxGateway) -> None:
    form = submit_form(time=now(), password=md5("guess"))
    answer = curl("-d", urlencode(form), f"{url}{SUBMIT_TARGET}")
    assert re.search(r"<code>405</code><msg>用户名或密码不正确</msg><smsid>0</smsid>", answer)
    assert [] == gateway.calls
