"""The ledger's tables, in SQLite or PostgreSQL."""
