-- The contributions of users, one by one.

-- name: explained_event
-- The events of the explained user, read once: the steps scan them several times.
CREATE OR REPLACE TEMP TABLE explained_event AS
SELECT *
FROM events
WHERE $whose

-- name: explained_completions
-- Of other users, what can complete the explained user's events: the completing events (corrections are among them) of
-- those with one at the same value of a key, and what retracts or corrects these. $own and $events have current user_ids.
INSERT INTO explained_event
WITH sought AS (
    SELECT DISTINCT key, metadata[key] AS value
    FROM $own AS own
    CROSS JOIN (SELECT unnest(getvariable('explained_keys')) AS key)
),

related AS (
    SELECT DISTINCT event.user_id
    FROM $events AS event
    CROSS JOIN (SELECT unnest(getvariable('explained_keys')) AS key) AS link
    JOIN sought ON sought.key = link.key AND sought.value = event.metadata[link.key]
    WHERE list_contains(getvariable('explained_completing'), event.action_type)
),

named AS (
    SELECT user_id FROM related
    UNION
    SELECT alias.old_id
    FROM alias
    JOIN related ON related.user_id = alias.new_id
)

SELECT *
FROM events
WHERE
    user_id IN (SELECT user_id FROM named)
    AND NOT list_contains(getvariable('explained_names'), user_id)
    AND list_contains(getvariable('explained_completing') || getvariable('explained_retracting'), action_type)

-- name: explanation
-- The contributions of some users in the order of events, and the rest of the score: its start, its bounds, a
-- suspension that hides it. The column earned adds up to each user's all-time score: it is by how much an event raised
-- the running sum in the unit of scores.
WITH summed AS (
    SELECT
        *,
        $running_sum AS running_sum
    FROM $contributions AS contribution
    WHERE $among
    WINDOW so_far AS (PARTITION BY user_id ORDER BY t, source_row, event_id, emission_no ROWS UNBOUNDED PRECEDING)
),

mine AS (
    SELECT * REPLACE (
        running_sum
        - lag(running_sum, 1, 0) OVER (PARTITION BY user_id ORDER BY t, source_row, event_id, emission_no) AS earned
    )
    FROM summed
),

whole AS (
    SELECT explained.user_id, $start + coalesce(sum(mine.earned), 0) AS total
    FROM ($users) AS explained
    LEFT JOIN mine ON mine.user_id = explained.user_id
    GROUP BY explained.user_id
),

ledger AS (
    SELECT
        user_id,
        1 AS part,
        t,
        source_row,
        event_id,
        action_type,
        emission_no,
        version AS policy_version,
        rule,
        reason,
        related_event_id,
        points AS micro_points,
        rating AS micro_rating,$weighed
        CAST(earned AS HUGEINT) AS earned,
        level_no
    FROM mine
    UNION ALL
    SELECT user_id, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'start', NULL, NULL, NULL,$unweighed $start, NULL
    FROM whole
    UNION ALL
    SELECT
        user_id, 2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'bounds', NULL, NULL, NULL,$unweighed $bounded - total,
        NULL
    FROM whole
    UNION ALL
    SELECT
        user_id, 3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'hidden', NULL, NULL, NULL,$unweighed $hidden - $bounded,
        NULL
    FROM whole
    WHERE user_id IN (SELECT user_id FROM status_period WHERE to_t IS NULL)
)

SELECT
    user_id,
    make_timestamptz(t) AS event_time,
    event_id,
    action_type,
    emission_no,
    policy_version,
    reason,
    rule,
    related_event_id,
    $points AS points,
    $rating AS rating,$weight
    $earned AS earned,
    $running AS score,
    $level AS level
FROM (
    SELECT
        *,
        sum(earned) OVER (
            PARTITION BY user_id
            ORDER BY part, t, source_row, event_id, emission_no
            ROWS UNBOUNDED PRECEDING
        ) AS running
    FROM ledger
    WHERE part = 1 OR earned <> 0
)
ORDER BY user_id, part, t, source_row, event_id, emission_no
