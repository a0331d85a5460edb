-- Every event that happened before as_of, with its time as whole microseconds and its role in the policy. The order of
-- a user's events is t, source_row, event_id everywhere: source_row is the number that the policy's order_by names, as the
-- source wrote it; events without one come before others of the same time.
CREATE OR REPLACE TEMP VIEW known_event AS
SELECT
    event.event_id,
    event.user_id,
    event.action_type,
    epoch_us(event.event_time) AS t,
    event.metadata,
    $source_row AS source_row,
    role.role
FROM $source AS event
LEFT JOIN role ON role.action_type = event.action_type
WHERE epoch_us(event.event_time) < getvariable('as_of')
$known
