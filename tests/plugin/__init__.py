"""Tests of the pytest plugin: used in these tests, and in separate runs of pytest."""
