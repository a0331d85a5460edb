-- The rows that the touched users had before, each as one value, with its place.
CREATE OR REPLACE TEMP TABLE stored AS
SELECT before.rowid AS place, before AS whole
FROM $name AS before
WHERE before.user_id IN (FROM touched_user)
