"""A simulated marketplace: users, events, the faults of a real bus, planted anomalies."""
