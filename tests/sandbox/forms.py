"""Forms as a caller would fill them in, signed without the code under test."""

from __future__ import annotations

import hashlib

NOW = 1_700_000_000
MOBILE = "13912345678"
CONTENT = "1125"
ACCOUNT = "sandbox"
KEY = "sandbox-key"


def md5(text: str) -> str:
    """The digest that the vendor's formulas ask for."""
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def submit_form(
    mobile: str = MOBILE, content: str = CONTENT, *, time: int = NOW, **more: str
) -> dict[str, str]:
    """A submit with the dynamic password; `more` adds or overrides fields."""
    password = md5(f"{ACCOUNT}{KEY}{mobile}{content}{time}")
    form = {"account": ACCOUNT, "password": password, "mobile": mobile, "content": content}
    return form | {"time": str(time)} | more


def balance_form(*, time: int = NOW, **more: str) -> dict[str, str]:
    """A balance query with the dynamic password; `more` adds or overrides fields."""
    form = {"account": ACCOUNT, "password": md5(f"{ACCOUNT}{KEY}{time}"), "time": str(time)}
    return form | more


def without(form: dict[str, str], name: str) -> dict[str, str]:
    """The form with one field left out."""
    return {field: value for field, value in form.items() if field != name}
