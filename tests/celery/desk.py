"""A job whose messages the test delivers itself, in this process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery import Celery

from ihuyi_voice.celery import BulkJobs
from tests.store.support import open_store

if TYPE_CHECKING:
    import pytest

    from ihuyi_voice.sandbox import SandboxGateway
    from ihuyi_voice.store.sql.store import SqlStore


@dataclass
class Desk:
    """The broker in the test's hands.

    Attributes:
        messages: the arguments of the messages in the broker.
    """

    jobs: BulkJobs
    store: SqlStore
    gateway: SandboxGateway
    task: Any
    messages: list[tuple[Any, ...]] = field(default_factory=list)

    def deliver(self, message: tuple[Any, ...] | None = None) -> str:
        """Let a worker have a message, by default the first one; returns how that ended."""
        ended = self.task.apply(self.messages.pop(0) if message is None else message)
        state: str = ended.state
        # Celery drops a message that is rejected otherwise.
        assert state != "REJECTED" or ended.result.requeue
        return state

    def deliver_all(self) -> None:
        while self.messages:
            assert "SUCCESS" == self.deliver()


def open_desk(place: str, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch) -> Desk:
    app = Celery("desk", broker="memory://")
    jobs = BulkJobs(app, store=place)
    task = app.tasks["ihuyi_voice.chunk"]
    desk = Desk(jobs, open_store(place), gateway, task)

    def put(arguments: tuple[Any, ...], **_: object) -> None:
        desk.messages.append(arguments)

    monkeypatch.setattr(task, "apply_async", put)
    return desk
