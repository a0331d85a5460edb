-- An event with several emissions is readable if all of them are.
CREATE OR REPLACE TEMP VIEW readable AS
SELECT * REPLACE (bool_and(readable) OVER (PARTITION BY user_id, event_id) AS readable)
FROM emitted
