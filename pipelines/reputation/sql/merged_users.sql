-- Events under the current user_ids of their persons (merged_users.py).

-- name: resolved_users
-- Events of former user_ids under the current ones.
SELECT event.* REPLACE (coalesce(alias.new_id, event.user_id) AS user_id)
FROM $source AS event
LEFT JOIN alias ON alias.old_id = event.user_id

-- name: resolved_metadata
-- The same for the value of a metadata key that holds a user_id.
SELECT event.* REPLACE (
    CASE
        WHEN alias.old_id IS NULL THEN event.metadata
        ELSE map_concat(event.metadata, MAP([getvariable('$key')], [alias.new_id]))
    END AS metadata
)
FROM $source AS event
LEFT JOIN alias ON alias.old_id = event.metadata[getvariable('$key')]

-- name: view_resolved_event
-- The events that the steps read where users were merged.
CREATE OR REPLACE TEMP VIEW resolved_event AS
$query

-- name: resolved_rows
-- Rows of the histories, resolved, with the hash of the current user_id.
SELECT * REPLACE (hash(user_id) AS user_hash)
FROM ($query)

-- name: alias_hashes
-- The hashes of former user_ids and of the current ones, as users ...
SELECT hash(old_id) AS old, hash(new_id) AS new
FROM alias

-- name: alias_links
-- ... and as values in links (histories_links).
SELECT hash(kind, old_id) AS old, hash(kind, new_id) AS new
FROM alias
CROSS JOIN (VALUES ('gated'), ('completing')) AS kinds(kind)

-- name: moved_events
-- Of rows in the form of the histories, those of some user_ids, and those that name one at a key that a rule compares.
FROM ($rows)
WHERE
    list_contains(getvariable('moved_names'), user_id)
    OR list_has_any(
        list_transform(getvariable('compared_keys'), lambda key: metadata[key]),
        getvariable('moved_names')
    )
