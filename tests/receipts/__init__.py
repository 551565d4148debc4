"""Tests of receipts: reading them, and taking them over real HTTP."""
