-- Completion rule: an event counts only if an event of another kind, of any user, has the same value at a metadata key.
-- One view per rule and version of the policy, each over the one before; the first reads judged.
CREATE OR REPLACE TEMP VIEW $name AS
SELECT * EXCLUDE (denied) REPLACE (
    CASE WHEN denied THEN 'not completed' ELSE reason END AS reason,
    CASE WHEN denied THEN getvariable('${rule}_name') ELSE rule END AS rule
)
FROM (
    SELECT
        event.*,
        event.reason = 'granted'
            AND done.key IS NULL
            AND governed(
                event.action_type,
                event.t,
                getvariable('${rule}_actions'),
                getvariable('${edition}_from_us'),
                getvariable('${edition}_to_us')
            ) AS denied
    FROM $source AS event
    LEFT JOIN (
        SELECT DISTINCT completion.metadata[getvariable('${rule}_key')] AS key
        FROM corrected_event AS completion
        LEFT JOIN retracted_event AS retracted
            ON retracted.user_id = completion.user_id AND retracted.event_id = completion.event_id
        WHERE list_contains(getvariable('${rule}_by'), completion.action_type) AND retracted.user_id IS NULL
    ) AS done
        ON done.key = event.metadata[getvariable('${rule}_key')]
)
