"""The same job by other means: from a topic of events to Parquet, each in a process and a style of its own.

A peer is a module with a `main` and is run as `python -m benchmarks.peers.NAME` with a Job on its standard input
(`protocol.py`); all but karmalake itself run in the environment of `requirements.txt` (`environment.py`).
"""
