"""Who may use the sandbox over HTTP: programs and its own page, no other site's page.

A page of another site in a developer's browser can send requests to loopback
like any program. Two checks stop it:

- The `Host` must be on the allow-list. A page whose own name was made to resolve
  to this machine (DNS rebinding) sends that name. An IP address cannot be
  rebound, so any is allowed.
- A request that changes something must not come from another site, as the
  browser says in `Sec-Fetch-Site`. Programs do not send it. `Origin` is compared
  too: browsers send `Sec-Fetch-Site` only to https and to loopback, and a
  sandbox that listens on a network is neither.

The gateway's own path takes any `Host`, because programs reach it by whatever
name they are given. There, only a request that a browser marked is checked, and
always as one that changes something: an image on another site's page must not
place a call.

Pure: header texts in, the reason for a refusal out.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_FOREIGN_HOST = (
    "refused: the Host is not a name of this machine;"
    " use localhost, or the address in the URL that was printed"
)
_FOREIGN_PAGE = "refused: the request comes from a page of another site"


def is_from_browser(headers: Mapping[str, str]) -> bool:
    """Whether a browser marked the request; programs do not."""
    return "Origin" in headers or "Sec-Fetch-Site" in headers


def refusal(method: str, headers: Mapping[str, str], own: str, *, on_loopback: bool) -> str | None:
    """Why a request is refused, None when it is not.

    Args:
        method: of the request.
        headers: of the request, found by their usual spelling.
        own: the host that the server was asked to listen on, a name or an address.
        on_loopback: whether the request reached a loopback address.
    """
    host = headers.get("Host")
    # HTTP/1.0 has no Host, and no browser speaks it.
    if host is not None and not _is_allowed(_name_in(host), own.lower(), on_loopback=on_loopback):
        return _FOREIGN_HOST
    if method == "GET":
        return None
    # "none": the user typed the address or opened a bookmark.
    if headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        return _FOREIGN_PAGE
    origin = headers.get("Origin")
    if origin is not None and origin.partition("://")[2].lower() != (host or "").lower():
        return _FOREIGN_PAGE
    return None


def _is_allowed(name: str, own: str, *, on_loopback: bool) -> bool:
    if name in ("localhost", own) or name.endswith(".localhost"):
        return True
    # From another machine, also a name without a dot, such as a container's.
    return _is_ip(name) or (not on_loopback and "." not in name)


def _name_in(host: str) -> str:
    """The name or address in a `Host`, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().removesuffix(".")


def _is_ip(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
