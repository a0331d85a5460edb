-- The events of a list of files as a refresh wants them: with the user's hash, and the version that brought each. The
-- metadata are text, because a scan cannot pass over the maps of rows that it does not want.
SELECT
    hash(stored.user_id) AS user_hash,
    stored.user_id,
    stored.event_id,
    stored.action_type,
    epoch_us(stored.event_time) AS t,
    CAST(to_json(stored.metadata) AS VARCHAR) AS metadata,
    coalesce(committed.version, 0) AS version
FROM ($source) AS stored
LEFT JOIN committed ON committed.batch_id = stored.batch_id
WHERE coalesce(committed.version, 0) > $after
ORDER BY user_hash, t
