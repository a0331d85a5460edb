-- The keys at which a completion may have come or gone: those that a fresh completion names, and, where a user withdrew
-- or corrected something, all of that user's.
CREATE OR REPLACE TEMP TABLE changed_key AS
WITH fresh AS (
    SELECT user_hash, action_type, metadata
    FROM by_user.event
    WHERE t < getvariable('as_of') AND $is_fresh
)

SELECT hash(key) AS key_hash
FROM (
    SELECT unnest(json_extract_string(metadata, getvariable('completion_keys'))) AS key
    FROM fresh
    WHERE list_contains(getvariable('completing_actions'), action_type)
)
WHERE key IS NOT NULL
UNION
SELECT key_hash
FROM by_user.meeting
WHERE
    user_hash IN (
        SELECT fresh.user_hash
        FROM fresh
        JOIN role ON role.action_type = fresh.action_type
        WHERE role.role IN ('retraction', 'correction')
    )
