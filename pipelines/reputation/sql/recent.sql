-- What happened to users since a moment of each (recent_events.py). `arrow_rows` has these moments.

-- name: recent_users
-- The moments by the hashes of users. Users who share a hash share the earlier moment.
SELECT hash(user_id) AS user_hash, min(lake_version) AS lake_version, min(as_of_us) AS as_of_us
FROM arrow_rows
GROUP BY user_hash
ORDER BY user_hash

-- name: recent_events
-- The events that became known since, or that became older than one of the ages in `recent_shifts`.
SELECT event.user_id, event.event_id, event.action_type, event.t, event.version
FROM (
    SELECT
        stored.user_id,
        stored.event_id,
        stored.action_type,
        epoch_us(stored.event_time) AS t,
        coalesce(committed.version, 0) AS version
    FROM $source AS stored
    LEFT JOIN $commits AS committed ON committed.batch_id = stored.batch_id
) AS event
JOIN arrow_rows AS since ON since.user_id = event.user_id
WHERE
    event.t < getvariable('recent_until')
    AND (
        event.version > since.lake_version
        OR event.t >= since.as_of_us
        OR len(
            list_filter(
                getvariable('recent_shifts'),
                lambda shift: event.t >= since.as_of_us - shift AND event.t < getvariable('recent_until') - shift
            )
        ) > 0
    )
