"""Files of history as rows, and rows as events."""
