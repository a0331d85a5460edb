-- Statements for Apache Spark and its results.

-- name: double_to_hugeint
-- A float without a fraction as a whole number, every bit of it; Spark's own cast keeps 17 digits.
CREATE OR REPLACE TEMPORARY FUNCTION double_to_hugeint(v DOUBLE) RETURNS DECIMAL(38, 0)
RETURN CAST(floor(v / 1099511627776D) AS DECIMAL(20, 0)) * 1099511627776
    + CAST(v - CAST(floor(v / 1099511627776D) AS DOUBLE) * 1099511627776D AS BIGINT)

-- name: hugeint_to_double
-- A whole number as a float, rounded as DuckDB rounds a HUGEINT: by its lower 64 bits and the rest.
CREATE OR REPLACE TEMPORARY FUNCTION hugeint_to_double(v DECIMAL(38, 0)) RETURNS DOUBLE
RETURN CASE
    WHEN abs(v) <= 9007199254740992 THEN CAST(v AS DOUBLE)
    WHEN v BETWEEN -18446744073709551616 AND -1 THEN -CAST(-v - 1 AS DOUBLE) - 1
    ELSE CAST(pmod(v, 18446744073709551616) AS DOUBLE)
        + CAST((v - pmod(v, 18446744073709551616)) / 18446744073709551616 AS DOUBLE) * 18446744073709551616D
END

-- name: spark_rows
-- The rows that Spark wrote for one table.
SELECT *
FROM read_parquet([$files])

-- name: spark_insert
-- Insert them into the table of the draft.
INSERT INTO $name BY NAME
$rows
