"""The store's storage in SQLite or PostgreSQL."""
