"""The derivation on Apache Spark: the same statements, translated, for histories too large for one machine."""
