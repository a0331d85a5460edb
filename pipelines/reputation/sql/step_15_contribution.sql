-- What each event earned, and why: every view, trend and explanation is computed from these rows. granted is in
-- micro-points. earned, which the score sums, is in the same unit or, where points decay, in 10^-15 points: each
-- contribution is rounded once, so that their sum is exact in any order. The
-- expression of earned is granted or, where points decay, the part decayed of step_parts.sql.
CREATE OR REPLACE TEMP VIEW contribution AS
SELECT
    user_id,
    event_id,
    action_type,
    t,
    emission_no,
    version,
    points,
    rating,
    granted,
    $earned AS earned,
    counts AS counted,
    coalesce(emission_no, 0) = 0 AS is_first,
    reason,
    rule
FROM capped
