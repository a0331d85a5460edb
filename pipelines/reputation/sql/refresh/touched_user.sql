CREATE OR REPLACE TEMP TABLE touched_user AS
SELECT DISTINCT user_id
FROM recalled
WHERE user_hash IN (FROM touched)
