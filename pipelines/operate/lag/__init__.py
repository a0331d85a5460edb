"""Consumer lag: measurements, their history, and advice."""
