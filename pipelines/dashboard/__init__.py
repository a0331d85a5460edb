"""The dashboard: a read-only web page over the warehouse."""
