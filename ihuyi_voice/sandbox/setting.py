"""The attributes of `SandboxGateway` that are checked whenever they are set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable

    from .gateway import SandboxGateway

Kept = TypeVar("Kept")
Given = TypeVar("Given")


class Setting(Generic[Kept, Given]):
    """An attribute of `SandboxGateway` that is checked whenever it is set."""

    def __init__(self, checked: Callable[[str, Given], Kept]) -> None:
        self.checked: Callable[[str, Given], Kept] = checked
        self._name = ""

    def __set_name__(self, owner: type[SandboxGateway], name: str) -> None:
        self._name = name

    @overload
    def __get__(self, gateway: None, owner: type[SandboxGateway]) -> Setting[Kept, Given]: ...
    @overload
    def __get__(self, gateway: SandboxGateway, owner: type[SandboxGateway]) -> Kept: ...
    def __get__(
        self, gateway: SandboxGateway | None, owner: type[SandboxGateway]
    ) -> Setting[Kept, Given] | Kept:
        if gateway is None:
            return self
        kept: Kept = getattr(gateway._state.account, self._name)  # noqa: SLF001 - a part of the gateway
        return kept

    def __set__(self, gateway: SandboxGateway, value: Given) -> None:
        kept = self.checked(self._name, value)
        with gateway._lock:  # noqa: SLF001 - a part of the gateway
            setattr(gateway._state.account, self._name, kept)  # noqa: SLF001 - a part of the gateway
