-- How many users came to each level and left it, by UTC day: a user has one level at the end of a day. Null stands for
-- below the first level, where a user without points begins. The sum of both over all days so far is how many have it.
SELECT
    day,
    level,
    CAST(sum(came) AS BIGINT) AS came,
    CAST(sum(went) AS BIGINT) AS went
FROM (
    SELECT day, level, 1 AS came, 0 AS went
    FROM $user_levels
    UNION ALL
    SELECT day, level_before AS level, 0 AS came, CASE WHEN is_first THEN 0 ELSE 1 END AS went
    FROM $user_levels
)
GROUP BY day, level
HAVING sum(came) + sum(went) > 0
ORDER BY day, level
