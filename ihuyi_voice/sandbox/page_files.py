"""The files of the inbox page, and the headers that go with them.

Read once, when this module is imported: serving them must not wait for a disk.
"""

from __future__ import annotations

from importlib.resources import files

# What was submitted is a stranger's: with the last two, no code of the page may
# parse it as HTML, even by mistake.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Go with every answer but the gateway's own; so do the numbers and codes stay in the page."""

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

FILES: dict[str, tuple[str, bytes]] = {
    file.name: (_TYPES[file.name.rpartition(".")[2]], file.read_bytes())
    for file in (files(__package__) / "page").iterdir()
    if file.name.rpartition(".")[2] in _TYPES
}
"""By its name: a file's content type and its bytes. `index.html` is the page."""
