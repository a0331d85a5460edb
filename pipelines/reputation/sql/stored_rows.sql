-- The rows of a list of Parquet files.
SELECT $columns
FROM read_parquet([$paths], hive_partitioning = false)
