-- The time from which a user's events count, where a suspension resets the account.
CREATE OR REPLACE TEMP VIEW reset_account AS
SELECT user_id, max(coalesce(to_t, 9223372036854775807)) AS to_t
FROM status_period
WHERE getvariable('status_rule') = 'reset'
GROUP BY user_id
