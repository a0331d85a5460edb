-- When the witnesses have events at the keys of the touched users, and when they withdrew or corrected something: a
-- witness may have very many events at other keys.
CREATE OR REPLACE TEMP TABLE witness_moment AS
SELECT user_hash, t
FROM by_user.meeting
WHERE
    user_hash IN (FROM witness)
    AND key_hash IN (SELECT key_hash FROM by_user.meeting WHERE user_hash IN (FROM touched))
UNION
SELECT user_hash, t
FROM by_user.event
WHERE
    user_hash IN (FROM witness)
    AND action_type IN (SELECT action_type FROM role WHERE role IN ('retraction', 'correction'))
