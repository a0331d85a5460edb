-- Of the witnesses only what makes, withdraws or corrects a completion.
INSERT INTO recalled
SELECT
    user_hash,
    event_id,
    user_id,
    action_type,
    make_timestamptz(t),
    from_json(metadata, '"MAP(VARCHAR, VARCHAR)"')
FROM by_user.event
WHERE
    (user_hash, t) IN (FROM witness_moment)
    AND action_type IN (
        SELECT unnest(getvariable('completing_actions'))
        UNION ALL
        SELECT action_type
        FROM role
        WHERE role = 'retraction'
    )
