-- What each event earned, and why: the one derivation that every view, trend and explanation starts from.
-- granted is 0 unless the reason is 'granted'; counted marks the one row of an event by which it is counted.
CREATE OR REPLACE TEMP VIEW contribution AS
SELECT
    user_id,
    event_id,
    action_type,
    t,
    emission_no,
    points,
    CASE WHEN reason = 'granted' THEN points ELSE 0 END AS granted,
    CASE WHEN reason = 'granted' AND emission_no = 0 THEN rating END AS rating,
    reason = 'granted' AND emission_no = 0 AS counted,
    coalesce(emission_no, 0) = 0 AS is_first,
    reason
FROM (
    SELECT
        emitted.*,
        CASE
            WHEN emitted.role IN ('suspend', 'reinstate')
                THEN CASE WHEN transition.event_id IS NULL THEN 'no effect' ELSE 'status' END
            WHEN emitted.role IS NOT NULL THEN emitted.role
            WHEN emitted.emission_no IS NULL THEN 'no rule'
            WHEN retracted.event_id IS NOT NULL THEN 'retracted'
            WHEN period.user_id IS NOT NULL THEN 'suspended'
            WHEN emitted.points IS NULL OR (emitted.rates AND emitted.rating IS NULL) THEN 'unreadable'
            ELSE 'granted'
        END AS reason
    FROM emitted
    LEFT JOIN retracted_event AS retracted
        ON retracted.user_id = emitted.user_id AND retracted.event_id = emitted.event_id
    LEFT JOIN status_transition AS transition
        ON transition.user_id = emitted.user_id AND transition.event_id = emitted.event_id
    LEFT JOIN status_period AS period
        ON period.user_id = emitted.user_id
        AND emitted.t >= period.from_t
        AND emitted.t < coalesce(period.to_t, 9223372036854775807)
)
