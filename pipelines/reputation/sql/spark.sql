-- Statements for Apache Spark and its results.

-- name: double_to_hugeint
-- A float without a fraction as a whole number, every bit of it; Spark's own cast keeps 17 digits.
CREATE OR REPLACE TEMPORARY FUNCTION double_to_hugeint(v DOUBLE) RETURNS DECIMAL(38, 0)
RETURN CAST(floor(v / 1099511627776D) AS DECIMAL(20, 0)) * 1099511627776
    + CAST(v - CAST(floor(v / 1099511627776D) AS DOUBLE) * 1099511627776D AS BIGINT)

-- name: spark_rows
-- The rows that Spark wrote for one table.
SELECT *
FROM read_parquet([$files])

-- name: spark_insert
-- Insert them into the table of the draft.
INSERT INTO $name BY NAME
$rows
