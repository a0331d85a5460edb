"""The same job with other tools: from a topic of events to Parquet, each in its own process and idiomatic style.

A peer is a module with a `main` and runs as `python -m benchmarks.peers.NAME` with a Job on its standard input
(`protocol.py`); all but karmalake itself run in the environment of `requirements.txt` (`environment.py`).
"""
