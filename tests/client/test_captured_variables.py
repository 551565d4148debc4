"""Error-reporting tools show no secret, whatever is raised.

Tracebacks with captured locals, rich, loguru and sentry_sdk show the variables
of every frame that an exception passed. loguru also shows the attributes that
the raising line names. The frames of the callers are left out.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

import pytest

from ihuyi_voice import (
    AsyncVoiceClient,
    BulkStoppedError,
    GatewayError,
    IhuyiVoiceError,
    InvalidRequestError,
    NotSentError,
    OutcomeStatus,
    OutcomeUnknownError,
    QuotaExceededError,
    RecipientQuota,
    Store,
    SubmitRequest,
    SubmitResult,
    VoiceClient,
)
from ihuyi_voice._pipeline import Admitted
from ihuyi_voice.models import SignedBody
from ihuyi_voice.wire import FormEncoder
from tests.client.captured import TOOLS, in_variables, leaks_of, walked
from tests.client.test_secrets import (
    BOTH_CLIENTS,
    CASES,
    CODE,
    KEY,
    MASKED,
    MOBILE,
    NOW,
    PROXY_PASSWORD,
    echoing,
    leaks,
    options_of,
    proxied,
    say_nothing,
)
from tests.inside import QUICK, submit_that_waits_for_a_slot, within
from tests.rogue import Connection, Rogue, http_answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from ihuyi_voice import BulkReport, Outcome

    Kind = Literal["asyncio", "blocking"]

Rows = Any


# --- both clients through one interface ----------------------------------------


async def ended(act: Callable[[], Awaitable[object]]) -> object:
    """What `act` returns or raises."""
    try:
        return await act()
    except BaseException as error:  # noqa: BLE001 - whatever it is
        return error


async def raised_by(act: Callable[[], Awaitable[object]]) -> BaseException:
    error = await ended(act)
    assert isinstance(error, BaseException)
    return error


async def in_a_thread(act: Callable[[], object]) -> object:
    """Run `act` in a thread, without the frames of a thread pool."""

    def run() -> None:
        try:
            ends.append(act())
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            ends.append(error)

    ends: list[object] = []
    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0.001)
    if isinstance(ends[0], BaseException):
        raise ends[0]
    return ends[0]


async def submitted(
    kind: Kind,
    options: dict[str, Any],
    mobile: object = MOBILE,
    content: object = CODE,
    key: str | None = None,
) -> object:
    arguments = cast("Any", (mobile, content))
    if kind == "asyncio":
        async with within(AsyncVoiceClient("id", KEY, **options), QUICK) as voice:
            return await voice.submit(*arguments, idempotency_key=key)
    with closing(within(VoiceClient("id", KEY, **options), QUICK)) as blocking:
        return await in_a_thread(lambda: blocking.submit(*arguments, idempotency_key=key))


async def ran(
    kind: Kind, options: dict[str, Any], rows: Rows, **bulk: Any
) -> tuple[list[Outcome], BulkReport]:
    outcomes: list[Outcome] = []
    if kind == "asyncio":
        async with (
            within(AsyncVoiceClient("id", KEY, **options), QUICK) as voice,
            voice.submit_many(rows, **bulk) as run,
        ):
            outcomes = [outcome async for outcome in run]
            return outcomes, run.report

    def block() -> BulkReport:
        with (
            closing(within(VoiceClient("id", KEY, **options), QUICK)) as blocking,
            blocking.submit_many(rows, **bulk) as run,
        ):
            outcomes.extend(run)
            return run.report

    return outcomes, cast("BulkReport", await in_a_thread(block))


def of(rogue: Rogue, **options: Any) -> dict[str, Any]:
    return {
        "base_url": rogue.url,
        "quota": None,
        "timeout": 5.0,
        "clock": lambda: float(NOW),
        **options,
    }


def check_hides_everything(error: BaseException) -> None:
    assert {} == leaks_of(error, leaks)


# --- the check itself -----------------------------------------------------------


def test_the_check_finds_what_a_frame_contains(tmp_path: Path) -> None:
    """Each tool finds it, and so does our own walk over sequences and fields."""
    source = tmp_path / "leaky.py"
    source.write_text(
        "import dataclasses\n"
        "@dataclasses.dataclass\n"
        "class Row:\n"
        "    mobile: str\n"
        "def call(mobile, act):\n"
        "    rows = [(Row(mobile), {'mobile': mobile})]\n"
        "    del mobile\n"
        "    act(rows)\n",
        encoding="utf-8",
    )
    names: dict[str, Any] = {"__name__": "leaky"}
    exec(compile(source.read_text("utf-8"), source, "exec", dont_inherit=True), names)  # noqa: S102 - a frame outside the tests

    def fail(rows: object) -> NoReturn:
        raise LookupError

    with pytest.raises(LookupError) as caught:
        names["call"](MOBILE, fail)
    found = leaks_of(caught.value, leaks)
    assert set(TOOLS) <= set(found)
    assert {"leaky.py:8 call.rows": {"mobile"}} == {
        place: some for place, some in found.items() if place not in TOOLS
    }
    assert any(MOBILE in text for text in walked({"a": [names["Row"](MOBILE)]}))


# --- one request ----------------------------------------------------------------

# The frames of a blocking call, and those of a run, depend on how a request ends, and not on
# how its case came to that: there the first two cases of each end are enough.
_of_each_end: dict[str, list[str]] = {}
for _name in CASES:
    _of_each_end.setdefault(_name.partition(":")[0], []).append(_name)
SOME = [name for names in _of_each_end.values() for name in names[:2]]


@pytest.mark.parametrize(
    ("kind", "name"),
    [*(("asyncio", name) for name in CASES), *(("blocking", name) for name in SOME)],
)
async def test_no_outcome_shows_a_secret_in_its_frames(kind: Kind, name: str) -> None:
    case = CASES[name]
    rogue = Rogue(case.behaviour)
    async with rogue.running():
        options = await options_of(case, rogue)
        end = await ended(
            lambda: submitted(kind, options, case.mobile, case.content, case.idempotency_key)
        )
    assert isinstance(end, case.error or SubmitResult)
    if isinstance(end, IhuyiVoiceError):
        check_hides_everything(end)


@BOTH_CLIENTS
@pytest.mark.parametrize("how", ["as HTML", "instead of HTTP", "in msg of JSON", "half of it"])
async def test_no_balance_query_shows_a_secret_in_its_frames(kind: Kind, how: Any) -> None:
    rogue = Rogue(echoing(how, 405))
    async with rogue.running():

        async def ask() -> object:
            if kind == "asyncio":
                async with AsyncVoiceClient("id", KEY, **of(rogue)) as voice:
                    return await voice.query_balance()
            with closing(VoiceClient("id", KEY, **of(rogue))) as blocking:
                return await in_a_thread(blocking.query_balance)

        error = await raised_by(ask)
    assert isinstance(error, GatewayError if how == "in msg of JSON" else OutcomeUnknownError)
    # A balance query has neither number nor code, so it cannot redact them in an answer.
    assert {} == leaks_of(error, lambda *texts: leaks(*texts, allowed=("mobile", "code")))


class Clock:
    """Always fails."""

    def __call__(self) -> float:
        msg = "no time"
        raise OSError(msg)


class Limits:
    """A quota store that fails, hangs or lets its caller wait, and keeps no number."""

    def __init__(self, reserve: str, release: str = "") -> None:
        self.on_reserve, self.on_release = reserve, release
        self.asked = asyncio.Event()

    async def reserve(self, number: str, token: str, windows: object) -> float:
        del number
        return await self._do(self.on_reserve)

    async def release(self, number: str, token: str) -> None:
        del number
        await self._do(self.on_release)

    async def _do(self, what: str) -> float:
        self.asked.set()
        if what == "fail":
            msg = "down"
            raise OSError(msg)
        if what == "hang":
            await asyncio.Event().wait()
        return 60.0 if what == "limit" else 0.0


@BOTH_CLIENTS
@pytest.mark.parametrize(
    ("error", "options"),
    [
        (NotSentError, {"clock": Clock()}),
        (NotSentError, {"quota": RecipientQuota(clock=Clock())}),
        (NotSentError, {"quota": RecipientQuota(store=Limits("fail"))}),
        (NotSentError, {"quota": RecipientQuota(store=Limits("hang")), "timeout": 0.05}),
        (QuotaExceededError, {"quota": RecipientQuota(store=Limits("limit"))}),
        (
            NotSentError,
            {"quota": RecipientQuota(store=Limits("", "fail")), "base_url": "http://127.0.0.1:1"},
        ),
    ],
)
async def test_a_failure_of_a_users_clock_or_store_shows_no_secret_in_its_frames(
    kind: Kind, error: type[IhuyiVoiceError], options: dict[str, Any]
) -> None:
    rogue = Rogue(say_nothing)
    async with rogue.running():
        caught = await raised_by(lambda: submitted(kind, of(rogue, **options)))
    assert isinstance(caught, error)
    check_hides_everything(caught)


@pytest.mark.parametrize("where", ["in the quota's store", "waiting for a slot", "on its way"])
async def test_a_cancelled_request_shows_no_secret_in_its_frames(where: str) -> None:
    async def hang(connection: Connection) -> None:
        await connection.read_request()
        arrived.set()
        await connection.until_hung_up()

    arrived = asyncio.Event()
    store = Limits("hang")
    rogue = Rogue(hang)
    quota = RecipientQuota(store=store) if where == "in the quota's store" else None
    async with (
        rogue.running(),
        AsyncVoiceClient("id", KEY, **of(rogue, max_connections=1, quota=quota)) as voice,
    ):
        if where == "waiting for a slot":
            task = await submit_that_waits_for_a_slot(voice, MOBILE, CODE)
        else:
            task = asyncio.create_task(voice.submit(MOBILE, CODE))
            await (arrived if where == "on its way" else store.asked).wait()
        task.cancel()
        (error,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(error, asyncio.CancelledError)
    check_hides_everything(error)


# --- with a store ----------------------------------------------------------------


class Timer:
    """A clock that can be made to fail."""

    def __init__(self) -> None:
        self.fails = False

    def __call__(self) -> float:
        return Clock()() if self.fails else 1_700_000_000.0


def closed(store: Store, clock: Timer) -> None:
    store.close()


def failing(store: Store, clock: Timer) -> None:
    clock.fails = True


def untouched(store: Store, clock: Timer) -> None:
    """Leave it as it is."""


@BOTH_CLIENTS
@pytest.mark.parametrize(
    ("error", "submit", "prepare"),
    [
        (InvalidRequestError, (MOBILE, None), untouched),
        (InvalidRequestError, (MOBILE, " key"), untouched),
        (InvalidRequestError, (MOBILE + "9", "key"), untouched),
        (InvalidRequestError, ("13900000000", "used"), untouched),
        (OutcomeUnknownError, (MOBILE, "used"), untouched),
        (OutcomeUnknownError, (MOBILE, "key"), untouched),
        (RuntimeError, (MOBILE, "key"), closed),
        (OSError, (MOBILE, "key"), failing),
    ],
)
async def test_no_failure_of_a_store_shows_a_secret_in_its_frames(
    kind: Kind,
    error: type[Exception],
    submit: tuple[str, str | None],
    prepare: Callable[[Store, Timer], None],
    tmp_path: Path,
) -> None:
    mobile, key = submit

    async def hang_up(connection: Connection) -> None:
        await connection.read_request()

    rogue = Rogue(hang_up)
    async with rogue.running():
        timer = Timer()
        with Store.open(tmp_path / "calls.db", clock=timer) as store:
            options = of(rogue, store=store, require_key=True)
            used = await raised_by(lambda: submitted(kind, options, key="used"))
            assert isinstance(used, OutcomeUnknownError)
            prepare(store, timer)
            caught = await raised_by(lambda: submitted(kind, options, mobile, key=key))
    assert isinstance(caught, error if error is not OSError else NotSentError)
    check_hides_everything(caught)


# --- many requests ------------------------------------------------------------------


class Broken(Exception):  # noqa: N818 - not one of our errors
    """Raised by rows and by `stop_on`."""


def rows_then_broken() -> Iterator[tuple[str, str]]:
    yield MOBILE, CODE
    raise Broken


async def async_rows_then_broken() -> AsyncIterator[tuple[str, str]]:
    yield MOBILE, CODE
    raise Broken


def broken_at_once(outcome: Outcome) -> bool:
    raise Broken


def stopping(outcome: Outcome) -> bool:
    return True


async def answer_accepted(connection: Connection) -> None:
    while await connection.read_request():
        await connection.send(http_answer(b'{"code":2,"msg":"ok","voiceid":"197362477"}'))


BULK_FAILURES: dict[str, tuple[type[BaseException], Any, Callable[[], Rows], dict[str, Any]]] = {
    "a source raises": (Broken, answer_accepted, rows_then_broken, {}),
    "an async source raises": (Broken, answer_accepted, async_rows_then_broken, {}),
    "stop_on raises": (
        Broken,
        answer_accepted,
        lambda: [(MOBILE, CODE)],
        {"stop_on": broken_at_once},
    ),
    "stop_on raises, a generator": (
        Broken,
        answer_accepted,
        lambda: (row for row in [(MOBILE, CODE)] * 3),
        {"stop_on": broken_at_once},
    ),
    "stop_on stops it": (
        BulkStoppedError,
        answer_accepted,
        lambda: [(MOBILE, CODE)] * 3,
        {"stop_on": stopping},
    ),
    "the account is refused": (
        BulkStoppedError,
        echoing("in msg of JSON", 405),
        lambda: [(MOBILE, CODE)] * 3,
        {},
    ),
    "all are unknown": (
        BulkStoppedError,
        echoing("half of it"),
        lambda: [SubmitRequest(MOBILE, CODE)] * 3,
        {"max_failures_in_row": 2},
    ),
}


@BOTH_CLIENTS
@pytest.mark.parametrize("name", BULK_FAILURES)
async def test_no_failure_of_a_bulk_run_shows_a_secret_in_its_frames(kind: Kind, name: str) -> None:
    error, behaviour, rows, bulk = BULK_FAILURES[name]
    rogue = Rogue(behaviour)
    async with rogue.running():
        caught = await raised_by(lambda: ran(kind, of(rogue), rows(), concurrency=1, **bulk))
    assert isinstance(caught, error)
    check_hides_everything(caught)


BAD_ROWS: Sequence[object] = [
    (MOBILE, CODE, "x"),
    (MOBILE,),
    [MOBILE, CODE, CODE],
    MOBILE,
    {"mobile": MOBILE},
    (MOBILE + "9", CODE),
    (MOBILE, CODE + "1"),
    (CODE, MOBILE),
    (int(MOBILE), int(CODE)),
    SubmitRequest(MOBILE, CODE, "no store"),
]


@BOTH_CLIENTS
@pytest.mark.parametrize("as_rows", [list, iter], ids=["list", "generator"])
async def test_no_invalid_row_shows_a_secret_in_its_frames(
    kind: Kind, as_rows: Callable[[Sequence[object]], Iterable[object]]
) -> None:
    rogue = Rogue(answer_accepted)
    async with rogue.running():
        outcomes, _ = await ran(kind, of(rogue), as_rows(BAD_ROWS))
    assert len(BAD_ROWS) == len(outcomes)
    for outcome in outcomes:
        assert OutcomeStatus.INVALID is outcome.status
        assert outcome.error is not None
        check_hides_everything(outcome.error)


@BOTH_CLIENTS
@pytest.mark.parametrize("name", SOME)
async def test_no_outcome_of_a_row_shows_a_secret_in_its_frames(kind: Kind, name: str) -> None:
    case = CASES[name]
    rogue = Rogue(case.behaviour)
    async with rogue.running():
        options = await options_of(case, rogue)
        row = SubmitRequest(*cast("Any", (case.mobile, case.content, case.idempotency_key)))
        ((outcome,), _) = await ran(kind, options, iter([row]), stop_on=None)
    if case.error is None:
        assert isinstance(outcome.result, SubmitResult)
    else:
        assert isinstance(outcome.error, case.error)
        check_hides_everything(outcome.error)


async def test_a_cancelled_run_shows_no_secret_in_its_frames() -> None:
    async def hang(connection: Connection) -> None:
        await connection.read_request()
        arrived.set()
        await connection.until_hung_up()

    async def run_all() -> None:
        async with voice.submit_many(iter([(MOBILE, CODE)] * 3), concurrency=2) as run:
            await run.finish()

    arrived = asyncio.Event()
    rogue = Rogue(hang)
    async with rogue.running(), AsyncVoiceClient("id", KEY, **of(rogue)) as voice:
        task = asyncio.create_task(run_all())
        await arrived.wait()
        task.cancel()
        (error,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(error, asyncio.CancelledError)
    check_hides_everything(error)


# --- clients ------------------------------------------------------------------------

BAD_SETTINGS: list[dict[str, Any]] = [
    {"api_key": f" {KEY}"},
    {"api_key": f"{KEY}\n"},
    {"api_key": KEY.encode()},
    {"api_id": ""},
    {"api_id": None},
    {"timeout": 0},
    {"answer_format": "yaml"},
    {"store": "calls.db"},
    {"trace_configs": 1},
    {"proxy": f"socks5://user:{PROXY_PASSWORD}@p"},
    {"proxy": f"http://user:{PROXY_PASSWORD}@p:port"},
    {"proxy": f"http://user:{PROXY_PASSWORD}@p".encode()},
    {"base_url": f"http://user:{KEY}@127.0.0.1"},
    {"base_url": f"http://127.0.0.1/?key={KEY}"},
    {"base_url": f"ftp://{KEY}"},
    {"no_such_argument": 1},
]


@pytest.mark.parametrize("options", BAD_SETTINGS, ids="".join)
@pytest.mark.parametrize("by_environment", [False, True])
@pytest.mark.parametrize("make", [AsyncVoiceClient, VoiceClient])
def test_no_bad_setting_shows_a_secret_in_its_frames(
    make: type[AsyncVoiceClient | VoiceClient], by_environment: bool, options: dict[str, Any]
) -> None:
    arguments = {"api_id": "id", "api_key": KEY, **proxied(), **options}
    made: Callable[..., object] = make.from_env if by_environment else make
    with pytest.raises((TypeError, ValueError)) as caught:
        made(**arguments)
    check_hides_everything(caught.value)


@pytest.mark.parametrize("missing", ["IHUYI_VOICE_API_ID", "IHUYI_VOICE_API_KEY"])
@pytest.mark.parametrize("make", [AsyncVoiceClient, VoiceClient])
def test_a_variable_that_is_not_set_shows_no_secret_in_its_frames(
    make: type[AsyncVoiceClient | VoiceClient], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IHUYI_VOICE_API_ID", "id")
    monkeypatch.setenv("IHUYI_VOICE_API_KEY", KEY)
    monkeypatch.delenv(missing)
    with pytest.raises(ValueError, match=missing) as caught:
        make.from_env(**proxied())
    check_hides_everything(caught.value)


@pytest.mark.parametrize("make", [AsyncVoiceClient, VoiceClient])
def test_a_bad_proxy_of_the_environment_shows_no_password_in_its_frames(
    make: type[AsyncVoiceClient | VoiceClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"socks5://user:{PROXY_PASSWORD}@p")
    with pytest.raises(ValueError, match="proxy") as caught:
        make("id", KEY, proxy="env")
    check_hides_everything(caught.value)


@BOTH_CLIENTS
async def test_misuse_shows_no_secret_in_its_frames(kind: Kind) -> None:
    if kind == "asyncio":
        voice = AsyncVoiceClient("id", KEY)
        await voice.aclose()
        error = await raised_by(lambda: voice.submit(MOBILE, CODE, idempotency_key=MOBILE))
    else:
        blocking = VoiceClient("id", KEY)
        with pytest.raises(RuntimeError) as caught:
            # In a running loop.
            blocking.submit(MOBILE, CODE, idempotency_key=MOBILE)
        error = caught.value
    assert isinstance(error, RuntimeError)
    check_hides_everything(error)


# --- the carriers ---------------------------------------------------------------------


def test_an_object_that_carries_a_secret_does_not_show_it() -> None:
    encoder = FormEncoder("id", KEY, dynamic_password=False)
    admitted = Admitted(MOBILE, CODE, "a-token")
    body = encoder.submit(MOBILE, CODE, NOW)
    for carrier in (encoder, admitted, body, admitted.mobile, body.reveal):
        assert set() == leaks(*walked(carrier))
        assert not hasattr(carrier, "__dict__") or callable(carrier)
    assert f"<Admitted {MASKED} reserved=True>" == repr(admitted)
    assert "SignedBody('****')" == repr(SignedBody(b"x"))
    assert MOBILE == admitted.mobile()
    assert in_variables(ValueError()) == {}
