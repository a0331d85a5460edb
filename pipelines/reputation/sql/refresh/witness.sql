-- The users whose events decide whether those of a touched user are completed.
CREATE OR REPLACE TEMP TABLE witness AS
SELECT DISTINCT user_hash
FROM by_user.meeting
WHERE
    key_hash IN (SELECT key_hash FROM by_user.meeting WHERE user_hash IN (FROM touched))
    AND user_hash NOT IN (FROM touched)
