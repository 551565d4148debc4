"""Reads a request's fields as the real gateway does: its query, then its body. Pure.

The real host runs php-fpm, and PHP takes fields from the query and from the body,
where the body's value counts. It reads a body as URL-encoded or as
`multipart/form-data`, by its `Content-Type`; what follows a semicolon, a comma
or a blank in that header is a parameter. GATEWAY.md lists the programs that need this.

Not known of the real gateway: what it does with a body of another type. Here
such a body has no fields, as in PHP, and the vendor says that a POST without its
`Content-Type` fails.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from ihuyi_voice.wire import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterator

_MULTIPART = "multipart/form-data"

_type_in = re.compile(r"[^;, \t]*").match
_boundary_in = re.compile(r'boundary=(?:"([^"]+)"|([^\s;,"]+))', re.IGNORECASE).search
# Not the end of `filename=`.
_name_in = re.compile(rb'(?<![\w*-])name=(?:"([^"]*)"|([^\s;"]+))', re.IGNORECASE).search
_is_file = re.compile(rb"(?<![\w-])filename\*?=", re.IGNORECASE).search


def method_in(query: str) -> str:
    """The value of `method`, in lower case; "" when the query has none."""
    return parse_form(query).get("method", "").lower()


def read_fields(query: str, content_type: str, body: bytes) -> dict[str, str]:
    """The fields of a request, without `method`, in the order they were sent.

    Args:
        query: of the URL, as it was sent.
        content_type: the header, "" when there was none.
        body: of a POST, b"" of a GET.
    """
    fields = parse_form(query)
    fields.pop("method", None)
    match = _type_in(content_type.strip())
    kind = match[0].lower() if match else ""
    if kind == CONTENT_TYPE:
        fields |= parse_form(body.decode("utf-8", "replace"))
    elif kind == _MULTIPART:
        fields |= dict(_parts(content_type, body))
    return fields


def parse_form(text: str) -> dict[str, str]:
    """The fields of a form or of a query; of a name sent twice the last counts.

    Lone surrogates become question marks.
    """
    # aiohttp's parser in Python makes them of a URL's raw bytes, and neither MD5
    # nor JSON takes them.
    text = text.encode("utf-8", "replace").decode()
    return dict(parse_qsl(text, keep_blank_values=True))


def _parts(content_type: str, body: bytes) -> Iterator[tuple[str, str]]:
    """The names and values in a multipart body; PHP makes no field of a file."""
    boundary = _boundary_in(content_type)
    if boundary is None:
        return
    delimiter = b"\r\n--" + (boundary[1] or boundary[2]).encode("utf-8", "replace")
    # What follows the last delimiter is no part, and what precedes the first neither.
    for part in re.split(re.escape(delimiter) + rb"(?=--|\r\n)", b"\r\n" + body)[1:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        name = _name_in(head)
        if name is not None and not _is_file(head):
            yield _text(name[1] or name[2] or b""), _text(value)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
