"""A service as teams write them, and the whole system around it, running."""
