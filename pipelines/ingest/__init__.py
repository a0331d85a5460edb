"""Sources of batches: a Kafka topic, a message queue, a file of history, a replay, requeued dead letters."""
