"""No secret leaks, whatever the outcome of a request.

Each outcome is produced with recognisable secrets, mostly by a server that
sends back everything it received. The tests then search the log of every
logger at DEBUG, what was raised or returned (printed, pickled, as a
traceback), and the URLs and headers that the server received.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import json
import logging
import math
import pickle
import pprint
import re
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections import deque
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import quote_plus
from xml.sax.saxutils import escape

import pytest

from ihuyi_voice import (
    AsyncVoiceClient,
    Balance,
    GatewayError,
    IhuyiVoiceError,
    InvalidRequestError,
    NotSentError,
    OutcomeUnknownError,
    QuotaExceededError,
    RecipientQuota,
    SubmitRequest,
    SubmitResult,
    VoiceClient,
)
from ihuyi_voice.sandbox import Chaos, SandboxGateway
from tests.inside import (
    QUICK,
    encoder_of,
    settings_of,
    submit_that_waits_for_a_slot,
    transport_of,
    within,
)
from tests.rogue import Connection, Rogue, http_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.rogue import Behaviour

    Kind = Literal["asyncio", "blocking"]

NOW = 1_700_000_000
# With characters that a form quotes, so both spellings are searched for.
KEY = "K3y+that/no=body&may-see"
CODE = "907351"
MOBILE = "13987654321"
MASKED = "139****4321"
PROXY_PASSWORD = "pr0xy-pa55+word"
PASSWORD = hashlib.md5(f"id{KEY}{MOBILE}{CODE}{NOW}".encode()).hexdigest()
BALANCE_PASSWORD = hashlib.md5(f"id{KEY}{NOW}".encode()).hexdigest()
CREDENTIALS = base64.b64encode(f"user:{PROXY_PASSWORD}".encode()).decode()

SECRETS = {
    "key": KEY,
    "quoted key": quote_plus(KEY),
    "code": CODE,
    "mobile": MOBILE,
    "password": PASSWORD,
    "balance password": BALANCE_PASSWORD,
    "proxy password": PROXY_PASSWORD,
    "quoted proxy password": quote_plus(PROXY_PASSWORD),
    "proxy credentials": CREDENTIALS,
}
# The digits of a code can occur in a memory address by chance.
_hide_addresses = re.compile(r"0x[0-9a-f]+").sub


def leaks(*texts: str, allowed: tuple[str, ...] = ()) -> set[str]:
    """The names of the secrets that the texts contain."""
    text = _hide_addresses("", "\n".join(texts))
    return {name for name, secret in SECRETS.items() if name not in allowed and secret in text}


def test_the_search_finds_each_secret() -> None:
    assert CODE not in PASSWORD + BALANCE_PASSWORD
    for name, secret in SECRETS.items():
        assert {name} <= leaks("a", f"b{secret}c\n")
        assert {name} <= leaks(repr({"x": [secret]}))
        assert {name} <= leaks(pickle.dumps([secret]).decode("latin-1"))
    assert set() == leaks(MASKED, "0x7f90735100")


# --- the witness -------------------------------------------------------------


class Witness(logging.Handler):
    """Keeps every record of every logger, as text with all its attributes."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str] = []
        self.ours: list[logging.LogRecord] = []
        self.highest = logging.NOTSET
        self.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.texts += [self.format(record), repr(vars(record))]
        self.highest = max(self.highest, record.levelno)
        if record.name.split(".")[0] == "ihuyi_voice":
            self.ours.append(record)


@pytest.fixture
def witness() -> Iterator[Witness]:
    witness = Witness()
    root = logging.getLogger()
    level = root.level
    root.addHandler(witness)
    root.setLevel(logging.DEBUG)
    # Every record of these loggers reaches the root.
    for name in ("ihuyi_voice", "asyncio", "aiohttp.client", "concurrent.futures"):
        assert logging.getLogger(name).isEnabledFor(logging.DEBUG)
        assert logging.getLogger(name).propagate
    yield witness
    root.setLevel(level)
    root.removeHandler(witness)


def make_the_loop_talk() -> None:
    """Turn debug mode on, without its warnings about slow callbacks."""
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = math.inf


def shown(error: BaseException, *, suppressed: bool = True) -> list[str]:
    """Everything that may be printed or stored of an exception and of its chain.

    With `suppressed`, also of the contexts that no traceback shows.
    """
    texts = [
        "".join(traceback.format_exception(type(error), error, error.__traceback__, chain=True)),
        "".join(traceback.TracebackException.from_exception(error, capture_locals=False).format()),
    ]
    links: list[BaseException | None] = [error]
    while links:
        link = links.pop()
        if link is not None:
            texts += [repr(link), str(link), repr(link.args), repr(vars(link))]
            texts += [repr(getattr(link, "__notes__", ()))]
            links += [link.__cause__]
            links += [link.__context__] if suppressed or not link.__suppress_context__ else []
    if isinstance(error, IhuyiVoiceError):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            pickled = pickle.dumps(error, protocol)
            texts += [pickled.decode("latin-1"), repr(pickle.loads(pickled))]
    return texts


def heads(rogue: Rogue) -> list[str]:
    """The request lines and headers that the server received, without the proxy's credentials."""
    return [
        request.partition(b"\r\n\r\n")[0].decode().replace(
            f"\r\nProxy-Authorization: Basic {CREDENTIALS}", ""
        )
        for request in rogue.requests
    ]  # fmt: skip


# --- what the server does ----------------------------------------------------

Echo = Literal[
    "as HTML",
    "instead of HTTP",
    "as a header",
    "as a status line",
    "as a redirect",
    "half of it",
    "in msg of JSON",
    "in msg of XML",
    "in voiceid",
]


def echoing(how: Echo, code: int = 0) -> Behaviour:
    """Send back everything that was received, and then each secret by itself."""

    async def echo(connection: Connection) -> None:
        while request := await connection.read_request():
            await connection.send(echoed(request.decode(), how, code))
            if how == "half of it":
                break

    return echo


def echoed(request: str, how: Echo, code: int) -> bytes:
    # A server can echo only the secrets that it received.
    given = [
        secret
        for name, secret in SECRETS.items()
        if "proxy" not in name or "Proxy-Authorization" in request
    ]
    everything = "\r\n".join([request, *given])
    line = everything.replace("\r\n", " ")
    answer = {"code": code, "msg": everything, "voiceid": "197362477", "num": "7"}
    body = json.dumps(answer).encode()
    xml = "".join(f"<{name}>{escape(str(value))}</{name}>" for name, value in answer.items())
    voice_ids = json.dumps(answer | {"voiceid": quote_plus(KEY), "smsid": KEY}).encode()
    html = f"<html><body>{everything}</body></html>".encode()
    answers: dict[Echo, bytes] = {
        "as HTML": http_answer(html, "502 Bad Gateway"),
        "instead of HTTP": everything.encode(),
        "as a header": f"HTTP/1.1 200 OK\r\n{line}\r\nContent-Length: 0\r\n\r\n".encode(),
        "as a status line": http_answer(b"", f"500 {line}", f"Date: {line}"),
        "as a redirect": http_answer(body, "307 Elsewhere", f"Location: http://127.0.0.1/?{line}"),
        "half of it": http_answer(body)[:-1],
        "in msg of JSON": http_answer(body, "200 OK", f"X: {line}"),
        "in msg of XML": http_answer(f"<r>{xml}</r>".encode(), "200 OK", f"Date: {line}"),
        "in voiceid": http_answer(voice_ids),
    }
    return answers[how]


async def hang_up(connection: Connection) -> None:
    await connection.read_request()


async def reset(connection: Connection) -> None:
    await connection.read_request()
    connection.reset()


async def say_nothing(connection: Connection) -> None:
    await connection.read_request()
    await connection.until_hung_up()


async def babble(connection: Connection) -> None:
    await connection.reader.read(1)
    await connection.send("\r\n".join(SECRETS.values()).encode())


async def refuse_as_a_proxy(connection: Connection) -> None:
    await connection.read_request()
    await connection.send(
        f"HTTP/1.1 407 {KEY} {CREDENTIALS}\r\nX: {PROXY_PASSWORD}\r\n\r\n".encode()
    )


# --- the cases ---------------------------------------------------------------


class FailingStore:
    """A quota store that is down."""

    async def reserve(self, number: str, token: str, windows: object) -> float:
        # Its own frame is one that tools show.
        del number
        msg = "down"
        raise OSError(msg)

    async def release(self, number: str, token: str) -> None:
        """Never asked."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One outcome, and how to produce it.

    Attributes:
        error: what is raised; None when the call is accepted.
        behaviour: what the server does.
        mobile, content, idempotency_key: what is submitted.
        options: the client's; the value "{proxy}" makes the server the proxy.
        base_url: "{url}" for the server's URL, "https{url}" for the same with TLS.
    """

    error: type[IhuyiVoiceError] | None
    behaviour: Behaviour = hang_up
    mobile: object = MOBILE
    content: object = CODE
    idempotency_key: str | None = None
    options: dict[str, object] = dataclasses.field(default_factory=dict)
    base_url: str = "{url}"


USED_UP = "used up"
SIGNED: dict[str, object] = {}
THE_KEY_ITSELF: dict[str, object] = {"dynamic_password": False}
BY_A_PROXY: dict[str, object] = {"proxy": "{proxy}"}
ECHOES: tuple[Echo, ...] = (
    "as HTML", "instead of HTTP", "as a header", "as a status line", "as a redirect", "half of it"
)  # fmt: skip

CASES: dict[str, Case] = {
    "invalid: a digit too many in the mobile": Case(InvalidRequestError, mobile=MOBILE + "9"),
    "invalid: the mobile is the key": Case(InvalidRequestError, mobile=KEY),
    "invalid: two mobiles": Case(InvalidRequestError, mobile=f"{MOBILE},{MOBILE}"),
    "invalid: a list of mobiles": Case(InvalidRequestError, mobile=[MOBILE]),
    "invalid: an int as mobile": Case(InvalidRequestError, mobile=int(MOBILE)),
    "invalid: a full-width mobile": Case(InvalidRequestError, mobile=MOBILE + "９"),
    "invalid: an int as content": Case(InvalidRequestError, content=int(CODE)),
    "invalid: bytes as content": Case(InvalidRequestError, content=CODE.encode()),
    "invalid: a digit too many in the content": Case(InvalidRequestError, content=CODE + "1"),
    "invalid: the content is the key": Case(InvalidRequestError, content=KEY),
    "invalid: the content is the mobile": Case(InvalidRequestError, content=MOBILE),
    "invalid: no store": Case(InvalidRequestError, idempotency_key=f"{MOBILE}/{CODE}"),
    "limited": Case(QuotaExceededError, options={"quota": USED_UP}),
    "not sent: the store is down": Case(
        NotSentError, options={"quota": RecipientQuota(store=FailingStore())}
    ),
    "not sent: no server": Case(NotSentError, base_url="http://127.0.0.1:1"),
    "not sent: no TLS": Case(NotSentError, babble, base_url="https{url}"),
    "not sent: no time": Case(NotSentError, options={"timeout": 1e-9}),
    "not sent: no proxy": Case(
        NotSentError,
        base_url="http://gateway.invalid",
        options={"proxy": f"http://user:{quote_plus(PROXY_PASSWORD)}@127.0.0.1:1"},
    ),
    "not sent: the proxy refuses": Case(
        NotSentError, refuse_as_a_proxy, base_url="https://gateway.invalid",
        options={"proxy": "{proxy}"},
    ),
    "not sent: the proxy says anything": Case(
        NotSentError, echoing("instead of HTTP"), base_url="https://gateway.invalid",
        options={"proxy": "{proxy}"},
    ),
    "unknown: hung up": Case(OutcomeUnknownError),
    "unknown: reset": Case(OutcomeUnknownError, reset),
    "unknown: no answer": Case(OutcomeUnknownError, say_nothing, options={"timeout": 0.2}),
    "unknown: the proxy hung up": Case(
        OutcomeUnknownError, base_url="http://gateway.invalid", options={"proxy": "{proxy}"}
    ),
    **{
        f"unknown: echoed {how}, {words}": Case(
            OutcomeUnknownError, echoing(how), options=options, base_url=base_url
        )
        for how in ECHOES
        for words, base_url, options in (
            ("signed", "{url}", SIGNED),
            ("the key itself", "{url}", THE_KEY_ITSELF),
            ("by a proxy", "http://gateway.invalid", BY_A_PROXY),
        )
    },
    **{
        f"{status}: echoed {how}, {words}": Case(
            error, echoing(how, code), options=options, base_url=base_url
        )
        for status, error, code in (
            ("accepted", None, 2),
            ("refused", GatewayError, 405),
            # The answer has an id, so the call may have been placed.
            ("unknown", OutcomeUnknownError, 4099),
        )
        for how in cast("tuple[Echo, ...]", ("in msg of JSON", "in msg of XML", "in voiceid"))
        for words, base_url, options in (
            (f"{code}, signed", "{url}", SIGNED),
            (f"{code}, the key itself", "{url}", THE_KEY_ITSELF),
            (f"{code}, by a proxy", "http://gateway.invalid", BY_A_PROXY),
        )
    },
}  # fmt: skip

EVERY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
BOTH_CLIENTS = pytest.mark.parametrize("kind", ["asyncio", "blocking"])


async def options_of(case: Case, rogue: Rogue) -> dict[str, Any]:
    url = rogue.url if case.base_url == "{url}" else case.base_url
    options: dict[str, Any] = {
        "base_url": url.replace("https{url}", rogue.url.replace("http:", "https:")),
        "timeout": 5.0,
        "quota": None,
        "clock": lambda: float(NOW),
        **case.options,
    }
    if options.get("proxy") == "{proxy}":
        password = quote_plus(PROXY_PASSWORD)
        options["proxy"] = rogue.url.replace("//", f"//user:{password}@")
    if options["quota"] == USED_UP:
        quota = options["quota"] = RecipientQuota(per_minute=1)
        await quota.reserve(MOBILE)
    return options


async def ended(
    kind: Kind, case: Case, options: dict[str, Any], looked_at: Callable[[object], None]
) -> object:
    """What a submit returned or raised."""
    arguments = cast("Any", (case.mobile, case.content))
    key = case.idempotency_key
    try:
        if kind == "asyncio":
            async with within(AsyncVoiceClient("id", KEY, **options), QUICK) as voice:
                try:
                    return await voice.submit(*arguments, idempotency_key=key)
                finally:
                    looked_at(voice)
        with closing(within(VoiceClient("id", KEY, **options), QUICK)) as blocking:
            try:
                return await asyncio.to_thread(blocking.submit, *arguments, idempotency_key=key)
            finally:
                looked_at(blocking)
    except IhuyiVoiceError as error:
        return error


@BOTH_CLIENTS
@EVERY_CASE
async def test_no_outcome_leaks_a_secret(kind: Kind, case: Case, witness: Witness) -> None:
    make_the_loop_talk()
    walk: list[str] = []
    rogue = Rogue(case.behaviour)
    async with rogue.running():
        options = await options_of(case, rogue)
        end = await ended(kind, case, options, lambda voice: walk.extend(walked(voice)))
        # Checked before the server ends, because that may log a warning.
        assert witness.highest <= logging.WARNING
    # A quota stores numbers.
    assert set() == leaks(*walk, allowed=("mobile",) if case.error is QuotaExceededError else ())
    if case.error is None:
        assert isinstance(end, SubmitResult)
        assert MOBILE == end.mobile
        assert set() == leaks(repr(end), str(end), f"{end}", pprint.pformat(end))
        # The number is an attribute by design, so a pickle contains it.
        assert set() == leaks(pickle.dumps(end).decode("latin-1"), allowed=("mobile",))
        assert {"mobile"} == leaks(repr(dataclasses.astuple(end)))
    else:
        assert isinstance(end, case.error)
        assert set() == leaks(*shown(end))
    assert set() == leaks(*witness.texts)
    assert set() == leaks(*heads(rogue))
    check_the_one_record(witness, case, end)


# How the line of a failure ends.
FAILED = r" host=[a-z0-9.]+:\d+: .+"


def check_the_one_record(witness: Witness, case: Case, end: object) -> None:
    """The request has one line: masked number, outcome, code, voice id, duration."""
    status = {
        SubmitResult: "accepted",
        InvalidRequestError: "invalid",
        QuotaExceededError: "limited",
        NotSentError: "not_sent",
        OutcomeUnknownError: "unknown",
    }.get(type(end), "refused")
    # A text that is not a number is not shown at all.
    mobile = re.escape(MASKED)
    if status == "invalid" and case.mobile != MOBILE:
        mobile = r"\*\*\*\*"
    code = 2 if status == "accepted" else getattr(end, "code", "-")
    voice_id = getattr(end, "voice_id", None) or "-"
    (record,) = witness.ours
    level = logging.INFO if status == "accepted" else logging.WARNING
    assert ("ihuyi_voice", level) == (record.name, record.levelno)
    line = rf"submit {mobile} {status} code={code} voice_id={voice_id} \d+ ms"
    line += "" if status == "accepted" else FAILED
    assert re.fullmatch(line, record.getMessage()), record.getMessage()


@pytest.mark.parametrize("how", [*ECHOES, "in msg of JSON", "in msg of XML"])
@pytest.mark.parametrize("code", [2, 405])
@pytest.mark.parametrize("dynamic_password", [True, False])
async def test_no_balance_query_leaks_a_secret(
    how: Echo, code: int, dynamic_password: bool, witness: Witness
) -> None:
    rogue = Rogue(echoing(how, code))
    options: dict[str, Any] = {"clock": lambda: float(NOW), "dynamic_password": dynamic_password}
    async with rogue.running(), AsyncVoiceClient("id", KEY, base_url=rogue.url, **options) as voice:
        try:
            end: object = await voice.query_balance()
        except IhuyiVoiceError as error:
            end = error
        # Checked before the server ends, because that may log a warning.
        assert witness.highest <= logging.WARNING
    # A balance query has neither number nor code, so it cannot redact them in an answer.
    allowed = ("mobile", "code")
    if how not in ECHOES and code == 2:
        assert isinstance(end, Balance)
        texts = [repr(end), repr(dataclasses.asdict(end)), pickle.dumps(end).decode("latin-1")]
        expected = r"query_balance \*\*\*\* accepted code=2 voice_id=- \d+ ms"
    else:
        assert isinstance(end, OutcomeUnknownError if how in ECHOES else GatewayError)
        # If tasks are pure Python (pytest-asyncio on 3.10), an error that is raised again
        # after a retry has aiohttp's exception as a suppressed context.
        texts = shown(end, suppressed=False)
        words = "unknown code=-" if how in ECHOES else f"refused code={code}"
        expected = rf"query_balance \*\*\*\* {words} voice_id=- \d+ ms{FAILED}"
    assert set() == leaks(*texts, allowed=allowed)
    assert set() == leaks(*witness.texts, *heads(rogue))
    (record,) = witness.ours
    assert re.fullmatch(expected, record.getMessage())


@pytest.mark.parametrize("content", [MOBILE[:4], MOBILE[3:9], MOBILE[-4:]])
async def test_a_code_that_is_part_of_the_number_does_not_reveal_the_rest(
    content: str,
) -> None:
    rogue = Rogue(echoing("in msg of JSON", 405))
    async with rogue.running(), AsyncVoiceClient("id", KEY, base_url=rogue.url) as voice:
        with pytest.raises(GatewayError) as caught:
            await voice.submit(MOBILE, content)
    parts = [part for part in MOBILE.split(content) if len(part) > 1]
    assert [] == [part for part in parts if f"****{part}" in caught.value.msg]
    assert [] == [part for part in parts if f"{part}****" in caught.value.msg]


@pytest.mark.parametrize("user", ["", "user@", "user:@", ":@"])
async def test_a_proxy_without_a_password_does_not_change_the_gateways_message(
    user: str,
) -> None:
    async def answer(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(http_answer('{"code":2,"msg":"提交成功 ok"}'.encode()))

    rogue = Rogue(answer)
    async with rogue.running():
        proxy = rogue.url.replace("//", f"//{user}")
        async with AsyncVoiceClient(
            "id", KEY, base_url="http://gateway.invalid", proxy=proxy
        ) as voice:
            assert "提交成功 ok" == (await voice.submit(MOBILE, CODE)).msg


async def test_a_password_that_contains_the_code_is_hidden() -> None:
    def signed_at(second: int) -> str:
        return hashlib.md5(f"id{KEY}{MOBILE}1125{second}".encode()).hexdigest()

    second = next(second for second in range(NOW, NOW + 1_000_000) if "1125" in signed_at(second))
    rogue = Rogue(echoing("in msg of JSON", 405))
    async with (
        rogue.running(),
        AsyncVoiceClient("id", KEY, base_url=rogue.url, clock=lambda: float(second)) as voice,
    ):
        with pytest.raises(GatewayError) as caught:
            await voice.submit(MOBILE, "1125")
    assert f"password={signed_at(second)}&".encode() in rogue.requests[0]
    parts = [part for part in signed_at(second).split("1125") if len(part) > 3]
    assert [] == [part for part in parts if part in caught.value.msg]


async def test_a_password_is_not_taken_for_a_voice_id() -> None:
    async def echo(connection: Connection) -> None:
        await connection.read_request()
        answer = {"code": 2, "msg": "ok", "voiceid": PASSWORD}
        await connection.send(http_answer(json.dumps(answer).encode()))

    rogue = Rogue(echo)
    async with (
        rogue.running(),
        AsyncVoiceClient("id", KEY, base_url=rogue.url, clock=lambda: float(NOW)) as voice,
    ):
        assert (await voice.submit(MOBILE, CODE)).voice_id is None


# --- canceled ----------------------------------------------------------------


async def test_a_cancelled_request_leaks_no_secret(witness: Witness) -> None:
    async def hang(connection: Connection) -> None:
        await connection.read_request()
        arrived.set()
        await connection.until_hung_up()

    make_the_loop_talk()
    arrived = asyncio.Event()
    rogue = Rogue(hang)
    async with (
        rogue.running(),
        AsyncVoiceClient("id", KEY, base_url=rogue.url, clock=lambda: float(NOW)) as voice,
    ):
        task = asyncio.create_task(voice.submit(MOBILE, CODE))
        await arrived.wait()
        texts = [repr(task), repr(task.get_stack())]
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
    assert set() == leaks(*texts, repr(task), *shown(caught.value))
    assert set() == leaks(*witness.texts, *heads(rogue))
    (record,) = witness.ours
    line = rf"submit {re.escape(MASKED)} unknown code=- voice_id=- \d+ ms{FAILED}"
    assert re.fullmatch(line, record.getMessage())
    assert logging.WARNING == witness.highest


async def test_a_request_cancelled_before_the_send_is_logged_as_not_sent(
    witness: Witness,
) -> None:
    async with AsyncVoiceClient("id", KEY, max_connections=1) as voice:
        task = await submit_that_waits_for_a_slot(voice, MOBILE, CODE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    (record,) = witness.ours
    line = rf"submit {re.escape(MASKED)} not_sent code=- voice_id=- \d+ ms{FAILED}"
    assert re.fullmatch(line, record.getMessage())


async def test_a_request_cancelled_while_its_quota_is_reserved_is_logged_as_not_sent(
    witness: Witness,
) -> None:
    class SlowStore(FailingStore):
        async def reserve(self, number: str, token: str, windows: object) -> float:
            asked.set()
            return float(await asyncio.Event().wait())

    asked = asyncio.Event()
    async with AsyncVoiceClient("id", KEY, quota=RecipientQuota(store=SlowStore())) as voice:
        task = asyncio.create_task(voice.submit(MOBILE, CODE))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    (record,) = witness.ours
    line = rf"submit {re.escape(MASKED)} not_sent code=- voice_id=- \d+ ms{FAILED}"
    assert re.fullmatch(line, record.getMessage())


def test_an_interrupted_blocking_request_leaks_no_secret(witness: Witness) -> None:
    main = threading.main_thread()
    assert main.ident is not None
    main_ident: int = main.ident

    def interrupt(_: object) -> None:
        # Wait until the main thread waits for the outcome of the call.
        deque(iter(lambda: sys._current_frames()[main_ident].f_code.co_name, "wait"), maxlen=0)
        signal.pthread_kill(main_ident, signal.SIGINT)

    gateway = SandboxGateway(
        api_id="id", api_key=KEY, chaos=Chaos(no_answer=1.0), on_attempt=interrupt
    )
    with (
        gateway.serve_in_thread() as url,
        VoiceClient("id", KEY, base_url=url) as voice,
        pytest.raises(KeyboardInterrupt) as caught,
    ):
        voice.submit(MOBILE, CODE)
    assert 1 == len(gateway.attempts)
    assert set() == leaks(*shown(caught.value))
    assert set() == leaks(*witness.texts)
    (record,) = witness.ours
    line = rf"submit {re.escape(MASKED)} unknown code=- voice_id=- \d+ ms{FAILED}"
    assert re.fullmatch(line, record.getMessage())
    assert witness.highest <= logging.WARNING


async def test_a_task_whose_exception_is_never_retrieved_leaks_no_secret(
    witness: Witness,
) -> None:
    """Then asyncio logs the task itself, with its traceback."""
    loop = asyncio.get_running_loop()
    rogue = Rogue(echoing("in msg of JSON", 405))
    async with (
        rogue.running(),
        AsyncVoiceClient("id", KEY, base_url=rogue.url, clock=lambda: float(NOW)) as voice,
    ):
        task = asyncio.create_task(voice.submit(MOBILE, CODE))
        await asyncio.wait([task])
        context = {"message": "never retrieved", "task": task, "exception": task.exception()}
        loop.default_exception_handler(context)
    assert any("AuthenticationError" in text for text in witness.texts)
    assert set() == leaks(*witness.texts)


# --- the objects -------------------------------------------------------------


def walked(thing: object, seen: set[int] | None = None) -> list[str]:
    """The repr of a thing and of what `vars` shows of it, for our objects at every depth."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return []
    seen.add(id(thing))
    texts = [repr(thing), str(thing)]
    if isinstance(thing, dict):
        inner: list[object] = [*thing.keys(), *thing.values()]
    elif isinstance(thing, tuple | list | set | frozenset):
        inner = [*thing]
    elif type(thing).__module__.split(".")[0] == "ihuyi_voice":
        inner = list(getattr(thing, "__dict__", {}).values())
        if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
            inner += [dataclasses.asdict(thing), dataclasses.astuple(thing)]
    else:
        inner = []
    for item in inner:
        texts += walked(item, seen)
    return texts


def proxied(**options: Any) -> dict[str, Any]:
    password = quote_plus(PROXY_PASSWORD)
    return {"base_url": "http://127.0.0.1:1", "proxy": f"http://user:{password}@p", **options}


@pytest.mark.parametrize("dynamic_password", [True, False])
async def test_no_repr_or_dump_of_a_client_shows_a_secret(dynamic_password: bool) -> None:
    made: list[Any] = [
        make("id", KEY, **proxied(dynamic_password=dynamic_password))
        for make in (AsyncVoiceClient, VoiceClient)
    ]
    for voice in made:
        texts = [*walked(voice), pprint.pformat(vars(voice)), repr(vars(voice))]
        assert any("Secret('****')" in text for text in texts)
        assert set() == leaks(*texts)
    async with made[0] as voice:
        # An open client also has a session and a connector.
        texts = [*walked(voice), pprint.pformat(vars(voice)), repr(vars(transport_of(voice)))]
        assert set() == leaks(*texts)


def test_the_walk_finds_a_secret() -> None:
    voice = AsyncVoiceClient("id", KEY)
    vars(voice)["kept"] = {"deep": [(KEY,)]}
    assert {"key"} == leaks(*walked(voice))


def test_a_dump_of_the_settings_does_not_show_the_key() -> None:
    settings = settings_of(AsyncVoiceClient("id", KEY, **proxied()))
    assert set() == leaks(
        repr(dataclasses.asdict(settings)),
        repr(dataclasses.astuple(settings)),
        repr(settings),
        pprint.pformat(settings),
        repr(dataclasses.replace(settings, timeout=1.0)),
    )


@pytest.mark.parametrize("dynamic_password", [True, False])
@pytest.mark.parametrize("make", [AsyncVoiceClient, VoiceClient])
def test_a_client_cannot_be_pickled(
    make: type[AsyncVoiceClient | VoiceClient], dynamic_password: bool
) -> None:
    voice = make("id", KEY, dynamic_password=dynamic_password)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError) as caught:
            pickle.dumps(voice, protocol)
        assert set() == leaks(*shown(caught.value))
        for part in (settings_of(voice), encoder_of(voice)):
            with pytest.raises(TypeError):
                pickle.dumps(part, protocol)


def test_a_request_shows_neither_code_nor_number() -> None:
    request = SubmitRequest(MOBILE, CODE)
    assert set() == leaks(repr(request), str(request), pprint.pformat([request]))


@pytest.mark.parametrize("make", [AsyncVoiceClient, VoiceClient])
def test_a_bad_setting_does_not_show_a_secret(
    make: type[AsyncVoiceClient | VoiceClient],
) -> None:
    bad: list[dict[str, Any]] = [
        {"api_key": f" {KEY}"},
        {"api_key": f"{KEY}\n"},
        {"api_key": KEY.encode()},
        {"proxy": f"socks5://user:{PROXY_PASSWORD}@p"},
        {"proxy": f"http://user:{PROXY_PASSWORD}@p:port"},
        {"base_url": f"http://user:{KEY}@127.0.0.1"},
        {"base_url": f"http://127.0.0.1/?key={KEY}"},
        {"base_url": f"ftp://{KEY}"},
    ]
    for options in bad:
        with pytest.raises((TypeError, ValueError)) as caught:
            make(**{"api_id": "id", "api_key": KEY, **options})
        assert set() == leaks(*shown(caught.value)), options


# --- silence -----------------------------------------------------------------

SCRIPT = """
import logging, sys
from ihuyi_voice import *
# Only errors: in debug mode asyncio warns about slow callbacks.
logging.getLogger("asyncio").setLevel(logging.ERROR)
url, closed = sys.argv[1:]
outcomes = []
voice = VoiceClient("sandbox", "sandbox-key", base_url=url)
hurried = VoiceClient("sandbox", "sandbox-key", base_url=url, timeout=1.0)
down = VoiceClient("sandbox", "sandbox-key", base_url=closed, connect_attempts=2)
for client, mobile, content in (
    (voice, "13987654321", "907351"),
    (voice, "13987654321", "907352"),
    (voice, "13987654321", "907353"),
    (voice, "13900000000", "907354"),
    (hurried, "13911111111", "907355"),
    (voice, "13987654321", 907351),
    (down, "13922222222", "907356"),
):
    try:
        client.submit(mobile, content)
        outcomes.append("accepted")
    except IhuyiVoiceError as error:
        outcomes.append(type(error).__name__)
voice.query_balance()
sys.exit(outcomes != [
    "accepted", "accepted", "QuotaExceededError", "SubmitFailedError", "OutcomeUnknownError",
    "InvalidRequestError", "NotSentError",
])
"""


def test_nothing_is_printed_without_a_logging_configuration() -> None:
    """Nothing reaches stdout or stderr, whatever the outcomes."""

    def stop_answering(attempt: object) -> None:
        taken = len(gateway.attempts)
        gateway.chaos = Chaos(no_answer=1.0) if taken == 3 else Chaos()

    handlers = logging.getLogger("ihuyi_voice").handlers
    assert any(isinstance(handler, logging.NullHandler) for handler in handlers)
    gateway = SandboxGateway(failing_mobiles=["13900000000"], on_attempt=stop_answering)
    with gateway.serve_in_thread() as url, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{bound.getsockname()[1]}"
        process = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", "-c", SCRIPT, url, closed],
            capture_output=True,
            check=False,
            timeout=60,
        )
    assert (0, b"", b"") == (process.returncode, process.stdout, process.stderr)
    assert 4 == len(gateway.attempts)
