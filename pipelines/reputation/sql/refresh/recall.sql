INSERT INTO recalled
SELECT
    user_hash,
    event_id,
    user_id,
    action_type,
    make_timestamptz(t),
    from_json(metadata, '"MAP(VARCHAR, VARCHAR)"')
FROM by_user.event
WHERE user_hash IN (FROM touched)
