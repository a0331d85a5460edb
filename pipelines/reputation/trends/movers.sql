-- The largest gains and losses of points within a period, each with the action_type that contributed most to it.
-- $top = 10 (1..1000000): number of gains, and of losses
-- Method: the points of the days in [since, until), as known now: a retraction takes points from the day of its target.
-- Without until, the period ends with the newest day; without since, it is seven days long. The action_type shown is
-- the one whose points went furthest in the direction of the change; ties go to the lesser user_id or name.
-- Chart: bar x=change y=user_id color=direction
WITH period AS (
    SELECT coalesce($since, last_day - 7) AS first_day, last_day
    FROM (SELECT coalesce($until, max(day) + 1) AS last_day FROM user_days)
),

changes AS (
    SELECT
        user_id,
        action_type,
        coalesce(sum(points) FILTER (day < first_day), 0) AS before,
        coalesce(sum(points) FILTER (day >= first_day), 0) AS change,
        coalesce(sum(counted) FILTER (day >= first_day), 0) AS events
    FROM user_days, period
    WHERE day < last_day
    GROUP BY user_id, action_type
),

users AS (
    SELECT *, sum(before) OVER mine AS points_before, sum(change) OVER mine AS points_change
    FROM changes
    WINDOW mine AS (PARTITION BY user_id)
),

ranked AS (
    SELECT
        *,
        CASE WHEN points_change > 0 THEN 'gain' ELSE 'loss' END AS direction,
        row_number() OVER (PARTITION BY direction ORDER BY abs(points_change) DESC, user_id) AS rank
    FROM (
        FROM users
        QUALIFY row_number() OVER (PARTITION BY user_id ORDER BY change * sign(points_change) DESC, action_type) = 1
    )
    WHERE points_change <> 0
)

SELECT
    direction,
    rank,
    user_id,
    CAST(points_before AS DOUBLE) AS points_before,
    CAST(points_change AS DOUBLE) AS change,
    CAST(points_before + points_change AS DOUBLE) AS points_after,
    action_type AS main_action,
    CAST(change AS DOUBLE) AS main_change,
    CAST(events AS BIGINT) AS main_events
FROM ranked
WHERE rank <= $top
ORDER BY direction, rank
