-- The events of the user who is explained: read once, where the steps would look for them again and again.
CREATE OR REPLACE TEMP TABLE explained_event AS
SELECT *
FROM events
WHERE user_id = getvariable('explained_user')
