-- What each event earned, and why: every view, trend and explanation is computed from these rows. granted is in
-- micro-points. earned, which the score sums, is granted or, where points decay, the part earned_at_epoch of
-- step_parts.sql: each contribution is rounded once, so that the sums by half-life are exact in any order.
CREATE OR REPLACE TEMP VIEW contribution AS
SELECT
    user_id,
    event_id,
    action_type,
    t,
    source_row,
    emission_no,
    version,
    points,
    rating,$weight
    granted,
    half_life_us,
    $earned AS earned,
    counts AS counted,
    coalesce(emission_no, 0) = 0 AND event_id IS NOT NULL AS is_first,
    reason,
    rule,
    related_event_id$scopes
FROM $source$weights
