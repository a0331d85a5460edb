-- The periods [from_t, to_t) in which events earn nothing: all suspensions, unless the policy only hides the user.
CREATE OR REPLACE TEMP VIEW frozen_period AS
SELECT user_id, from_t, coalesce(to_t, 9223372036854775807) AS to_t
FROM status_period
WHERE getvariable('status_rule') IN ('freeze', 'reset')
