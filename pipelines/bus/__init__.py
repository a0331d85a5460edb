"""The Kafka client that every reader and writer shares: connections, bounded record batches, topics."""
