"""Where the outside begins: HTTP with a deadline, allowed hosts, bounded TOML, private files, locks, escaped text."""
