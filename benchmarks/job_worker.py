"""The Celery application of `benchmarks/jobs.py`; broker and store come from the environment."""

from __future__ import annotations

import os

from celery import Celery

from ihuyi_voice.celery import BulkJobs

app = Celery("benchmark", broker=os.environ["BENCHMARK_BROKER"])
app.conf.worker_prefetch_multiplier = 1
jobs = BulkJobs(app, store=os.environ["BENCHMARK_STORE"])
