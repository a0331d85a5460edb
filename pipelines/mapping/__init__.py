"""What a source is, and how the records of a foreign topic become events."""
