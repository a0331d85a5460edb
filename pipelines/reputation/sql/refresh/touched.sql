-- The users whose views may differ from before: those with an event that became known, by a commit or because its time
-- came, and those with an event that crossed the edge of a window or expired.
CREATE OR REPLACE TEMP TABLE touched AS
SELECT DISTINCT user_hash
FROM by_user.event
WHERE t < getvariable('as_of') AND ($is_fresh OR $has_moved)
