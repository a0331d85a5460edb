"""A simulated marketplace: people, events, the faults of a real bus, planted anomalies."""
