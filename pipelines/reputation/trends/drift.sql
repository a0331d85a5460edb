-- Anomaly: a user's recent ratings differ from those before.
-- $recent = 20 (1..10000): number of latest ratings
-- $before = 20 (1..200): minimum number of ratings before them
-- $fdr = 0.01 (0..1): expected share of false alarms (Benjamini-Hochberg over all days tested)
-- Method: ratings as given, retracted or not. z of the mean of the latest ratings against the mean of up to 200 before;
-- the variance is the greater of the user's own before and the pooled variance within users. Tested at the end of each
-- day with a rating; of alarms less than 30 days apart the strongest is shown. score is -log10 of the two-sided tail.
-- Chart: point x=day y=user_id size=score
WITH given AS MATERIALIZED (
    SELECT user_id, event_id, event_time, day, rating
    FROM rating_given
),

within_users AS (
    SELECT sum(squares) / nullif(sum(ratings - 1), 0) AS variance
    FROM (
        SELECT count(*) AS ratings, var_pop(rating) * count(*) AS squares
        FROM given
        GROUP BY user_id
    )
),

windows AS (
    SELECT
        user_id,
        day,
        count(*) OVER late AS recent_ratings,
        avg(rating) OVER late AS observed,
        count(*) OVER early AS ratings_before,
        avg(rating) OVER early AS expected,
        var_samp(rating) OVER early AS own_variance
    FROM given
    WINDOW
        late AS (
            PARTITION BY user_id ORDER BY event_time, event_id
            ROWS BETWEEN CAST($recent AS INTEGER) - 1 PRECEDING AND CURRENT ROW
        ),
        early AS (
            PARTITION BY user_id ORDER BY event_time, event_id
            ROWS BETWEEN CAST($recent AS INTEGER) + 199 PRECEDING AND CAST($recent AS INTEGER) PRECEDING
        )
    QUALIFY
        recent_ratings = $recent
        AND ratings_before >= $before
        AND row_number() OVER (PARTITION BY user_id, day ORDER BY event_time DESC, event_id DESC) = 1
),

measured AS (
    SELECT
        windows.*,
        count(*) OVER () AS family,
        (observed - expected)
        / sqrt(greatest(own_variance, variance, 1e-12) * (1 / recent_ratings + 1 / ratings_before)) AS z
    FROM windows, within_users
),

tested AS (
    SELECT *, 2 * normal_tail(abs(z)) AS p_value
    FROM measured
    WHERE abs(z) >= 1
),

alarms AS (
    SELECT *, coalesce(day - lag(day) OVER (PARTITION BY user_id ORDER BY day) >= 30, true) AS is_new
    FROM discoveries('tested', $fdr)
),

episodes AS (
    SELECT *, count(*) FILTER (is_new) OVER (PARTITION BY user_id ORDER BY day) AS episode
    FROM alarms
),

strongest AS (
    SELECT *, min(day) OVER (PARTITION BY user_id, episode) AS first_alarm
    FROM episodes
    QUALIFY row_number() OVER (PARTITION BY user_id, episode ORDER BY score DESC, day) = 1
)

SELECT
    user_id,
    day,
    expected,
    observed,
    score,
    q_value,
    z,
    ratings_before,
    first_alarm
FROM strongest
WHERE ($since IS NULL OR day >= $since) AND ($until IS NULL OR day < $until)
ORDER BY score DESC, user_id, day
