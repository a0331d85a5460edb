-- The rows that Spark wrote for one table.
SELECT *
FROM read_parquet($files)
