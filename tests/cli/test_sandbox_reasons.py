"""Why the sandbox refused: the words of its line in a terminal of 80 columns."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from ihuyi_voice import errors
from ihuyi_voice.cli.sandbox_output import attempt_line, other_line
from ihuyi_voice.cli.sandbox_reasons import CODES, KINDS
from ihuyi_voice.sandbox import Attempt, OtherRequest
from ihuyi_voice.sandbox.history import Reason
from ihuyi_voice.sandbox.page_files import TEXTS
from ihuyi_voice.sandbox.rules import DAY_LIMIT, MINUTE_LIMIT
from tests.cli.test_language import CHINESE, chinese

__all__ = ["chinese"]

# The longest that a form without a mistake in them has.
MOBILE, CONTENT = "13912345678", "112512"
REASONS = [Reason(kind, 405, (("seconds", "3600"),)) for kind in KINDS]


def refused(code: int, why: Reason | None = None, fault: str | None = None) -> Attempt:
    return Attempt(MOBILE, CONTENT, code, "", None, 0.0, "", (), fault=fault, why=why)


def asked(code: int, why: Reason | None = None) -> OtherRequest:
    return OtherRequest("balance", "", "", 0.0, "", 200, code=code, why=why)


def test_every_code_and_every_reason_has_its_words() -> None:
    assert {*errors.CODES, MINUTE_LIMIT, DAY_LIMIT} - {errors.ACCEPTED} == CODES.keys()
    assert {f"reason_{kind}" for kind in KINDS} == {
        key for key in TEXTS["en"] if key.startswith("reason_")
    }


@pytest.mark.parametrize("is_chinese", [False, True])
def test_the_line_of_a_refusal_fits_80_columns(
    request: pytest.FixtureRequest, *, is_chinese: bool
) -> None:
    if is_chinese:
        request.getfixturevalue("chinese")
    lines = [attempt_line(refused(code)) for code in CODES]
    lines += [attempt_line(refused(405, why)) for why in REASONS]
    lines += [attempt_line(refused(9_999, fault="code"))]
    assert [] == [line for line in lines if cell_len(line) > 80]
    assert is_chinese is all(map(CHINESE.search, lines))


def test_the_line_says_why() -> None:
    stale = Reason("time_too_early", 405, (("seconds", "900"),))
    lines = [
        attempt_line(refused(4030)),
        attempt_line(refused(405, stale)),
        attempt_line(refused(4030, fault="code")),
        attempt_line(refused(40_999)),
        other_line(asked(405, Reason("digest", 405))),
        other_line(asked(2)),
    ]
    end = f"  mobile '{MOBILE}'  content '{CONTENT}'"
    assert [
        f"refused 4030: blacklisted{end}",
        f"refused 405: 900 s too old{end}",
        f"refused 4030: chaos{end}",
        f"refused 40999{end}",
        "balance query answered 405: wrong MD5",
        "balance query answered 2",
    ] == [line.partition("  ")[2] for line in lines]


@pytest.mark.usefixtures("chinese")
def test_the_line_says_why_in_chinese() -> None:
    unknown = OtherRequest("unknown", "GET /x", TEXTS["en"]["problem_http_method"], 0.0, "", 405)
    lines = [
        attempt_line(refused(4030)),
        other_line(asked(405, Reason("digest", 405))),
        other_line(unknown),
        other_line(OtherRequest("unreadable", "", "of another kind", 0.0, "", 400)),
        other_line(OtherRequest("closed", "POST /y", "", 0.0, "", 0)),
    ]
    assert [
        f"被拒绝 4030：黑名单  手机号 '{MOBILE}'  验证码 '{CONTENT}'",
        "余额查询，应答 405：MD5 不对",
        "未知 'GET /x'  405：不支持此 HTTP 方法：请用 GET 或 POST",
        "无法识别 ''  400：of another kind",
        "未读取 'POST /y'  0：设置的故障在读取之前断开了连接",
    ] == [line.partition("  ")[2] for line in lines]
