-- The contributions without their event_ids, materialized while the tables are computed from them.
CREATE OR REPLACE TEMP TABLE fact AS
SELECT
    user_id,
    action_type,
    t,
    utc_day(t) AS day,
    granted,
    $half_life AS half_life_us,
    earned,
    rating,$weight
    $rating_rank AS rating_rank,
    level_no,
    event_rank,
    counted,
    is_first,
    reason$more
FROM $contributions AS contribution
$only
WINDOW latest_first AS (PARTITION BY user_id ORDER BY rating IS NULL, t DESC, source_row DESC, event_id DESC)
