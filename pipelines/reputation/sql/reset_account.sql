-- The moment from which a user's events count again, where a suspension begins everything anew.
CREATE OR REPLACE TEMP VIEW reset_account AS
SELECT user_id, max(coalesce(to_t, 9223372036854775807)) AS to_t
FROM status_period
WHERE getvariable('status_rule') = 'reset'
GROUP BY user_id
