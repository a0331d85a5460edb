-- Every event that happened before as_of, with its time as whole microseconds and its role in the policy.
CREATE OR REPLACE TEMP VIEW known_event AS
SELECT
    event.event_id,
    event.user_id,
    event.action_type,
    epoch_us(event.event_time) AS t,
    event.metadata,
    role.role
FROM $source AS event
LEFT JOIN role ON role.action_type = event.action_type
WHERE epoch_us(event.event_time) < getvariable('as_of')
$known
