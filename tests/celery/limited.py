"""The application of the bulk jobs' tests, whose tasks have a hard time limit."""

from __future__ import annotations

from tests.celery.bulk import app

__all__ = ["app"]

app.conf.task_time_limit = 3
