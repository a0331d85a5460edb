-- Anybody's completion touches all who meet at its key.
INSERT INTO touched
SELECT DISTINCT user_hash
FROM by_user.meeting
WHERE
    key_hash IN (FROM changed_key)
    AND user_hash NOT IN (FROM touched)
