"""Kafka to columns: where to read, what was read, what no longer exists."""
