"""Sources of batches: a Kafka topic, a message queue, a file of history, a replay, requeued dead letters.

Each has the methods of `Source` (`read_ahead.py`) and feeds the same `drain_once()` (`pipelines/drain.py`).
"""
