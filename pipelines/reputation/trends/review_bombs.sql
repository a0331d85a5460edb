-- Anomaly: days on which a user got far more low ratings than ever before.
-- $least = 5 (1..1000000): minimum number of low ratings in a day of a burst
-- $fdr = 0.01 (0..1): expected share of false alarms (Benjamini-Hochberg over all days of all users)
-- Method: ratings as given, retracted or not; low is the lowest quarter of the scale (1 and 2 of 1 to 5). Gamma-Poisson
-- upper tail of the day's low ratings given the user's own days before; score is -log10 of it.
-- Chart: point x=day y=user_id size=score
WITH given AS MATERIALIZED (
    SELECT user_id, rater_id, day, rating, level
    FROM rating_given
),

counts AS (
    SELECT
        user_id AS subject,
        day - DATE '1970-01-01' AS slot,
        count(*) FILTER (level <= 0.25) AS observed
    FROM given
    GROUP BY subject, slot
),

evidence AS (
    SELECT
        user_id,
        day,
        count(*) AS ratings,
        count(DISTINCT rater_id) FILTER (level <= 0.25) AS low_raters,
        avg(rating) AS average,
        sum(sum(rating)) OVER earlier / sum(count(*)) OVER earlier AS average_before
    FROM given
    GROUP BY user_id, day
    WINDOW earlier AS (PARTITION BY user_id ORDER BY day ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
)

SELECT
    evidence.user_id,
    evidence.day,
    bursts.expected,
    bursts.observed,
    bursts.score,
    bursts.q_value,
    evidence.* EXCLUDE (user_id, day)
FROM bursts('counts', $least, $fdr) AS bursts
INNER JOIN evidence ON evidence.user_id = bursts.subject AND evidence.day - DATE '1970-01-01' = bursts.slot
WHERE ($since IS NULL OR evidence.day >= $since) AND ($until IS NULL OR evidence.day < $until)
ORDER BY bursts.score DESC, evidence.user_id, evidence.day
