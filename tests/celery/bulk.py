"""The application of the bulk jobs' tests."""

from __future__ import annotations

import os

from celery import Celery

from ihuyi_voice.celery import BulkJobs

app = Celery("bulk", broker=os.environ["REDIS_URL"])
app.conf.broker_transport_options = {"visibility_timeout": int(os.environ["VISIBILITY_TIMEOUT"])}
app.conf.worker_prefetch_multiplier = 1
jobs = BulkJobs(app, store=os.environ["CALLS_STORE"])
