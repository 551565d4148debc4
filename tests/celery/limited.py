"""The application of the bulk jobs' tests, whose tasks have a hard time limit."""

from __future__ import annotations  # pragma: no cover - its processes are killed

from tests.celery.bulk import app  # pragma: no cover - its processes are killed

__all__ = ["app"]  # pragma: no cover - its processes are killed

app.conf.task_time_limit = 3  # pragma: no cover - its processes are killed
