"""Two network namespaces with a wire between them, which a test cuts."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ADDRESS = "10.111.0.1"


class Wire:
    """Two network namespaces with a wire between them, that can be cut.

    Attributes:
        near: the name of the clients' namespace.
        far: the name of the server's.
    """

    def __init__(self) -> None:
        self.near, self.far = f"near-{os.getpid()}", f"far-{os.getpid()}"

    def lay(self) -> None:
        ip("netns", "add", self.near)
        ip("netns", "add", self.far)
        ip(
            "-n",
            self.far,
            "link",
            "add",
            "wire",
            "type",
            "veth",
            "peer",
            "wire",
            "netns",
            self.near,
        )
        ip("-n", self.near, "address", "add", "10.111.0.2/24", "dev", "wire")
        for namespace in (self.near, self.far):
            ip("-n", namespace, "link", "set", "wire", "up")
        self.heal()

    def cut(self) -> None:
        """Let the far side take nothing any more."""
        ip("-n", self.far, "address", "del", f"{ADDRESS}/24", "dev", "wire")

    def heal(self) -> None:
        ip("-n", self.far, "address", "add", f"{ADDRESS}/24", "dev", "wire")

    def remove(self) -> None:
        for namespace in (self.near, self.far):
            with contextlib.suppress(subprocess.CalledProcessError, OSError):
                ip("netns", "del", namespace)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=60)


@contextlib.contextmanager
def laid_wire() -> Iterator[Wire]:
    """A wire while the block runs; without namespaces the test is skipped, and fails in CI."""
    laid = Wire()
    try:
        try:
            laid.lay()
        except (
            subprocess.CalledProcessError,
            OSError,
        ) as error:  # pragma: no cover - as root never
            if os.environ.get("CI"):
                raise
            pytest.skip(f"network namespaces need root and iproute2: {error}")
        yield laid
    finally:
        laid.remove()
