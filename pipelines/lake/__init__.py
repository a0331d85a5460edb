"""The Delta tables, the commit, the dedup index, compaction and recovery."""
