import os
from functools import cache

from celery import Celery, Task

from ihuyi_voice import NotSentError, Store, VoiceClient

app = Celery("calls", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True)
app.conf.broker_transport_options = {"visibility_timeout": 60}


@cache
def client() -> VoiceClient:  # created in the process that uses it
    return VoiceClient.from_env(store=Store.open(os.environ["CALLS_STORE"]))


@app.task(bind=True, autoretry_for=(NotSentError,), retry_backoff=True)
def call(self: Task, mobile: str, content: str) -> str | None:
    return client().submit(mobile, content, idempotency_key=self.request.id).voice_id
