"""The store in a Redis server."""

from .store import RedisStore

__all__ = ["RedisStore"]
