-- Whether an event counts, judged by the event, its user's status and its user's retractions; rules follow.
-- A retraction withdraws a plain event or a correction, a correction changes a plain event: of another event it has no
-- effect.
CREATE OR REPLACE TEMP VIEW judged AS
SELECT
    event.* EXCLUDE (role, rates, readable),
    CASE
        WHEN event.role IN ('suspend', 'reinstate')
            THEN CASE WHEN transition.event_id IS NULL THEN 'no effect' ELSE 'status' END
        WHEN event.role = 'retraction'
            THEN CASE WHEN futile.event_id IS NULL THEN 'retraction' ELSE 'no effect' END
        WHEN event.role IS NULL AND event.emission_no IS NULL THEN 'no rule'
        WHEN retracted.event_id IS NOT NULL THEN 'retracted'
        WHEN event.role = 'correction'
            THEN CASE WHEN futile.event_id IS NULL THEN 'correction' ELSE 'no effect' END
        WHEN frozen.user_id IS NOT NULL THEN 'suspended'
        WHEN reset.user_id IS NOT NULL THEN 'reset'
        WHEN NOT event.readable THEN 'unreadable'
        ELSE 'granted'
    END AS reason,
    CAST(NULL AS VARCHAR) AS rule
FROM $source AS event
LEFT JOIN retracted_event AS retracted
    ON retracted.user_id = event.user_id AND retracted.event_id = event.event_id
LEFT JOIN (
    WITH ruled AS (
        SELECT
            user_id,
            event_id,
            role,
            CASE role
                WHEN 'retraction' THEN metadata[getvariable('retraction_target')]
                WHEN 'correction' THEN metadata[getvariable('correction_target')]
            END AS target_id
        FROM known_event
        WHERE role IS NOT NULL
    )
    SELECT change.user_id, change.event_id
    FROM ruled AS change
    JOIN ruled AS target
        ON target.user_id = change.user_id AND target.event_id = change.target_id
    WHERE NOT (change.role = 'retraction' AND target.role = 'correction')
) AS futile
    ON futile.user_id = event.user_id AND futile.event_id = event.event_id
LEFT JOIN status_transition AS transition
    ON transition.user_id = event.user_id AND transition.event_id = event.event_id
LEFT JOIN frozen_period AS frozen
    ON frozen.user_id = event.user_id AND event.t >= frozen.from_t AND event.t < frozen.to_t
LEFT JOIN reset_account AS reset
    ON reset.user_id = event.user_id AND event.t < reset.to_t
