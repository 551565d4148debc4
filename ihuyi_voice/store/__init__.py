"""What outlives a request: the idempotency keys and their outcomes."""
