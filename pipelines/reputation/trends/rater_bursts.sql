-- Anomaly: days or hours in which a rater gave far more ratings than ever before.
-- $period = "day" | "hour": length of the period that a burst falls in
-- $least = 8 (1..1000000): minimum number of ratings in a burst
-- $fdr = 0.01 (0..1): expected share of false alarms (Benjamini-Hochberg over all times of all raters)
-- Method: ratings as given, retracted or not. Gamma-Poisson upper tail of their number given the rater's own days (or
-- hours) before; score is -log10 of it. user_id is the rater.
-- Chart: point x=starts_at y=user_id size=score
WITH given AS MATERIALIZED (
    SELECT user_id, rater_id, rating, date_trunc($period, event_time) AS starts_at
    FROM rating_given
    WHERE rater_id IS NOT NULL
),

counts AS (
    SELECT
        rater_id AS subject,
        date_diff($period, TIMESTAMPTZ '1970-01-01 00:00:00+00', starts_at) AS slot,
        count(*) AS observed
    FROM given
    GROUP BY subject, slot
),

evidence AS (
    SELECT
        rater_id AS user_id,
        starts_at,
        count(DISTINCT given.user_id) AS rated_users,
        avg(rating) AS average
    FROM given
    GROUP BY rater_id, starts_at
)

SELECT
    evidence.user_id,
    CAST(evidence.starts_at AS DATE) AS day,
    bursts.expected,
    bursts.observed,
    bursts.score,
    bursts.q_value,
    evidence.* EXCLUDE (user_id)
FROM bursts('counts', $least, $fdr) AS bursts
INNER JOIN evidence
    ON evidence.user_id = bursts.subject
    AND date_diff($period, TIMESTAMPTZ '1970-01-01 00:00:00+00', evidence.starts_at) = bursts.slot
WHERE ($since IS NULL OR day >= $since) AND ($until IS NULL OR day < $until)
ORDER BY bursts.score DESC, evidence.user_id, evidence.starts_at
