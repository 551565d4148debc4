"""Who may use the sandbox over HTTP: its own page and programs, no other site's page.

A page of another site that a developer has open can send requests to loopback
like any program on the machine. Its browser says where such a request comes
from (`Origin`, `Sec-Fetch-Site`), except when the page's own name was made to
point to this machine (DNS rebinding); then the `Host` is a name that is not
this machine's. Programs send neither of the former and the right one of the
latter, and are let through.

The gateway's own path takes any `Host`, because programs reach it by whatever
name they are given. Only a request that a browser marked is judged there, and
then as one that changes something, whatever its method: an image of another
site's page must not place a call.

Pure: header texts in, a refusal out.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_FOREIGN_HOST = (
    "refused: the Host is not a name of this machine;"
    " use localhost, or the address in the URL that was printed"
)
_FOREIGN_PAGE = "refused: the request comes from a page of another site"


def gateway_refusal(
    headers: Mapping[str, str], asked: str, address: Callable[[], str]
) -> str | None:
    """Why a request to the gateway's own path is refused, None when it is not.

    Args:
        headers: as in `refusal`.
        asked: as in `refusal`.
        address: gives what it is in `refusal`; not called for programs.
    """
    if "Origin" not in headers and "Sec-Fetch-Site" not in headers:
        return None
    return refusal("POST", headers, asked, address())


def refusal(method: str, headers: Mapping[str, str], asked: str, address: str) -> str | None:
    """Why a request is refused, None when it is not.

    Args:
        method: of the request.
        headers: of the request, found by their usual spelling.
        asked: the host that the server was told to listen on, a name or an address.
        address: the server's address on this connection.
    """
    host = headers.get("Host")
    # HTTP/1.0 knows none; no browser speaks it.
    if host is not None and not _is_own(_name_in(host), asked, address):
        return _FOREIGN_HOST
    if method == "GET":
        return None
    origin = headers.get("Origin")
    if origin is not None and not _is_origin_of(origin, host or ""):
        return _FOREIGN_PAGE
    # The second is what the user typed or bookmarked.
    if headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        return _FOREIGN_PAGE
    return None


def _is_own(name: str, asked: str, address: str) -> bool:
    if name in ("localhost", asked.lower()) or name.endswith(".localhost"):
        return True
    here, named = _address(address), _address(name)
    if here is not None and not here.is_loopback:
        # Asked from another machine. An address is nothing that somebody could
        # make point elsewhere; nor is a name without a dot, such as a
        # container's: those of sites have one.
        return named is not None or "." not in name
    return named is not None and named.is_loopback


def _name_in(host: str) -> str:
    """The name or address in a `Host`, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().removesuffix(".")


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _is_origin_of(origin: str, host: str) -> bool:
    return origin.partition("://")[2].lower() == host.lower()
