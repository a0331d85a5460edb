-- Cap rule: per user, metadata keys and period, min(cap, sum) points count. They are granted in the order of events
-- until the cap is reached, so that the contributions add up to exactly that.
-- One view per rule and version of the policy, each over the one before; the first reads earned.
CREATE OR REPLACE TEMP VIEW $name AS
SELECT * EXCLUDE (applies, limited_points, total, limited) REPLACE (
    CASE WHEN limited <> granted THEN 'capped' ELSE reason END AS reason,
    CASE WHEN limited <> granted THEN getvariable('${rule}_name') ELSE rule END AS rule,
    limited AS granted
)
FROM (
    SELECT
        *,
        CASE
            WHEN applies
                THEN granted
                    - limited_points
                    + CAST(least(getvariable('${rule}_maximum'), total) AS BIGINT)
                    - CAST(least(getvariable('${rule}_maximum'), total - limited_points) AS BIGINT)
            ELSE granted
        END AS limited
    FROM (
        SELECT
            *,
            sum(limited_points) OVER (
                PARTITION BY
                    user_id,
                    applies,
                    $per
                    bucket(t, CAST(getvariable('${rule}_period') AS VARCHAR))
                ORDER BY t, source_row, event_id, emission_no
                ROWS UNBOUNDED PRECEDING
            ) AS total
        FROM (
            SELECT
                *,
                $limited_points AS limited_points,
                reason IN ('granted', 'capped') AND governed(
                    action_type,
                    t,
                    getvariable('${rule}_actions'),
                    getvariable('${edition}_from_us'),
                    getvariable('${edition}_to_us')
                ) AS applies
            FROM $source
        )
    )
)
