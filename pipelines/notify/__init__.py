"""The notifications branch of the fan-out: events of the topic to webhooks and Redis streams, by rules of a file.

Owns who is told what, delivery and its retries, and this branch's own checkpoints and dead letters. Knows nothing of
the lake: both read the same topic, and neither waits for the other (`isolated`). Start reading at `branch.py`.
"""
