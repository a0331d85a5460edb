-- What each event earned, and why: the one derivation that every view, trend and explanation starts from.
-- granted is in micro-points; earned, what the score sums, is in the same unit, or where points decay in
-- 10^-15 points, rounded once for each contribution so that their sum is exact in any order.
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
