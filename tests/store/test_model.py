"""The store's rules compared with a small model, over random orders of events."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ihuyi_voice.errors import InvalidRequestError, StoreError
from ihuyi_voice.store.entry import EntryState, Fingerprints

from .support import CONTENT, DELIVERY, LIVE, Clock, claim, open_store

if TYPE_CHECKING:
    from ihuyi_voice.store.sql.store import SqlStore

KEYS = st.sampled_from(["a", "b"])
NUMBERS = st.sampled_from(["13912345678", "13900005678", "13812345678"])
API_KEYS = st.sampled_from(["one", "two"])


class Claims(RuleBasedStateMachine):
    """The model maps a key to its state, mobile, API key, token and time."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.clock = Clock()
        self.path = Path(folder) / "calls.db"
        self.store = self.open()
        self.model: dict[str, tuple[EntryState, str, str, str, float]] = {}
        self.tokens: list[tuple[str, str]] = []

    def open(self) -> SqlStore:
        opened = open_store(self.path, patience=0, clock=self.clock)
        return self.stack.enter_context(contextlib.closing(opened))

    def teardown(self) -> None:
        self.stack.close()

    @rule()
    def open_it_again(self) -> None:
        self.store.close()
        self.store = self.open()

    @rule(seconds=st.sampled_from([1.0, DELIVERY, LIVE]))
    def wait(self, seconds: float) -> None:
        self.clock.time += seconds

    @rule(key=KEYS, mobile=NUMBERS, api_key=API_KEYS)
    def claim(self, key: str, mobile: str, api_key: str) -> None:
        existing = self.model.get(key)
        if existing is not None:
            _, its_mobile, its_api_key, _, _ = existing
            same = (
                its_mobile == mobile
                if its_api_key == api_key
                else (its_mobile[:3], its_mobile[7:]) == (mobile[:3], mobile[7:])
                and existing[0] in (EntryState.REFUSED, EntryState.NOT_SENT)
            )
            if not same:  # pragma: no branch - depends on the random events
                with pytest.raises(InvalidRequestError):
                    self._claim(key, mobile, api_key)
                return
        may_send = existing is None or existing[0] in (EntryState.REFUSED, EntryState.NOT_SENT)
        token, state = self._claim(key, mobile, api_key)
        assert may_send is bool(token)
        if may_send:
            self.tokens.append((key, token))
            self.model[key] = EntryState.CLAIMED, mobile, api_key, token, self.clock.time
        assert may_send or (existing is not None and state is existing[0])

    def _claim(self, key: str, mobile: str, api_key: str) -> tuple[str, EntryState | None]:
        answer = asyncio.run(
            claim(self.store, key, mobile, CONTENT, fingerprints=Fingerprints(api_key))
        )
        return answer.token, None if answer.entry is None else answer.entry.state

    @precondition(lambda self: self.tokens)
    @rule(
        data=st.data(),
        state=st.sampled_from([state for state in EntryState if state is not EntryState.CLAIMED]),
    )
    def settle(self, data: st.DataObject, state: EntryState) -> None:
        key, token = data.draw(st.sampled_from(self.tokens))
        existing = self.model.get(key)
        mine = existing is not None and existing[3] == token
        # A call that a person saw placed stays accepted.
        if existing is not None and existing[0] is EntryState.ACCEPTED is not state:
            mine = False
        with contextlib.nullcontext() if mine else pytest.raises(StoreError):
            asyncio.run(self.store.settle(key, token, state))
        if mine and existing is not None:  # pragma: no branch - depends on the random events
            self.model[key] = (state, *existing[1:4], self.clock.time)

    @rule(key=KEYS, placed=st.booleans())
    def resolve(self, key: str, *, placed: bool) -> None:
        existing = self.model.get(key)
        over = existing is not None and (
            (existing[0] is EntryState.UNKNOWN and self.clock.time >= existing[4] + DELIVERY)
            or (
                existing[0] is EntryState.CLAIMED
                and self.clock.time >= existing[4] + LIVE + DELIVERY
            )
        )
        error = LookupError if existing is None else ValueError
        with contextlib.nullcontext() if over else pytest.raises(error):
            self.store.resolve(key, placed=placed)
        if over and existing is not None:  # pragma: no branch - depends on the random events
            state = EntryState.ACCEPTED if placed else EntryState.NOT_SENT
            self.model[key] = (state, *existing[1:4], self.clock.time)

    @rule()
    def purge(self) -> None:
        gone = [
            key
            for key, (state, *_, changed) in self.model.items()
            if state not in (EntryState.CLAIMED, EntryState.UNKNOWN)
            and changed < self.clock.time - LIVE
        ]
        assert len(gone) == self.store.purge(timedelta(seconds=LIVE))
        self.model = {key: entry for key, entry in self.model.items() if key not in gone}

    @invariant()
    def what_is_unknown_is_listed(self) -> None:
        unknown = {
            key
            for key, (state, *_) in self.model.items()
            if state in (EntryState.CLAIMED, EntryState.UNKNOWN)
        }
        assert unknown == {claim.key for claim in self.store.unknown()}
        summary = self.store.summary()
        assert len(unknown) == summary["unknown"]
        assert len(self.model) == sum(summary.values())


TestClaims = Claims.TestCase
TestClaims.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
