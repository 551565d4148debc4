"""The arguments of both clients: concealed, checked, and taken from the environment.

They hold plain secrets, and the variables of a frame that an exception passes
are printed by many tools. So no function here raises: each returns an error,
and the caller raises it in a statement of its own.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from .models import Secret, Settings

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypedDict

    import aiohttp

    from .events import OnSubmit
    from .models import AnswerFormat
    from .quota import QuotaDefault, RecipientQuota
    from .store.store import Store
    from .transport.base import Transport

    class ClientOptions(TypedDict, total=False):
        """The keyword arguments of the clients, for `from_env`."""

        api_id: str
        api_key: str
        base_url: str
        dynamic_password: bool
        answer_format: AnswerFormat
        timeout: float
        connect_timeout: float
        connect_attempts: int
        max_connections: int
        ssl_context: ssl.SSLContext | None
        proxy: str | None
        trace_configs: Sequence[aiohttp.TraceConfig]
        quota: RecipientQuota | QuotaDefault | None
        store: Store | None
        require_key: bool
        on_event: Sequence[OnSubmit]
        transport: Callable[[], Transport] | None
        clock: Callable[[], float]


_T = TypeVar("_T")


def conceal(value: _T) -> _T:
    """The argument as a `Secret`, which a client keeps in place of the plain string.

    An exception that a client raises must not find a plain secret in its
    frames. Type checkers see the type of the argument, because it is assigned
    to the same name.
    """
    if value is None or isinstance(value, Secret):
        return value
    return cast("_T", Secret(cast("str", value)))


def _revealed(value: object) -> object:
    return value.reveal() if isinstance(value, Secret) else value


def checked_settings(**arguments: Any) -> Settings | Exception:  # noqa: ANN401 - checked by Settings
    """The settings, or the error for the caller to raise."""
    base_url, proxy = _revealed(arguments["base_url"]), _revealed(arguments["proxy"])
    try:
        settings = Settings(
            **{
                **arguments,
                # `conceal` leaves None as it is.
                "api_key": Secret(cast("str", _revealed(arguments["api_key"]))),
                "base_url": base_url,
                "proxy": None if proxy in (None, "env") else Secret(cast("str", proxy)),
            }
        )
        if proxy == "env":
            settings = replace(settings, proxy=_environment_proxy(settings.base_url))
    except (TypeError, ValueError) as error:
        return error.with_traceback(None)
    return settings


def _environment_proxy(base_url: str) -> Secret | None:
    parts = urlsplit(base_url)
    proxies = getproxies()
    url = proxies.get(parts.scheme) or proxies.get("all")
    if url is None or proxy_bypass(parts.netloc):
        return None
    return Secret(url)


class ConcealedOptions:
    """The keyword arguments of a client, which no repr shows; `reveal()` gives them.

    Attributes:
        opened_store: the store that the environment names, opened; None where
            it names none, or the caller has passed one.
    """

    __slots__ = ("_options", "opened_store")

    def __init__(self, options: ClientOptions, opened_store: Store | None) -> None:
        self._options = options
        self.opened_store: Store | None = opened_store

    @contextlib.contextmanager
    def closing_store_on_error(self) -> Iterator[None]:
        """Close the opened store where the client cannot be made."""
        try:
            yield
        except BaseException:
            if self.opened_store is not None:
                self.opened_store.close()
            raise

    def reveal(self) -> ClientOptions:
        """The arguments."""
        return self._options


def options_from_env(overrides: ClientOptions) -> ConcealedOptions | Exception:
    """The overrides, and what they leave open taken from the environment.

    An error where a variable is not set, or its store cannot be opened: it is
    for the caller to raise, without the overrides in its frame.
    """
    options: ClientOptions = {}
    opened_store: Store | None = None
    if base_url := os.environ.get("IHUYI_VOICE_BASE_URL"):
        options["base_url"] = base_url
    if "api_id" not in overrides:
        if not (api_id := os.environ.get("IHUYI_VOICE_API_ID")):
            return _not_set("IHUYI_VOICE_API_ID", "api_id")
        options["api_id"] = api_id
    if "api_key" not in overrides:
        if not (api_key := os.environ.get("IHUYI_VOICE_API_KEY")):
            return _not_set("IHUYI_VOICE_API_KEY", "api_key")
        options["api_key"] = api_key
    # "none" is how the variable asks the command line for no store.
    url = os.environ.get("IHUYI_VOICE_STORE") or "none"
    if "store" not in overrides and url != "none":
        from .store.store import Store  # noqa: PLC0415 - only where it is set

        try:
            opened_store = options["store"] = Store.open(url)
        except Exception as error:  # noqa: BLE001 - for the caller to raise
            return error.with_traceback(None)
    return ConcealedOptions({**options, **overrides}, opened_store)


def _not_set(variable: str, option: str) -> ValueError:
    return ValueError(f"set the environment variable {variable}, or pass {option}=...")
