-- Points from time alone (time.py): contributions without an event.

-- name: time_start
-- The UTC day of each user's first event, among those that a rule counts from; retracted ones do not count.
CREATE OR REPLACE TEMP VIEW time_start AS
SELECT event.user_id, rule.name, rule.version, utc_day(min(event.t)) AS first_day
FROM known_event AS event
JOIN time_rule AS rule ON rule.since IS NULL OR list_contains(rule.since, event.action_type)
LEFT JOIN retracted_event AS retracted
    ON retracted.user_id = event.user_id AND retracted.event_id = event.event_id
WHERE retracted.user_id IS NULL
GROUP BY event.user_id, rule.name, rule.version

-- name: time_points
-- The contributions before as_of: one for each period that has passed. Among those of the same time they come before
-- events, in the order of the policy.
CREATE OR REPLACE TEMP VIEW time_points AS
SELECT
    due.*,
    CASE
        WHEN frozen.user_id IS NOT NULL THEN 'suspended'
        WHEN reset.user_id IS NOT NULL THEN 'reset'
        ELSE 'granted'
    END AS reason
FROM (
    SELECT *, date_diff('day', DATE '1970-01-01', time_date(first_day, months, days, no)) * 86400000000 AS t
    FROM (
        SELECT *, unnest(generate_series(1, greatest(1, least(passed, times)))) AS no
        FROM (
            SELECT
                rule.*,
                started.user_id,
                started.first_day,
                time_periods(started.first_day, utc_day(getvariable('as_of')), rule.months, rule.days) AS passed
            FROM time_start AS started
            JOIN time_rule AS rule ON rule.name = started.name AND rule.version = started.version
        )
    )
) AS due
LEFT JOIN frozen_period AS frozen ON frozen.user_id = due.user_id AND due.t >= frozen.from_t AND due.t < frozen.to_t
LEFT JOIN reset_account AS reset ON reset.user_id = due.user_id AND due.t < reset.to_t
WHERE due.t < getvariable('as_of') AND due.t >= due.from_us AND due.t < due.to_us

-- name: with_time_points
-- The contributions of events and of time, before expiry and caps.
CREATE OR REPLACE TEMP VIEW with_time_points AS
SELECT
    user_id,
    event_id,
    action_type,
    t,
    source_row,
    metadata,
    emission_no,
    version,
    half_life_us,
    epoch_us,
    penalties_expire_us,
    points,
    rating,$weight
    reason,
    rule,
    related_event_id
FROM $source
UNION ALL
SELECT
    user_id,
    CAST(NULL AS VARCHAR),
    name,
    t,
    source_row,
    CAST(NULL AS MAP (VARCHAR, VARCHAR)),
    CAST(NULL AS INTEGER),
    version,
    half_life_us,
    epoch_us,
    CAST(NULL AS BIGINT),
    points,
    CAST(NULL AS BIGINT),$no_weight
    reason,
    CAST(NULL AS VARCHAR),
    CAST(NULL AS VARCHAR)
FROM time_points

-- name: time_due
-- The users who earn from time on one of some days, as hashes.
SELECT DISTINCT hash(started.user_id) AS user_hash
FROM time_starts AS started
JOIN time_rule AS rule ON rule.name = started.name AND rule.version = started.version
CROSS JOIN (SELECT unnest(CAST(? AS DATE[])) AS day) AS due
WHERE
    started.first_day < due.day
    AND due.day = time_date(
        started.first_day,
        rule.months,
        rule.days,
        time_periods(started.first_day, due.day, rule.months, rule.days)
    )
    AND time_periods(started.first_day, due.day, rule.months, rule.days) <= rule.times
