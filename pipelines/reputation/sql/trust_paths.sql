-- The strongest paths of trust behind the weight of a rater on a day. `trust_paths.py` runs these, over the opinions and
-- seeds that raters.sql left. A path begins where trust was last at a seed, so no two paths share any of it.

-- name: trust_path_days
-- The days on which a rater rated the explained user, the latest ones first.
SELECT DISTINCT day
FROM opinion_given
WHERE user_id = getvariable('explained_user') AND rater_id = getvariable('explained_rater')
ORDER BY day DESC

-- name: trust_path_raters
-- Who rated the explained user.
SELECT DISTINCT rater_id
FROM opinion_given
WHERE user_id = getvariable('explained_user') AND rater_id IS NOT NULL
ORDER BY rater_id

-- name: trust_path_weight
-- What the rater's ratings of the day weigh, and how much of that comes from trust: nothing where it is the minimum.
SELECT coalesce(weight, getvariable('trust_minimum')), coalesce(weight, 0)
FROM (SELECT getvariable('explained_rater') AS rater_id, getvariable('weighed_day') AS day) AS asked
LEFT JOIN rater_weight ON rater_weight.rater_id = asked.rater_id AND rater_weight.day = asked.day

-- name: trust_path_opinions
-- The opinions in force when the day begins, with all that their rater gave.
CREATE OR REPLACE TEMP TABLE path_opinion AS
SELECT rater, rated, opinion, CAST(sum(opinion) OVER (PARTITION BY rater) AS BIGINT) AS rater_total
FROM (
    $opinions
)

-- name: trust_path_start
-- The trust that is at the seeds after some rounds ($round): each is the start of a path.
CREATE OR REPLACE TEMP TABLE path_step AS
SELECT trust_seed.no, trust, [trust_seed.no] AS path
FROM trust_rounds('path_opinion', 'trust_seed', getvariable('trust_damping'), $round) AS trusted
INNER JOIN trust_seed ON trust_seed.no = trusted.no

-- name: trust_path_step
-- One more round ($round): the most trust that a path brings to each user, of equal ones that of the first names; and
-- what is at the seeds then.
CREATE OR REPLACE TEMP TABLE path_step AS
SELECT no, trust, path
FROM (
    $passed
)
WHERE no NOT IN (FROM trust_seed)
QUALIFY row_number() OVER (PARTITION BY no ORDER BY trust DESC, path) = 1
UNION ALL
SELECT trust_seed.no, trust, [trust_seed.no]
FROM trust_rounds('path_opinion', 'trust_seed', getvariable('trust_damping'), $round) AS trusted
INNER JOIN trust_seed ON trust_seed.no = trusted.no

-- name: trust_path_passed
-- What a path passes on in a round, as in `trust_rounds`.
SELECT
    rated AS no,
    trust * opinion // rater_total * (1000000 - getvariable('trust_damping')) // 1000000 AS trust,
    list_append(path, rated) AS path
FROM path_step
INNER JOIN path_opinion ON rater = path_step.no

-- name: trust_path_ends
-- The strongest path to the rater through each of those who trust the rater, with the weight that it brings: its part of
-- the rater's trust after the last round ($round).
SELECT
    CAST(CAST(passed.trust AS HUGEINT) * getvariable('explained_weight') // trusted.trust AS BIGINT) AS part,
    (
        SELECT string_agg(user_id, ' > ' ORDER BY place)
        FROM (SELECT unnest(path) AS no, generate_subscripts(path, 1) AS place) AS steps
        INNER JOIN rater_number ON rater_number.no = steps.no
    ) AS path
FROM (
    $passed
) AS passed
INNER JOIN rater_number ON rater_number.no = passed.no AND rater_number.user_id = getvariable('explained_rater')
INNER JOIN trust_rounds('path_opinion', 'trust_seed', getvariable('trust_damping'), $round) AS trusted
    ON trusted.no = passed.no
WHERE passed.trust > 0
ORDER BY passed.trust DESC, passed.path
LIMIT $limit
