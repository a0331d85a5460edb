"""Notifications: events of the topic are delivered to webhooks and Redis streams, by the rules of a file.

Owns the rules, delivery with retries, and its own checkpoints and dead letters. Independent of the lake: both read the
same topic, and neither waits for the other (`isolated`). Start reading at `branch.py`.
"""
