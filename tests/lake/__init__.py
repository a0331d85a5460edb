"""Tests of the Delta tables, the commit, the dedup index and upkeep."""
