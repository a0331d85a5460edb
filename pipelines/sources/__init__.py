"""Reading history files as rows, and mapping rows to events."""
