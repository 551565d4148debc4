"""Tests of the pytest plugin: used right here, and in runs of pytest of their own."""
