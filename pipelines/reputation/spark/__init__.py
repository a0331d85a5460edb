"""The derivation on Apache Spark: the same statements, translated, for histories that one machine does not hold."""
