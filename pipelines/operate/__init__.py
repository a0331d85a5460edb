"""What operators run on a lake that exists: audit, verify, doctor, erase, dead letters, replay, lag."""
