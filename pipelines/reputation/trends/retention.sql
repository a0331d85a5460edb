-- Of the users who stood high at the end of a week: how many were still active, and still high, weeks later.
-- $high_share = 0.1 (0..1): share of all users so far, the highest, who count as high
-- $weeks = 12 (1..5200): greatest number of weeks later
-- Method: a high user has points above zero and a rank within that share (rounded, at least one user; ties share the
-- better rank); still high is by the rank in the later week. Weeks (from Monday) that as_of has not passed are left
-- out.
-- Chart: line x=weeks_later y=mean(active_share)
WITH standing AS (
    SELECT
        CAST(date_trunc('week', day) AS DATE) AS week,
        user_id,
        sum(events) > 0 AS has_events,
        sum(sum(points)) OVER (PARTITION BY user_id ORDER BY week) AS points,
        lead(week) OVER (PARTITION BY user_id ORDER BY week) AS next_week
    FROM user_days
    GROUP BY week, user_id
),

weeks AS (
    SELECT CAST(unnest(generate_series(first_week, CAST(as_of AS DATE) - 7, INTERVAL 7 DAYS)) AS DATE) AS week
    FROM snapshot_info, (SELECT min(week) AS first_week FROM standing)
),

at_week AS (
    SELECT
        weeks.week,
        user_id,
        standing.week = weeks.week AND has_events AS is_active,
        points > 0
        AND rank() OVER (PARTITION BY weeks.week ORDER BY points DESC)
        <= greatest(1, round($high_share * count(*) OVER (PARTITION BY weeks.week))) AS is_high
    FROM weeks
    INNER JOIN standing
        ON weeks.week >= standing.week AND weeks.week < coalesce(standing.next_week, DATE 'infinity')
)

SELECT
    high.week,
    (later.week - high.week) // 7 AS weeks_later,
    count(*) AS high_users,
    count(*) FILTER (later.is_active) AS still_active,
    count(*) FILTER (later.is_high) AS still_high,
    still_active / high_users AS active_share,
    still_high / high_users AS high_share
FROM at_week AS high
INNER JOIN at_week AS later
    ON later.user_id = high.user_id AND later.week > high.week AND later.week <= high.week + 7 * CAST($weeks AS INTEGER)
WHERE high.is_high AND ($since IS NULL OR high.week >= $since) AND ($until IS NULL OR high.week < $until)
GROUP BY high.week, later.week
ORDER BY high.week, later.week
