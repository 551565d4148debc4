"""The ledger's storage in SQLite or PostgreSQL."""
