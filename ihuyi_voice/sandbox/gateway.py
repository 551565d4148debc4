"""`SandboxGateway`: a local gateway that rings no phone, served over HTTP."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING

from .core import GatewayCore
from .server import serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


class SandboxGateway(GatewayCore):
    """A gateway that answers like the real one and rings no phone.

        gateway = SandboxGateway(balance=3)
        async with gateway.serve() as url:               # or: with gateway.serve_in_thread() as url
            async with AsyncVoiceClient("sandbox", "sandbox-key", base_url=url) as client:
                await client.submit("13912345678", "1125")
        assert [call.content for call in gateway.calls] == ["1125"]

    Every argument is also an attribute that can be read and set at any time,
    from any thread; sets are replaced, not changed in place
    (`gateway.blacklist |= {"13912345678"}`).

    Args:
        api_id: the account's APIID.
        api_key: the account's APIKEY, also taken as the static password.
        accounts: more accounts, an APIKEY for each APIID. All accounts share one
            balance and every other setting.
        balance: calls left; used up, a submit is refused with 4051.
        time_window: seconds by which the `time` of a dynamic password may
            differ from the clock; past it, 405. None: any time will do.
        allowed_ips: the addresses that may call; any other gets 400. None: all.
        registered_ips: the addresses that may submit; any other gets 4052. None: all.
        blacklist: numbers refused with 4030.
        banned_contents: contents refused with 407.
        failing_mobiles: numbers whose submit fails with 0.
        frozen: whether the account is frozen: 4050. Setting it to False also
            ends a freeze for abuse.
        abuse_limit: after so many refused submits in a row the account is
            frozen: 408 for a submit, 4050 for a balance query. Refusals by the
            fault `code` do not count. None: never.
        frequency_limit: whether the calls placed to one number are limited,
            counted from when it is switched on.
        calls_per_minute: with `frequency_limit`, one more within 60 s gets 4081.
        calls_per_day: with `frequency_limit`, one more within 24 hours gets 4082.
        chaos: what goes wrong between the gateway and its callers.
        receipt_url: where the receipt of each call that is placed over HTTP is
            pushed to, an http or https URL. None: nowhere.
        receipt_delay: seconds after which a call has ended and is reported.
        receipt_interval: seconds by which the wait grows after a push that was
            not answered with `success`; there are three pushes at most.
        receipt_timeout: seconds that the receiver has for an answer, more than 0.
        receipt_id: the name of the receipt's field that holds the voice id.
        keep: how many attempts are remembered, how many calls, and how many other
            requests; the oldest beyond it are forgotten.
        multiline_refusals: whether a refusal in XML has line breaks around each
            element and each text, as some of the real gateway's have.
        on_attempt: called with each `Attempt` once it is recorded, in the
            thread that serves; it must not block. What it raises is logged
            and changes nothing: the submit was taken and is answered as it is.
        on_other: as `on_attempt`, called with each `OtherRequest`: balance queries,
            unknown paths and requests that cannot be read.
        clock: seconds since 1970; also what the `Date` of an answer shows.

    Raises:
        ValueError: naming the setting that is wrong and what it takes; also
            when an attribute is set.
    """

    @asynccontextmanager
    async def serve(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
        """Serve over HTTP in the running loop while the block runs.

        Args:
            host: the address to listen on. Anything but loopback logs a
                warning: every machine that reaches it can read all numbers and codes.
            port: 0 for any free one.

        Yields:
            The base URL, such as `http://127.0.0.1:41234`.

        Raises:
            OSError: the address cannot be listened on.
        """
        async with serving(self, host, port) as url:
            yield url

    @contextmanager
    def serve_in_thread(self, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
        """Serve from a daemon thread with its own loop while the block runs.

        Arguments, what is yielded and what is raised as in `serve`. When the
        block is left, the thread has ended and its sockets are closed.
        """
        started: Future[tuple[str, Callable[[], object]]] = Future()
        thread = Thread(
            target=self._serve_until_stopped,
            args=(host, port, started),
            name="ihuyi-voice-sandbox",
            daemon=True,
        )
        thread.start()
        url, stop = started.result()
        try:
            yield url
        finally:
            stop()
            thread.join()

    def _serve_until_stopped(
        self, host: str, port: int, started: Future[tuple[str, Callable[[], object]]]
    ) -> None:
        async def serve() -> None:
            loop = asyncio.get_running_loop()
            stopped = asyncio.Event()
            async with self.serve(host, port) as url:
                started.set_result((url, partial(loop.call_soon_threadsafe, stopped.set)))
                await stopped.wait()

        try:
            asyncio.run(serve())
        except Exception as error:  # noqa: BLE001 - raised where serve_in_thread was entered
            started.set_exception(error)
