"""The producer's side: the outbox of a service, its relay, and publishing."""
