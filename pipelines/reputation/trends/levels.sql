-- How many users had each level at the end of each day, and how many came to it and left it (the table trends_levels).
-- Method: a user has a level from the end of the day on which it changed; idle users are included. A null level is below
-- the first one. Days without a change have no row. There are no rows where points decay or the policy has no levels.
-- Chart: step x=day y=users color=level null=no_level
WITH changes AS (
    SELECT
        day,
        level,
        came,
        went,
        CAST(sum(came - went) OVER (PARTITION BY level ORDER BY day) AS BIGINT) AS users
    FROM trends_levels
)

SELECT day, level, users, came, went
FROM changes
WHERE ($since IS NULL OR day >= $since) AND ($until IS NULL OR day < $until)
ORDER BY day, level
