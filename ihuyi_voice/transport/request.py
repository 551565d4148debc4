"""One request and its answer: aiohttp's classes for both, with some parts overridden.

This module overrides, and tests check on the lowest and the newest aiohttp that we allow:
`ClientRequest.send` and the `update_...` methods that set up headers and body, and
`ClientResponse.start`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.http_writer import _serialize_headers
from aiohttp.payload import BytesPayload
from multidict import CIMultiDict

from ..models import Answer
from ..wire import CONTENT_TYPE, MAX_ANSWER_BYTES
from .sending import current_sending

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp.connector import Connection
    from typing_extensions import Self

# Where a request keeps its body: a plain attribute in the older aiohttp we allow.
_BODY = "_body" if hasattr(aiohttp.ClientRequest, "update_body") else "body"


class Form(BytesPayload):
    """The body of one request, which no repr shows.

    All bodies share one headers object; the base class makes one for each.
    """

    _encoding = None
    _filename = None
    _headers = CIMultiDict({"Content-Type": CONTENT_TYPE})

    def __init__(self, body: bytes) -> None:
        self.body: bytes = body
        self._value = body
        self._size = len(body)


class LeanRequest(aiohttp.ClientRequest):
    """A POST of a `Form` with the session's headers and no other, in one piece.

    It accepts no compression, so a small answer cannot unpack into a large
    one. The session's `skip_auto_headers` would do the same with three copies
    of the headers per request. The body is never compressed, chunked or held
    back until a "100 Continue", so the methods for that do nothing.
    """

    def update_headers(self, headers: CIMultiDict[str]) -> None:  # type: ignore[override] # always these
        """Take the headers, `Host` among them: the session makes a copy for each request."""
        self.headers = headers

    def update_auto_headers(self, skip_auto_headers: object) -> None:
        """Add no header: the session has a User-Agent."""

    def update_content_encoding(self, data: object) -> None:
        """Send the body as it is."""

    def update_transfer_encoding(self) -> None:
        """Send the body in one piece."""

    def update_expect_continue(self, expect: bool = False) -> None:  # noqa: FBT001, FBT002 - aiohttp's
        """Send the body at once."""

    def update_body_from_data(self, body: Form) -> None:  # type: ignore[override] # bodies are forms
        """Take a `Form` as it is; aiohttp's own method also takes all other kinds of body."""
        setattr(self, _BODY, body)
        self.headers["Content-Type"] = CONTENT_TYPE
        self.headers["Content-Length"] = str(body.size)

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """Let head and body be written soon, and return the response, which is not read yet.

        aiohttp's own method writes the body in a task of its own, also where the task has
        no chance to run before the request is given up. A form needs no task: the
        kernel takes some hundred bytes at once.
        """
        conn.protocol.keep_unparsed()  # type: ignore[union-attr] # our connector's
        url = self.url
        body: bytes = getattr(self, _BODY).body
        for trace in self._traces:
            await trace.send_request_headers(self.method, url, self.headers)
            await trace.send_request_chunk_sent(self.method, url, body)
        path = str(url) if self.proxy is not None and not self.is_ssl() else url.raw_path_qs
        head = _serialize_headers(f"POST {path} HTTP/1.1", self.headers)
        response = self.response_class(
            self.method,
            self.original_url,
            writer=None,
            continue100=None,
            timer=self._timer,
            request_info=self.request_info,
            traces=self._traces,
            loop=self.loop,
            session=self._session,
            **_MORE_OF_A_RESPONSE,
        )
        # Last, because an exception after it would hide the answer.
        current_sending.get().write_soon(head + body)
        return response


class _NoWriter:
    """A response's writer that has written nothing."""

    output_size = 0


# Only newer responses take what wrote the request.
_MORE_OF_A_RESPONSE: dict[str, Any] = {
    name: value
    for name, value in {"stream_writer": _NoWriter}.items()
    if name in aiohttp.ClientResponse.__init__.__code__.co_varnames
}


class WholeResponse(aiohttp.ClientResponse):
    """A response that is read completely before a trace config sees it."""

    async def start(self, connection: Connection) -> Self:
        """Read head and body."""
        await super().start(connection)
        answer = current_sending.get().answer = await read_answer(self)
        # For trace configs that read it.
        self._body = answer.body
        return self


async def read_answer(response: aiohttp.ClientResponse) -> Answer:
    """Read the answer, up to the size that is accepted."""
    content = response.content
    body = await content.readany()
    while not content.at_eof() and len(body) <= MAX_ANSWER_BYTES:
        body += await content.readany()
    if len(body) > MAX_ANSWER_BYTES:
        # The rest is not read, so the connection cannot be reused.
        response.close()
        body = body[: MAX_ANSWER_BYTES + 1]
    return Answer(response.status, body, response.headers.get("Date"))


def recording(trace_configs: Sequence[aiohttp.TraceConfig]) -> list[aiohttp.TraceConfig]:
    """The caller's trace configs after one that records that the request began.

    A caller's callback may raise or wait for ever. Before the first one, nothing was done.
    """
    if not trace_configs:
        return []

    async def begin(*_: object) -> None:
        current_sending.get().connecting = True

    first = aiohttp.TraceConfig()
    first.on_request_start.append(begin)
    return [first, *trace_configs]
