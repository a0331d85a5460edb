-- The days whose trends are to be computed anew: those that changed, and, because scores run on, the later days of the
-- same users.
CREATE OR REPLACE TEMP TABLE pending_day AS
SELECT day
FROM changed_day
UNION
SELECT later.day
FROM user_days AS later
JOIN (SELECT user_id, min(day) AS day FROM changed_day GROUP BY user_id) AS first
    ON first.user_id = later.user_id AND later.day > first.day
