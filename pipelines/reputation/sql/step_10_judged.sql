-- Whether an event counts, judged by the event, its user's status and its user's retractions; rules follow.
-- A retraction withdraws a plain event or a correction, a correction changes a plain event: of another event, or of one
-- that the user does not have, they have no effect, and neither has a second retraction. A retraction cannot be taken
-- back: the retraction that it names stands. related_event_id is the event that a retraction or a correction names, and
-- the retraction that withdrew an event.
CREATE OR REPLACE TEMP VIEW judged AS
SELECT
    event.* EXCLUDE (role, matched, rates, readable),
    CASE
        WHEN event.role IN ('suspend', 'reinstate')
            THEN CASE WHEN transition.event_id IS NULL THEN 'no effect' ELSE 'status' END
        WHEN event.role = 'retraction' THEN coalesce(ruled.ruling, 'no effect')
        WHEN event.role IS NULL AND event.emission_no IS NULL THEN 'no rule'
        WHEN retracted.event_id IS NOT NULL THEN 'retracted'
        WHEN event.role = 'correction' THEN coalesce(ruled.ruling, 'no effect')
        WHEN frozen.user_id IS NOT NULL THEN 'suspended'
        WHEN reset.user_id IS NOT NULL THEN 'reset'
        WHEN NOT event.matched THEN 'not matched'
        WHEN NOT event.readable THEN 'unreadable'
        ELSE 'granted'
    END AS reason,
    CAST(NULL AS VARCHAR) AS rule,
    CASE
        WHEN event.role = 'retraction' THEN event.metadata[getvariable('retraction_target')]
        WHEN event.role IN ('suspend', 'reinstate') THEN NULL
        WHEN retracted.event_id IS NOT NULL THEN retracted.retracted_by
        WHEN event.role = 'correction' THEN event.metadata[getvariable('correction_target')]
    END AS related_event_id
FROM $source AS event
LEFT JOIN retracted_event AS retracted
    ON retracted.user_id = event.user_id AND retracted.event_id = event.event_id
LEFT JOIN (
    SELECT
        change.user_id,
        change.event_id,
        CASE
            WHEN change.role = 'retraction' AND target.role = 'retraction' THEN 'retraction stands'
            WHEN change.role = 'retraction' AND earlier.retracted_by <> change.event_id THEN 'no effect'
            WHEN target.role IS NULL OR (change.role = 'retraction' AND target.role = 'correction') THEN change.role
            ELSE 'no effect'
        END AS ruling
    FROM (
        SELECT
            user_id,
            event_id,
            role,
            CASE role
                WHEN 'retraction' THEN metadata[getvariable('retraction_target')]
                WHEN 'correction' THEN metadata[getvariable('correction_target')]
            END AS target_id
        FROM known_event
        WHERE role IN ('retraction', 'correction')
    ) AS change
    JOIN known_event AS target
        ON target.user_id = change.user_id AND target.event_id = change.target_id
    LEFT JOIN retracted_event AS earlier
        ON earlier.user_id = change.user_id AND earlier.event_id = change.target_id
) AS ruled
    ON ruled.user_id = event.user_id AND ruled.event_id = event.event_id
LEFT JOIN status_transition AS transition
    ON transition.user_id = event.user_id AND transition.event_id = event.event_id
LEFT JOIN frozen_period AS frozen
    ON frozen.user_id = event.user_id AND event.t >= frozen.from_t AND event.t < frozen.to_t
LEFT JOIN reset_account AS reset
    ON reset.user_id = event.user_id AND event.t < reset.to_t
