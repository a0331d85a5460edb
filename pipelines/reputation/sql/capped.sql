-- Cap: of the points of a user, per metadata key and period, at most so many count: min(cap, sum). They are granted in
-- the order of events until the cap is reached, so that the contributions add up to exactly that.
CREATE OR REPLACE TEMP VIEW $name AS
SELECT * EXCLUDE (applies, limited_points, total) REPLACE (
    CASE WHEN applies AND granted <> $limited THEN 'capped' ELSE reason END AS reason,
    CASE WHEN applies THEN CAST($limited AS BIGINT) ELSE granted END AS granted
)
FROM (
    SELECT *, sum(limited_points) OVER (
        PARTITION BY
            user_id,
            applies,
            metadata[CAST(getvariable('${rule}_key') AS VARCHAR)],
            bucket(t, getvariable('${rule}_period'))
        ORDER BY t, event_id, emission_no
        ROWS UNBOUNDED PRECEDING
    ) AS total
    FROM (
        SELECT
            *,
            reason IN ('granted', 'capped') AND list_contains(getvariable('${rule}_actions'), action_type) AS applies,
            $limited_points AS limited_points
        FROM $source
    )
)
