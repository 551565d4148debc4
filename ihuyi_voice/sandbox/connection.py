"""One connection to the sandbox gateway: takes request lines that aiohttp refuses.

Programs put raw UTF-8 and blanks into a query, and the real host's php-fpm takes
them; aiohttp's parser answers 400, with the line and the password in it. Here
the target of such a line is percent-encoded before the parser sees it. What is
still no HTTP is answered without any part of it, and recorded.

Not known of the real gateway: whether the web server before its php-fpm takes
these lines. Here they are accepted. Of requests that are sent without waiting for
the answer (pipelining), only the first in a piece of data is encoded.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.http_exceptions import (
    BadHttpMethod,
    ContentLengthError,
    InvalidHeader,
    LineTooLong,
    TransferEncodingError,
)
from yarl import URL

from .page_files import problem

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from aiohttp import StreamReader

# aiohttp refuses a longer line; this bounds what is held until the line ends.
_LONGEST_LINE = 16_384

_is_plain = re.compile(rb"[A-Z]+ [!-~]+ HTTP/1\.[01]\r?\n").fullmatch
_parts_of = re.compile(rb"([A-Z]+) +(\S.*?) +(HTTP/1\.[01]\r?\n)", re.DOTALL).fullmatch
_not_in_a_target = re.compile(rb"[^!-~]")
_is_tls = re.compile(rb"\x16\x03[\x00-\x04]").match

_REASONS: dict[type[BaseException | None], str] = {
    BadHttpMethod: problem("http_word"),
    ContentLengthError: problem("length"),
    InvalidHeader: problem("header"),
    LineTooLong: problem("line_too_long"),
    TransferEncodingError: problem("transfer_encoding"),
}
NOT_HTTP = problem("not_http")
_MALFORMED = problem("malformed")
_TLS = problem("tls")

_BAD_TARGET = problem("target")
# What aiohttp's parser gets instead of a line with such a target: older ones never answer it.
_NO_LINE = b"-\r\n"

BAD_REQUEST = "Bad Request: "


def with_encoded_target(line: bytes) -> bytes:
    """A request line with the target percent-encoded; any other line unchanged."""
    if _is_plain(line):
        return line
    parts = _parts_of(line)
    if parts is None:
        return line
    target = _not_in_a_target.sub(lambda found: b"%%%02X" % found[0][0], parts[2])
    return b"%b %b %b" % (parts[1], target, parts[3])


def has_bad_target(line: bytes) -> bool:
    """Whether the encoded target of a request line is neither a path nor a URL."""
    parts = _parts_of(line)
    if parts is None or parts[1] == b"CONNECT" or parts[2].startswith((b"/", b"*")):
        return False
    try:
        url = URL(parts[2].decode("ascii"))
    except ValueError:
        return True
    return not (url.scheme and url.host)


class Connection(web.RequestHandler):
    """aiohttp's protocol of a server's connection, which encodes the target of each request line.

    Args:
        server: as aiohttp's.
        on_unreadable: called with the connection, the request line and the
            reason when a request cannot be parsed.
    """

    __slots__ = ("_held", "_in_head", "_line", "_on_unreadable", "_payload")

    def __init__(
        self,
        server: web.Server,
        loop: asyncio.AbstractEventLoop,
        on_unreadable: Callable[[Connection, bytes, str], None],
    ) -> None:
        # As aiohttp's own runner does it.
        super().__init__(server, loop=loop, access_log=None)  # type: ignore[arg-type]
        self._on_unreadable = on_unreadable
        self._held = b""
        self._line = b""
        self._in_head = False
        self._payload: StreamReader | None = None

    @property
    def ip(self) -> str:
        """Where the connection comes from; "" once it is closed."""
        peer = None if self.transport is None else self.transport.get_extra_info("peername")
        return str(peer[0]) if peer else ""

    def data_received(self, data: bytes) -> None:
        """Hold a request line until it is complete, and pass the rest on as it comes."""
        if not self._in_head and (self._payload is None or self._payload.is_eof()):
            # A line break before a request line is allowed.
            self._held = (self._held + data).lstrip(b"\r\n")
            end = self._held.find(b"\n") + 1
            if not self._held or (not end and self._may_become_a_line()):
                return
            data, self._held = self._held, b""
            self._line = with_encoded_target(data[:end] if end else data)
            if has_bad_target(self._line):
                data = _NO_LINE + data[end:]
            elif end:
                data = self._line + data[end:]
        before = len(self._messages)
        super().data_received(data)
        self._in_head = len(self._messages) == before
        if not self._in_head:
            self._payload = self._messages[-1][1]

    def _may_become_a_line(self) -> bool:
        return len(self._held) < _LONGEST_LINE and not _is_tls(self._held)

    def log_exception(self, *args: object, **kwargs: object) -> None:
        """Log an error of the sandbox itself; a body that cannot be decoded is only recorded."""
        if not isinstance(kwargs.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kwargs)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what cannot be parsed; the page and the log repeat nothing of it."""
        if status != 400:
            return super().handle_error(request, status, exc, message)
        reason = self._reason(exc)
        self._on_unreadable(self, self._line, reason)
        response = web.Response(status=400, text=BAD_REQUEST + reason)
        response.force_close()
        return response

    def _reason(self, exc: BaseException | None) -> str:
        if _is_tls(self._line):
            return _TLS
        if has_bad_target(self._line):
            return _BAD_TARGET
        if not _is_plain(self._line) and not isinstance(exc, LineTooLong):
            return NOT_HTTP
        return _REASONS.get(type(exc), _MALFORMED)
