"""Two servers, one of them with TLS, in another network namespace: run as `python -m`.

Started with its address, a certificate and its key. Prints the two URLs, and
when its input ends the contents that arrived.
"""

from __future__ import annotations

import ssl
import sys

from tests.transport.blocking_server import BlockingServer


def main() -> None:
    """Serve until the input ends."""
    host, certificate, key = sys.argv[1:]
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    servers = BlockingServer(None, host), BlockingServer(tls, host)
    print(*(server.url for server in servers), flush=True)  # noqa: T201 - to the test
    sys.stdin.read()
    print(*(content for server in servers for content in server.contents))  # noqa: T201 - the test reads it


if __name__ == "__main__":  # pragma: no branch - a program of its own
    main()
