"""What a client reports of its requests, and who reads it."""
