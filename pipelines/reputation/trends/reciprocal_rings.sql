-- Anomaly: groups of users who rate each other highly far more than is the custom of the platform.
-- $least = 5 (1..1000000): minimum number of high ratings received to test a user
-- $fdr = 0.01 (0..1): expected share of false alarms (Benjamini-Hochberg over all users rated highly)
-- Method: ratings as given; high is the highest quarter of the scale (4 and 5 of 1 to 5), and returned if its receiver
-- rated its giver highly, too, at any time. Binomial upper tail of a user's returned ones among the high ones received,
-- given the share that is returned on the whole platform; a ring is a connected component of such ratings among the
-- users found. ring_density: the share of all pairs of the ring who rate each other highly. day is that of the last
-- rating.
-- Chart: point x=day y=user_id size=score
WITH RECURSIVE high AS MATERIALIZED (
    SELECT user_id, rater_id, day
    FROM rating_given
    WHERE level >= 0.75 AND rater_id <> user_id
),

mutual AS (
    SELECT user_id, rater_id FROM high
    INTERSECT
    SELECT rater_id, user_id FROM high
),

received AS (
    SELECT
        high.user_id,
        count(*) AS high_ratings,
        count(mutual.user_id) AS observed,
        count(DISTINCT mutual.rater_id) AS partners,
        max(day) FILTER (mutual.user_id IS NOT NULL) AS day
    FROM high
    LEFT JOIN mutual ON mutual.user_id = high.user_id AND mutual.rater_id = high.rater_id
    GROUP BY high.user_id
),

custom AS (
    SELECT sum(observed) / sum(high_ratings) AS returned_share, count(*) AS family
    FROM received
),

tested AS (
    SELECT
        received.*,
        family,
        high_ratings * returned_share AS expected,
        binomial_tail(observed, high_ratings, returned_share) AS p_value
    FROM received, custom
    WHERE high_ratings >= $least AND observed > high_ratings * returned_share
),

found AS MATERIALIZED (
    FROM discoveries('tested', $fdr)
),

pairs AS MATERIALIZED (
    SELECT mutual.user_id, mutual.rater_id
    FROM mutual
    WHERE user_id IN (SELECT user_id FROM found) AND rater_id IN (SELECT user_id FROM found)
),

reach AS (
    SELECT user_id, user_id AS member
    FROM found
    UNION
    SELECT reach.user_id, pairs.rater_id
    FROM reach
    INNER JOIN pairs ON pairs.user_id = reach.member
),

rings AS (
    SELECT user_id, min(member) AS ring, count(*) AS ring_members
    FROM reach
    GROUP BY user_id
),

densities AS (
    SELECT ring, count(*) / nullif(any_value(ring_members * (ring_members - 1)), 0) AS ring_density
    FROM pairs
    INNER JOIN rings ON rings.user_id = pairs.user_id
    GROUP BY ring
)

SELECT
    found.user_id,
    found.day,
    found.expected,
    found.observed,
    found.score,
    found.q_value,
    rings.ring,
    rings.ring_members,
    ring_density,
    found.high_ratings,
    found.partners
FROM found
INNER JOIN rings ON rings.user_id = found.user_id
LEFT JOIN densities ON densities.ring = rings.ring
WHERE ($since IS NULL OR day >= $since) AND ($until IS NULL OR day < $until)
ORDER BY rings.ring, found.user_id
