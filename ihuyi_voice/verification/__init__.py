"""Verifies that a person holds a number: draws a code, has it read out, checks it once."""
