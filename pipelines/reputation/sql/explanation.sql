-- One user's contributions in the order of events, and what else makes the score: its start, its bounds, a suspension
-- that hides it. The column earned adds up to the all-time score.
WITH mine AS (
    SELECT *
    FROM contribution
    WHERE user_id = getvariable('explained_user')
),

ledger AS (
    SELECT
        1 AS part,
        t,
        event_id,
        action_type,
        emission_no,
        version AS policy_version,
        rule,
        reason,
        points AS micro_points,
        rating AS micro_rating,
        CAST(earned AS HUGEINT) AS earned
    FROM mine
    UNION ALL
    SELECT 0, NULL, NULL, NULL, NULL, NULL, NULL, 'start', NULL, NULL, $start
    UNION ALL
    SELECT 2, NULL, NULL, NULL, NULL, NULL, NULL, 'bounds', NULL, NULL, $bounded - total
    FROM (SELECT $start + coalesce(sum(earned), 0) AS total FROM mine)
    UNION ALL
    SELECT 3, NULL, NULL, NULL, NULL, NULL, NULL, 'hidden', NULL, NULL, $hidden - $bounded
    FROM (SELECT $start + coalesce(sum(earned), 0) AS total FROM mine)
    WHERE EXISTS (FROM status_period WHERE user_id = getvariable('explained_user') AND to_t IS NULL)
)

SELECT
    make_timestamptz(t) AS event_time,
    event_id,
    action_type,
    emission_no,
    policy_version,
    reason,
    rule,
    $points AS points,
    $rating AS rating,
    $earned AS earned,
    $running AS score
FROM (
    SELECT
        *,
        sum(earned) OVER (
            ORDER BY part, t, event_id, emission_no
            ROWS UNBOUNDED PRECEDING
        ) AS running
    FROM ledger
    WHERE part = 1 OR earned <> 0
)
ORDER BY part, t, event_id, emission_no
