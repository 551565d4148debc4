"""Verifiers: a call reads out a code, and a person types it in."""
