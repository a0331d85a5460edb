"""The lake: Delta tables, the commit protocol, the dedup index, erasure, file compaction and recovery."""
