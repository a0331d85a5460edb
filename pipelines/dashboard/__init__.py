"""The dashboard: one page for those who would rather look. It reads; nothing here decides or writes."""
