"""The texts of the library's errors in Chinese: what happened, and what to do next."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from ihuyi_voice import _advice
from ihuyi_voice.cli.language import local
from ihuyi_voice.cli.library_texts import TEMPLATES, translated
from ihuyi_voice.errors import (
    CODES,
    InvalidRequestError,
    NotSentError,
    OutcomeUnknownError,
    QuotaExceededError,
    StoreError,
    gateway_error,
)
from ihuyi_voice.sandbox import Chaos, SandboxGateway
from ihuyi_voice.store.store import Store
from ihuyi_voice.wire import read_content, read_mobile

from .test_language import chinese, command  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from pathlib import Path

_SAFE = "；没有发出任何内容，电话没有响铃，可以放心重试"
_CAREFUL = "；电话可能已响铃：请先核实，不要直接重发"
_QUIET = "；电话没有响铃"
_WRONG = "账号或密码不正确，或使用动态密码时本机时钟不准"
ENGLISH_WORD = re.compile(r"[a-z]{3,}")


@pytest.mark.usefixtures("chinese")
@pytest.mark.parametrize(
    ("expected", "error"),
    [
        (
            "未发送：无法连接 h:80：连接被拒绝" + _SAFE,
            NotSentError("the connection could not be made to h:80: Connection refused"),
        ),
        (
            "未发送：5 秒内未能连接 h:80（经代理 p:1）：TLS 握手没有完成" + _SAFE,
            NotSentError(
                "no connection to h:80 through the proxy p:1 within 5 s: the TLS handshake did not"
                " end"
            ),
        ),
        (
            "结果未知：没有应答，连接就已关闭（h:80）（ServerDisconnectedError）" + _CAREFUL,
            OutcomeUnknownError(
                "the connection was closed without an answer (h:80) (ServerDisconnectedError)"
            ),
        ),
        (
            "结果未知：HTTP 状态码 502，应答无法识别（其中没有代码）；没有拨打电话，可以放心重试",
            OutcomeUnknownError("HTTP status 502, no readable answer (it has no code)", False),
        ),
        (
            "结果未知：something new" + _CAREFUL,
            OutcomeUnknownError("something new"),
        ),
        (
            "139****5678 的呼叫次数已达限额；没有发送，电话没有响铃；9.5 秒后可再次呼叫",
            QuotaExceededError("139****5678", 9.5),
        ),
        (
            "网关拒绝，代码 4051：余额不足（网关原文：'剩余条数不足'）；电话没有响铃",
            gateway_error(4051, "剩余条数不足"),
        ),
        (
            f"网关拒绝，代码 405：{_WRONG}（网关原文：''）{_QUIET}；本机时钟比网关快 90 秒：请校准",
            gateway_error(405, "", "the local clock is 90 s ahead of the gateway's: set it right"),
        ),
        (
            "存储不可用：calls.db: no words of ours；没有发送，电话没有响铃",
            StoreError("calls.db: no words of ours; nothing was sent, no phone rang"),
        ),
        (
            # Servers say more than a line.
            "存储不可用：h/d: no words\nof ours；没有发送，电话没有响铃",
            StoreError("h/d: no words\nof ours; nothing was sent, no phone rang"),
        ),
        ("第 7 行（从 0 算起）：内容为空", "row 7: it is empty"),
        ("no words of ours", InvalidRequestError("no words of ours")),
        # Not a text with a number.
        ("it has some new digits", "it has some new digits"),
        (
            "余额不足（InsufficientBalanceError）",
            "InsufficientBalanceError: the balance is used up",
        ),
    ],
)
def test_an_error_in_chinese(expected: str, error: object) -> None:
    assert expected == local(error)


@pytest.mark.usefixtures("chinese")
@pytest.mark.parametrize("read", [read_mobile, read_content])
def test_each_mistake_in_a_number_or_a_code_is_known(read: object) -> None:
    assert callable(read)
    seen = set()
    for value in ("", "1,2", "１２", "x", "+1", "12345678901", "12", 7, b"7"):
        error = read(value)
        assert isinstance(error, InvalidRequestError)
        text = translated(str(error))
        assert not ENGLISH_WORD.search(text.replace("bytes", "").replace("int", "")), text
        seen.add(text)
    assert 5 < len(seen)


@pytest.mark.usefixtures("chinese")
def test_each_advice_and_each_meaning_is_known() -> None:
    shown = ("KEYED_UNKNOWN", "ROW_UNKNOWN", "ROW_NOT_SENT", "BALANCE_UNKNOWN", "BALANCE_NOT_SENT")
    for name in shown:
        text = translated(f"not sent: x; {getattr(_advice, name)}")
        assert text.startswith("未发送：x；"), name
        assert "phone" not in text
        assert "balance" not in text
    for code in CODES.values():
        if code.error is not None:
            assert not ENGLISH_WORD.search(translated(code.meaning)), code


def test_in_english_a_text_is_unchanged() -> None:
    error = NotSentError("the connection could not be made to h:80: Connection refused")
    assert str(error) == local(error)
    assert 100 < len(set(TEMPLATES)) == len(TEMPLATES)


def test_the_command_speaks_chinese_where_the_gateway_and_the_store_fail(tmp_path: Path) -> None:
    """The texts are those of the library today: real failures."""
    store = str(tmp_path / "calls.db")
    Store.open(store).close()
    gateway = SandboxGateway(blacklist=["13800000000"])
    with gateway.serve_in_thread() as url:
        variables = {
            "IHUYI_VOICE_BASE_URL": url,
            "IHUYI_VOICE_API_ID": "sandbox",
            "IHUYI_VOICE_API_KEY": "sandbox-key",
            "IHUYI_VOICE_STORE": store,
            "LC_ALL": "zh_CN.UTF-8",
        }
        del variables["LC_ALL"]
        failures = [
            command(*arguments, locale="zh_CN.UTF-8", **variables)
            for arguments in (
                ("submit", "13800000000", "--content", "1125"),
                ("submit", "13912345678", "--content", "12"),
                ("store", store, "resolve", "nokey", "--placed"),
                ("job", "summer"),
            )
        ]
        gateway.chaos = Chaos(close_after_placing=1.0)
        arguments = ("submit", "13912345678", "--content", "1125")
        failures.append(command(*arguments, locale="zh_CN.UTF-8", **variables))
        as_json = command(*arguments, "--json", locale="zh_CN.UTF-8", **variables)
    arguments = ("submit", "13712345678", "--content", "1125")
    failures.append(command(*arguments, locale="zh_CN.UTF-8", **variables))
    assert [3, 2, 2, 2, 6, 4] == [status for status, _, _ in failures]
    assert [
        f"网关拒绝，代码 4030：手机号已被列入黑名单（网关原文：'手机号码已被列入黑名单'）{_QUIET}",
        "验证码应为 4-6 位数字，现在是 2 位",
        "存储中没有幂等键 'nokey'",
        "存储中没有作业 'summer'",
        f"结果未知：没有应答，连接就已关闭（{url[7:]}）（ServerDisconnectedError）{_CAREFUL}",
    ] == [err.removeprefix("ihuyi-voice: ").rstrip("\n") for _, _, err in failures[:5]]
    assert _SAFE in failures[5][2]
    assert "the phone may have rung" in json.loads(as_json[1])["error"]
