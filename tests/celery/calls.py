import os
from functools import cache

from celery import Celery, Task

from ihuyi_voice import NotSentError, VoiceClient
from ihuyi_voice.celery import BulkJobs

app = Celery("calls", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1)
app.conf.broker_transport_options = {"visibility_timeout": 120}
jobs = BulkJobs(app, store=os.environ["IHUYI_VOICE_STORE"])
RETRIES = {"retry_backoff": 2, "retry_jitter": False, "max_retries": 6}  # 2, 4, ... 64 s


@cache
def client() -> VoiceClient:  # created in the process that uses it, with the same store
    return VoiceClient.from_env()


@app.task(bind=True, autoretry_for=(NotSentError,), **RETRIES)
def call(self: Task, mobile: str, content: str) -> str | None:
    return client().submit(mobile, content, idempotency_key=self.request.id).voice_id
