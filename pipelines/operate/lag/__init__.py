"""How far ingest is behind, for how long, how fast it catches up, and what to do about it."""
