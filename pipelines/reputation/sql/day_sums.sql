-- Sums over users by UTC day, which change by differences (day_sums.py).

-- name: day_sums_view
-- A table of sums as readers see it: those of the base, and what changed since.
CREATE VIEW $name AS
SELECT $keys, $sums
FROM (
    FROM base.main.$name
    UNION ALL
    FROM changed.$name
)
GROUP BY $keys
HAVING $has_any

-- name: day_sums_difference
-- The sums over some users as they are now, minus those as they were.
CREATE OR REPLACE TEMP TABLE difference_$name AS
SELECT $keys, $sums
FROM (
    FROM (
$after
    )
    UNION ALL
    SELECT $keys, $negated
    FROM (
$before
    )
)
GROUP BY $keys
HAVING $has_any

-- name: day_sums_add
-- Add the difference to what changed since the base.
MERGE INTO changed.$name AS stored
USING difference_$name AS difference
ON $same
WHEN MATCHED AND $cancels THEN DELETE
WHEN MATCHED THEN UPDATE SET $added
WHEN NOT MATCHED THEN INSERT BY NAME

-- name: day_sums_delete_scores
-- Delete the distributions of the days on which scores changed; insert_rows then inserts the new ones.
DELETE FROM trends_scores
WHERE day IN (SELECT day FROM difference_day_scores)

-- name: day_sums_scores
-- The scores of those days.
(
    FROM day_scores
    SEMI JOIN difference_day_scores USING (day)
)
