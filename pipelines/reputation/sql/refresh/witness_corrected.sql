-- What the witnesses corrected: the correction may name the key, and the event another one.
INSERT INTO witness_moment
SELECT user_hash, t
FROM by_user.event
WHERE
    user_hash IN (FROM witness)
    AND event_id IN (
        SELECT from_json(metadata, '"MAP(VARCHAR, VARCHAR)"')[getvariable('correction_target')]
        FROM by_user.event
        WHERE
            user_hash IN (FROM witness)
            AND action_type IN (SELECT action_type FROM role WHERE role = 'correction')
    )
