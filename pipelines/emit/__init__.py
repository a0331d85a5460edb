"""The producer's side: topics, publishing, files as events, the simulator."""
