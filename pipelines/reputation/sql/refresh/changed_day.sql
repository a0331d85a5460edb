-- Remember which days of which users changed until their trends are computed anew.
INSERT INTO changed_day
SELECT DISTINCT whole.user_id, whole.day
FROM (SELECT whole FROM departed UNION ALL FROM arrived)
