-- What was shown of the explained user, beside the steps over `shown_event`.

-- name: shown_withdrawals
-- Withdrawals since a moment, and how many of their events were committed before another one.
SELECT
    withdrawal.version,
    CAST(sum(removed.events) FILTER (landed.committed < ?) AS BIGINT) AS events
FROM withdrawn AS removed
JOIN (SELECT batch_id, version FROM commits) AS withdrawal ON withdrawal.batch_id = removed.withdrawal_id
JOIN (SELECT batch_id, committed FROM commits) AS landed ON landed.batch_id = removed.batch_id
WHERE removed.withdrawn_at >= ?
GROUP BY withdrawal.version
HAVING events > 0
ORDER BY withdrawal.version

-- name: table_withdrawn_event
-- The events that withdrawals removed, as far as they can still be read.
CREATE OR REPLACE TEMP TABLE withdrawn_event AS
SELECT arrow_rows.*, commits.committed AS withdrawn_at, commits.note
FROM arrow_rows
JOIN commits ON commits.version = arrow_rows.withdrawn_by

-- name: view_shown_event
-- What the steps read: the events that are in the lake, and those that were until a withdrawal at or after known_at.
CREATE OR REPLACE TEMP VIEW shown_event AS
SELECT *
FROM explained_event
UNION ALL BY NAME
SELECT * EXCLUDE (withdrawn_by, withdrawn_at, note)
FROM withdrawn_event
WHERE epoch_us(withdrawn_at) >= getvariable('known_at')

-- name: shown_links
-- Of each contribution of the explained user: when its event (if it has one) was committed, what it earned before decay, and the events
-- that may have decided it: the retraction and the correction of it, the suspension that it falls into, the last
-- reinstatement before it.
SELECT
    make_timestamptz(contribution.t) AS event_time,
    contribution.event_id,
    contribution.action_type,
    contribution.emission_no,
    contribution.granted,
    landed.committed,
    (
        SELECT arg_max(removed.note, removed.withdrawn_at)
        FROM withdrawn_event AS removed
        WHERE removed.event_id = contribution.event_id
    ) AS withdrawn_because,
    retraction.retracted_by,
    correction.event_id AS corrected_by,
    (
        SELECT arg_min(period.suspended_by, period.from_t)
        FROM status_period AS period
        WHERE period.user_id = contribution.user_id AND (period.to_t IS NULL OR period.to_t > contribution.t)
    ) AS suspended_by,
    (
        SELECT arg_max(period.reinstated_by, period.to_t)
        FROM status_period AS period
        WHERE period.user_id = contribution.user_id AND period.to_t <= contribution.t
    ) AS reinstated_by
FROM contribution
LEFT JOIN (
    SELECT event.event_id, min(commits.committed) AS committed
    FROM shown_event AS event
    JOIN commits ON commits.batch_id = event.batch_id
    WHERE list_contains(getvariable('explained_names'), event.user_id)
    GROUP BY event.event_id
) AS landed ON landed.event_id = contribution.event_id
LEFT JOIN retracted_event AS retraction
    ON retraction.user_id = contribution.user_id AND retraction.event_id = contribution.event_id
LEFT JOIN (
    SELECT
        known.metadata[getvariable('correction_target')] AS target_id,
        arg_max(known.event_id, (known.t, known.source_row, known.event_id)) AS event_id
    FROM known_event AS known
    LEFT JOIN retracted_event AS retracted
        ON retracted.user_id = known.user_id AND retracted.event_id = known.event_id
    WHERE
        known.user_id = getvariable('explained_user')
        AND known.role = 'correction'
        AND retracted.event_id IS NULL
    GROUP BY target_id
) AS correction ON correction.target_id = contribution.event_id
WHERE contribution.user_id = getvariable('explained_user')

-- name: shown_commits
-- The version of the lake at a moment, and its first commit.
SELECT max(version) FILTER (committed < ?), min(committed)
FROM commits

-- name: shown_moments
-- Moments up to another one at which what is shown of the explained user may change: after a commit, an activation, a
-- merge of users or a withdrawal, when an event's time comes, and at each midnight; not before the user's first event.
WITH seen AS (
    SELECT event.user_id, greatest(commits.committed, event.event_time) AS moment
    FROM (
        SELECT user_id, batch_id, event_time FROM explained_event
        UNION ALL
        SELECT user_id, batch_id, event_time FROM withdrawn_event
    ) AS event
    JOIN commits ON commits.batch_id = event.batch_id
),

first AS (
    SELECT min(moment) AS moment
    FROM seen
    WHERE list_contains(getvariable('explained_names'), user_id)
)

SELECT DISTINCT change.moment + INTERVAL 1 MICROSECOND AS moment
FROM (
    SELECT moment FROM seen
    UNION ALL
    SELECT activated FROM policies WHERE role IS NULL
    UNION ALL
    SELECT unnest(getvariable('merged_at'))
    UNION ALL
    SELECT withdrawn_at FROM withdrawn_event
    UNION ALL
    SELECT unnest(generate_series(date_trunc('day', first.moment), CAST(getvariable('shown_until') AS TIMESTAMPTZ), INTERVAL 1 DAY)) FROM first
) AS change
CROSS JOIN first
WHERE change.moment >= first.moment AND change.moment < CAST(getvariable('shown_until') AS TIMESTAMPTZ)
ORDER BY moment
