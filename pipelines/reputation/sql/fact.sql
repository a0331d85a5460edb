-- The contributions without their event_ids, kept while the views are built from them.
CREATE OR REPLACE TEMP TABLE fact AS
SELECT user_id, action_type, t, utc_day(t) AS day, granted, rating, counted, is_first, reason
FROM contribution
