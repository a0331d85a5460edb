"""The trust boundary: HTTP with a deadline, allowed hosts, bounded TOML, private files, file locks, escaped text."""
