SELECT DISTINCT whole.user_id
FROM (SELECT whole FROM departed UNION ALL FROM arrived)
