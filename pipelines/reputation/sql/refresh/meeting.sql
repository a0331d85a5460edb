-- Which users meet at a key of a completion rule, and when: those whose event needs the key, and those whose event
-- completes it.
INSERT INTO by_user.meeting
SELECT DISTINCT hash(key) AS key_hash, user_hash, t
FROM (
    SELECT user_hash, t, unnest(json_extract_string(metadata, getvariable('completion_keys'))) AS key
    FROM by_user.event
    WHERE version > $after AND list_contains(getvariable('completion_actions'), action_type)
)
WHERE key IS NOT NULL
