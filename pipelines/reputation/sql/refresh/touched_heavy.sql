-- Put off those of the touched users who have more events than may be computed at once.
INSERT INTO put_off
SELECT user_hash
FROM by_user.event
WHERE user_hash IN (FROM touched) AND user_hash NOT IN (FROM put_off)
GROUP BY user_hash
HAVING count(*) > $most_events
