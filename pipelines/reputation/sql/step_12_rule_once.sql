-- Uniqueness rule: one event per user, metadata keys and period counts. Events without a key form one group. Only
-- events that count so far compete. One view per rule and version, in one chain with those of step_11.
CREATE OR REPLACE TEMP VIEW $name AS
SELECT * EXCLUDE (competes, winner) REPLACE (
    CASE WHEN competes AND event_id <> winner THEN 'superseded' ELSE reason END AS reason,
    CASE WHEN competes AND event_id <> winner THEN getvariable('${rule}_name') ELSE rule END AS rule
)
FROM (
    SELECT
        *,
        first_value(event_id) OVER (
            PARTITION BY
                user_id,
                competes,
                $per
                bucket(t, CAST(getvariable('${rule}_period') AS VARCHAR))
            ORDER BY t $direction, source_row $direction, event_id $direction
        ) AS winner
    FROM (
        SELECT
            *,
            reason = 'granted' AND governed(
                action_type,
                t,
                getvariable('${rule}_actions'),
                getvariable('${edition}_from_us'),
                getvariable('${edition}_to_us')
            ) AS competes
        FROM $source
    )
)
