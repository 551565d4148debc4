"""How fast this library sends, beside its peers: `python -m benchmarks`.

It measures and asserts nothing. A stub gateway (`stub.py`) runs in a process
of its own, each candidate (`candidates/`) in a fresh one per round;
`rounds.py` runs them in turn, `marks.py` holds the figures against what the
project set out to reach, `tables.py` and `plot.py` show them.
"""

from __future__ import annotations

ACCOUNT = "cf_benchmark"
API_KEY = "0123456789abcdef0123456789abcdef"
"""The account that all candidates send for, and that the stub can check."""

TARGET = "/webservice/voice.php?method=Submit"
